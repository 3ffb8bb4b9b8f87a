"""`launch.train` that is killed by SIGKILL, for real, at a chosen moment.

    python tests/faulty_run.py PLACE COUNT --workdir=... --set=...

PLACE is where, COUNT the how manieth time there:

| | |
|---|---|
| data | a batch was asked for, and is not there yet |
| step | a step was handed to the devices and is running |
| evaluate | a held-out batch was handed to the devices |
| save | some files of a checkpoint are written, and not all |
| seal | a checkpoint is finished, and its manifest is not written |
| seconds | so many tenths of a second after the first batch was asked for |
"""

import os
import signal
import sys
import threading
import time

from data_pipelines.loader import Loader
from launch import command
from launch import train as command_of_train
from unidiff_jax.train import checkpoint, loop

PLACES = ("data", "step", "evaluate", "save", "seal", "seconds")


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def killing(function, count, *, after=False):
    """The function, whose call number `count` does not come back."""
    calls = 0

    def call(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count and not after:
            kill()
        result = function(*args, **kwargs)
        if calls == count:
            kill()
        return result

    return call


def kill_in_save(save, count):
    """Kills when a file of save number `count` is there."""
    calls = 0

    def watch(folder):
        while True:
            for top, _, names in os.walk(folder):
                if names and "-tmp" in top and top.endswith("/d"):
                    kill()
            time.sleep(0.0005)

    def call(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            self.wait()
            threading.Thread(target=watch, args=(self._path,), daemon=True).start()
        return save(self, *args, **kwargs)

    return call


def kill_later(function, tenths):
    started = False

    def call(*args, **kwargs):
        nonlocal started
        if not started:
            threading.Timer(tenths / 10, kill).start()
        started = True
        return function(*args, **kwargs)

    return call


def install(place, count):
    make_program = loop.make_program

    def make(config):
        program = make_program(config)
        if place == "step":
            return program._replace(step=killing(program.step, count, after=True))
        return program._replace(score=killing(program.score, count, after=True))

    if place in ("step", "evaluate"):
        loop.make_program = make
    elif place == "data":
        Loader.__next__ = killing(Loader.__next__, count)
    elif place == "save":
        checkpoint.Checkpoints.save = kill_in_save(checkpoint.Checkpoints.save, count)
    elif place == "seal":
        checkpoint.write_manifest = killing(checkpoint.write_manifest, count)
    elif place == "seconds":
        Loader.__next__ = kill_later(Loader.__next__, count)
    else:
        sys.exit(f"{place} is no place; places are: {', '.join(PLACES)}")


if __name__ == "__main__":
    install(sys.argv[1], int(sys.argv[2]))
    command.run(
        command_of_train.main,
        define_flags=command_of_train.define_flags,
        argv=[sys.argv[0], *sys.argv[3:]],
    )
