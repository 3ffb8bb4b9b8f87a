"""One tiny quick start that the tests of the commands share."""

import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


class QuickStart(NamedTuple):
    """Folders and output of a finished run, and the flags that give it again."""

    workdir: pathlib.Path
    data: pathlib.Path
    output: str
    flags: list[str]


def launch(module: str, *args: str) -> subprocess.CompletedProcess:
    """Runs a command as a user does."""
    return subprocess.run(
        [sys.executable, "-m", f"launch.{module}", *args],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="session")
def run_command():
    return launch


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    workdir, data = folder / "run", folder / "data"
    flags = [
        "--config=configs/quickstart.py:tiny",
        f"--workdir={workdir}",
        f"--set=data.folder={data}",
    ]
    done = launch("quickstart", *flags)
    assert done.returncode == 0, done.stderr[-4000:]
    return QuickStart(workdir, data, done.stdout, flags)
