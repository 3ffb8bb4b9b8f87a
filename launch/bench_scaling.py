"""Parts of `launch.bench` about size: packing of mixed pictures, depth, and number of devices."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.packing import pack, utilisation
from unidiff_jax.config import ConfigError
from unidiff_jax.frames import Example, RowSize, make_example, stack_rows
from unidiff_jax.tasks import get_task
from unidiff_jax.train.program import batch_shapes, make_program, state_shapes
from unidiff_jax.train.step import NO_LIMIT

Numbers = dict[str, Any]

MIN_MIXED = 0.97
"""Token utilisation that packing reaches on mixed pictures."""

ROW = RowSize(tokens=8192, frames=33, segments=33, text=4096)
NUM_BINS = 32
"""Of the mixed stream."""

BUCKETS = (256, 512, 1024, 2048, 4096, 8192)
"""Lengths up to which the baseline fills every example."""

DEPTHS = (2, 8, 32)
DEVICES = (1, 2, 4, 8)


def mixed_examples(seed: int) -> Iterator[Example]:
    """Pictures of 256 and 512 pixels a side in sides of 1:2 to 2:1, one to six of them.

    A token is a patch of 16 x 16 pixels.
    """
    rng = np.random.default_rng(seed)
    tasks = {1: "text_to_image", 2: "depth_to_image"}
    number = 0
    while True:
        number += 1
        side = int(rng.choice((16, 32)))
        frames = int(rng.choice((1, 2, 4, 6), p=(0.4, 0.4, 0.1, 0.1)))
        ratio = 2.0 ** rng.uniform(-0.5, 0.5)
        height, width = max(1, round(side * ratio)), max(1, int(side / ratio))
        task = get_task(tasks.get(frames, "multiview"))
        count = frames if frames in tasks else 2 * (frames // 2)  # a view has a picture and rays
        yield make_example(
            task,
            latents=[np.zeros((height, width, 1), np.float32)] * count,
            text_ids=[1] * int(rng.integers(8, 128)),
            example_id=number,
            patch=1,
        )


class _Stream(grain.sources.RandomAccessDataSource):
    """The first examples of `mixed_examples`."""

    def __init__(self, count: int):
        examples = mixed_examples(0)
        self._examples = [next(examples) for _ in range(count)]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


def measure_mixed(*, num_rows: int = 200) -> Numbers:
    """Share of the places of packed rows that hold a token, against buckets with padding."""
    source = _Stream(num_rows * 12)
    stream = grain.MapDataset.source(source).repeat().to_iter_dataset()
    rows = iter(pack(stream, size=ROW, num_bins=NUM_BINS))
    packed = utilisation(stack_rows([next(rows) for _ in tqdm(range(num_rows), desc="packing")]))
    lengths = np.asarray([len(source[i]["tokens"]) for i in range(len(source))])
    filled = np.asarray(BUCKETS)[np.searchsorted(BUCKETS, lengths)]
    return {
        "rows": num_rows,
        "examples": len(source),
        "packed": packed["tokens"],
        "buckets": float(lengths.sum() / filled.sum()),
        "whole_rows": float(lengths.mean() / ROW.tokens),
    }


def measure_depth(config: ConfigDict) -> Numbers:
    """Seconds to compile the config's train step with scanned layers, by depth."""
    seconds = {}
    for depth in tqdm(DEPTHS, desc="compile", unit="depth"):
        tried = config.copy_and_resolve_references()
        tried.model.depth, tried.model.scan_layers = depth, True
        program = make_program(tried)
        shapes = state_shapes(tried, program), batch_shapes(tried, sharding=program.rows)
        jax.clear_caches()
        started = time.perf_counter()
        program.step.lower(*shapes, NO_LIMIT).compile()
        seconds[str(depth)] = time.perf_counter() - started
    first, last = seconds[str(DEPTHS[0])], seconds[str(DEPTHS[-1])]
    return {"seconds": seconds, "ratio": last / first}


def measure(
    parts: list[str], config: ConfigDict, *, config_flags: list[str], num_steps: int
) -> Numbers:
    """The parts by their names.

    Raises:
      ConfigError: an unknown part.
    """
    measures = {
        "mixed": measure_mixed,
        "depth": lambda: measure_depth(config),
        "devices": lambda: measure_devices(config_flags, config, num_steps=num_steps),
    }
    for part in parts:
        if part not in measures:
            raise ConfigError(f"--scale has no part {part!r}; parts are: {', '.join(measures)}")
    return {part: measures[part]() for part in parts}


def measure_devices(config_flags: list[str], config: ConfigDict, *, num_steps: int) -> Numbers:
    """Step times of 1 to 8 simulated devices with the same rows on each.

    They share this machine's cores, so n devices should take n times as long: `overhead` is what
    they take beyond that.
    """
    if jax.default_backend() != "cpu":
        raise ConfigError("the part devices simulates them: JAX_PLATFORMS=cpu")
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "step.json"
        for count in tqdm(DEVICES, desc="devices"):
            flags = os.environ.get("XLA_FLAGS", "")
            more = ["--json", str(path), "--steps", str(num_steps), *config_flags]
            more += ["--set", f"data.batch_rows={count * config.data.batch_rows}"]
            subprocess.run(
                [sys.executable, "-m", "launch.bench", "--parts", "step", *more],
                env=os.environ
                | {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={count}"},
                check=True,
                stdout=subprocess.DEVNULL,
            )
            times[str(count)] = json.loads(path.read_text())["step"]["median_ms"]
    overhead = {n: ms / (int(n) * times["1"]) - 1 for n, ms in times.items()}
    return {"median_ms": times, "overhead": overhead}


def rows(numbers: Numbers) -> list[tuple[str, str]]:
    """Lines of `launch.bench`'s table."""
    found = []
    if "mixed" in numbers:
        n = numbers["mixed"]
        found.append(
            (
                f"mixed pictures in {n['rows']} rows",
                f"packed {n['packed']:.1%} of the tokens; buckets with padding "
                f"{n['buckets']:.1%}, an example a row {n['whole_rows']:.1%}",
            )
        )
    if "depth" in numbers:
        n = numbers["depth"]
        times = ", ".join(f"{s:.1f} s at {depth}" for depth, s in n["seconds"].items())
        found.append(("compile time by depth", times))
    if "devices" in numbers:
        n = numbers["devices"]
        times = ", ".join(
            f"{count}: {ms:.0f} ms ({n['overhead'][count]:+.0%})"
            for count, ms in n["median_ms"].items()
        )
        found.append(("step by simulated devices", times))
    return found
