"""Released weights spread over devices give the picture of one device."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
PRESETS = ("tensor", "fsdp", "fsdp_tensor2")


@pytest.fixture(scope="module")
def found(released):
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "released_on_mesh.py"), str(released)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["preset"]: row for row in rows}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_mesh_changes_nothing_but_the_place(found, preset):
    assert found[preset]["weights_equal"]
    assert found[preset]["picture"] < 1e-4
    assert 0.2 < found[preset]["share"] < 0.6  # some small tables are whole on each device
