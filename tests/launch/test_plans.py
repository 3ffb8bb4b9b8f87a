"""The plans of `configs/plans.py` hold; minutes each, and the TPU compiler."""

import json
import pathlib
import re

import pytest

from configs.plans import PLANS
from unidiff_jax.config import load_config

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden" / "plans"


def test_configs_load():
    for plan in PLANS.values():
        load_config(plan.config, overrides=plan.settings)


def axes_of(shape):
    return [list(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", shape)]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PLANS))
def test_the_plan_holds(name):
    pytest.importorskip("libtpu", reason="the TPU compiler: ./launch/environment.sh tpu")
    from launch.plan import load_topology, plan_train

    plan = PLANS[name]
    config = load_config(plan.config, overrides=plan.settings)
    topology = load_topology(plan.topology, num_slices=plan.num_slices)
    found = plan_train(config, topology)
    assert found["fits"], found["peak_bytes"]
    assert found["mfu_bound"] >= plan.min_bound, (found["mfu_bound"], found["limit"])
    # tokens stay where they are: what is gathered are weights
    tokens = {config.data.row.tokens, config.data.row.text}
    for c in found["largest_collectives"]:
        if c["kind"] == "all-gather":
            assert not any(tokens & set(axes) for axes in axes_of(c["shape"])), c
    # every parameter lies where it is said to
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    assert found["partition"] == golden
    whole = [path for path, spec in golden.items() if "fsdp" not in spec and "tensor" not in spec]
    vectors = r"(weight|bias|text_gate)"
    unexplained = [
        path
        for path in whole
        if not re.search(rf"(norm|modulation|embed|out|hidden|scale|gate).*{vectors}$", path)
    ]
    assert not unexplained, unexplained
