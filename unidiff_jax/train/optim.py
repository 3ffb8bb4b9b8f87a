"""Optimizer and schedule from the config, by optax."""

import dataclasses
from typing import Any

import jax
import optax
import optax.contrib

from unidiff_jax.config import ConfigError

OPTIMIZERS = ("adamw", "muon")
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
    ema_decay: float = 0.9999

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise ConfigError(
                f"optim.name={self.name!r} is unknown; one of {', '.join(OPTIMIZERS)}"
            )
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"optim.schedule={self.schedule!r} is unknown; one of {', '.join(SCHEDULES)}"
            )


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
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _inner(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name != "layers"]


def _muon_dimensions(names: tuple[str, ...]) -> optax.contrib.MuonDimensionNumbers | None:
    """Axes of a matrix between hidden states; None for vectors, tables and the ends of the net."""
    if len(_inner(names)) != 2 or {"vocab", "buckets", "patch"} & set(names):
        return None
    return optax.contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)


def ema_decay(step: jax.Array, config: OptimConfig) -> jax.Array:
    """Decay of the parameter average at a step."""
    return jax.numpy.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))
