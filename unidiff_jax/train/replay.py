"""Runs a bad step again, from the checkpoint before it, and looks for where it went wrong.

The steps between are trained again, with the same batches, noise and bounds; on the same mesh the
parameters are those of the run to the bit. Then the step is taken apart: which examples of its
batch have which loss, which module's output is the first that is not finite, and which parameters'
gradients are the largest.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.build import check_data, make_loader, make_tokenizer
from data_pipelines.loader import to_devices, whole_to_devices
from unidiff_jax import flow
from unidiff_jax.export.mapping import flatten
from unidiff_jax.mesh import on_mesh
from unidiff_jax.paths import AnyPath, as_path
from unidiff_jax.processes import data_share
from unidiff_jax.tasks import TASKS
from unidiff_jax.train.checkpoint import Checkpoints, abstract_state
from unidiff_jax.train.guard import Guard, GuardConfig
from unidiff_jax.train.incidents import Incident, IncidentError
from unidiff_jax.train.initial import first_state
from unidiff_jax.train.program import Program, make_program
from unidiff_jax.train.state import TrainState, join
from unidiff_jax.train.step import loss_and_gradient, score_tokens
from unidiff_jax.train.workdir import load_workdir_config, model_parts
from unidiff_jax.types import Batch, take_rows


class ExampleLoss(NamedTuple):
    """One example of the batch: its place, identity, task and mean loss of scored tokens."""

    row: int
    segment: int
    example_id: int
    task: str
    loss: float


class ModuleOutput(NamedTuple):
    """What a module gave: the largest absolute value, and whether all are finite."""

    path: str
    largest: float
    is_finite: bool


class Replay(NamedTuple):
    """A step taken apart.

    Attributes:
      incident: what was recorded.
      same_batch: whether the data stream gives the recorded batch there.
      loss, grad_norm: of the step now.
      batch_faults: fields of the batch with values that are not finite, and the examples.
      parameter_faults: parameters with such values.
      examples: by loss, not finite ones first.
      modules: outputs in the order in which they were computed, an inner module before its outer.
      gradients: norm of each parameter's gradient, not finite and large ones first.
    """

    incident: Incident
    same_batch: bool
    loss: float
    grad_norm: float
    batch_faults: list[str]
    parameter_faults: list[str]
    examples: list[ExampleLoss]
    modules: list[ModuleOutput]
    gradients: list[tuple[str, float]]

    @property
    def first_fault(self) -> str:
        """Where the first number that is not finite arises; or where the largest ones are."""
        if self.batch_faults:
            return f"in the batch: {'; '.join(self.batch_faults)}"
        if self.parameter_faults:
            return f"in the parameters: {', '.join(self.parameter_faults)}"
        for module in self.modules:
            if not module.is_finite:
                return f"in the output of {module.path}"
        if not np.isfinite(self.loss):
            return "in the loss: every module's output is finite"
        path, norm = self.gradients[0]
        if not np.isfinite(norm):
            return f"in the gradient: the loss is finite; first parameter {path}"
        return f"nowhere; the largest gradient is that of {path}, {norm:g}"


def replay(workdir: AnyPath, incident: Incident) -> Replay:
    """Trains again up to a bad step, and takes it apart.

    Raises:
      IncidentError: the checkpoint to begin at is gone.
    """
    config = load_workdir_config(workdir)
    program = make_program(config)
    states = check_data(config)
    tokenizer = make_tokenizer(config, as_path(workdir) / "tokenizer")
    loader = make_loader(config, tokenizer, share=data_share(program.mesh), states=states)
    state = _state_at_origin(workdir, config, program, incident)
    loader.set_state(dict(incident.origin.loader))
    guard = Guard(GuardConfig(**config.train.get("guard", {})), incident.origin.guard)
    for step in tqdm(range(incident.origin.step, incident.step), unit="step", desc="train again"):
        rows, limit = next(loader), guard.limit(step)
        state, metrics = program.step(state, to_devices(rows, mesh=program.mesh), limit)
        guard.judge(step, metrics["verdict"], rows, limit=limit)
    batch = whole_to_devices(incident.batch, mesh=program.mesh)
    same = _same(jax.device_get(to_devices(next(loader), mesh=program.mesh)), incident.batch)
    loader.close()
    return take_apart(config, program, state, batch, incident=incident, same_batch=same)


def _state_at_origin(
    workdir: AnyPath, config: ConfigDict, program: Program, incident: Incident
) -> TrainState:
    step = incident.origin.step
    state = first_state(config, program, trained=step == 0)
    if not step:
        return state
    own, kept = incident.folder / "checkpoints", as_path(workdir) / "checkpoints"
    folder = own if (own / str(step)).exists() else kept
    if not (folder / str(step)).exists():
        raise IncidentError(
            f"checkpoint {step} is gone, which {incident.folder.name} begins at; larger ones than "
            "the incident's own copy may be are kept with --set train.keep=1000"
        )
    checkpoints = Checkpoints(folder, keep=10**6)
    try:
        found = checkpoints.restore(abstract_state(state), step=step).state
    finally:
        checkpoints.close()
    return dataclasses.replace(found, frozen=state.frozen)


def take_apart(
    config: ConfigDict,
    program: Program,
    state: TrainState,
    batch: Batch,
    *,
    incident: Incident,
    same_batch: bool,
) -> Replay:
    """Looks into the step that `state` would do with `batch`."""
    flow_config = flow.FlowConfig(**config.flow)
    key = jax.random.fold_in(state.key, state.step)

    def compiled(function: Any) -> Any:
        return jax.jit(on_mesh(function, program.mesh, rules=config.mesh.rules))

    def gradient(state: TrainState, batch: Batch, key: jax.Array) -> Any:
        table, grads = loss_and_gradient(
            state.params,
            batch,
            key,
            graphdef=program.model.graphdef,
            config=flow_config,
            frozen=state.frozen,
            num_microbatches=config.train.num_microbatches,
        )
        loss = jnp.sum(table.error) / jnp.maximum(jnp.sum(table.weight), 1e-8)
        return loss, jax.tree.map(jnp.linalg.norm, grads)

    loss, norms = jax.device_get(compiled(gradient)(state, batch, key))
    graphdef = model_parts(_unrolled(config)).graphdef
    names: list[str] = []

    def outputs(params: Any, batch: Batch, key: jax.Array) -> Any:
        with _watched_modules() as found:
            scored = score_tokens(params, batch, key, graphdef=graphdef, config=flow_config)
        names[:] = [name for name, _ in found]
        return scored.error, [values for _, values in found]

    params = join(state.frozen, state.params)
    errors, values = jax.device_get(compiled(outputs)(params, batch, key))
    host = jax.device_get(batch)
    norms = sorted(flatten(norms).items(), key=lambda pair: -np.nan_to_num(pair[1], nan=np.inf))
    return Replay(
        incident=incident,
        same_batch=same_batch,
        loss=float(loss),
        grad_norm=float(np.sqrt(sum(np.square(norm) for _, norm in norms))),
        batch_faults=_batch_faults(host),
        parameter_faults=_faults(params),
        examples=_example_losses(errors, host),
        modules=[
            ModuleOutput(name, float(largest), bool(finite))
            for name, (largest, finite) in zip(names, values, strict=True)
        ],
        gradients=[(path, float(norm)) for path, norm in norms],
    )


def _unrolled(config: ConfigDict) -> ConfigDict:
    """The config with its layers one by one: the same parameters and the same numbers."""
    config = config.copy_and_resolve_references().unlock()

    def visit(group: ConfigDict) -> None:
        for name, value in group.items():
            if isinstance(value, ConfigDict):
                visit(value)
            elif name == "scan_layers":
                group[name] = False
            elif name == "remat":
                group[name] = "none"

    visit(config.model)
    visit(config.text)
    return config


@contextlib.contextmanager
def _watched_modules() -> Iterator[list[tuple[str, tuple[jax.Array, jax.Array]]]]:
    """Notes largest value and finiteness of what modules give while the body traces them."""
    found: list[tuple[str, tuple[jax.Array, jax.Array]]] = []
    inside: list[tuple[nnx.Module, str]] = []
    calls: dict[str, int] = {}

    def name_of(module: nnx.Module) -> str:
        if not inside:
            return type(module).__name__
        outer, path = inside[-1]
        own = next((name for name, value in vars(outer).items() if value is module), None)
        if own is None:  # a layer of a stack
            kind = f"{path}/{type(module).__name__}"
            calls[kind] = calls.get(kind, -1) + 1
            return f"{kind}[{calls[kind]}]"
        return f"{path}/{own}"

    def watch(call: Any) -> Any:
        def watched(module: nnx.Module, *args: Any, **kwargs: Any) -> Any:
            name = name_of(module)
            inside.append((module, name))
            try:
                output = call(module, *args, **kwargs)
            finally:
                inside.pop()
            floats = [
                leaf
                for leaf in jax.tree.leaves(output)
                if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jnp.floating)
            ]
            if floats:
                largest = jnp.stack([jnp.max(jnp.abs(leaf)).astype(jnp.float32) for leaf in floats])
                finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in floats])
                found.append((name, (jnp.max(largest), jnp.all(finite))))
            return output

        return watched

    classes = [kind for kind in _subclasses(nnx.Module) if "__call__" in vars(kind)]
    calls_before = {kind: vars(kind)["__call__"] for kind in classes}
    try:
        for kind, call in calls_before.items():
            kind.__call__ = watch(call)
        yield found
    finally:
        for kind, call in calls_before.items():
            kind.__call__ = call


def _subclasses(kind: type) -> Iterator[type]:
    for below in kind.__subclasses__():
        yield below
        yield from _subclasses(below)


def _batch_faults(batch: Batch) -> list[str]:
    """Fields with values that are not finite, and which rows."""
    faults = []
    for field in dataclasses.fields(Batch):
        value = getattr(batch, field.name)
        if value is None or value.dtype.kind in "iub":
            continue
        bad = ~np.isfinite(np.asarray(value, np.float32))
        rows = np.flatnonzero(bad.reshape(len(bad), -1).any(-1))
        if rows.size:
            faults.append(f"{field.name} of row {', '.join(map(str, rows))}")
    return faults


def _faults(params: Any) -> list[str]:
    """Paths of parameters with values that are not finite."""
    finite = jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree))(params)
    return [path for path, fine in flatten(jax.device_get(finite)).items() if not fine]


def _example_losses(errors: np.ndarray, batch: Batch) -> list[ExampleLoss]:
    segments = np.asarray(take_rows(batch.segment, batch.frame))
    tasks = {task.id: name for name, task in TASKS.items()}
    found = []
    for row, segment in np.argwhere(np.asarray(batch.example_id) > 0):
        scored = (segments[row] == segment) & (batch.loss_mask[row] > 0)
        if scored.any():
            weight = batch.loss_mask[row][scored]
            found.append(
                ExampleLoss(
                    row=int(row),
                    segment=int(segment),
                    example_id=int(batch.example_id[row, segment]),
                    task=tasks[int(batch.task[row, segment])],
                    loss=float(np.sum(errors[row][scored] * weight) / np.sum(weight)),
                )
            )
    return sorted(found, key=lambda example: -np.nan_to_num(example.loss, nan=np.inf))


def _same(first: Batch, second: Batch) -> bool:
    def equal(a: np.ndarray, b: np.ndarray) -> bool:
        return np.asarray(a).tobytes() == np.asarray(b).tobytes()  # NaN is the same as NaN

    return all(jax.tree.leaves(jax.tree.map(equal, first, second)))
