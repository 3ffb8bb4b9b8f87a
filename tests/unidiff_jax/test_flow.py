"""Path, noise levels, loss, and whose randomness is whose."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny
from hypothesis import given
from hypothesis import strategies as st

from unidiff_jax import flow
from unidiff_jax.flow import FlowConfig
from unidiff_jax.frames import RowSize
from unidiff_jax.types import Noised

KEY = jax.random.key(5)


def normal(seed, shape=(2, 3, 4)):
    return jax.random.normal(jax.random.key(seed), shape)


# ------------------------------------------------------------------------------------- conversions


@given(st.floats(0.06, 0.94))
def test_predictions_agree(sigma):
    data, noise = normal(0), normal(1)
    noisy = sigma * noise + (1 - sigma) * data
    exact = {"v": noise - data, "x": data, "eps": noise}
    for name, output in exact.items():
        config = FlowConfig(prediction=name)
        np.testing.assert_allclose(flow.to_data(output, noisy, sigma, config), data, atol=2e-5)
        velocity = flow.to_velocity(output, noisy, sigma, config)
        np.testing.assert_allclose(velocity, noise - data, atol=1e-4)


def test_ends_of_the_path_are_finite():
    for sigma in (0.0, 1.0):
        for prediction in flow.PREDICTIONS:
            config = FlowConfig(prediction=prediction)
            for convert in (flow.to_data, flow.to_velocity):
                assert np.isfinite(convert(normal(0), normal(1), sigma, config)).all()


def scored(*, output, sigma, config):
    """Token loss of frames at the levels `sigma`, and what it was computed from."""
    batch = tiny.on_device(tiny.packed([tiny.example(1, plan="independent")]))
    noise = flow.draw_noise(KEY, batch)
    table = jnp.zeros(batch.segment.shape).at[:, 1:3].set(jnp.asarray(sigma))
    noised = flow.add_noise(batch, noise=noise, sigma=table, config=config)
    loss = flow.token_loss(output, batch=batch, noised=noised, noise=noise, config=config)
    return batch, noise, noised, loss


@pytest.mark.parametrize("prediction", flow.PREDICTIONS)
@pytest.mark.parametrize("loss", flow.PREDICTIONS)
@pytest.mark.parametrize("sigma", [(0.06, 0.5), (0.3, 0.94)])
def test_loss_space_equals_the_error_after_conversion(prediction, loss, sigma):
    config = FlowConfig(prediction=prediction, loss=loss)
    output = normal(3, (1, 24, tiny.TOKEN_DIM))
    batch, noise, noised, got = scored(output=output, sigma=sigma, config=config)
    level = noised.token_sigma[..., None]
    data = flow.to_data(output, noised.tokens, level, config)
    velocity = flow.to_velocity(output, noised.tokens, level, config)
    converted = {"v": velocity, "x": data, "eps": data + velocity}[loss]
    target = {"v": noise - batch.tokens, "x": batch.tokens, "eps": noise}[loss]
    expected = np.mean((converted - target) ** 2, axis=-1)
    real = np.asarray(batch.frame > 0)
    np.testing.assert_allclose(got[real], expected[real], rtol=1e-3)


@pytest.mark.parametrize("prediction", flow.PREDICTIONS)
@pytest.mark.parametrize("loss", flow.PREDICTIONS)
@pytest.mark.parametrize("sigma", [(0.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
def test_loss_is_finite_at_the_ends(prediction, loss, sigma):
    config = FlowConfig(prediction=prediction, loss=loss, min_sigma=0.2)

    def total(output):
        return scored(output=output, sigma=sigma, config=config)[-1].sum()

    value, gradient = jax.value_and_grad(total)(normal(3, (1, 24, tiny.TOKEN_DIM)))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # the weight of one token is bounded by 1 / min_sigma^2 a space
    assert value < 24 * 20 * (1 / 0.2) ** 4


def test_path_is_linear_and_clean_frames_stay_clean():
    batch = tiny.on_device(tiny.packed(tiny.mixed_examples()))
    noise = flow.draw_noise(KEY, batch)
    sigma = flow.draw_sigma(KEY, batch, FlowConfig())
    noised = flow.add_noise(batch, noise=noise, sigma=sigma, config=FlowConfig())
    level = np.asarray(noised.token_sigma)[..., None]
    expected = level * np.asarray(noise) + (1 - level) * np.asarray(batch.tokens)
    np.testing.assert_allclose(noised.tokens, expected, atol=1e-6)
    given_tokens = np.take_along_axis(np.asarray(batch.given), np.asarray(batch.frame), 1) == 1
    assert given_tokens.any()
    np.testing.assert_array_equal(noised.tokens[given_tokens], batch.tokens[given_tokens])
    np.testing.assert_array_equal(np.asarray(sigma)[np.asarray(batch.given) == 1], 0)
    assert isinstance(noised, Noised) and noised.timed.all()


def test_conditions_may_go_without_their_level():
    batch = tiny.on_device(tiny.packed(tiny.mixed_examples()))
    noise, sigma = flow.draw_noise(KEY, batch), flow.draw_sigma(KEY, batch, FlowConfig())
    config = FlowConfig(timed_conditions=False)
    noised = flow.add_noise(batch, noise=noise, sigma=sigma, config=config)
    np.testing.assert_array_equal(noised.timed, batch.given == 0)
    assert not noised.timed.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "y"}, "flow.prediction='y' is unknown; one of v, x, eps"),
        ({"loss": "y"}, "flow.loss='y' is unknown"),
        ({"time_sampler": "beta"}, "flow.time_sampler='beta' is unknown; one of uniform"),
        ({"min_sigma": 0.0}, r"flow.min_sigma=0.0 must lie in \(0, 1\)"),
    ],
)
def test_settings_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        FlowConfig(**change)


# -------------------------------------------------------------------------------------- randomness


def levels(config, *, shift=1.0, count=3000):
    """Levels of the generated frame of `count` examples."""
    batch = tiny.packed([tiny.example(1, shift=shift)], RowSize(8, 3, 2, 3))
    batch = jax.tree.map(lambda leaf: np.repeat(leaf, count, 0), batch)
    ids = np.stack([np.zeros(count, np.int32), np.arange(1, count + 1, dtype=np.int32)], axis=1)
    batch = tiny.on_device(dataclasses.replace(batch, example_id=ids))
    return np.asarray(flow.draw_sigma(KEY, batch, config))[:, 2]


def test_uniform_levels():
    sample = levels(FlowConfig(time_sampler="uniform"))
    assert scipy.stats.kstest(sample, "uniform").pvalue > 1e-3


def test_logit_normal_levels():
    sample = levels(FlowConfig(time_mean=0.5, time_std=1.5)).astype(np.float64)
    logits = np.log(sample) - np.log1p(-sample)
    assert scipy.stats.kstest(logits, scipy.stats.norm(0.5, 1.5).cdf).pvalue > 1e-3


def test_shift_moves_levels_towards_noise():
    config = FlowConfig(time_sampler="uniform")
    plain, shifted = levels(config, count=50), levels(config, shift=3.0, count=50)
    np.testing.assert_allclose(shifted, 3 * plain / (1 + 2 * plain), rtol=1e-5)
    assert (shifted > plain).all()
    for sigma in (0.0, 1.0):
        assert flow.shift_sigma(jnp.asarray(sigma), 3.0) == sigma


def test_noise_is_standard_normal_and_unlike_everywhere():
    batch = tiny.on_device(tiny.packed(tiny.mixed_examples(12)))
    tokens = np.stack(list(tiny.by_token(batch, flow.draw_noise(KEY, batch)).values()))
    assert scipy.stats.kstest(tokens.ravel(), "norm").pvalue > 1e-3
    assert len(np.unique(tokens)) == tokens.size


def draws(batch, key=KEY):
    """Noise and level of every token, by (example, frame, y, x)."""
    batch = tiny.on_device(batch)
    noise = flow.draw_noise(key, batch)
    sigma = flow.draw_sigma(key, batch, FlowConfig())
    noised = flow.add_noise(batch, noise=noise, sigma=sigma, config=FlowConfig())
    both = np.concatenate([noise, noised.token_sigma[..., None]], axis=-1)
    return tiny.by_token(batch, both)


def test_randomness_belongs_to_the_example_not_to_its_place():
    examples = tiny.mixed_examples()
    reference = draws(tiny.packed(examples))
    tiny.assert_same_tokens(reference, draws(tiny.alone(examples)))
    tiny.assert_same_tokens(reference, draws(tiny.packed(examples[::-1])))
    larger_rows = RowSize(tokens=64, frames=16, segments=9, text=32)
    tiny.assert_same_tokens(reference, draws(tiny.packed(examples, larger_rows)))


def test_randomness_changes_with_step_and_example():
    examples = tiny.mixed_examples()
    reference = draws(tiny.packed(examples))
    step = draws(tiny.packed(examples), key=jax.random.fold_in(KEY, 1))
    for key, values in reference.items():
        assert not np.isclose(values[:-1], step[key][:-1]).any()
    # the same place in two examples
    assert not np.isclose(reference[1, 0, 0, 0][:-1], reference[2, 0, 0, 0][:-1]).any()
    assert reference[1, 1, 0, 0][-1] != reference[3, 1, 0, 0][-1]


def test_frames_of_a_time_group_share_a_level():
    plans = {
        plan: draws(tiny.packed([tiny.example(1, plan=plan)]))
        for plan in ("shared", "independent", "clean")
    }
    first, second = (1, 0, 0, 0), (1, 1, 0, 0)
    assert plans["shared"][first][-1] == plans["shared"][second][-1] > 0
    assert plans["independent"][first][-1] != plans["independent"][second][-1]
    assert plans["clean"][first][-1] == 0 < plans["clean"][second][-1]
    for plan in plans.values():  # one level inside a frame
        assert len({float(v[-1]) for k, v in plan.items() if k[1] == 1}) == 1


# -------------------------------------------------------------------------------------- posteriors


def posteriors(std=0.5):
    return [
        tiny.example(i + 1, task, sides=sides, std=std)
        for i, (task, sides) in enumerate(
            [("depth", (2, 2)), ("edit", (2, 3)), ("segment", (1, 2))]
        )
    ]


def test_latents_are_drawn_from_their_posteriors():
    batch = tiny.on_device(tiny.packed([tiny.example(1, sides=(3, 4), std=0.5)]))
    drawn = flow.draw_latents(KEY, batch)
    assert drawn.token_std is None
    real = np.asarray(batch.frame) > 0
    moved = (np.asarray(drawn.tokens) - np.asarray(batch.tokens))[real] / 0.5
    assert scipy.stats.kstest(moved.ravel(), "norm").pvalue > 1e-3
    np.testing.assert_array_equal(np.asarray(drawn.tokens)[~real], 0)
    noise = np.asarray(flow.draw_noise(KEY, batch))[real]
    assert abs(np.corrcoef(moved.ravel(), noise.ravel())[0, 1]) < 0.2  # another stream


def test_a_posterior_without_width_is_its_mean():
    batch = tiny.on_device(tiny.packed(posteriors(std=0.0)))
    np.testing.assert_array_equal(flow.draw_latents(KEY, batch).tokens, batch.tokens)
    plain = tiny.on_device(tiny.packed(tiny.mixed_examples()))
    assert flow.draw_latents(KEY, plain) is plain


def test_posterior_draws_belong_to_the_example():
    def draws(batch):
        batch = tiny.on_device(batch)
        return tiny.by_token(batch, flow.draw_latents(KEY, batch).tokens)

    reference = draws(tiny.packed(posteriors()))
    tiny.assert_same_tokens(reference, draws(tiny.alone(posteriors())))
    tiny.assert_same_tokens(reference, draws(tiny.packed(posteriors()[::-1])))
