"""`launch.train` with a fault in one process of the job.

python tests/job_scenarios.py FAULT AMOUNT PROCESS --workdir=... --distributed=...
"""

import dataclasses
import sys
import time

from data_pipelines.loader import Loader
from launch import command, train


def slow(seconds):
    """Every batch comes so much later."""
    following = Loader.__next__

    def late(self):
        time.sleep(seconds)
        return following(self)

    Loader.__next__ = late


def fails(number):
    """Batch `number` raises an ordinary error."""
    following, count = Loader.__next__, 0

    def broken(self):
        nonlocal count
        count += 1
        if count > number:
            raise KeyError("a fault of the program")
        return following(self)

    Loader.__next__ = broken


def without_number(number):
    """Batch `number` holds a NaN in this process's rows alone."""
    following, count = Loader.__next__, 0

    def spoilt(self):
        nonlocal count
        count += 1
        batch = following(self)
        if count == number + 1:
            tokens = batch.tokens.copy()
            tokens[0, batch.loss_mask[0].argmax(), 0] = float("nan")
            batch = dataclasses.replace(batch, tokens=tokens)
        return batch

    Loader.__next__ = spoilt


FAULTS = {"slow": slow, "fails": fails, "without_number": without_number}

if __name__ == "__main__":
    given = [arg for arg in sys.argv[1:] if arg.startswith("--")]
    fault, amount, who = (arg for arg in sys.argv[1:] if not arg.startswith("--"))
    if any(flag.startswith(f"--distributed={who}/") for flag in given):
        FAULTS[fault](float(amount))
    command.run(train.main, define_flags=train.define_flags, argv=["train", *given])
