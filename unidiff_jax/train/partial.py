"""Weights of another run for a model that is not quite the same: more layers, adapters, new inputs.

`init.new` is a regular expression over whole parameter paths: what it matches may begin anew where
the run has nothing of its shape. Of a deeper stack the run's layers are taken, and those after them
are new. Everything else must be in the run, so that nothing is left out by mistake:

    config.init.run = "runs/small"
    config.init.new = "dit/blocks/.*"        # the run has 12 of the 16 blocks

What was restored, what is new and what of the run is not used is written to `WORKDIR/init.json`.
"""

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from unidiff_jax.config import ConfigError
from unidiff_jax.export.mapping import flatten, nest
from unidiff_jax.paths import AnyPath, write_json
from unidiff_jax.train.checkpoint import load_average
from unidiff_jax.train.state import ModelParts, initial_params
from unidiff_jax.types import Params

_SHOWN = 5


class Plan(NamedTuple):
    """Paths of parameters by where they come from.

    Attributes:
      restored: from the run, whole.
      deepened: from the run, and new layers after its own; with both numbers of layers.
      new: as in a run that begins at random.
      unused: of the run alone.
    """

    restored: list[str]
    deepened: dict[str, tuple[int, int]]
    new: list[str]
    unused: list[str]


def plan_restore(model: ModelParts, run: ModelParts, *, new: str) -> Plan:
    """Compares the trained parameters of two models.

    Args:
      model: that is to be trained.
      run: of the run whose weights it takes.
      new: expression that the paths match which may begin anew.

    Raises:
      ConfigError: others differ as well, or the expression is none; names them.
    """
    wanted, there = (flatten(parts.split(parts.shapes)[0]) for parts in (model, run))
    axes = flatten(model.axes)
    plan, faults = Plan([], {}, [], sorted(there.keys() - wanted.keys())), []
    for path, leaf in wanted.items():
        old = there.get(path)
        if old is not None and old.shape == leaf.shape:
            plan.restored.append(path)
        elif not _matches(new, path):
            found = "is not there" if old is None else f"is {old.shape} there, not {leaf.shape}"
            faults.append(f"{path} {found}")
        elif old is not None and axes[path][0] == "layers" and _is_deeper(leaf.shape, old.shape):
            plan.deepened[path] = (old.shape[0], leaf.shape[0])
        else:
            plan.new.append(path)
    if faults:
        raise ConfigError(
            f"init.run does not have {len(faults)} of {len(wanted)} parameters: {_some(faults)}; "
            "those that may begin anew are named by init.new, for example 'dit/blocks/.*'"
        )
    return plan


def load_partly(
    run: AnyPath, plan: Plan, model: ModelParts, old: ModelParts, *, seed: int, shardings: Params
) -> Params:
    """The restored and the deepened parameters, on the mesh, float32.

    Args:
      run: workdir.
      plan: of `plan_restore(model, old)`.
      model: that is to be trained.
      old: the run's.
      seed: of new layers; the same as that of new parameters.
      shardings: where the parameters of `model` go, nested.
    """
    places, shapes = flatten(shardings), flatten(old.split(old.shapes)[0])
    whole = jax.sharding.NamedSharding(next(iter(places.values())).mesh, jax.P())
    kept = {path: places[path] if path in plan.restored else whole for path in shapes}
    loaded = flatten(load_average(run, nest(shapes), shardings=nest(kept)))
    result = {path: loaded[path] for path in plan.restored}
    if plan.deepened:
        new = {path: places[path] for path in plan.deepened}
        fresh = flatten(initial_params(model, seed=seed, shardings=nest(new)))

        def join(old: dict[str, jax.Array], new: dict[str, jax.Array]) -> dict[str, jax.Array]:
            return {k: jnp.concatenate([old[k], v[old[k].shape[0] :]]) for k, v in new.items()}

        result |= jax.jit(join, out_shardings=new)({k: loaded[k] for k in new}, fresh)
    return nest(result)


def report_restore(plan: Plan, run: AnyPath, path: AnyPath) -> None:
    """Writes the lists to a file and their lengths to the log; for process 0."""
    if jax.process_index() > 0:
        return
    write_json(path, {"run": str(run), **plan._asdict()})
    logging.warning(
        "from %s: %d parameters restored, %d with new layers (%s), %d new (%s), %d unused (%s); "
        "all are in %s",
        run,
        len(plan.restored),
        len(plan.deepened),
        _some(list(plan.deepened)),
        len(plan.new),
        _some(plan.new),
        len(plan.unused),
        _some(plan.unused),
        path,
    )


def _matches(pattern: str, path: str) -> bool:
    try:
        return re.fullmatch(pattern, path) is not None
    except re.error as error:
        raise ConfigError(f"init.new={pattern!r} is no pattern: {error}") from None


def _is_deeper(shape: tuple[int, ...], old: tuple[int, ...]) -> bool:
    return shape[1:] == old[1:] and shape[0] > old[0]


def _some(names: list[str]) -> str:
    if len(names) <= _SHOWN:
        return ", ".join(names) or "none"
    return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
