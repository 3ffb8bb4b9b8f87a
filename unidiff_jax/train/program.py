"""From a config and a mesh to the jitted train step, which runs, is planned or is measured."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from unidiff_jax import flow
from unidiff_jax.compiler_options import compiler_options
from unidiff_jax.config import to_dict
from unidiff_jax.frames import Guide, RowSize, make_example, pack_rows
from unidiff_jax.mesh import batch_sharding, make_mesh, on_mesh, replicated
from unidiff_jax.tasks import get_task
from unidiff_jax.train.offload import moments_on_host, with_moments_on_device
from unidiff_jax.train.optim import OptimConfig, make_optimizer
from unidiff_jax.train.state import ModelParts, TrainState, join, state_shardings
from unidiff_jax.train.step import loss_table, make_train_step
from unidiff_jax.train.workdir import model_configs, model_parts, sees_pixels, stored_channels
from unidiff_jax.types import Batch


class Program(NamedTuple):
    """What a run computes, and where its arrays lie.

    Attributes:
      mesh: of the config's axes.
      model: without its weights.
      optimizer: of the trained parameters.
      shardings: a `TrainState` of shardings.
      rows: sharding of a batch.
      step: jitted `(state, batch, limit) -> (state, metrics)`; the state is donated.
      score: jitted `(params, batch, key) -> LossTable`.
    """

    mesh: Mesh
    model: ModelParts
    optimizer: optax.GradientTransformation
    shardings: TrainState
    rows: NamedSharding
    step: Callable[..., tuple[TrainState, dict[str, Any]]]
    score: Callable[..., Any]


def make_program(config: ConfigDict, *, mesh: Mesh | None = None) -> Program:
    """Prepares and compiles nothing yet.

    Args:
      config: of the run.
      mesh: of devices that need not be here; None is the config's on all devices.

    Raises:
      ConfigError: settings that cannot be.
    """
    mesh = make_mesh(config.mesh.axes) if mesh is None else mesh
    model = model_parts(config)
    optim = OptimConfig(**config.optim)
    flow_config = flow.FlowConfig(**config.flow)
    optimizer = make_optimizer(
        optim, num_steps=config.train.num_steps, axes=model.split(model.axes)[0]
    )
    shardings = state_shardings(model, optimizer, mesh=mesh, rules=config.mesh.rules)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    on_device = shardings
    if optim.memory == "host":
        shardings = moments_on_host(shardings, model, optimizer)
    step = make_train_step(
        graphdef=model.graphdef,
        optimizer=optimizer,
        flow_config=flow_config,
        optim_config=optim,
        num_microbatches=config.train.num_microbatches,
    )
    if optim.memory == "host":
        step = with_moments_on_device(step, kept=shardings, used=on_device)
    score = functools.partial(loss_table, graphdef=model.graphdef, config=flow_config)
    return Program(
        mesh=mesh,
        model=model,
        optimizer=optimizer,
        shardings=shardings,
        rows=rows,
        step=jax.jit(
            on_mesh(step, mesh, rules=config.mesh.rules),
            in_shardings=(shardings, rows, whole),
            out_shardings=(shardings, whole),
            donate_argnums=0,
            compiler_options=compiler_options(
                mesh.devices.flat[0].platform, to_dict(config.train.compiler_options)
            ),
        ),
        score=jax.jit(
            on_mesh(score, mesh, rules=config.mesh.rules),
            in_shardings=(join(shardings.params, shardings.frozen), rows, whole),
            out_shardings=whole,
        ),
    )


def state_shapes(config: ConfigDict, program: Program) -> TrainState:
    """The train state as shapes with their shardings."""
    params, frozen = program.model.split(program.model.shapes)
    state = TrainState(
        step=jax.ShapeDtypeStruct((), jnp.int32),
        params=params,
        opt_state=jax.eval_shape(program.optimizer.init, params),
        ema=params,
        key=jax.eval_shape(lambda: jax.random.key(0)),
        frozen=_cast(frozen, config.init.frozen_dtype if _has_released(config) else None),
    )
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        program.shardings,
    )


def batch_shapes(config: ConfigDict, *, sharding: NamedSharding) -> Batch:
    """A whole batch as shapes."""
    side = config.patch
    latent = np.zeros((side, side, stored_channels(config)), np.float32)
    dit, _ = model_configs(config)
    entities = config.data.get("entities", 0)
    example = make_example(
        get_task("text_to_image"),
        latents=[latent],
        stds=[latent] if "sources" in config.data and not sees_pixels(config) else None,
        text_ids=[1],
        text_states=np.zeros((1, dit.text_dim), np.float32)
        if config.data.get("text_states")
        else None,
        example_id=1,
        patch=config.patch,
        guide=Guide(latent, latent[..., 0]) if dit.guidance_dim else None,
        assets=_no_assets(config),
        entity_masks=np.zeros((entities, side, side), np.float32) if entities else None,
    )
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (config.data.batch_rows, *leaf.shape[1:]), leaf.dtype, sharding=sharding
        ),
        pack_rows([example], size=RowSize(**config.data.row))[0],
    )


def _no_assets(config: ConfigDict) -> np.ndarray | None:
    """An asset table without rows; None where references are frames."""
    settings = config.data.get("identity")
    if not settings or config.data.get("guidance", "frames") == "frames":
        return None
    return np.zeros((0, settings.dim), np.uint8 if settings.encoder == "picture" else np.float32)


def _has_released(config: ConfigDict) -> bool:
    """Whether frozen weights come from a folder, and so in `init.frozen_dtype`."""
    return bool(config.init.transformer or config.init.text_encoder)


def _cast(shapes: Any, dtype: str | None) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype or leaf.dtype)), shapes
    )
