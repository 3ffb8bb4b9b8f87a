"""What a user can get wrong about a training run: one line each, and nothing is left broken."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest
import tiny
import tiny_run
from ml_collections import ConfigDict

from data_pipelines.miniworld import records
from launch import command
from unidiff_jax.train.checkpoint import Checkpoints, abstract_state
from unidiff_jax.train.loop import train

ROOT = pathlib.Path(__file__).resolve().parents[2]


def fault(config, workdir):
    """The line that the command prints; the workdir must stay free for the mended config."""
    with pytest.raises(Exception) as caught:
        train(config, workdir)
    message = command.describe(caught.value)
    assert message is not None, repr(caught.value)
    assert len(message.splitlines()) == 1
    assert not workdir.exists() or not list(workdir.iterdir())
    return message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.num_heads=5", "model.num_heads=5 must cut model.hidden_dim=24"),
        ("model.num_kv_heads=3", "model.num_kv_heads=3 must divide model.num_heads=2"),
        ("model.remat=half", "model.remat='half' is unknown; one of none, full, dots"),
        ("flow.loss=z", "flow.loss='z' is unknown; one of v, x, eps"),
        ("flow.min_sigma=0", "flow.min_sigma=0.0 must lie in (0, 1), say 0.05"),
        ("optim.schedule=step", "optim.schedule='step' is unknown; one of constant"),
        ("mesh.axes.tensor=3", "tensor=3) does not multiply to 1 devices; for example --set mesh"),
        ("data.tasks.edit.plan=dirty", "data.tasks.edit.plan='dirty' is unknown; one of clean"),
        ("train.num_microbatches=3", "data.batch_rows=8 must be a multiple of 3"),
        ("image_size=64", "image_size=64, but the pictures in"),
        ("image_size=36", "image_size=36 must be a multiple of autoencoder.downscale * patch = 8"),
        (
            "data.row.tokens=31",
            "data.row.tokens=31 does not hold every example of task 'depth'; at least --set",
        ),
        ("data.row.frames=2", "at least --set data.row.frames=3"),
        ("data.row.text=63", "at least --set data.row.text=64"),
        ("data.num_shards=3", "data.batch_rows=8 must be a multiple of data.num_shards=3"),
    ],
)
def test_config_faults(miniworld, tmp_path, override, words):
    assert words in fault(tiny_run.config(miniworld, override), tmp_path / "run")


def test_unknown_task(miniworld, tmp_path):
    config = ConfigDict(json.loads(tiny_run.config(miniworld).to_json_best_effort()))
    config.data.tasks.dept = {"weight": 1.0, "plan": "clean"}
    message = fault(config, tmp_path / "run")
    assert message.startswith("data.tasks.dept is no task; tasks are: text_to_image, depth,")


# ----------------------------------------------------------------------------------------- records


@pytest.fixture
def copied(miniworld, tmp_path):
    return shutil.copytree(miniworld, tmp_path / "data")


def test_records_that_are_not_there(miniworld, tmp_path):
    message = fault(tiny_run.config(tmp_path / "nowhere"), tmp_path / "run")
    assert "nowhere" in message and "launch.miniworld" in message
    other = shutil.copytree(miniworld, tmp_path / "other")
    next(other.glob("validation-*")).unlink()
    message = fault(tiny_run.config(other), tmp_path / "run")
    assert "is missing; render it again with: python -m launch.miniworld" in message


def test_truncated_records(copied, tmp_path):
    path = next(copied.glob("train-*"))
    path.write_bytes(path.read_bytes()[:-100])
    message = fault(tiny_run.config(copied), tmp_path / "run")
    assert path.name in message and "render it again" in message


def test_records_of_another_schema(copied, tmp_path, monkeypatch):
    text = (copied / "manifest.json").read_text()
    (copied / "manifest.json").write_text(text.replace("miniworld/1", "miniworld/0"))
    assert "miniworld/0" in fault(tiny_run.config(copied), tmp_path / "run")


def test_damaged_records(copied, tmp_path):
    """Right size, wrong bytes: found when the record is read, perhaps in mid-training."""
    for path in copied.glob("train-*"):
        blob = bytearray(path.read_bytes())
        blob[len(blob) // 4 : len(blob) // 4 * 3] = bytes(len(blob) // 4 * 2)
        path.write_bytes(blob)
    with pytest.raises(Exception) as caught:
        train(tiny_run.config(copied), tmp_path / "run")
    message = command.describe(caught.value)
    assert message is not None and len(message.splitlines()) == 1
    assert str(copied) in message and "render it again" in message


def test_a_record_of_another_schema(miniworld):
    blob = records.open_records(miniworld, "train")[0].replace(b"miniworld/1", b"miniworld/0")
    with pytest.raises(Exception) as caught:
        records.decode(blob)
    assert "miniworld/0" in command.describe(caught.value)


# --------------------------------------------------------------------------------------- full disk

SMALL_DISK = """
mount -t tmpfs -o "size=$1" tmpfs "$2" && shift 2 && exec "$@"
"""

FILL = """
import sys
sys.path.insert(0, "tests")
import jax, numpy as np, tiny
from launch import command
from unidiff_jax.train.checkpoint import Checkpoints, abstract_state

state = tiny.make_state()[2]
checkpoints = Checkpoints(sys.argv[1], keep=9)
try:
    for step in range(1, 9):
        checkpoints.save(state, step=step, loader={"step": step}, clock={})
        checkpoints.wait()
except Exception as error:
    print(command.describe(error))
checkpoints = Checkpoints(sys.argv[1])
latest = checkpoints.newest_whole()
found = checkpoints.restore(abstract_state(state), step=latest)
same = jax.tree.map(np.array_equal, found.state.params, state.params)
print(step, latest, found.loader, all(jax.tree.leaves(same)))
"""


def in_namespace(folder, *command_line, size="600k"):
    """Runs with a small disk at `folder`, seen by nobody else."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    return subprocess.run(
        [*unshare, "bash", "-c", SMALL_DISK, "bash", size, str(folder), *command_line],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_disk_leaves_the_older_checkpoints(tmp_path):
    if shutil.which("unshare") is None or in_namespace(tmp_path, "true").returncode:
        pytest.skip("needs user namespaces, to mount a small disk")
    folder = tmp_path / "checkpoints"
    done = in_namespace(tmp_path, sys.executable, "-c", FILL, str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    message, after = done.stdout.splitlines()
    assert message == f"disk full: {folder}: free some space or write to another folder"
    failed, latest, rest = after.split(maxsplit=2)
    assert int(latest) == int(failed) - 1 >= 1
    assert rest == f"{{'step': {latest}}} True"


FULL = """
import sys
sys.path.insert(0, "tests")
import errno, jax, numpy as np, pathlib, tiny
from unidiff_jax.train.checkpoint import Checkpoints, abstract_state
from unidiff_jax.train.goodput import Goodput
from unidiff_jax.train.metrics import MetricWriter, read_metrics

workdir = pathlib.Path(sys.argv[1])
ballast = workdir / "ballast"
state = tiny.make_state()[2]
checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
writer, account = MetricWriter(workdir, first_step=0), Goodput(workdir)

def fill():
    try:
        with ballast.open("ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError as error:
        assert error.errno == errno.ENOSPC

def newest():  # as another process sees it
    return Checkpoints(workdir / "checkpoints", beside_training=True).newest_whole()

for step in range(1, 8):
    if step in (2, 3):
        fill()
    if step == 4:
        ballast.unlink()
    writer.scalars(step, {f"{i}": 1.0 * step for i in range(1000)})
    account.row(step)
    checkpoints.save(state, step=step, loader={"step": step}, clock={})
    if step in (1, 7):
        checkpoints.wait()
    if step == 3:  # save 2 has failed by now, and 3 is about to
        print("while full:", newest())
writer.close()
found = checkpoints.restore(abstract_state(state), step=checkpoints.newest_whole())
same = jax.tree.map(np.array_equal, found.state.params, state.params)
print("at the end:", found.loader, all(jax.tree.leaves(same)))
print("rows:", [row["step"] for row in read_metrics(workdir / "metrics.jsonl")])
print("kept:", [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()])
try:
    for step in range(8, 99):
        fill()
        checkpoints.save(state, step=step, loader={}, clock={})
except OSError as error:
    print("gave up:", step, errno.errorcode[error.errno], newest())
"""


def test_training_goes_on_beside_a_full_disk(tmp_path):
    if shutil.which("unshare") is None or in_namespace(tmp_path, "true").returncode:
        pytest.skip("needs user namespaces, to mount a small disk")
    done = in_namespace(tmp_path, sys.executable, "-c", FULL, str(tmp_path), size="1500k")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "while full: 1",
        "at the end: {'step': 7} True",
        "rows: [1, 2, 3, 4, 5, 6, 7]",
        "kept: ['7']",
        "gave up: 11 ENOSPC 7",  # the third failure is told when the fourth save begins
    ]
    assert "nothing was saved (1 in a row); older checkpoints stay" in done.stderr
    assert "nothing was saved (2 in a row)" in done.stderr
    assert "disk full: metrics.jsonl could not be written" in done.stderr


def test_a_full_disk_is_told_from_other_faults_of_a_save(tmp_path, monkeypatch):
    state = tiny.make_state()[2]
    checkpoints = Checkpoints(tmp_path / "checkpoints")

    def save(*args, **kwargs):
        raise ValueError(words)

    monkeypatch.setattr(checkpoints._checkpointer, "save_checkpointables_async", save)
    words = "RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']"
    checkpoints.save(state, step=1, loader={}, clock={})
    with pytest.raises(OSError) as caught:
        checkpoints.wait()
    assert caught.value.errno == errno.ENOSPC
    words = "another fault"
    with pytest.raises(ValueError, match="another fault"):
        checkpoints.save(state, step=1, loader={}, clock={})
    assert checkpoints.latest_step() is None
    assert jax.tree.leaves(abstract_state(state))


# -------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (
            ["--set=train.num_stepz=5"],
            2,
            "train.num_stepz: no such key, the nearest is train.num_st",
        ),
        (["--set=data.folder=/nowhere"], 1, "launch.miniworld"),
        (["--steps=5"], 2, "--help lists the flags"),
    ],
)
def test_the_command_prints_one_line(tmp_path, arguments, status, words):
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", f"--workdir={tmp_path / 'run'}", *arguments],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert done.stdout == "" and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ") and words in done.stderr
