"""A run that was killed and continued is the run that was not, bit by bit."""

import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny_run
from jobs import ROOT, start, wait_for
from PIL import Image

from data_pipelines.build import make_loader, make_tokenizer
from unidiff_jax.config import ConfigError
from unidiff_jax.mesh import make_mesh
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.train.checkpoint import Checkpoints, abstract_state
from unidiff_jax.train.loop import train
from unidiff_jax.train.metrics import MetricWriter, read_metrics
from unidiff_jax.train.optim import OptimConfig, make_optimizer
from unidiff_jax.train.state import create_state, state_shardings
from unidiff_jax.train.workdir import model_parts

TIMED = ("steps_per_second", "train_seconds")


class Runs:
    """Starts `python -m launch.train`; the runs share compiled programs."""

    def __init__(self, folder, miniworld):
        self.folder, self.miniworld = folder, miniworld

    def start(self, workdir, *more):
        return start(
            "train",
            f"--workdir={workdir}",
            *(f"--set={item}" for item in tiny_run.overrides(self.miniworld, *more)),
            compiled=self.folder / "compiled",
            # A test run in the background of a shell would hand its ignored Ctrl-C down.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, workdir, *more):
        process = self.start(workdir, *more)
        _, errors = process.communicate()
        assert process.returncode == 0, errors[-3000:]
        return workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory, miniworld):
    return Runs(tmp_path_factory.mktemp("runs"), miniworld)


@pytest.fixture(scope="module")
def whole(runs):
    """Thirty steps in one go."""
    return runs.finish(runs.folder / "whole")


@pytest.fixture(scope="module")
def killed(runs, whole):
    """Killed after step 15 was saved and later steps were logged; then continued to 30."""
    workdir = runs.folder / "killed"
    process = runs.start(workdir)
    metrics = workdir / "metrics.jsonl"

    def later_steps():
        return (workdir / "checkpoints" / "15").exists() and any(
            row["step"] > 15 for row in read_metrics(metrics)
        )

    wait_for(later_steps, process)
    process.kill()  # SIGKILL: nothing can be tidied up
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    shutil.copytree(workdir, runs.folder / "as killed")
    return runs.finish(workdir)


def shapes(config):
    """Where a checkpoint is restored to: the state of this config on this process's devices."""
    model = model_parts(config)
    optimizer = make_optimizer(
        OptimConfig(**config.optim), num_steps=config.train.num_steps, axes=model.axes
    )
    mesh = make_mesh(config.mesh.axes)
    shardings = state_shardings(model, optimizer, mesh=mesh, rules=config.mesh.rules)
    state = create_state(model, optimizer, seed=9, shardings=shardings)
    return abstract_state(state)


def restored(workdir, target, step=None):
    checkpoints = Checkpoints(workdir / "checkpoints")
    found = checkpoints.restore(target, step=step or checkpoints.latest_step())
    checkpoints.close()
    return found


@pytest.fixture(scope="module")
def target(miniworld):
    return shapes(tiny_run.config(miniworld))


def plain(state):
    """Step, parameters, optimizer, average and key, as NumPy."""
    key = jax.random.key_data(state.key)
    return jax.tree.map(np.asarray, (state.step, state.params, state.opt_state, state.ema, key))


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_killed_run_had_gone_on(runs, killed):
    before = runs.folder / "as killed"
    assert [p.name for p in (before / "checkpoints").glob("[0-9]*") if p.name == "30"] == []
    assert max(row["step"] for row in read_metrics(before / "metrics.jsonl")) > 15


def test_the_final_state_is_bit_identical(whole, killed, target):
    first, second = restored(whole, target), restored(killed, target)
    assert int(first.state.step) == 30
    assert_equal(plain(first.state), plain(second.state))
    assert first.loader == second.loader  # and so is the place in the data
    moved = jax.tree.map(
        lambda a, b: bool((a != b).any()), plain(first.state)[1], plain(first.state)[3]
    )
    assert any(jax.tree.leaves(moved))  # the average is not the parameters


def test_the_log_is_the_same_and_has_each_step_once(whole, killed):
    def rows(workdir):
        return [
            {k: v for k, v in row.items() if k not in TIMED}
            for row in read_metrics(workdir / "metrics.jsonl")
        ]

    assert rows(whole) == rows(killed)
    logged = [row["step"] for row in rows(whole) if "train/loss" in row]
    assert logged == [5, 10, 15, 20, 25, 30]
    assert [row["step"] for row in rows(whole) if "heldout/loss" in row] == [15, 30]


def test_the_data_go_on_where_the_checkpoint_stopped(whole, miniworld, target):
    config = tiny_run.config(miniworld)
    tokenizer = make_tokenizer(config, whole / "tokenizer")
    loader = make_loader(config, tokenizer)
    batches = [next(loader).example_id for _ in range(20)]
    fresh = make_loader(config, tokenizer)
    fresh.set_state(restored(whole, target, step=15).loader)
    for expected in batches[15:]:
        np.testing.assert_array_equal(next(fresh).example_id, expected)
    shown = [int(i) for ids in batches[:15] for i in ids.ravel() if i]
    assert len(shown) > 2 * 4 * 40  # by then every task had seen every record more than twice


def test_a_finished_run_starts_and_ends_without_a_step(runs, whole):
    before = (whole / "metrics.jsonl").read_text()
    runs.finish(whole)
    assert (whole / "metrics.jsonl").read_text() == before


def test_the_workdir_samples(whole):
    picture = Image.new("RGB", (64, 48), "red")
    made = Pipeline.from_workdir(whole)("depth", image=picture)["depth"]
    assert made.size == (32, 32) and made.mode == "RGB"
    assert (whole / "samples" / "step_00000030.png").exists()
    with pytest.raises(FileNotFoundError, match="holds no training run"):
        Pipeline.from_workdir(whole / "samples")


def test_another_config_is_refused(whole, miniworld):
    with pytest.raises(ConfigError) as caught:
        train(tiny_run.config(miniworld, "optim.learning_rate=0.5"), whole)
    message = str(caught.value)
    assert "optim.learning_rate was 0.005, now 0.5" in message and "\n" not in message
    assert "choose another --workdir" in message


def test_a_run_that_cannot_start_leaves_the_workdir_free(tmp_path, miniworld):
    with pytest.raises(ConfigError):
        train(tiny_run.config(miniworld, "data.batch_rows=7", "train.num_microbatches=2"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_interrupt(runs, whole, target):
    workdir = runs.folder / "interrupted"
    process = runs.start(workdir, "train.num_steps=100000", "train.sample_every=100000")
    metrics = workdir / "metrics.jsonl"

    def saved():
        done = (workdir / "checkpoints" / "15").exists()
        return done and read_metrics(metrics)[-1]["step"] > 15

    wait_for(saved, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors[-3000:]
    assert errors.splitlines()[-1] == "error: interrupted" and "Traceback" not in errors
    found = restored(workdir, target)
    assert int(found.state.step) >= 15 and found.clock["train_seconds"] > 0


SCRIPT = """
import pathlib, sys
import jax, numpy as np
sys.path.insert(0, "tests/unidiff_jax/train"), sys.path.insert(0, "tests")
import test_resume, tiny_run
workdir, folder, out = map(pathlib.Path, sys.argv[1:])
assert jax.device_count() == 8
target = test_resume.shapes(tiny_run.config(folder, "data.batch_rows=8"))
found = test_resume.restored(workdir, target, step=30)
weights = found.state.params["dit"]["blocks"]["ffn"]["up"]["weight"]
assert len({str(s.index) for s in weights.addressable_shards}) == 8, weights.sharding
leaves = jax.tree.leaves(test_resume.plain(found.state))
np.savez(out, **{str(i): leaf for i, leaf in enumerate(leaves)})
"""


def test_restores_onto_another_mesh(whole, target, miniworld, tmp_path):
    subprocess.run(
        [sys.executable, "-c", SCRIPT, whole, miniworld, tmp_path / "state.npz"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
        check=True,
    )
    expected = jax.tree.leaves(plain(restored(whole, target, step=30).state))
    with np.load(tmp_path / "state.npz") as found:
        assert len(found) == len(expected)
        for i, leaf in enumerate(expected):
            np.testing.assert_array_equal(found[str(i)], leaf)


def test_rows_after_the_restored_step_are_dropped(tmp_path):
    rows = [{"step": s, "loss": float(s)} for s in (5, 10, 15)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 20, "lo')  # cut by a crash
    writer = MetricWriter(tmp_path, first_step=10)
    writer.scalars(15, {"loss": 1.5})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [*rows[:2], {"step": 15, "loss": 1.5}]
