"""Optimizer and schedule from the config, by optax."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int

from unidiff_jax.config import ConfigError

OPTIMIZERS = ("adamw", "muon")
MOMENTS = ("float32", "bfloat16")
MEMORIES = ("device", "host")
SCHEDULES = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Update rule and schedule.

    Attributes:
      name: one of `OPTIMIZERS`. Muon (Jordan 2024; arXiv:2502.16982) makes the momentum of matrices
        between hidden states orthogonal, with AdamW's size of update; the rest has AdamW with
        Nesterov momentum.
      learning_rate: peak.
      warmup_steps: linear from 0 to the peak.
      schedule: what follows until the last step, one of `SCHEDULES`.
      final_fraction: the last step's rate over the peak.
      b1, b2, eps: of Adam.
      weight_decay: on matrices only (of Muon, on those that it turns).
      clip_norm: bound of the gradient's global norm.
      moments: type that moments are kept in, see `kept_in_bfloat16`.
      memory: where they lie between steps, `device` or `host`.
      ema_decay: of the averaged parameters; the first steps use (1 + n) / (10 + n) if smaller.
    """

    learning_rate: float
    warmup_steps: int
    name: str = "adamw"
    schedule: str = "constant"
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    moments: str = "float32"
    memory: str = "device"
    ema_decay: float = 0.9999

    def __post_init__(self):
        known = {
            "name": OPTIMIZERS,
            "schedule": SCHEDULES,
            "moments": MOMENTS,
            "memory": MEMORIES,
        }
        for name, values in known.items():
            if (value := getattr(self, name)) not in values:
                raise ConfigError(f"optim.{name}={value!r} is unknown; one of {', '.join(values)}")


def make_schedule(config: OptimConfig, *, num_steps: int) -> optax.Schedule:
    """Learning rate by step."""
    warmup = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
    rest = max(num_steps - config.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(config.learning_rate),
        "cosine": optax.cosine_decay_schedule(config.learning_rate, rest, config.final_fraction),
        "linear": optax.linear_schedule(
            config.learning_rate, config.learning_rate * config.final_fraction, rest
        ),
    }[config.schedule]
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def make_optimizer(
    config: OptimConfig, *, num_steps: int, axes: Any
) -> optax.GradientTransformation:
    """The update rule with clipping; `axes` (`mesh.parameter_axes`) tells matrices from vectors."""
    schedule = make_schedule(config, num_steps=num_steps)

    def by_axes(choose):
        return jax.tree.map(choose, axes, is_leaf=lambda x: isinstance(x, tuple))

    if config.name == "muon":
        update = optax.contrib.muon(
            schedule,
            beta=config.b1,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            consistent_rms=0.2,
            muon_weight_dimension_numbers=by_axes(_muon_dimensions),
        )
    else:
        update = optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=by_axes(lambda names: len(_inner(names)) >= 2),
        )
    if config.moments == "bfloat16":
        update = kept_in_bfloat16(update)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


class RoundedState(NamedTuple):
    """State of `kept_in_bfloat16`: the inner state, rounded, and the number of updates."""

    inner: Any
    count: Int[Array, ""]


def kept_in_bfloat16(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps an optimizer's moments in 16 bits; it computes in float32.

    Rounding is stochastic: a second moment moves by a thousandth of itself a step, less than half
    a unit of bfloat16, and rounding to nearest would hold it where it is.
    """

    def is_moment(leaf):
        return leaf.ndim > 0 and leaf.dtype in (jnp.float32, jnp.bfloat16)

    def init(params):
        state = inner.init(params)
        kept = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if is_moment(x) else x, state)
        return RoundedState(kept, jnp.zeros((), jnp.int32))

    def update(grads, state, params=None):
        wide = jax.tree.map(lambda x: x.astype(jnp.float32) if is_moment(x) else x, state.inner)
        updates, wide = inner.update(grads, wide, params)
        key = jax.random.fold_in(jax.random.key(0), state.count)
        leaves, tree = jax.tree.flatten(wide)
        kept = [
            round_stochastically(x, jax.random.fold_in(key, i)) if is_moment(x) else x
            for i, x in enumerate(leaves)
        ]
        return updates, RoundedState(jax.tree.unflatten(tree, kept), state.count + 1)

    return optax.GradientTransformation(init, update)


def round_stochastically(x: Float[Array, "..."], key: Array) -> Float[Array, "..."]:
    """Rounds float32 to bfloat16, up or down with the odds that keep the mean."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = (bits + noise) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(kept, jnp.float32).astype(jnp.bfloat16)


def _inner(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name != "layers"]


def _muon_dimensions(names: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """Axes of a matrix between hidden states; None for vectors, tables and the ends of the net."""
    if len(_inner(names)) != 2 or {"vocab", "positions", "buckets", "patch"} & set(names):
        return None
    return optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)


def ema_decay(step: jax.Array, config: OptimConfig) -> jax.Array:
    """Decay of the parameter average at a step."""
    return jax.numpy.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))
