"""From a config and a mesh to the jitted train step, which runs, is planned or is measured."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from unidiff_jax import flow
from unidiff_jax.config import to_dict
from unidiff_jax.mesh import batch_sharding, make_mesh, on_mesh, replicated
from unidiff_jax.train.offload import moments_on_host, with_moments_on_device
from unidiff_jax.train.optim import OptimConfig, make_optimizer
from unidiff_jax.train.state import ModelParts, TrainState, join, state_shardings
from unidiff_jax.train.step import loss_table, make_train_step
from unidiff_jax.train.workdir import model_parts


class Program(NamedTuple):
    """What a run computes, and where its arrays lie.

    Attributes:
      mesh: of the config's axes.
      model: without its weights.
      optimizer: of the trained parameters.
      shardings: a `TrainState` of shardings.
      rows: sharding of a batch.
      step: jitted `(state, batch) -> (state, metrics)`; the state is donated.
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
            on_mesh(step, mesh),
            in_shardings=(shardings, rows),
            out_shardings=(shardings, whole),
            donate_argnums=0,
            compiler_options=to_dict(config.train.compiler_options) or None,
        ),
        score=jax.jit(
            on_mesh(score, mesh),
            in_shardings=(join(shardings.params, shardings.frozen), rows, whole),
            out_shardings=whole,
        ),
    )
