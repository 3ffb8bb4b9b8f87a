"""The evaluation command on a tiny run."""

import json

import pytest

from launch.evaluate import curves, stage_seconds
from unidiff_jax.train.checkpoint import latest_step


def test_another_split_has_a_report_of_its_own(quickstart, run_command):
    before = (quickstart.workdir / "report/results.json").read_bytes()
    done = run_command(
        "evaluate",
        f"--workdir={quickstart.workdir}",
        "--tasks=segment",
        "--split=heldout",
        "--num_items=4",
        "--step=20",
    )
    assert done.returncode == 0, done.stderr
    assert "segment" in done.stdout and "report-heldout" in done.stdout
    results = json.loads((quickstart.workdir / "report-heldout/results.json").read_text())
    (task,) = results["tasks"]
    assert (task["split"], task["n_items"], results["steps"]) == ("heldout", 4, 20)
    assert results["command"].startswith("python -m launch.evaluate --workdir=")
    assert (quickstart.workdir / "report/results.json").read_bytes() == before


def test_a_workdir_without_a_run_is_one_line(run_command, tmp_path):
    done = run_command("evaluate", f"--workdir={tmp_path / 'none'}")
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'none'} holds no training run (no config.json)\n"


def test_no_checkpoint_yet(tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        latest_step(tmp_path)


def test_curves_by_step_and_by_noise_level():
    rows = [
        {"step": 5, "train/loss": 1.0, "train/loss/depth": 0.5},
        {"step": 10, "heldout/loss/depth": 0.4, "heldout/loss_by_sigma/0.1": 0.9},
        {"step": 20, "heldout/loss_by_sigma/0.1": 0.8, "heldout/loss_by_sigma/0.0": 0.7},
    ]
    found = curves(rows)
    assert found["train loss/depth"] == [[5, 0.5]]
    assert found["held-out loss/depth"] == [[10, 0.4]]
    assert found["held-out loss by noise level/0.1"] == [[10, 0.9], [20, 0.8]]
    assert found["held-out loss over noise level/step 20"] == [[0.05, 0.7], [0.1 + 0.05, 0.8]]
    assert len(found) == 4
    assert curves([]) == {}


def test_stage_seconds(tmp_path):
    assert stage_seconds(tmp_path, []) == {}
    (tmp_path / "seconds.json").write_text('{"render": 3.0}')
    rows = [{"step": 1, "train_seconds": 2.0}, {"step": 2, "train_seconds": 4.0}, {"step": 2}]
    assert stage_seconds(tmp_path, rows) == {"render": 3.0, "train": 4.0}
