"""Optimizer moments in host memory between steps (`optim.memory="host"`).

They are two thirds of what AdamW adds to a model, and a step needs them only at its end. The step
copies them in and out; the compiler moves each array when it is used.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import NamedSharding

from unidiff_jax.train.state import ModelParts, TrainState

HOST = "pinned_host"


def moments_on_host(
    shardings: TrainState, model: ModelParts, optimizer: optax.GradientTransformation
) -> TrainState:
    """The shardings with the optimizer's arrays in host memory; its counters stay."""
    shapes = jax.eval_shape(optimizer.init, model.split(model.shapes)[0])

    def place(leaf: jax.ShapeDtypeStruct, sharding: NamedSharding) -> NamedSharding:
        return sharding.with_memory_kind(HOST) if leaf.ndim else sharding

    return dataclasses.replace(
        shardings, opt_state=jax.tree.map(place, shapes, shardings.opt_state)
    )


def with_moments_on_device(
    step: Callable[..., Any], *, kept: TrainState, used: TrainState
) -> Callable[..., Any]:
    """A train step that takes and gives moments as `kept`, and works on them as `used`."""

    def moved(state: TrainState, *args: Any):
        near = jax.device_put(state.opt_state, used.opt_state)
        state, metrics = step(dataclasses.replace(state, opt_state=near), *args)
        far = jax.device_put(state.opt_state, kept.opt_state)
        return dataclasses.replace(state, opt_state=far), metrics

    return moved
