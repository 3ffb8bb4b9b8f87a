r"""Flow matching with one noise level a frame.

The path mixes data x and noise n linearly (rectified flow; Liu 2022, Lipman 2022):

    x_sigma = sigma * n + (1 - sigma) * x,        sigma = 1 is noise, sigma = 0 is data      (1)
    v = d x_sigma / d sigma = n - x                                                          (2)

A network may predict the velocity v, the data x or the noise n; each gives the others. Systems
that predict noise in their papers (UNIMO-G) can be compared by `prediction="eps", loss="eps"`:

    x = x_sigma - sigma * v                                                                  (3)
    v = (x_sigma - x) / sigma                                                                (4)
    v = (n - x_sigma) / (1 - sigma)                                                          (5)

Sigma broadcasts against tokens, so that a level a frame, a level a token and one shared level are
the same code. Papers that count t from noise to data are read with t = 1 - sigma.

All randomness is keyed by (step, example, place inside the example), never by the place in the
batch: packed and unpacked batches, and any number of processes, draw the same numbers.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unidiff_jax.config import ConfigError
from unidiff_jax.frames import MAX_PATCHES
from unidiff_jax.types import AnyArray, Batch, Noised, take_rows

PREDICTIONS = ("v", "x", "eps")
SAMPLERS = ("uniform", "logit_normal")

_SMALLEST_STEP = 1e-3
"""Equation (4) in sampling divides by at least this; a bound above a solver's last level would
leave noise in the result."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """Settings of path and loss.

    Attributes:
      prediction: what the network's output means, one of `PREDICTIONS`.
      loss: space in which the squared error is taken, one of `PREDICTIONS`.
      min_sigma: bounds the weight of the loss when spaces differ: it is computed at
        max(sigma, min_sigma) and max(1 - sigma, min_sigma). Noise prediction is also sampled with
        the second bound, because at sigma = 1 it says nothing of the data.
      time_sampler: `uniform`, or `logit_normal`: sigmoid(mean + std * N(0, 1)) (SD3 section 3.1).
      time_mean, time_std: parameters of the logit-normal.
      timed_conditions: whether given frames carry the embedding of noise level 0, as OneDiffusion's
        do, or none, as UniReal's.
      map_weight: of the error of attention maps in the loss (`models.dit`); 0 computes none.
    """

    prediction: str = "v"
    loss: str = "v"
    min_sigma: float = 0.05
    time_sampler: str = "logit_normal"
    time_mean: float = 0.0
    time_std: float = 1.0
    timed_conditions: bool = True
    map_weight: float = 0.0

    def __post_init__(self):
        for key, value, choices in (
            ("prediction", self.prediction, PREDICTIONS),
            ("loss", self.loss, PREDICTIONS),
            ("time_sampler", self.time_sampler, SAMPLERS),
        ):
            if value not in choices:
                raise ConfigError(f"flow.{key}={value!r} is unknown; one of {', '.join(choices)}")
        if not 0 < self.min_sigma < 1:
            raise ConfigError(f"flow.min_sigma={self.min_sigma} must lie in (0, 1), say 0.05")
        if self.map_weight < 0:
            raise ConfigError(f"flow.map_weight={self.map_weight} must not be negative, say 0.1")


def shift_sigma(sigma: Float[AnyArray, "..."], shift: Float[AnyArray, "..."] | float):
    """Moves levels towards noise for large pictures: s*sigma / (1 + (s - 1)*sigma) (SD3 eq. 23)."""
    return shift * sigma / (1.0 + (shift - 1.0) * sigma)


# --------------------------------------------------------------------------------------- randomness


_SIGMA, _NOISE, _POSTERIOR = range(3)
"""Independent streams of random numbers under one key."""


_fold_rows = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (None, 0))  # key, (b, n)
_fold_each = jax.vmap(jax.vmap(jax.random.fold_in))  # (b, n), (b, n)


def draw_noise(key: jax.Array, batch: Batch) -> Float[Array, "b t p"]:
    """Standard normal noise, keyed by (key, example, position of the token in the example)."""
    return _draw_tokens(jax.random.fold_in(key, _NOISE), batch)


def draw_latents(key: jax.Array, batch: Batch) -> Batch:
    """Draws the clean latents where the batch holds posteriors, keyed as the noise is.

    OneDiffusion conditions on posterior samples too, so given frames are drawn as well.
    """
    if batch.token_std is None:
        return batch
    drawn = _draw_tokens(jax.random.fold_in(key, _POSTERIOR), batch)
    return dataclasses.replace(batch, tokens=batch.tokens + batch.token_std * drawn, token_std=None)


def _draw_tokens(key: jax.Array, batch: Batch) -> Float[Array, "b t p"]:
    example = take_rows(batch.example_id, batch.token_segment)
    frame, y, x = (batch.position[..., i] for i in range(3))
    place = (frame * MAX_PATCHES + y) * MAX_PATCHES + x
    keys = _fold_each(_fold_rows(key, example), place)
    channels = batch.tokens.shape[-1]
    return jax.vmap(jax.vmap(lambda k: jax.random.normal(k, (channels,))))(keys)


def draw_sigma(key: jax.Array, batch: Batch, config: FlowConfig) -> Float[Array, "b f"]:
    """A noise level for each frame, keyed by (key, example, time group); given frames get 0."""
    example = take_rows(batch.example_id, batch.segment)
    keys = _fold_each(_fold_rows(jax.random.fold_in(key, _SIGMA), example), batch.time_group)
    if config.time_sampler == "uniform":
        sigma = jax.vmap(jax.vmap(jax.random.uniform))(keys)
    else:
        normal = jax.vmap(jax.vmap(jax.random.normal))(keys)
        sigma = jax.nn.sigmoid(config.time_mean + config.time_std * normal)
    return jnp.where(batch.given == 1, 0.0, shift_sigma(sigma, batch.shift))


# --------------------------------------------------------------------------------------------- path


def add_noise(
    batch: Batch,
    *,
    noise: Float[Array, "b t p"],
    sigma: Float[Array, "b f"],
    config: FlowConfig,
) -> Noised:
    """Equation (1) with one level a frame."""
    level = take_rows(sigma, batch.frame)[..., None]
    return at_levels(
        batch, tokens=level * noise + (1.0 - level) * batch.tokens, sigma=sigma, config=config
    )


def at_levels(
    batch: Batch,
    *,
    tokens: Float[Array, "b t p"],
    sigma: Float[Array, "b f"],
    config: FlowConfig,
) -> Noised:
    """Noisy tokens with their level a frame, and which frames know theirs."""
    timed = jnp.ones(sigma.shape, bool) if config.timed_conditions else batch.given == 0
    return Noised(tokens=tokens, sigma=sigma, timed=timed, sigma_index=batch.frame)


def to_data(output, noisy, sigma, config: FlowConfig):
    """Data estimate from the network's output, equations (3) to (5); `sigma` broadcasts."""
    if config.prediction == "x":
        return output
    if config.prediction == "v":
        return noisy - sigma * output
    return (noisy - sigma * output) / jnp.maximum(1.0 - sigma, config.min_sigma)


def to_velocity(output, noisy, sigma, config: FlowConfig):
    """Velocity estimate from the network's output, equations (3) to (5); `sigma` broadcasts."""
    if config.prediction == "v":
        return output
    if config.prediction == "x":
        return (noisy - output) / jnp.maximum(sigma, _SMALLEST_STEP)
    return (output - noisy) / jnp.maximum(1.0 - sigma, config.min_sigma)


# --------------------------------------------------------------------------------------------- loss


def token_loss(
    output: Float[Array, "b t p"],
    *,
    batch: Batch,
    noised: Noised,
    noise: Float[Array, "b t p"],
    config: FlowConfig,
) -> Float[Array, "b t"]:
    """Mean squared error of each token, in the space `config.loss`.

    The prediction is compared in its own space and the error weighted by the exact factor between
    the two spaces, clamped by `min_sigma`: for prediction x and loss v the factor is 1 / sigma**2.
    Nothing is divided by a zero sigma, so that clean frames, which the loss mask leaves out, give
    no NaN.
    """
    sigma = noised.token_sigma
    data = batch.tokens
    target = {"v": noise - data, "x": data, "eps": noise}[config.prediction]
    error = jnp.mean(jnp.square(output.astype(jnp.float32) - target), axis=-1)
    clean = jnp.maximum(1.0 - sigma, config.min_sigma)
    dirty = jnp.maximum(sigma, config.min_sigma)
    # error_v = error_x / sigma^2 = error_eps / (1 - sigma)^2
    to_v = {"v": 1.0, "x": dirty**-2, "eps": clean**-2}[config.prediction]
    from_v = {"v": 1.0, "x": dirty**2, "eps": clean**2}[config.loss]
    return error * to_v * from_v
