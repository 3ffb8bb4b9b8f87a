"""Evaluates a run on held-out MiniWorld items, or a model on a published benchmark.

    python -m launch.evaluate --workdir runs/quickstart
    python -m launch.evaluate --workdir runs/quickstart --tasks depth,segment --split heldout

Writes index.html, summary.md, results.json, samples/ and img/ into the workdir's `report`, or into
`report-heldout` for another split than `test`. Four tasks of 300 items and three seeds take about
two minutes on two CPU cores.

    python -m launch.evaluate --benchmark magicbrush --data data/magicbrush --model runs/unireal \\
        --extractors weights
    python -m launch.evaluate --benchmark nyuv2 --data data/nyuv2 --predictions made/elsewhere

A benchmark reads its suite's true files (docs/benchmarks.md says where they are from), generates
into the folder `--out`, scores, and writes the report there. What a detector or another model
judges, such as geneval, is exported for it instead (`launch.judged` takes its answers). A model is
a workdir, or a folder with released OneDiffusion weights. A stopped run continues with the same
command; processes of one job (`--distributed`) share the work.
"""

import json
import shlex
import sys
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from launch import command
from unidiff_jax.config import ConfigError
from unidiff_jax.evals.benchmarks import BENCHMARKS, get_benchmark
from unidiff_jax.evals.benchmarks.generate import load_generator
from unidiff_jax.evals.benchmarks.runner import BATCH, run_benchmark, score_table
from unidiff_jax.evals.benchmarks.scoring import Tools
from unidiff_jax.evals.miniworld import (
    EvalSettings,
    Origin,
    evaluate,
    settings_of,
)
from unidiff_jax.evals.miniworld_report import verdict_table
from unidiff_jax.paths import AnyPath, as_path, is_remote, local_folder
from unidiff_jax.processes import join_job
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.train.checkpoint import latest_step
from unidiff_jax.train.metrics import read_metrics
from unidiff_jax.train.workdir import load_workdir_config

SECONDS = "seconds.json"
"""In the workdir: wall clock of the stages before training, {name: seconds}."""

SPLITS = ("test", "validation", "heldout")
"""Of MiniWorld."""

_SHOWN_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


def define_flags() -> None:
    flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the run.")
    flags.DEFINE_list(
        "tasks", [], "Tasks, separated by commas; none is all that it was trained on."
    )
    flags.DEFINE_string("data", None, "Data folder: of the suite, or where training's is now.")
    flags.DEFINE_string("split", None, f"Of {', '.join(SPLITS)}, or of the suite's; none is test.")
    flags.DEFINE_integer("num_items", None, "Items a task.", lower_bound=2)
    flags.DEFINE_integer("seeds", None, "Sampling seeds.", lower_bound=1)
    flags.DEFINE_integer("num_steps", None, "Solver steps.", lower_bound=1)
    flags.DEFINE_float("guidance", None, "Scale of the text.", lower_bound=0.0)
    flags.DEFINE_integer("step", None, "Checkpoint; none is the newest.", lower_bound=1)
    flags.DEFINE_string("benchmark", None, f"A published one: {', '.join(BENCHMARKS)}.")
    flags.DEFINE_string("model", None, "Of a benchmark: a workdir, or released weights.")
    flags.DEFINE_string("predictions", None, "In place of a model: what another program made.")
    flags.DEFINE_string("extractors", None, "Folder of a benchmark's networks, one a kind.")
    flags.DEFINE_string("out", None, "Of a benchmark; none is runs/benchmarks/NAME-DIGEST.")
    flags.DEFINE_integer("limit", None, "First so many items of a benchmark.", lower_bound=1)
    flags.DEFINE_string("task", None, "That a benchmark's model is asked for; none is its own.")
    flags.DEFINE_integer("batch", BATCH, "Items of a benchmark at a time.", lower_bound=1)
    flags.DEFINE_float("image_guidance", None, "Scale of pictures on channels.", lower_bound=0.0)
    flags.DEFINE_integer("side", None, "Pixels a side, of released weights.", lower_bound=16)
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of released weights.")
    command.define_distributed_flag()


def main(argv: list[str]) -> None:
    del argv
    values = flags.FLAGS
    join_job(values.distributed)
    command.quiet_libraries()
    if values.benchmark is not None:
        evaluate_benchmark()
        return
    for name in ("model", "predictions", "extractors", "out", "limit", "task", "side"):
        if values[name].value is not None:
            raise ConfigError(f"--{name} is for a published benchmark: give --benchmark too")
    split = values.split or "test"
    if split not in SPLITS:
        raise ConfigError(f"--split {split}: one of {', '.join(SPLITS)}")
    workdir = as_path(values.workdir)
    config = load_workdir_config(workdir)
    if values.data is not None:
        config.data.folder = values.data
    given = {name: values[name].value for name in EvalSettings._fields}
    settings = settings_of(config)._replace(**{k: v for k, v in given.items() if v is not None})
    results = evaluate_workdir(
        workdir,
        config=config,
        settings=settings,
        tasks=values.tasks,
        split=split,
        step=values.step,
    )
    print(verdict_table(results))
    print(f"report: {report_folder(workdir, split=split) / 'index.html'}")


def evaluate_benchmark() -> None:
    """Runs the benchmark that the flags name.

    Raises:
      ConfigError: no data, or not one of a model and predictions.
    """
    values = flags.FLAGS
    benchmark = get_benchmark(values.benchmark)
    for name in ("num_items", "seeds"):
        if values[name].value is not None:
            raise ConfigError(f"--{name} is MiniWorld's; the suite says its own, --limit cuts it")
    if values.data is None:
        raise ConfigError(
            f"--data is missing: the folder of {benchmark.name}, from {benchmark.data.where}, with "
            f"{benchmark.data.layout}"
        )
    if (values.model is None) == (values.predictions is None):
        raise ConfigError("give --model, or --predictions of another program")
    tools = Tools(values.extractors)
    generator = None
    if values.model is not None:
        names = ("step", "num_steps", "guidance", "image_guidance", "side", "dtype")
        generator = load_generator(values.model, **{name: values[name].value for name in names})
    results = run_benchmark(
        benchmark,
        data=values.data,
        out=values.out,
        split=values.split,
        generator=generator,
        predictions=values.predictions,
        tools=tools,
        task=values.task,
        limit=values.limit,
        batch=values.batch,
        command=_command(),
    )
    if not results:
        return
    if results["scores"]:
        print(score_table(results))
    print(*(f"note: {text}" for text in results["deviations"]), sep="\n")
    if benchmark.suite is None:
        print(f"report: {results['folder']}/index.html")
        return
    print(f"next, with {results['export']} as EXPORT: {benchmark.suite.command}")
    print(
        f"then: python -m launch.judged --suite {benchmark.name} --data {values.data} "
        f"--results RESULTS --date DAY --report {results['folder']}"
    )


def evaluate_workdir(
    workdir: AnyPath,
    *,
    config: ConfigDict,
    settings: EvalSettings | None = None,
    tasks: list[str] | None = None,
    split: str = "test",
    step: int | None = None,
) -> dict[str, Any]:
    """Loads a run, evaluates it and writes the report into its workdir.

    Args:
      workdir: of the run.
      config: the run's, perhaps with another data folder or `eval`.
      settings: None is the config's `eval`.
      tasks: see `evaluate`, as for split.
      split: of the data.
      step: checkpoint; None is the newest.

    Raises:
      FileNotFoundError: no run or no such checkpoint.
    """
    workdir = as_path(workdir)
    step = latest_step(workdir) if step is None else step
    pipeline = Pipeline.from_workdir(workdir, step=step)
    pipeline.config = config
    rows = read_metrics(workdir / "metrics.jsonl")
    rows = [row for row in rows if row["step"] <= step]
    origin = Origin(
        step=step,
        run_id=(workdir if is_remote(workdir) else workdir.resolve()).name,
        command=_command(),
        seconds=stage_seconds(workdir, rows),
        curves=curves(rows),
    )
    with local_folder(report_folder(workdir, split=split)) as folder:
        return evaluate(
            pipeline, folder, origin=origin, tasks=tasks or (), split=split, settings=settings
        )


def report_folder(workdir: AnyPath, *, split: str = "test") -> epath.Path:
    """Where the report of a split lies."""
    return as_path(workdir) / ("report" if split == "test" else f"report-{split}")


def stage_seconds(workdir: AnyPath, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Wall clock of the stages so far; training's comes from its own log."""
    path = as_path(workdir) / SECONDS
    seconds = json.loads(path.read_text()) if path.is_file() else {}
    trained = [row["train_seconds"] for row in rows if "train_seconds" in row]
    return seconds | ({"train": trained[-1]} if trained else {})


def curves(rows: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
    """Loss by task and by noise level over the steps, and by noise level at the end."""
    result: dict[str, list[list[float]]] = {}
    panels = {"train/loss/": "train loss/", "heldout/loss/": "held-out loss/"}
    panels |= {
        f"heldout/loss_by_sigma/{level}": f"held-out loss by noise level/{level}"
        for level in _SHOWN_LEVELS
    }
    for row in rows:
        for key, value in row.items():
            for start, panel in panels.items():
                if key.startswith(start):
                    name = panel + key.removeprefix(start)
                    result.setdefault(name, []).append([row["step"], value])
    start = "heldout/loss_by_sigma/"
    last = next((row for row in reversed(rows) if any(k.startswith(start) for k in row)), {})
    levels = sorted((float(k.removeprefix(start)), v) for k, v in last.items() if start in k)
    if levels:
        # a bin is named by its lower edge and is a tenth wide
        name = f"held-out loss over noise level/step {last['step']}"
        result[name] = [[level + 0.05, value] for level, value in levels]
    return result


def _command() -> str:
    """What was typed."""
    return shlex.join(["python", *_program(), *sys.argv[1:]])


def _program() -> list[str]:
    """`-m launch.evaluate` for a module, the path of a script otherwise."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return ["-m", spec.name] if spec else [sys.argv[0]]


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
