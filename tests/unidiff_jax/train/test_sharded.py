"""Every mesh computes what one device computes, with the state really cut into parts."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
MESHES = {
    "data": {"axes": {"data": 8}},
    "fsdp": {"axes": {"fsdp": 8}},
    "mixed": {"axes": {"data": 2, "fsdp": 2, "tensor": 2}},
    "gather": {"axes": {"fsdp": 2, "seq": 4}},
    "ulysses": {"axes": {"fsdp": 4, "seq": 2}, "context": "ulysses"},
    "gather, joint": {"axes": {"seq": 4, "tensor": 2}, "fusion": "joint"},
    "ulysses, joint": {"axes": {"data": 4, "seq": 2}, "context": "ulysses", "fusion": "joint"},
    "kernels": {
        "axes": {"fsdp": 2, "seq": 2, "tensor": 2},
        "attention": "splash",
        "modulation": "fused",
    },
    "kernels, joint": {
        "axes": {"fsdp": 4, "seq": 2},
        "fusion": "joint",
        "attention": "splash",
        "modulation": "fused",
    },
}


@pytest.fixture(scope="module")
def reports():
    flags = os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "sharded_run.py"), json.dumps(MESHES)],
        cwd=ROOT,
        env=os.environ
        | {
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("mesh", list(MESHES))
def test_equals_one_device(reports, mesh):
    report = reports[mesh]
    assert report["loss"] < 1e-5 and report["gradient"] < 1e-5, report
    assert report["params"] < 1e-4 and report["ema"] < 1e-4, report


@pytest.mark.parametrize("mesh", ["cross", "joint", *MESHES])
def test_compiles_once(reports, mesh):
    assert reports[mesh]["compiled"] == 1


def test_the_state_is_cut(reports):
    """The share of each tree that one device holds."""
    assert set(reports["cross"]["shares"].values()) == {1.0}
    assert set(reports["data"]["shares"].values()) == {1.0}
    for tree in ("params", "ema", "opt_state"):
        # nearly an eighth: vectors that do not divide stay whole
        assert reports["fsdp"]["shares"][tree] < 0.2, reports["fsdp"]
        assert reports["mixed"]["shares"][tree] < 0.45, reports["mixed"]
