"""Programs compiled for chips that are not here; needs the TPU compiler."""

import json
import pathlib
import subprocess
import sys

import pytest

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
def test_what_does_not_fit_says_so(needs_compiler):
    flags = ("--set", "data.batch_rows=4096", "--set", "data.row.tokens=16384")
    status, text = plan(*("--config", TINY, "--topology", "v5e:1x1"), *flags)
    assert status == 1 and "does NOT fit" in text and "Traceback" not in text


@pytest.mark.parametrize("topology", ["v5e", "h100:8", ""])
def test_unknown_topologies(topology):
    status, text = plan("--config", TINY, "--topology", topology)
    assert status == 1 and "is unknown; a generation (v4, v5e" in text
