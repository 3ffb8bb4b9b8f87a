"""The commands' shell: exit statuses and one-line errors, seen from outside."""

import errno
import pathlib
import subprocess
import sys

import pytest

from launch import command
from unidiff_jax.config import ConfigError

ROOT = pathlib.Path(__file__).resolve().parents[2]

MAIN = '''
"""Trains nothing."""
from launch import command
from unidiff_jax.config import ConfigError

def define_flags():
    command.define_config_flags()

def main(argv):
    config = command.config_from_flags()
    print("steps", config.steps)
    {body}

if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
'''

RECIPE = """
from ml_collections import ConfigDict

def get_config(arg=None):
    return ConfigDict(dict(steps=1))
"""


@pytest.fixture
def start(tmp_path):
    def start(*args, body="pass"):
        (tmp_path / "main.py").write_text(MAIN.format(body=body))
        (tmp_path / "recipe.py").write_text(RECIPE)
        return subprocess.run(
            [sys.executable, "main.py", *args],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

    return start


def test_flags_reach_the_config(start):
    done = start("--config=recipe.py:x", "--set", "steps=3", "--set=steps=4")
    assert (done.returncode, done.stdout, done.stderr) == (0, "steps 4\n", "")


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--config=recipe.py", "--set=step=3"], 2, "config.step: no such key, the nearest is"),
        (["--config=recipe.py", "--set=steps=x"], 2, "config.steps: takes a whole number, got 'x'"),
        ([], 2, "config: no file given; for example --config="),
        (["--confg=recipe.py"], 2, "Unknown command line flag 'confg'. Did you mean: config"),
        (["--config=recipe.py", "stray"], 2, "unexpected argument 'stray'"),
    ],
)
def test_wrong_usage_is_one_line(start, args, status, message):
    done = start(*args)
    assert done.returncode == status
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_debug_brings_the_traceback_back(start):
    done = start("--config=recipe.py", "--debug", body="raise ConfigError('config.a: is wrong')")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "config.a: is wrong" in done.stderr


def test_programming_errors_keep_their_traceback(start):
    done = start("--config=recipe.py", body="1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr and "Traceback" in done.stderr


def test_interrupt(start):
    done = start("--config=recipe.py", body="raise KeyboardInterrupt")
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def test_status_of_main_and_help(start):
    assert start("--config=recipe.py", body="return 3").returncode == 3


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_flags_and_the_docstring(start, flag):
    done = start(flag)
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("Trains nothing.", "--config", "--set", "--[no]debug"):
        assert text in done.stdout


def test_describe():
    full = OSError(errno.ENOSPC, "No space left on device", "runs/a")
    assert command.describe(full) == (
        "disk full: runs/a: free some space or write to another folder"
    )
    missing = FileNotFoundError(errno.ENOENT, "No such file or directory", "data/x")
    assert command.describe(missing) == "no such file or folder: data/x"
    assert command.describe(FileNotFoundError("no shards in data/x")) == "no shards in data/x"
    assert command.describe(ConfigError("config.a: b")) == "config.a: b"
    assert command.describe(PermissionError(errno.EACCES, "denied", "x")) is None
    assert command.describe(ValueError("a fault of ours")) is None
