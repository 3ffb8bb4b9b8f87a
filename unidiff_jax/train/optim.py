"""Optimizer and schedule from the config, by optax."""

import dataclasses
from typing import Any

import jax
import optax

from unidiff_jax.config import ConfigError

SCHEDULES = ("constant", "cosine", "linear")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW and its schedule.

    Attributes:
      learning_rate: peak.
      warmup_steps: linear from 0 to the peak.
      schedule: what follows until the last step, one of `SCHEDULES`.
      final_fraction: the last step's rate over the peak.
      b1, b2, eps: of Adam.
      weight_decay: on matrices only; norms, biases, gates and embeddings of positions have none.
      clip_norm: bound of the gradient's global norm.
      ema_decay: of the averaged parameters; the first steps use (1 + n) / (10 + n) if smaller.
    """

    learning_rate: float
    warmup_steps: int
    schedule: str = "constant"
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    ema_decay: float = 0.9999

    def __post_init__(self):
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
    """AdamW with clipping; `axes` (`mesh.parameter_axes`) tells matrices from vectors."""

    def is_matrix(names):
        return len([n for n in names if n != "layers"]) >= 2

    decayed = jax.tree.map(is_matrix, axes, is_leaf=lambda x: isinstance(x, tuple))
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            make_schedule(config, num_steps=num_steps),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )


def ema_decay(step: jax.Array, config: OptimConfig) -> jax.Array:
    """Decay of the parameter average at a step."""
    return jax.numpy.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))
