"""Where a run's time goes, over all its starts: `goodput.jsonl` in the workdir.

| part | |
|---|---|
| `init` | from the start of `train` to the first step |
| `compile` | the first call of the step |
| `data` | waiting for the next batch |
| `evaluate` | held-out loss and pictures |
| `save` | until training goes on beside a save, and the wait for the last one |
| `step` | the rest: the devices compute |
| `lost` | steps that were done and never saved, and done again |
| `down` | between the end of one start and the next |

Goodput is the share of `step` in all of it. A start adds rows to the file and never changes one, so
that what a kill leaves is complete up to its last row.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

import jax

from unidiff_jax.paths import AnyPath, append_line, as_path, full_disk_borne

FILE = "goodput.jsonl"
PARTS = ("init", "compile", "data", "evaluate", "save")


class Goodput:
    """The account of one start of a run; process 0 writes it.

    Example:
      >>> account = Goodput(workdir)
      >>> with account.part("data"):
      ...     batch = next(loader)
      >>> account.row(step)
    """

    def __init__(self, workdir: AnyPath):
        """Begins the account."""
        self._path = as_path(workdir) / FILE
        self._started = time.time()
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._first_step = 0

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the body's time to a part."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._seconds[name] += time.monotonic() - begun

    def begin(self, step: int) -> None:
        """Ends `init`; training goes on after this step."""
        self._first_step = step
        self._seconds["init"] += time.time() - self._started
        self.row(step)

    def row(self, step: int) -> None:
        """Writes what was spent up to a step."""
        if jax.process_index() > 0:
            return
        row = {
            "started": self._started,
            "now": time.time(),
            "first_step": self._first_step,
            "step": step,
            "seconds": self._seconds,
        }
        with full_disk_borne(FILE):
            append_line(self._path, json.dumps(row))


def read_starts(workdir: AnyPath) -> list[dict[str, Any]]:
    """The last row of each start, in order; [] without an account.

    A row has the times `started` and `now`, the start's `first_step`, the `step` that it had come
    to, and the `seconds` of each part.
    """
    path = as_path(workdir) / FILE
    if not path.exists():
        return []
    starts: dict[float, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # cut by a kill
            continue
        starts[row["started"]] = row
    return [starts[key] for key in sorted(starts)]


def summarize_goodput(workdir: AnyPath) -> dict[str, float]:
    """Seconds of each part over all starts, `total`, and `goodput`; {} without an account."""
    rows = read_starts(workdir)
    if not rows:
        return {}
    total = dict.fromkeys((*PARTS, "step", "lost", "down"), 0.0)
    for row, later in zip(rows, [*rows[1:], None], strict=True):
        for part, seconds in row["seconds"].items():
            total[part] += seconds
        step = max(0.0, row["now"] - row["started"] - sum(row["seconds"].values()))
        done = row["step"] - row["first_step"]
        if later is not None:
            total["down"] += max(0.0, later["started"] - row["now"])
            again = max(0, row["step"] - later["first_step"])
            lost = step * min(1.0, again / done) if done else 0.0
            total["lost"] += lost
            step -= lost
        total["step"] += step
    everything = sum(total.values())
    return total | {
        "total": everything,
        "goodput": total["step"] / everything if everything else 0.0,
    }
