"""The plans of `configs/plans.py`: where each parameter lies, and (slow) that they hold.

`python tests/launch/test_plans.py` writes the lists of `tests/golden/plans` anew; see what changed.
"""

import json
import math
import pathlib
import re

import jax
import pytest

from configs.plans import PLANS
from launch.chips import parse_topology
from launch.topologies import GPUS
from unidiff_jax.config import load_config
from unidiff_jax.export.mapping import flatten
from unidiff_jax.mesh import make_mesh
from unidiff_jax.train.program import make_program

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "plans"


def golden(plan):
    """The list of a recipe; its stages share it."""
    recipe = pathlib.Path(plan.config.partition(":")[0]).stem
    mesh = "-slices" * (plan.num_slices > 1) + "-seq" * ("mesh=seq" in plan.config)
    return GOLDEN / f"{recipe}{mesh}.json"


def partition(plan):
    """Each parameter's axes of the mesh, trained or frozen; on one device in place of many."""
    config = load_config(plan.config, overrides=plan.settings)
    chips = plan.num_slices * math.prod(parse_topology(plan.topology)[1])
    mesh = make_mesh(config.mesh.axes, devices=[jax.devices()[0]] * chips)
    shardings = make_program(config, mesh=mesh).shardings
    places = flatten(shardings.params) | flatten(shardings.frozen)
    return {path: str(tuple(place.spec)) for path, place in places.items()}


@pytest.mark.parametrize("name", sorted(PLANS))
def test_every_parameter_lies_where_it_is_said_to(name):
    found = partition(PLANS[name])
    assert found == json.loads(golden(PLANS[name]).read_text())
    # what is whole on every chip is a vector, a small table of a frame's kinds, or T5's buckets
    small = (
        r".*(norm/(weight|bias)|/bias|text_gate|position_bias|role_embed/weight|name_embed/weight)"
    )
    whole = [path for path, axes in found.items() if axes == "()"]
    assert [path for path in whole if not re.fullmatch(small, path)] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PLANS))
def test_the_plan_holds(name):
    """Minutes each."""
    plan = PLANS[name]
    is_gpu = parse_topology(plan.topology)[0] in GPUS
    module, extra = ("jax_cuda13_plugin", "cuda") if is_gpu else ("libtpu", "tpu")
    pytest.importorskip(module, reason=f"the compiler: ./launch/environment.sh {extra}")
    from launch.plan import load_topology, plan_train

    config = load_config(plan.config, overrides=plan.settings)
    found = plan_train(config, load_topology(plan.topology, num_slices=plan.num_slices))
    assert found["fits"], found["peak_bytes"]
    assert found["mfu_bound"] >= plan.min_bound, (found["mfu_bound"], found["limit"])
    # tokens stay where they are: what is gathered are weights
    tokens = {config.data.row.tokens, config.data.row.text}
    for c in found["largest_collectives"]:
        if c["kind"] == "all-gather":
            axes = [
                set(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", c["shape"])
            ]
            # keys and values of all tokens are gathered on purpose, whole tokens never
            assert not any(tokens & a and config.model.hidden_dim in a for a in axes), c


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for plan in PLANS.values():
        golden(plan).write_text(json.dumps(partition(plan), indent=1) + "\n")
