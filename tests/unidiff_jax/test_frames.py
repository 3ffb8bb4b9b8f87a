"""Patches, examples and rows."""

import dataclasses

import grain
import jax
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.packing import pack
from unidiff_jax.frames import (
    CODECS,
    MAX_PATCHES,
    RowSize,
    finalize_row,
    make_example,
    pack_rows,
    patchify,
    unpatchify,
)
from unidiff_jax.tasks import TASKS, get_task
from unidiff_jax.text import MAX_NAMES

SIZE = RowSize(tokens=24, frames=8, segments=5, text=12)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
def test_patchify_round_trip(rows, columns, patch, channels):
    shape = (rows * patch, columns * patch, channels)
    latents = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    tokens = patchify(latents, patch=patch)
    assert tokens.shape == (rows * columns, patch * patch * channels)
    restored = unpatchify(tokens, patch=patch, grid=(rows, columns))
    np.testing.assert_array_equal(restored, latents)


def test_token_order_is_rows_first_and_the_channel_is_fastest():
    y, x, c = np.meshgrid(np.arange(4), np.arange(6), np.arange(3), indexing="ij")
    tokens = patchify((100 * y + 10 * x + c).astype(np.float32), patch=2)
    for number, token in enumerate(tokens):
        row, column = divmod(number, 3)
        expected = [
            100 * (2 * row + dy) + 10 * (2 * column + dx) + c
            for dy in range(2)
            for dx in range(2)
            for c in range(3)
        ]
        np.testing.assert_array_equal(token, expected)


def test_patchify_takes_device_arrays():
    latents = np.arange(4 * 4 * 3, dtype=np.float32).reshape(4, 4, 3)
    tokens = patchify(jax.numpy.asarray(latents), patch=2)
    np.testing.assert_array_equal(tokens, patchify(latents, patch=2))


def test_patches_that_do_not_divide():
    with pytest.raises(ValueError, match="5x4 do not divide into patches of 2"):
        patchify(np.zeros((5, 4, 3), np.float32), patch=2)


@given(st.integers(0, 2**32 - 1))
def test_codecs_read_what_they_draw(seed):
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(CODECS["rgb"].read(CODECS["rgb"].draw(picture)), picture)
    mask = rng.random((4, 5)) > 0.5
    np.testing.assert_array_equal(CODECS["mask"].read(CODECS["mask"].draw(mask)), mask)
    near = rng.random((4, 5), dtype=np.float32)
    np.testing.assert_allclose(CODECS["depth"].read(CODECS["depth"].draw(near)), near, atol=1e-6)
    for codec, value in (("rgb", picture), ("mask", mask), ("depth", near)):
        drawn = CODECS[codec].draw(value)
        assert drawn.shape == (4, 5, 3) and drawn.min() >= -1 and drawn.max() <= 1


@pytest.mark.parametrize(
    ("plan", "given", "groups", "scored"),
    [
        # depth: frame 0 (image) is given and frame 1 (depth) is generated
        ("clean", [1, 0], [1, 0], [0, 1]),
        ("independent", [0, 0], [1, 2], [1, 1]),
        ("shared", [0, 0], [0, 0], [1, 1]),
    ],
)
def test_noise_plans(plan, given, groups, scored):
    example = tiny.example(7, "depth", sides=(2, 3), plan=plan, shift=2.0)
    kind, role, name, is_given, group = example["frame_table"].T
    assert list(is_given) == given
    assert list(group) == groups
    assert list(kind) == [1, 1] and list(role) == [0, 3]
    assert list(name) == [1, MAX_NAMES + 1]  # IMG1, RES1
    np.testing.assert_array_equal(example["loss_mask"], np.repeat(scored, 6))
    np.testing.assert_array_equal(example["frame_shift"], [2, 2])
    np.testing.assert_array_equal(example["segment_table"], [[7, TASKS["depth"].id]])


def test_token_index_counts_frames_rows_and_columns():
    index = tiny.example(1, "depth", sides=(2, 3))["token_index"]
    expected = [(f, f, y, x) for f in range(2) for y in range(2) for x in range(3)]
    np.testing.assert_array_equal(index, expected)


def test_finalize_row_numbers_frames_and_segments_from_one():
    examples = [
        tiny.example(11, "depth", sides=(2, 2), text=3),
        tiny.example(12, "text_to_image", sides=(1, 2), text=2),
        tiny.example(13, "edit", sides=(2, 1), text=4),
    ]
    row = jax.tree.map(lambda leaf: leaf[0], tiny.packed(examples, SIZE))
    np.testing.assert_array_equal(row.segment, [0, 1, 1, 2, 3, 3, 0, 0])
    np.testing.assert_array_equal(row.example_id, [0, 11, 12, 13, 0])
    np.testing.assert_array_equal(row.task, [0, 2, 1, 5, 0])
    np.testing.assert_array_equal(
        row.frame, [1] * 4 + [2] * 4 + [3] * 2 + [4] * 2 + [5] * 2 + [0] * 10
    )
    np.testing.assert_array_equal(row.text_segment, [1] * 3 + [2] * 2 + [3] * 4 + [0] * 3)
    np.testing.assert_array_equal(row.text_position, [0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 0, 0])
    np.testing.assert_array_equal(row.given, [0, 1, 0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(row.shift, np.ones(8))
    # positions start again in every example
    np.testing.assert_array_equal(row.position[8:12], [(0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 1, 0)])
    start = 0
    for example in examples:
        tokens = example["tokens"]
        np.testing.assert_array_equal(row.tokens[start : start + len(tokens)], tokens)
        start += len(tokens)
    # row 0 of the tables and everything behind the examples is padding
    for table in (row.kind, row.role, row.name, row.given, row.time_group):
        assert not table[0] and not table[6:].any()
    assert not row.loss_mask[start:].any() and not row.tokens[start:].any()


def test_a_full_row_has_no_padding_behind_it():
    size = RowSize(tokens=8, frames=3, segments=2, text=3)
    row = jax.tree.map(lambda leaf: leaf[0], tiny.packed([tiny.example(1)], size))
    np.testing.assert_array_equal(row.frame, [1] * 4 + [2] * 4)
    np.testing.assert_array_equal(row.segment, [0, 1, 1])
    np.testing.assert_array_equal(row.text_position, [0, 1, 2])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(2, 5)), min_size=1))
def test_packed_rows_hold_every_example_once(drawn):
    names = list(TASKS)[:6]
    examples = [
        tiny.example(i + 1, names[task], sides=(1, side), text=text)
        for i, (task, side, text) in enumerate(drawn)
    ]
    batch, placed = pack_rows(examples, size=SIZE)
    for example, place in zip(examples, placed, strict=True):
        row = jax.tree.map(lambda leaf, place=place: leaf[place.row], batch)
        assert row.example_id[place.segment] == example["segment_table"][0, 0]
        own = row.segment[row.frame] == place.segment
        np.testing.assert_array_equal(row.tokens[own], example["tokens"])
        np.testing.assert_array_equal(row.position[own], example["token_index"][:, 1:])
        np.testing.assert_array_equal(
            row.text_ids[row.text_segment == place.segment], example["text_ids"]
        )
    assert (np.asarray(batch.example_id) > 0).sum() == len(examples)


def test_rows_are_those_of_the_training_stream():
    """Grain's packer and `pack_rows` put the same examples into the same rows."""
    examples = tiny.mixed_examples(12)
    stream = grain.MapDataset.source(examples).to_iter_dataset()
    rows = list(pack(stream, size=SIZE, num_bins=12))
    batch = tiny.packed(examples, SIZE)
    assert len(rows) == len(batch.tokens)
    for field in dataclasses.fields(batch):
        expected = getattr(batch, field.name)
        for number, row in enumerate(rows):
            got = getattr(row, field.name)
            if expected is None:
                assert got is None
                continue
            assert got.dtype == expected.dtype, field.name
            np.testing.assert_array_equal(got, expected[number], err_msg=field.name)


def test_finalize_row_of_an_empty_row():
    zeros = {
        key: np.zeros((n, *tiny.example(1)[key].shape[1:]), tiny.example(1)[key].dtype)
        for key, n in SIZE.lengths().items()
    }
    ids = {f"{key}_segment_ids": np.zeros(n, np.int32) for key, n in SIZE.lengths().items()}
    row = finalize_row(zeros | ids)
    assert not any(
        np.any(leaf) for leaf in (row.frame, row.segment, row.loss_mask, row.text_segment)
    )
    np.testing.assert_array_equal(row.shift, np.ones(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plan": "noisy"}, "unknown noise plan 'noisy'; plans are: clean, independent, shared"),
        ({"latents": []}, "task 'depth' has 2 frames, got 0"),
        ({"text_ids": []}, "at least one text token"),
        ({"latents": [np.zeros((2, 2 * MAX_PATCHES + 2, 3), np.float32)] * 2}, "1025 patches"),
    ],
)
def test_examples_that_cannot_be(change, message):
    good = {"latents": [np.zeros((4, 4, 3), np.float32)] * 2, "text_ids": [1]}
    with pytest.raises(ValueError, match=message):
        make_example(get_task("depth"), example_id=1, patch=2, **(good | change))


def test_an_example_larger_than_a_row():
    with pytest.raises(ValueError, match="needs 32 tokens, a row holds 24"):
        tiny.packed([tiny.example(1, sides=(4, 4))], SIZE)


def test_a_task_that_repeats_makes_the_first_round_and_gives_the_others():
    task = get_task("multiview")
    latents = [np.full((4, 4, 3), n, np.float32) for n in range(6)]  # three views, three cameras

    def table(plan):
        example = make_example(
            task, latents=latents, text_ids=[1], example_id=1, patch=2, plan=plan
        )
        return example["frame_table"].T

    kind, _, _, given_frames, group = table("clean")
    assert list(kind) == [1, 2] * 3
    assert list(given_frames) == [0, 1, 1, 1, 1, 1]
    assert len(set(group[given_frames == 0])) == 1
    assert not table("independent")[3].any()
    assert list(table("independent")[4]) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("task", "count", "message"),
    [
        ("multiview", 3, "task 'multiview' has 2 frames and 2 more any number of times, got 3"),
        ("multiview", 0, "any number of times, got 0"),
        ("customize", 1, "has 2 frames and 1 more"),
        ("depth", 4, "task 'depth' has 2 frames, got 4"),
    ],
)
def test_wrong_numbers_of_frames(task, count, message):
    with pytest.raises(ValueError, match=message):
        get_task(task).sequence(count)


def test_posteriors_lie_beside_their_means():
    plain, spread = tiny.example(1), tiny.example(1, std=0.5)
    assert tiny.packed([plain]).token_std is None
    batch = tiny.packed([spread, tiny.example(2, std=0.25)])
    np.testing.assert_array_equal(batch.tokens, tiny.packed([plain, tiny.example(2)]).tokens)
    real = batch.frame > 0
    spreads = tiny.by_token(batch, batch.token_std)
    assert {key[0]: set(value) for key, value in spreads.items()} == {1: {0.5}, 2: {0.25}}
    assert not batch.token_std[~real].any()
