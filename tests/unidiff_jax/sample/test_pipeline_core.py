"""Sampling rows: given frames stay, examples are alone, guidance extrapolates."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from unidiff_jax.flow import FlowConfig
from unidiff_jax.frames import RowSize
from unidiff_jax.sample import guidance
from unidiff_jax.sample.guidance import Guidance
from unidiff_jax.sample.pipeline import sample_tokens
from unidiff_jax.text import END

SIZE = RowSize(24, 8, 5, 12, 3)
EXAMPLES = tiny.mixed_examples(5)


@pytest.fixture(scope="module")
def sample():
    model, _, state, _ = tiny.make_state()
    run = jax.jit(
        functools.partial(
            sample_tokens, graphdef=model.graphdef, flow_config=FlowConfig(), empty_text=(END,)
        ),
        static_argnames=("num_steps", "solver", "guidance"),
    )

    def sample(batch, *, seed=0, num_steps=2, **settings):
        batch = tiny.on_device(batch)
        return np.asarray(
            run(state.params, batch, jax.random.key(seed), num_steps=num_steps, **settings)
        )

    return sample


def test_given_frames_come_back_unchanged(sample):
    batch = tiny.packed(EXAMPLES, SIZE)
    given = np.take_along_axis(batch.given, batch.frame, 1) == 1
    real = batch.frame > 0
    assert given.any() and (real & ~given).any()
    for settings in ({}, {"solver": "heun"}, {"guidance": Guidance(3.0)}):
        made = sample(batch, **settings)
        np.testing.assert_array_equal(made[given], batch.tokens[given])
        assert np.isfinite(made).all()
        assert np.abs(made - batch.tokens)[real & ~given].max(-1).min() > 1e-3


def test_what_stands_where_a_frame_is_made_does_not_matter(sample):
    batch = tiny.packed(EXAMPLES, SIZE)
    given = np.take_along_axis(batch.given, batch.frame, 1) == 1
    other = dataclasses.replace(
        batch, tokens=np.where(given[..., None], batch.tokens, np.float32(9.0))
    )
    np.testing.assert_array_equal(sample(batch), sample(other))


def test_an_example_does_not_depend_on_the_rows_around_it(sample):
    batch = tiny.packed(EXAMPLES, SIZE)
    packed = tiny.by_token(batch, sample(batch))
    for others in (EXAMPLES[::-1], [EXAMPLES[0], *EXAMPLES[3:]]):
        rows = tiny.packed(others, SIZE)
        made = tiny.by_token(rows, sample(rows))
        tiny.assert_same_tokens(made, {key: packed[key] for key in made}, atol=1e-5)
    alone = tiny.alone(EXAMPLES, SIZE)
    tiny.assert_same_tokens(tiny.by_token(alone, sample(alone)), packed, atol=1e-5)


def test_seeds_differ_and_repeat(sample):
    batch = tiny.packed(EXAMPLES, SIZE)
    np.testing.assert_array_equal(sample(batch), sample(batch))
    assert np.abs(sample(batch) - sample(batch, seed=1)).max() > 0.1


def test_guidance_is_linear_in_its_scale_and_one_is_none(sample):
    batch = tiny.packed(EXAMPLES, SIZE)
    none = sample(batch, num_steps=1)
    np.testing.assert_allclose(
        sample(batch, num_steps=1, guidance=Guidance(1.0 + 1e-7)), none, atol=1e-5
    )
    two, three = (sample(batch, num_steps=1, guidance=Guidance(scale)) for scale in (2.0, 3.0))
    assert np.abs(two - none).max() > 1e-2
    # one Euler step is linear in the velocity: each unit of scale moves as far as the last
    np.testing.assert_allclose(three - two, two - none, atol=1e-4)


@pytest.mark.parametrize(
    ("scales", "passes", "expected"),
    [
        (Guidance(), 1, lambda full, visual, none: full),
        (Guidance(3.0), 2, lambda full, visual, none: visual + 3 * (full - visual)),
        (
            Guidance(3.0, 2.0),
            3,
            lambda full, visual, none: none + 2 * (visual - none) + 3 * (full - visual),
        ),
        (
            Guidance(1.0, 2.0),
            3,
            lambda full, visual, none: none + 2 * (visual - none) + full - visual,
        ),
    ],
)
def test_combine(scales, passes, expected):
    parts = np.random.default_rng(0).standard_normal((3, 2, 4, 5)).astype(np.float32)
    assert scales.passes == passes
    made = scales.combine(jnp.concatenate(parts[:passes]))
    np.testing.assert_allclose(made, expected(*parts), atol=1e-5)


def test_the_passes_are_without_words_and_then_without_channels_too():
    batch = tiny.on_device(tiny.packed([tiny.guided_example(1), tiny.guided_example(2)], SIZE))
    rows = Guidance(3.0, 2.0).stack(batch, (END,))
    full, visual, none = (jax.tree.map(lambda x, i=i: x[i : i + 1], rows) for i in range(3))
    jax.tree.map(np.testing.assert_array_equal, full, batch)
    assert batch.text_asset.any() and not visual.text_asset.any()
    np.testing.assert_array_equal(visual.text_ids, guidance.drop_text(batch, (END,)).text_ids)
    np.testing.assert_array_equal(visual.visual, batch.visual)
    np.testing.assert_array_equal(none.text_ids, visual.text_ids)
    assert not none.visual.any() and not none.mask.any()
    with pytest.raises(ValueError, match="channels"):
        Guidance(1.0, 2.0).stack(tiny.on_device(tiny.packed(EXAMPLES, SIZE)), (END,))


@pytest.mark.parametrize("empty_text", [(END,), (14, 15)], ids=["t5", "clip"])
def test_dropped_text_is_that_of_a_dropped_caption(empty_text):
    batch = tiny.packed(EXAMPLES, SIZE)
    empty = [dict(e, text_ids=np.asarray([END], np.int32)) for e in EXAMPLES]
    expected = tiny.by_token(tiny.packed(empty, SIZE), tiny.packed(empty, SIZE).tokens)
    dropped = guidance.drop_text(tiny.on_device(batch), empty_text)
    for row in range(len(batch.tokens)):
        used = sorted(set(batch.segment[row].tolist()) - {0})
        segments = np.asarray(dropped.text_segment[row])
        assert segments[segments > 0].tolist() == np.repeat(used, len(empty_text)).tolist()
        ids, position = (np.asarray(x[row]) for x in (dropped.text_ids, dropped.text_position))
        assert ids[segments > 0].tolist() == [*empty_text] * len(used)
        assert position[segments > 0].tolist() == [*range(len(empty_text))] * len(used)
    assert expected.keys() == tiny.by_token(dropped, dropped.tokens).keys()


def test_text_that_cannot_be_dropped():
    narrow = tiny.packed([tiny.example(1)], RowSize(24, 8, 5, 3))
    with pytest.raises(ValueError, match="rows hold 4 examples and only 3 text tokens"):
        guidance.drop_text(tiny.on_device(narrow), (END,))
    states = dataclasses.replace(
        tiny.packed(EXAMPLES, SIZE), text_ids=None, text_states=np.zeros((2, 12, 8), np.float32)
    )
    with pytest.raises(ValueError, match="text_states"):
        guidance.drop_text(states, (END,))
