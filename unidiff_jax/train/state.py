"""The training state: a plain pytree, made sharded from the start."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Int

from unidiff_jax.config import ConfigError
from unidiff_jax.export.mapping import flatten, nest
from unidiff_jax.mesh import parameter_shardings, replicated
from unidiff_jax.models.dit import DiT, DiTConfig, Prediction
from unidiff_jax.models.layers import abstract
from unidiff_jax.models.lora import LoRAConfig, attach
from unidiff_jax.models.pixels import PixelConfig, PixelEncoder
from unidiff_jax.models.text_encoder import TextConfig, encode_batch, make_text_encoder
from unidiff_jax.types import Batch, Noised, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that a step reads beside the batch.

    Attributes:
      step: number of steps done.
      params: trained parameters, float32 master weights.
      opt_state: optax state.
      ema: moving average of `params`, used for sampling and evaluation.
      key: root of all randomness; a step uses fold_in(key, step).
      frozen: parameters that no step changes, such as released weights under adapters; they are in
        no checkpoint, because the config says where they come from.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    ema: Params
    key: Array
    frozen: Params


class UnifiedModel(nnx.Module):
    """Text encoder, denoiser and, where the step sees pixels, the autoencoder's encoder."""

    def __init__(
        self,
        dit: DiTConfig,
        text: TextConfig,
        pixels: PixelConfig | None = None,
        *,
        rngs: nnx.Rngs,
    ):
        self.text_encoder = make_text_encoder(text, rngs=rngs)
        self.dit = DiT(dit, rngs=rngs)
        if pixels is not None:
            self.autoencoder = PixelEncoder(pixels, rngs=rngs)
        self.sees_pixels = pixels is not None

    def encode_pixels(self, batch: Batch) -> Batch:
        """The batch with posteriors in place of pixels; one that holds latents as it is."""
        return self.autoencoder(batch) if self.sees_pixels else batch

    def encode_text(self, batch: Batch) -> jax.Array:
        """States of the batch's text, computed here or carried by the batch."""
        if batch.text_states is not None:
            return batch.text_states
        return encode_batch(self.text_encoder, batch)

    def __call__(self, batch: Batch, noised: Noised) -> jax.Array:
        return self.dit(batch, noised, self.encode_text(batch))

    def with_maps(self, batch: Batch, noised: Noised) -> Prediction:
        """See `DiT.with_maps`."""
        return self.dit.with_maps(batch, noised, self.encode_text(batch))


class ModelParts(NamedTuple):
    """A model without its weights: `nnx.merge(graphdef, params)` is the model.

    Attributes:
      graphdef: its structure.
      shapes: shapes of all parameters, nested.
      axes: their logical axes.
      make: makes the model from keys.
      trainable: regular expression; parameters whose whole path it matches are trained.
    """

    graphdef: nnx.GraphDef
    shapes: Params
    axes: Params
    make: Callable[[nnx.Rngs], nnx.Module]
    trainable: str

    def split(self, tree: Params) -> tuple[Params, Params]:
        """The trained and the frozen part of a tree with the parameters' paths."""
        flat = flatten(tree)
        trained = {k: v for k, v in flat.items() if re.fullmatch(self.trainable, k)}
        return nest(trained), nest({k: v for k, v in flat.items() if k not in trained})


def abstract_model(
    dit: DiTConfig,
    text: TextConfig,
    adapters: LoRAConfig | None = None,
    trainable: str = ".*",
    pixels: PixelConfig | None = None,
) -> ModelParts:
    """Structure, shapes and logical axes, without allocating anything.

    Raises:
      ConfigError: adapters that fit no layer, or a pattern that matches no parameter, or the
        autoencoder's, which is never trained.
    """

    def make(rngs: nnx.Rngs) -> nnx.Module:
        model = UnifiedModel(dit, text, pixels, rngs=rngs)
        attach(model, adapters or LoRAConfig(), rngs=rngs)
        return model

    parts = ModelParts(*abstract(make), make, trainable)
    try:
        trained, _ = parts.split(parts.shapes)
    except re.error as error:
        raise ConfigError(f"train.trainable={trainable!r} is no pattern: {error}") from None
    if not trained:
        raise ConfigError(
            f"train.trainable={trainable!r} matches no parameter; for example .*, or .*/lora_[ab]"
        )
    if "autoencoder" in trained:
        raise ConfigError(
            f"train.trainable={trainable!r} trains the autoencoder, whose latents would collapse; "
            "for example --set train.trainable=dit/.*"
        )
    return parts


def join(first: Params, second: Params) -> Params:
    """One nested tree of two that share no leaf."""
    joined = dict(first)
    for name, value in second.items():
        joined[name] = join(joined[name], value) if name in joined else value
    return joined


def state_shardings(
    model: ModelParts, optimizer: optax.GradientTransformation, *, mesh: Mesh, rules: Any
) -> TrainState:
    """A `TrainState` of shardings: optimizer moments and average lie as their parameters.

    A leaf of the optimizer's state belongs to the parameter on whose path its own path ends.
    """
    placed = parameter_shardings(model.shapes, model.axes, rules=rules, mesh=mesh)
    params, frozen = model.split(placed)
    whole = replicated(mesh)
    by_path = dict(jax.tree.leaves_with_path(params))

    def sharding(path, _):
        ends = (path[i:] for i in range(len(path)))
        return next((by_path[end] for end in ends if end in by_path), whole)

    opt_shapes = jax.eval_shape(optimizer.init, model.split(model.shapes)[0])
    return TrainState(
        step=whole,
        params=params,
        opt_state=jax.tree.map_with_path(sharding, opt_shapes),
        ema=params,
        key=whole,
        frozen=frozen,
    )


def _keys(seed: int) -> tuple[Array, Array]:
    """Keys of the initial weights and of training."""
    first, second = jax.random.split(jax.random.key(seed))
    return first, second


def initial_params(
    model: ModelParts, *, seed: int, shardings: Params, released: Params | None = None
) -> Params:
    """Parameters of the paths in `shardings`: released ones, and random ones for the rest."""
    loaded = flatten(released or {})
    places = {k: v for k, v in flatten(shardings).items() if k not in loaded}

    def make() -> dict[str, Array]:
        module = model.make(nnx.Rngs(params=_keys(seed)[0]))
        params = flatten(nnx.to_pure_dict(nnx.split(module)[1]))
        return {path: params[path] for path in places}

    random = jax.jit(make, out_shardings=places)() if places else {}
    return nest(random | loaded)


def create_state(
    model: ModelParts,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    shardings: TrainState,
    released: Params | None = None,
) -> TrainState:
    """Initial state, each array made on the devices that own it.

    Args:
      model: its structure.
      optimizer: of the trained parameters.
      seed: of weights and training.
      shardings: see `state_shardings`.
      released: weights, nested, that take the place of random ones.
    """
    places = join(shardings.params, shardings.frozen)
    params = initial_params(model, seed=seed, shardings=places, released=released)
    params, frozen = model.split(params)

    def rest(params: Params) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params={},
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, params),
            key=_keys(seed)[1],
            frozen={},
        )

    state = jax.jit(rest, out_shardings=dataclasses.replace(shardings, params={}, frozen={}))(
        params
    )
    return dataclasses.replace(state, params=params, frozen=frozen)


def count_parameters(params: Params) -> int:
    """Number of trainable values."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
