"""The training state: a plain pytree, made sharded from the start."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int

from unidiff_jax.mesh import parameter_axes, parameter_shardings, replicated
from unidiff_jax.models.dit import DiT, DiTConfig
from unidiff_jax.models.t5 import T5Config, T5Encoder
from unidiff_jax.types import Batch, Noised, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that a step changes.

    Attributes:
      step: number of steps done.
      params: float32 master weights.
      opt_state: optax state.
      ema: moving average of the parameters, used for sampling and evaluation.
      key: root of all randomness; a step uses fold_in(key, step).
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    ema: Params
    key: Array


class UnifiedModel(nnx.Module):
    """Text encoder and denoiser, trained together."""

    def __init__(self, dit: DiTConfig, text: T5Config, *, rngs: nnx.Rngs):
        self.text_encoder = T5Encoder(text, rngs=rngs)
        self.dit = DiT(dit, rngs=rngs)

    def encode_text(self, batch: Batch) -> jax.Array:
        """States of the batch's text, computed here or carried by the batch."""
        if batch.text_states is not None:
            return batch.text_states
        return self.text_encoder(batch.text_ids, segment=batch.text_segment)

    def __call__(self, batch: Batch, noised: Noised) -> jax.Array:
        return self.dit(batch, noised, self.encode_text(batch))


class ModelParts(NamedTuple):
    """A model without its weights: `nnx.merge(graphdef, params)` is the model."""

    graphdef: nnx.GraphDef
    shapes: Params
    axes: Params


def abstract_model(dit: DiTConfig, text: T5Config) -> ModelParts:
    """Structure, shapes and logical axes, without allocating anything."""
    model = nnx.eval_shape(lambda: UnifiedModel(dit, text, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    return ModelParts(graphdef, nnx.to_pure_dict(state), parameter_axes(model))


def state_shardings(
    model: ModelParts, optimizer: optax.GradientTransformation, *, mesh: Mesh, rules: Any
) -> TrainState:
    """A `TrainState` of shardings: optimizer moments and average lie as their parameters.

    A leaf of the optimizer's state belongs to the parameter on whose path its own path ends.
    """
    params = parameter_shardings(model.shapes, model.axes, rules=rules, mesh=mesh)
    whole = replicated(mesh)
    by_path = dict(jax.tree.leaves_with_path(params))

    def sharding(path, _):
        ends = (path[i:] for i in range(len(path)))
        return next((by_path[end] for end in ends if end in by_path), whole)

    opt_shapes = jax.eval_shape(optimizer.init, model.shapes)
    opt_state = jax.tree.map_with_path(sharding, opt_shapes)
    return TrainState(step=whole, params=params, opt_state=opt_state, ema=params, key=whole)


def create_state(
    dit: DiTConfig,
    text: T5Config,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    shardings: TrainState,
) -> TrainState:
    """Initial state, each array made on the devices that own it."""

    def make() -> TrainState:
        init_key, train_key = jax.random.split(jax.random.key(seed))
        model = UnifiedModel(dit, text, rngs=nnx.Rngs(params=init_key))
        params = nnx.to_pure_dict(nnx.split(model)[1])
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, params),
            key=train_key,
        )

    return jax.jit(make, out_shardings=shardings)()


def count_parameters(params: Params) -> int:
    """Number of trainable values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
