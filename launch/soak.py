"""Trains for hours with faults put in, and says whether memory and files stay level.

    python -m launch.soak --hours 2
    python -m launch.soak --hours 0.05 --every 40 --warmup 15 --set train.save_every=50

Training runs as `launch.train --supervise` in the workdir. Every `--every` seconds or so one fault
after another comes: SIGKILL; SIGTERM; a pause (SIGSTOP) of some seconds; a bit of the newest
checkpoint turned over, and one of its files cut short, each before a SIGKILL. At the end SIGTERM
goes to the supervisor, which has to end with status 143 after a last save.

Every few seconds the resident memory, the open files and the threads of the training are read from
/proc, so it needs Linux. What a start does in its first `--warmup` seconds (imports, compilation)
is left out, and so are its last ones. The slope is that of a line of common slope and a height of
its own for each start, by least squares; its 95 % interval is a percentile bootstrap over blocks of
a minute, because neighbouring samples are no independent ones (Künsch 1989). It is written to
`WORKDIR/soak.json`; beside it are `faults.jsonl` and the supervisor's `restarts.log`.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from tqdm import tqdm

from launch import command
from unidiff_jax.config import ConfigError
from unidiff_jax.evals.statistics import Interval
from unidiff_jax.paths import append_line, write_json
from unidiff_jax.train.goodput import read_starts, summarize_goodput
from unidiff_jax.train.lock import read_holder
from unidiff_jax.train.metrics import ROWS, read_metrics

FAULTS = ("kill", "terminate", "pause", "flip", "cut")

PAUSE_SECONDS = 10.0
SAMPLE_SECONDS = 2.0
LAST_SECONDS = 30.0
"""Without faults, before the end."""

ENDING_SECONDS = 5.0
"""Of each start, left out: it may be closing its files."""

BLOCK_SECONDS = 60.0
NUM_RESAMPLES = 2000

FAULTS_FILE, REPORT = "faults.jsonl", "soak.json"


class Sample(NamedTuple):
    """What one look at a process found.

    Attributes:
      seconds: since the soak began.
      start: process id, which tells starts apart.
      age: seconds since this process was first seen.
      memory: resident, MB (10^6 bytes).
      files: open file descriptors.
      threads: of the process.
    """

    seconds: float
    start: int
    age: float
    memory: float
    files: int
    threads: int


def slope_per_hour(
    seconds: Sequence[float], values: Sequence[float], starts: Sequence[int], *, seed: int = 0
) -> Interval:
    """The common slope of several starts, each with a height of its own, and its 95 % interval.

    Args:
      seconds: when each value was read.
      values: what was read.
      starts: which start each belongs to.
      seed: of the bootstrap.

    Returns:
      Change an hour; NaN where no start has two values.
    """
    x, y = np.asarray(seconds, float) / 3600, np.asarray(values, float)
    groups = np.asarray(starts)
    for start in np.unique(groups):
        mine = groups == start
        x[mine] -= x[mine].mean()
        y[mine] -= y[mine].mean()
    cells = np.floor(np.asarray(seconds, float) / BLOCK_SECONDS)
    blocks = [np.flatnonzero(cells == cell) for cell in np.unique(cells)]
    xy = np.array([np.sum(x[block] * y[block]) for block in blocks])
    xx = np.array([np.sum(x[block] ** 2) for block in blocks])
    if not xx.sum() > 0:
        return Interval(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(blocks), size=(NUM_RESAMPLES, len(blocks)))
    below = xx[drawn].sum(1)
    slopes = xy[drawn].sum(1)[below > 0] / below[below > 0]
    low, high = np.percentile(slopes, (2.5, 97.5))
    return Interval(float(xy.sum() / xx.sum()), float(low), float(high))


def look(pid: int) -> tuple[float, int, int]:
    """Resident memory in MB, open files and threads of a process; ProcessLookupError if gone."""
    folder = pathlib.Path(f"/proc/{pid}")
    try:
        status = dict(
            line.split(":", 1)
            for line in (folder / "status").read_text().splitlines()
            if ":" in line
        )
        files = len(os.listdir(folder / "fd"))
        return int(status["VmRSS"].split()[0]) * 1024 / 1e6, files, int(status["Threads"])
    except (FileNotFoundError, KeyError):  # ended, or a zombie, which has no memory
        raise ProcessLookupError(pid) from None


class Soak:
    """One supervised training, its faults and its samples."""

    def __init__(self, workdir: pathlib.Path, *, every: float, seed: int):
        self.workdir, self.samples = workdir, list[Sample]()
        self._every, self._rng = every, random.Random(seed)
        self._first_seen: dict[int, tuple[float, float]] = {}  # of the soak, and of day
        self.faults: dict[str, int] = dict.fromkeys(FAULTS, 0)
        self._order: list[str] = []

    def run(self, train: Sequence[str], *, seconds: float) -> int:
        """Trains for so long, or until the supervisor ends; returns its status."""
        began = time.monotonic()
        supervisor = subprocess.Popen(train)
        following = self._next_fault(0.0)
        bar = tqdm(total=round(seconds), unit="s", desc="soak", mininterval=5.0)
        try:
            while (now := time.monotonic() - began) < seconds:
                time.sleep(SAMPLE_SECONDS)
                bar.update(round(min(now, seconds)) - bar.n)
                if supervisor.poll() is not None:
                    break
                pid = self._sample(now)
                if pid is not None and following < now < seconds - LAST_SECONDS:
                    self._harm(pid, now)
                    following = self._next_fault(now)
        finally:
            bar.close()
            if supervisor.poll() is None:
                supervisor.send_signal(signal.SIGTERM)
        return supervisor.wait()

    def _next_fault(self, now: float) -> float:
        return now + self._every * self._rng.uniform(0.6, 1.4)

    def _sample(self, now: float) -> int | None:
        """The training's process where it trains, and its sample."""
        pid = read_holder(self.workdir).get("pid")
        if not isinstance(pid, int):
            return None
        try:
            found = look(pid)
        except ProcessLookupError:
            return None
        first, of_day = self._first_seen.setdefault(pid, (now, time.time()))
        self.samples.append(Sample(now, pid, now - first, *found))
        starts = read_starts(self.workdir)
        is_training = starts and starts[-1]["now"] > of_day
        return pid if is_training and starts[-1]["step"] > starts[-1]["first_step"] else None

    def _harm(self, pid: int, now: float) -> None:
        if not self._order:
            self._order = self._rng.sample(FAULTS, len(FAULTS))
        kind = self._order.pop()
        if kind in ("flip", "cut") and self._newest_file() is None:
            kind = "kill"
        detail = ""
        if kind == "pause":
            os.kill(pid, signal.SIGSTOP)
            time.sleep(PAUSE_SECONDS)
            os.kill(pid, signal.SIGCONT)
        elif kind == "terminate":
            os.kill(pid, signal.SIGTERM)
        else:
            os.kill(pid, signal.SIGKILL)
            if kind != "kill":
                detail = self._damage(kind)
        self.faults[kind] += 1
        row = {"seconds": round(now, 1), "fault": kind, "pid": pid, "file": detail}
        append_line(self.workdir / FAULTS_FILE, json.dumps(row))

    def _newest_file(self) -> pathlib.Path | None:
        """The largest file of the newest checkpoint."""
        folder = self.workdir / "checkpoints"
        steps = [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit()]
        if len(steps) < 2:  # one has to be left
            return None
        files = (path for path in (folder / str(max(steps))).rglob("*") if path.is_file())
        return max(files, key=lambda path: path.stat().st_size, default=None)

    def _damage(self, kind: str) -> str:
        path = self._newest_file()
        if path is None:
            return ""
        blob = bytearray(path.read_bytes())
        if kind == "flip":
            blob[self._rng.randrange(len(blob))] ^= 1 << self._rng.randrange(8)
        else:
            del blob[self._rng.randrange(len(blob)) :]
        path.write_bytes(blob)
        return str(path.relative_to(self.workdir))


def report(soak: Soak, *, warmup: float, hours: float) -> dict[str, Any]:
    """What is written to `soak.json`."""
    last = {sample.start: sample.age for sample in soak.samples}
    kept = [s for s in soak.samples if warmup <= s.age <= last[s.start] - ENDING_SECONDS]
    slopes = {}
    for name in ("memory", "files", "threads"):
        columns = zip(*((s.seconds, getattr(s, name), s.start) for s in kept), strict=True)
        slopes[name] = slope_per_hour(*columns) if kept else Interval(*[float("nan")] * 3)
    rows = read_metrics(soak.workdir / ROWS)
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    starts = read_starts(soak.workdir)
    return {
        "hours": hours,
        "faults": soak.faults,
        "starts": len(starts),
        "steps": starts[-1]["step"],
        "last_loss": losses[-1] if losses else None,
        "goodput": summarize_goodput(soak.workdir)["goodput"],
        "samples": len(kept),
        "memory_mb": float(np.median([s.memory for s in kept])) if kept else None,
        "files": [min(s.files for s in kept), max(s.files for s in kept)] if kept else None,
        "threads": [min(s.threads for s in kept), max(s.threads for s in kept)] if kept else None,
        "per_hour": {name: slope._asdict() for name, slope in slopes.items()},
    }


def format_report(found: dict[str, Any]) -> str:
    """The numbers as lines of text."""

    def slope(name: str, unit: str) -> str:
        s = found["per_hour"][name]
        return (
            f"{s['value']:+.1f} {unit} an hour, 95 % interval [{s['low']:+.1f}, {s['high']:+.1f}]"
        )

    faults = ", ".join(f"{count} {name}" for name, count in found["faults"].items())
    loss = "none" if found["last_loss"] is None else f"{found['last_loss']:.4f}"
    rows = [
        ("faults", faults),
        ("starts, steps", f"{found['starts']}, {found['steps']} in {found['hours']:.2f} h"),
        ("last loss, goodput", f"{loss}, {found['goodput']:.1%}"),
        ("resident memory", f"{found['memory_mb'] or 0:,.0f} MB, {slope('memory', 'MB')}"),
        ("open files", f"{found['files']}, {slope('files', 'files')}"),
        ("threads", f"{found['threads']}, {slope('threads', 'threads')}"),
    ]
    return "\n".join(f"{name:<20}{value}" for name, value in rows)


def define_flags() -> None:
    command.define_config_flags("configs/quickstart.py:tiny")
    flags.DEFINE_string("workdir", "runs/soak", "Folder of the run; it must be new.")
    flags.DEFINE_float("hours", 2.0, "How long.", lower_bound=0.0)
    flags.DEFINE_float("every", 300.0, "Seconds between faults, on average.", lower_bound=5.0)
    flags.DEFINE_float("warmup", 60.0, "Seconds of each start to leave out.", lower_bound=0.0)
    flags.DEFINE_integer("seed", 0, "Of the faults.")


def main(argv: list[str]) -> int | None:
    del argv
    values = flags.FLAGS
    workdir = pathlib.Path(values.workdir)
    if workdir.exists() and list(workdir.iterdir()):
        raise ConfigError(f"{workdir} is not empty: choose another --workdir")
    train = [sys.executable, "-m", "launch.train", "--supervise", f"--workdir={workdir}"]
    train += [f"--config={values.config}", "--set=train.num_steps=1000000000"]
    train += [f"--set={item}" for item in values.set]
    soak = Soak(workdir, every=values.every, seed=values.seed)
    status = soak.run(train, seconds=3600 * values.hours)
    if status != command.PREEMPTED:
        print(
            f"error: training ended with status {status}, not {command.PREEMPTED}, as it should at "
            f"the end: see {workdir}/restarts.log",
            file=sys.stderr,
        )
        return command.FAILED
    found = report(soak, warmup=values.warmup, hours=values.hours)
    write_json(workdir / REPORT, found)
    print(format_report(found))
    return None


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
