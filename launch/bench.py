"""Measures a config on this machine: step, packing, data, renderer and sampling.

    python -m launch.bench --config configs/quickstart.py
    python -m launch.bench --config configs/quickstart.py --parts step,data --json bench.json
    python -m launch.bench --model onediffusion_mid --steps 5
    python -m launch.bench --data clips
    python -m launch.bench --tracking

Reads the config's data and writes nothing but the JSON file. The step is the median of `--steps`;
the rates are the best of three, because other work on the machine only ever makes them lower.
`--model` times a network of fixed size instead, beside PyTorch where that is installed; `--data`
the curation of a folder of videos, beside their bare decoding; `--tracking` measures how well mask
trackers do on clips that are drawn for it.
"""

import dataclasses
import functools
import itertools
import json
import logging
import os
import pathlib
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.build import make_loader, make_sources, make_tokenizer
from data_pipelines.curate.benchmark import measure_trackers
from data_pipelines.loader import Loader, to_devices
from data_pipelines.miniworld.benchmark import measure
from data_pipelines.miniworld.manifest import NAME, RecordsError, render_command
from data_pipelines.mixture import parse_mixture, stable_id
from data_pipelines.packing import utilisation
from launch import bench_network, bench_scaling, bench_video, command
from launch.chips import attached_chip
from unidiff_jax.config import ConfigError, config_error
from unidiff_jax.flops import train_flops
from unidiff_jax.paths import as_path
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.train.program import make_program
from unidiff_jax.train.state import (
    TrainState,
    count_parameters,
    create_state,
    join,
)
from unidiff_jax.train.step import NO_LIMIT
from unidiff_jax.train.workdir import model_configs, pixel_config
from unidiff_jax.types import Batch

PARTS = ("step", "packing", "data", "loop", "render", "sample")

MIN_TOKEN_UTILISATION = 0.95
"""Below this the rows' capacity does not fit the mixture's examples."""

MIN_DATA_RATIO = 2.0
"""The loader alone must make this many times the examples that the step consumes: beside a running
step it gets only a part of the cores."""

PEAK_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 1024, 1024), (2048, 192, 768))
"""m, k, n of the float32 products that measure the machine; the last is a small model's."""

REPEATS = 3

DATA_SECONDS = 2.0
"""The loader runs alone for so long, `REPEATS` times."""

Numbers = dict[str, Any]


class Bench:
    """A config's model, step and data, each made when a part first asks for it."""

    def __init__(self, config: ConfigDict, *, folder: str | pathlib.Path, num_steps: int):
        """Prepares nothing yet.

        Args:
          config: what to measure.
          folder: for the tokenizer.
          num_steps: train steps to time.
        """
        self.config = config
        self.num_steps = num_steps
        self._folder = folder
        self.model_configs = model_configs(config)
        self.program = make_program(config)
        self.mesh, self.model = self.program.mesh, self.program.model

    @functools.cached_property
    def tokenizer(self):
        return make_tokenizer(self.config, self._folder)

    @functools.cached_property
    def loader(self) -> Loader:
        return make_loader(self.config, self.tokenizer)

    @functools.cached_property
    def batches(self) -> list[Batch]:
        """A few packed batches on the devices."""
        return [to_devices(batch, mesh=self.mesh) for batch in itertools.islice(self.loader, 8)]

    @functools.cached_property
    def step(self) -> "CompiledStep":
        start = time.perf_counter()
        compiled = self.program.step.lower(self.state, self.batches[0], NO_LIMIT).compile()

        def call(state: TrainState, batch: Batch) -> tuple[TrainState, Any]:
            return compiled(state, batch, NO_LIMIT)

        return CompiledStep(call, time.perf_counter() - start)

    @functools.cached_property
    def state(self) -> TrainState:
        """The initial state; `copy_state` gives one that a step may consume."""
        return create_state(
            self.model,
            self.program.optimizer,
            seed=self.config.seed,
            shardings=self.program.shardings,
        )

    def copy_state(self) -> TrainState:
        return jax.tree.map(jnp.copy, self.state)

    @functools.cached_property
    def step_numbers(self) -> Numbers:
        """The part `step`, which other parts compare with."""
        return time_steps(self)


class CompiledStep(NamedTuple):
    """The train step and how long it took to compile."""

    call: Callable[[TrainState, Batch], tuple[TrainState, Any]]
    seconds: float


# -------------------------------------------------------------------------------------------- parts


def time_steps(bench: Bench) -> Numbers:
    """Times train steps on packed batches that lie on the devices already."""
    step, state = bench.step, bench.copy_state()
    times = []
    warm_up = 3
    for i in _progress(range(warm_up + bench.num_steps), "train steps"):
        start = time.perf_counter()
        state, metrics = step.call(state, bench.batches[i % len(bench.batches)])
        jax.block_until_ready((state.params, metrics))
        times.append(time.perf_counter() - start)
    times = np.asarray(times[warm_up:])
    median = float(np.median(times))
    pixels = pixel_config(bench.config)
    operations = train_flops(*bench.model_configs, bench.batches[0], pixels=pixels)
    examples = float(np.mean([count_examples(batch) for batch in bench.batches]))
    tokens = float(np.mean([np.sum(np.asarray(batch.frame) > 0) for batch in bench.batches]))
    peak, chip = matmul_peak(), attached_chip()
    return {
        "parameters": count_parameters(state.params) + count_parameters(state.frozen),
        "compile_seconds": step.seconds,
        "steps": bench.num_steps,
        "best_ms": 1e3 * float(np.min(times)),
        "median_ms": 1e3 * median,
        "p10_ms": 1e3 * float(np.quantile(times, 0.1)),
        "p90_ms": 1e3 * float(np.quantile(times, 0.9)),
        "tokens_per_second": tokens / median,
        "examples_per_second": examples / median,
        "examples_per_step": examples,
        "gflop_per_step": operations / 1e9,
        "gflops_per_second": operations / median / 1e9,
        "peak_gflops_per_second": peak / 1e9,
        "share_of_peak": operations / median / peak,
        "mfu": None if chip is None else operations / median / chip.flops / jax.device_count(),
    }


def matmul_peak() -> float:
    """Best rate of a float32 product on all devices, in operations a second."""
    best = 0.0
    for m, k, n in PEAK_SHAPES:
        keys = jax.random.split(jax.random.key(0))
        a, b = jax.random.normal(keys[0], (m, k)), jax.random.normal(keys[1], (k, n))
        product = jax.jit(jnp.matmul)
        product(a, b).block_until_ready()
        for _ in range(3 * REPEATS):
            start = time.perf_counter()
            product(a, b).block_until_ready()
            best = max(best, 2 * m * k * n / (time.perf_counter() - start))
    return best * jax.device_count()


def measure_packing(bench: Bench, *, num_batches: int = 60) -> Numbers:
    """Share of the rows' places that hold something, over the mixed stream."""
    batches = itertools.islice(bench.loader, num_batches)
    shares = [utilisation(batch) for batch in _progress(batches, "packing", num_batches)]
    means = {key: float(np.mean([share[key] for share in shares])) for key in shares[0]}
    return {"batches": num_batches, **means}


def measure_data(bench: Bench) -> Numbers:
    """Examples a second of the loader alone, against what the step consumes (timed too)."""
    rates = []
    next(bench.loader)
    for _ in _progress(range(REPEATS), "data"):
        for _ in range(2 * bench.config.data.prefetch):  # what was ready before the clock starts
            next(bench.loader)
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < DATA_SECONDS:
            count += count_examples(next(bench.loader))
        rates.append(count / (time.perf_counter() - start))
    needed = bench.step_numbers["examples_per_second"]
    return {
        "examples_per_second": max(rates),
        "needed_examples_per_second": needed,
        "ratio": max(rates) / needed,
    }


def measure_loop(bench: Bench) -> Numbers:
    """Trains from the loader, each step waited for as the train loop does; what data cost."""
    step, state = bench.step, bench.copy_state()
    state, _ = step.call(state, bench.batches[0])
    jax.block_until_ready(state.params)
    waited = moved = 0.0
    start = time.perf_counter()
    for _ in _progress(range(bench.num_steps), "loop"):
        before = time.perf_counter()
        batch = next(bench.loader)
        ready = time.perf_counter()
        batch = to_devices(batch, mesh=bench.mesh)
        waited, moved = waited + ready - before, moved + time.perf_counter() - ready
        state, metrics = step.call(state, batch)
        jax.block_until_ready(metrics)
    total = time.perf_counter() - start
    return {
        "steps": bench.num_steps,
        "ms_per_step": 1e3 * total / bench.num_steps,
        "wait_ms_per_step": 1e3 * waited / bench.num_steps,
        "to_devices_ms_per_step": 1e3 * moved / bench.num_steps,
        "wait_share": waited / total,
    }


def measure_render(bench: Bench) -> Numbers:
    """Milliseconds MiniWorld takes for a picture, by pixels a side."""
    del bench
    return {str(size): value for size, value in measure(num_scenes=24).items()}


def measure_sampling(bench: Bench) -> Numbers:
    """Examples a second of the pipeline, from packing to pictures, at the config's steps."""
    config = bench.config
    pipeline = Pipeline(
        config,
        model=bench.model,
        params=join(bench.state.frozen, bench.state.ema),
        tokenizer=bench.tokenizer,
        mesh=bench.mesh,
    )
    sources = make_sources(config, split="train")
    mixes = parse_mixture(config.data.tasks)
    examples = []
    wanted = config.data.batch_rows * max(1, (config.data.row.segments - 1))
    for index in range(4 * max(len(source) for source in sources.values())):
        mix = mixes[index % len(mixes)]
        source = sources[mix.task.name]
        record = source[index % len(source)]
        item = source.item(record, mix.task, np.random.default_rng(index))
        if item is not None:
            identity = stable_id(mix.task, index)
            example = pipeline.maker.example(mix.task, item, example_id=identity)
            examples.append((mix.task, example))
        if len(examples) == wanted:
            break
    pipeline.generate(examples, seeds=[0])
    times = []
    for _ in _progress(range(REPEATS), "sampling"):
        start = time.perf_counter()
        pipeline.generate(examples, seeds=[0])
        times.append(time.perf_counter() - start)
    return {
        "examples": len(examples),
        "num_steps": config.sample.num_steps,
        "solver": config.sample.solver,
        "guidance": config.sample.guidance,
        "examples_per_second": len(examples) / min(times),
    }


MEASURES: dict[str, Callable[[Bench], Numbers]] = {
    "step": lambda bench: bench.step_numbers,
    "packing": measure_packing,
    "data": measure_data,
    "loop": measure_loop,
    "render": measure_render,
    "sample": measure_sampling,
}


def count_examples(batch: Batch) -> int:
    """Examples in a batch."""
    return int(np.sum(np.asarray(batch.task) > 0))


def describe_machine() -> Numbers:
    """What the numbers were measured on."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
    }


def run_parts(config: ConfigDict, *, parts: Iterable[str], num_steps: int = 20) -> Numbers:
    """Measures the parts in the order of `PARTS`.

    Args:
      config: what to measure; see `configs/quickstart.py`.
      parts: names from `PARTS`.
      num_steps: train steps to time.

    Returns:
      {"machine": {...}, part: {...}}, as `--json` writes it.

    Raises:
      ConfigError: an unknown part.
      FileNotFoundError: the data is not there; the message has the command that makes it.
    """
    parts = set(parts)
    if parts - set(PARTS):
        unknown = min(parts - set(PARTS))
        raise ConfigError(f"there is no part {unknown!r}; parts are: {', '.join(PARTS)}")
    data = as_path(config.data.folder)
    if parts - {"render"} and not (data / NAME).exists():
        command_line = render_command(data, f"--size {config.image_size}")
        raise FileNotFoundError(f"no data in {data}; make it with: {command_line}")
    numbers = {"machine": describe_machine()}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(config, folder=folder, num_steps=num_steps)
        for part in PARTS:
            if part in parts:
                numbers[part] = MEASURES[part](bench)
    return numbers


# -------------------------------------------------------------------------------------------- table


def format_table(numbers: Numbers) -> str:
    """The numbers as lines of text: machine, rows, and what falls short."""
    m = numbers["machine"]
    lines = [
        f"machine: {m['cpu']}, {m['cores']} cores; jax {m['jax']}, {m['devices']} x {m['device']}"
    ]
    rows, faults = [], []
    if "model" in numbers:
        rows += bench_network.rows(numbers["model"])
    if "video" in numbers:
        rows += bench_video.rows(numbers["video"])
        if numbers["video"]["share"] < bench_video.MIN_SHARE:
            faults.append(
                f"pairs come at less than {bench_video.MIN_SHARE:.0%} of the decoding rate: keep "
                "fewer frames a second (launch.curate --fps) or take fewer pairs (--per_shot)"
            )
    rows += bench_scaling.rows(numbers)
    if "mixed" in numbers and numbers["mixed"]["packed"] < bench_scaling.MIN_MIXED:
        faults.append(f"mixed pictures fill less than {bench_scaling.MIN_MIXED:.0%} of the rows")
    if "step" in numbers:
        n = numbers["step"]
        rows += [
            ("parameters", f"{n['parameters'] / 1e6:.2f} M"),
            ("compile time", f"{n['compile_seconds']:.1f} s"),
            (
                f"train step, median of {n['steps']}",
                f"{n['median_ms']:.1f} ms (80 % in {n['p10_ms']:.1f} to {n['p90_ms']:.1f}, "
                f"best {n['best_ms']:.1f})",
            ),
            ("  image tokens / s", f"{n['tokens_per_second']:,.0f}"),
            ("  examples / s", f"{n['examples_per_second']:,.0f}"),
            (
                "  matrix products",
                f"{n['gflop_per_step']:.1f} GFLOP, {n['gflops_per_second']:.0f} GFLOP/s",
            ),
            (
                "  share of the matmul peak",
                f"{n['share_of_peak']:.0%} of {n['peak_gflops_per_second']:.0f} GFLOP/s (float32)",
            ),
        ]
        if n["mfu"] is not None:
            rows.append(("  MFU, of the chip's published peak", f"{n['mfu']:.1%}"))
    if "packing" in numbers:
        n = numbers["packing"]
        shares = ", ".join(f"{key} {n[key]:.1%}" for key in ("tokens", "frames", "text"))
        rows.append((f"packing over {n['batches']} batches", shares))
        if n["tokens"] < MIN_TOKEN_UTILISATION:
            faults.append(
                f"token utilisation is below {MIN_TOKEN_UTILISATION:.0%}: fit data.row to the "
                "tasks' examples, or raise data.num_bins"
            )
    if "data" in numbers:
        n = numbers["data"]
        rate = f"{n['examples_per_second']:,.0f} examples / s, {n['ratio']:.1f} x the step's need"
        rows.append(("data pipeline alone", rate))
        if n["ratio"] < MIN_DATA_RATIO:
            faults.append(
                f"the data pipeline gives less than {MIN_DATA_RATIO:.0f} x what the step consumes: "
                "training will wait for data; raise data.num_shards or data.read_threads"
            )
    if "loop" in numbers:
        n = numbers["loop"]
        wait = (
            f"{n['wait_ms_per_step']:.2f} ms of {n['ms_per_step']:.1f} ms ({n['wait_share']:.1%})"
        )
        rows.append(("waiting for data in a loop", wait))
    if "render" in numbers:
        times = ", ".join(f"{value:.1f} ms at {size}" for size, value in numbers["render"].items())
        rows.append(("MiniWorld picture", f"{times} pixels"))
    if "sample" in numbers:
        n = numbers["sample"]
        how = f"{n['num_steps']} {n['solver']} steps, guidance {n['guidance']:g}"
        rows.append(("sampling", f"{n['examples_per_second']:,.0f} examples / s ({how})"))
    for n in numbers.get("tracking", ()):
        quality = f"J {n['mean']:.3f} +- {n['spread']:.3f} over clips"
        rate = f"{n['frames_per_second']:,.0f} frames / s a thing"
        rows.append((f"{n['clips']} clips, {n['tracker']}", f"{quality}, {rate}"))
    width = max((len(name) for name, _ in rows), default=0)
    lines += [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join(lines + [f"too low: {fault}" for fault in faults])


def _progress(items: Iterable, name: str, total: int | None = None) -> Iterable:
    return tqdm(items, desc=name, total=total, leave=False, disable=not sys.stderr.isatty())


# ------------------------------------------------------------------------------------------ command


def define_flags() -> None:
    command.define_config_flags("configs/quickstart.py")
    flags.DEFINE_integer("steps", 20, "Train steps to time, or calls with --model.", lower_bound=1)
    flags.DEFINE_list("parts", list(PARTS), f"What to measure: {', '.join(PARTS)}.")
    flags.DEFINE_enum(
        "model",
        None,
        list(bench_network.WORKLOADS),
        "Time this network beside PyTorch; no config, no parts.",
    )
    flags.DEFINE_string("data", None, "Curate this folder of videos; no config, no parts.")
    flags.DEFINE_bool("tracking", False, "Measure mask trackers; no config, no parts, no model.")
    flags.DEFINE_list(
        "scale",
        [],
        "Measure these instead: mixed (packing of mixed pictures), depth (compile time), devices "
        "(weak scaling on simulated ones).",
    )
    flags.DEFINE_string("json", None, "File for the numbers.")


def main(argv: list[str]) -> None:
    del argv
    for name in ("absl", "jax"):  # they tell of platforms that are not there
        logging.getLogger(name).setLevel(logging.WARNING)
    model, path, num_steps = flags.FLAGS.model, flags.FLAGS.json, flags.FLAGS.steps
    if path and not pathlib.Path(path).resolve().parent.is_dir():
        raise FileNotFoundError(f"--json: there is no folder {pathlib.Path(path).parent}")
    if flags.FLAGS.tracking:
        tracking = [dataclasses.asdict(row) for row in measure_trackers()]
        numbers = {"machine": describe_machine(), "tracking": tracking}
    elif flags.FLAGS.data:
        command.require("av", extra="curate")
        measured = bench_video.measure(flags.FLAGS.data, num_rounds=REPEATS)
        numbers = {"machine": describe_machine(), "video": measured}
    elif model:
        measured = bench_network.measure(model, num_rounds=num_steps)
        numbers = {"machine": describe_machine(), "model": measured}
    elif flags.FLAGS.scale:
        given = [f"--config={flags.FLAGS.config}", *(f"--set={item}" for item in flags.FLAGS.set)]
        measured = bench_scaling.measure(
            flags.FLAGS.scale,
            command.config_from_flags(),
            config_flags=given,
            num_steps=num_steps,
        )
        numbers = {"machine": describe_machine(), **measured}
    else:
        config = command.config_from_flags()
        try:
            numbers = run_parts(config, parts=flags.FLAGS.parts, num_steps=num_steps)
        except RecordsError as error:
            raise config_error("data.folder", str(error)) from None
    print(format_table(numbers))
    if path:
        pathlib.Path(path).write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
