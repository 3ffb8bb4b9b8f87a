"""Programs compiled for chips that are not here; needs the TPU compiler, or that for GPUs."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from launch.gpus import MISSING

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = "configs/onediffusion.py:tiny"


def plan(*flags):
    done = subprocess.run(
        [sys.executable, "-m", "launch.plan", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def needs_compiler():
    pytest.importorskip("libtpu", reason="the TPU compiler: ./launch/environment.sh tpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "topology", "chips"), [("train", "v5e:2x2", 4), ("sample", "v5e:1x1", 1)]
)
def test_tiny_programs_fit(needs_compiler, tmp_path, program, topology, chips):
    path = tmp_path / "plan.json"
    status, text = plan(
        *("--config", TINY, "--program", program, "--topology", topology, "--json", str(path))
    )
    assert status == 0, text
    assert f"{topology}: fits" in text
    result = json.loads(path.read_text())
    assert result["fits"] and result["chips"] == chips
    assert 0 < result["peak_bytes"] < 2**30
    for found in result["programs"].values():
        assert found["arguments"] > 0 and found["seconds"] > 0


@pytest.mark.slow
def test_unireal_fits_on_a_pod(needs_compiler, tmp_path):
    path = tmp_path / "plan.json"
    flags = ("--config", "configs/unireal.py:stage=256", "--program", "train")
    status, text = plan(*flags, "--topology", "v5p:4x4x4", "--json", str(path))
    assert status == 0, text
    assert "5.0480 B parameters in the denoiser, 64 chips" in text
    assert json.loads(path.read_text())["fits"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "kernels", "calls"),
    [
        (TINY, {"attention.image": "xla", "attention.text": "cudnn"}, 1),  # bounded scores
        ("configs/unireal.py:tiny", {"attention": "cudnn"}, 2),  # pictures ask, and words
    ],
)
def test_tiny_programs_on_gpus(config, kernels, calls):
    pytest.importorskip("jax_cuda13_plugin", reason="the GPU compiler: launch/environment.sh cuda")
    script = f"""
import json, os
os.environ["JAX_PLATFORMS"] = "cpu"
from launch import plan
from unidiff_jax.config import load_config
texts = []
compiled = plan.compile_for
plan.compile_for = lambda *a, **k: texts.append(compiled(*a, **k)) or texts[-1]
config = load_config({config!r}, overrides=["data.batch_rows=16", "model.dtype=bfloat16"])
found = plan.plan_train(config, plan.load_topology("h100:4", num_slices=2))
print(json.dumps(found | {{"cudnn": texts[0].text.count("__cudnn$fmha")}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["fits"] and found["chips"] == 8 and found["mesh"] == {"fsdp": 8}
    assert found["attention"] == kernels
    assert found["cudnn"] == 2 * calls  # forward and backward
    assert found["collectives"].keys() >= {"all-gather", "reduce-scatter", "all-reduce"}
    assert found["seconds"]["interconnect"] > 0 and found["seconds"]["network"] > 0


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is not None, reason="installed")
def test_gpus_need_their_compiler():
    status, text = plan("--config", TINY, "--topology", "h100:8")
    assert (status, text.splitlines()[-1]) == (1, f"error: {MISSING}")


@pytest.mark.slow
def test_what_does_not_fit_says_so(needs_compiler):
    flags = ("--set", "data.batch_rows=4096", "--set", "data.row.tokens=16384")
    status, text = plan(*("--config", TINY, "--topology", "v5e:1x1"), *flags)
    assert status == 1 and "does NOT fit" in text and "Traceback" not in text


@pytest.mark.parametrize("topology", ["v5e", "h100:2x4", ""])
def test_unknown_topologies(topology):
    status, text = plan("--config", TINY, "--topology", topology)
    assert status == 1 and "is unknown; a generation (v4, v5e" in text
