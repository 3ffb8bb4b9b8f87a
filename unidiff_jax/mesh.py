"""Mesh and shardings from the config: logical axis names in, `NamedSharding` out.

Parameters carry logical names (`models.layers`); the config's rules map them to mesh axes. The
compiler derives the rest (jax.jit in Auto mode); `ops.context` pins activations at block boundaries
and around attention, on the mesh that `on_mesh` puts in force.
"""

import contextvars
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from unidiff_jax.config import Config, ConfigError

AXES = ("data", "fsdp", "seq", "tensor")
BATCH_SPEC = PartitionSpec(("data", "fsdp"))

KEPT = ("tensor",)
"""Mesh axes along which a weight stays cut where it is used."""

_RULES: contextvars.ContextVar[Config | None] = contextvars.ContextVar("rules", default=None)


def make_mesh(axes: Config, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes the mesh; one axis may be -1.

    Raises:
      ConfigError: the axes do not multiply to the number of devices, or `data` not to the slices
        of TPUs. Nodes of GPUs are no slices: any axis may go over them, the outermost ones first.
    """
    devices = jax.devices() if devices is None else devices
    unknown = set(axes) - set(AXES)
    if unknown:
        raise ConfigError(
            f"mesh.axes has unknown axes {sorted(unknown)}; axes are {', '.join(AXES)}"
        )
    shape = [axes.get(axis, 1) for axis in AXES]
    rest = [i for i, size in enumerate(shape) if size == -1]
    if len(rest) > 1:
        raise ConfigError("mesh.axes: only one axis can be -1 (what is left of the devices)")
    known = int(np.prod([size for size in shape if size != -1]))
    if rest and known > 0 and len(devices) % known == 0:
        shape[rest[0]] = len(devices) // known
    if any(size < 1 for size in shape) or int(np.prod(shape)) != len(devices):
        given = ", ".join(f"{axis}={axes.get(axis, 1)}" for axis in AXES)
        raise ConfigError(
            f"mesh.axes ({given}) does not multiply to {len(devices)} devices; for example "
            f"--set mesh.axes.data=1 --set mesh.axes.fsdp=-1 --set mesh.axes.seq=1 "
            "--set mesh.axes.tensor=1"
        )
    auto = (AxisType.Auto,) * len(AXES)
    slices = {getattr(device, "slice_index", None) or 0 for device in devices}
    if len(slices) == 1:
        return jax.make_mesh(tuple(shape), AXES, axis_types=auto, devices=devices)
    if devices[0].platform == "gpu":
        return Mesh(mesh_utils.create_device_mesh(shape, devices), AXES, axis_types=auto)
    if shape[0] % len(slices):
        raise ConfigError(
            f"mesh.axes.data={shape[0]} must be a multiple of the {len(slices)} slices, between "
            f"which only gradients go; for example --set mesh.axes.data={len(slices)}"
        )
    inside = (shape[0] // len(slices), *shape[1:])
    across = (len(slices), 1, 1, 1)
    grid = mesh_utils.create_hybrid_device_mesh(inside, across, devices=devices)
    return Mesh(grid, AXES, axis_types=auto)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp."""
    return NamedSharding(mesh, BATCH_SPEC)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same everywhere."""
    return NamedSharding(mesh, PartitionSpec())


def logical_spec(
    axes: Sequence[str | None], shape: Sequence[int], *, rules: Config, mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Partition of one array: an axis takes its mesh axes that divide it and are still free.

    A vector stays whole: a thousandth of a layer's weights, in many small messages.
    """
    if sum(name != "layers" for name in axes) < 2:
        return PartitionSpec()
    used: set[str] = set()
    spec: list[str | tuple[str, ...] | None] = []
    for name, size in zip(axes, shape, strict=True):
        rule = rules.get(name) if name else None
        chosen: tuple[str, ...] = ()
        for axis in (rule,) if isinstance(rule, str) else rule or ():
            parts = mesh.shape[axis] * math.prod(mesh.shape[other] for other in chosen)
            if axis not in used and mesh.shape[axis] > 1 and size % parts == 0:
                chosen = (*chosen, axis)
        used |= set(chosen)
        spec.append(chosen if len(chosen) > 1 else chosen[0] if chosen else None)
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def parameter_axes(model: nnx.Module) -> dict[str, Any]:
    """Logical axis names of every parameter, as a nested dict beside the parameters."""
    _, state = nnx.split(model)

    def axes_of(variable: nnx.Variable):
        return variable.get_metadata("axes")

    named = jax.tree.map(axes_of, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return nnx.to_pure_dict(named)


def parameter_shardings(params: Any, axes: Any, *, rules: Config, mesh: Mesh) -> Any:
    """`NamedSharding` of every parameter; `params` holds arrays or their shapes."""

    def sharding(leaf, names):
        return NamedSharding(mesh, logical_spec(names, leaf.shape, rules=rules, mesh=mesh))

    return jax.tree.map(sharding, params, axes)


def section_shardings(section: Config | None, params: Any, axes: Any) -> Any:
    """`parameter_shardings` on all devices by a config's section {axes, rules}; None for None."""
    if section is None:
        return None
    mesh = make_mesh(section["axes"])
    return parameter_shardings(params, axes, rules=section["rules"], mesh=mesh)


def on_mesh(function: Callable[..., Any], mesh: Mesh, *, rules: Config) -> Callable[..., Any]:
    """The function with mesh and rules in force while it is traced.

    `ops.context` and `gathered` read them.
    """

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        token = _RULES.set(rules)
        try:
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                return function(*args, **kwargs)
        finally:
            _RULES.reset(token)

    return traced


def platform() -> str:
    """What the program is compiled for: the mesh's devices where one is set, else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def gathered(weight: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """A weight as a layer uses it: whole along `fsdp` and `seq`; its gradient is scattered again.

    Left to itself the compiler may leave the weight where it is, and sum products of parts of it
    over all rows of the batch, which moves a hundred times as much.

    Args:
      weight: in the type of the product, so that this is what is moved.
      axes: its logical axes.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), _RULES.get()
    if mesh.empty or mesh.size == 1 or rules is None:
        return weight
    kept = logical_spec(axes, weight.shape, rules=rules, mesh=mesh)
    used = PartitionSpec(*(axis if axis in KEPT else None for axis in kept))
    return weight if used == kept else _moved(weight, kept, used)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _moved(weight, kept, used):
    return jax.lax.with_sharding_constraint(weight, used)


def _moved_forward(weight, kept, used):
    return _moved(weight, kept, used), None


def _moved_backward(kept, used, saved, slope):
    del used, saved
    return (jax.lax.with_sharding_constraint(slope, kept),)


_moved.defvjp(_moved_forward, _moved_backward)
