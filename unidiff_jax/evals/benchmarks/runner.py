"""One run of a benchmark: generate, keep, score, report.

    results = run_benchmark(
        get_benchmark("magicbrush"),
        data="data/magicbrush",
        out="runs/benchmarks/magicbrush",
        generator=load_generator("runs/unireal"),
        tools=Tools("weights"),
    )

A run that was stopped continues with the same command (`predictions`). Processes of one job make
their own parts; the first one scores. `--predictions` scores what another program made. What others
judge is exported (`judged`), and the run is kept for the judge's scores.
"""

import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from unidiff_jax.config import ConfigError, config_hash
from unidiff_jax.evals import pictures, report, statistics
from unidiff_jax.evals.benchmarks.base import (
    MINIWORLD_MARK,
    Benchmark,
    BenchmarkError,
    Item,
    MissingError,
    Picture,
    Predictions,
    Score,
    read_json,
)
from unidiff_jax.evals.benchmarks.generate import Generator
from unidiff_jax.evals.benchmarks.judged import EXPORT, export_made
from unidiff_jax.evals.benchmarks.predictions import (
    Store,
    foreign_predictions,
    make_predictions,
    own_predictions,
)
from unidiff_jax.evals.benchmarks.scoring import Tools
from unidiff_jax.evals.charts import format_number
from unidiff_jax.evals.report import NUM_SHOWN
from unidiff_jax.evals.results import (
    RUN,
    SampleWriter,
    git_state,
    package_versions,
    score_result,
    write_results,
)
from unidiff_jax.evals.results_schema import OFFICIAL, SUBSTITUTE
from unidiff_jax.paths import AnyPath, as_path, local_folder, write_json
from unidiff_jax.processes import meet

BATCH = 8
SHUFFLED = "shuffled pairing"
"""The row of the same predictions against other items."""


def choose_task(benchmark: Benchmark, generator: Generator, *, task: str | None = None) -> str:
    """The task that a model is asked for.

    Raises:
      ConfigError: the model was trained on none of the benchmark's, or `task` is none of them.
    """
    if task is not None:
        if task not in benchmark.tasks:
            raise ConfigError(
                f"--task {task}: {benchmark.name} can be asked as {', '.join(benchmark.tasks)}"
            )
        return task
    known = [name for name in benchmark.tasks if name in generator.tasks]
    if not known:
        raise ConfigError(
            f"{benchmark.name} needs the task {' or '.join(benchmark.tasks)}; {generator.name} was "
            f"trained on {', '.join(generator.tasks)}; --task={benchmark.tasks[0]} asks it anyway"
        )
    return known[0]


def default_folder(benchmark: Benchmark, settings: Mapping[str, Any]) -> str:
    """`runs/benchmarks/NAME-DIGEST`: other settings are another folder."""
    return f"runs/benchmarks/{benchmark.name.replace('+', 'plus')}-{config_hash(settings)[:8]}"


def run_benchmark(
    benchmark: Benchmark,
    *,
    data: AnyPath,
    out: AnyPath | None = None,
    split: str | None = None,
    generator: Generator | None = None,
    predictions: AnyPath | None = None,
    tools: Tools | None = None,
    task: str | None = None,
    limit: int | None = None,
    batch: int = BATCH,
    command: str = "run_benchmark()",
) -> dict[str, Any]:
    """Runs a benchmark; see the module.

    Args:
      benchmark: of `BENCHMARKS`.
      data: the suite's folder, as its `data.layout` says.
      out: of predictions and report; None is `default_folder`.
      split: of the suite; None is its first.
      generator: the model; None with `predictions`.
      predictions: folder of what another program made, in the suite's layout.
      tools: extractors; None for none.
      task: that the model is asked for; None is the first that it knows.
      limit: the first so many items; None is all.
      batch: requests at a time.
      command: for the report.

    Returns:
      The content of results.json, and `folder`, where it lies; {} on processes but the first. Of a
      suite that is judged elsewhere the content of run.json, without scores.

    Raises:
      ConfigError: wrong arguments, or a model without the task.
      BenchmarkError: data that are not in the suite's format, or nothing to score.
    """
    started = time.monotonic()
    if (generator is None) == (predictions is None):
        raise ConfigError("give a model, or the folder of another program's predictions")
    if benchmark.suite is not None and generator is None:
        raise ConfigError(
            f"{benchmark.name} is judged elsewhere: `python -m launch.judged --suite "
            f"{benchmark.name} --pictures DIR --export DIR` puts pictures in its layout"
        )
    split = split or benchmark.splits[0]
    if split not in benchmark.splits:
        raise ConfigError(f"--split {split}: {benchmark.name} has {', '.join(benchmark.splits)}")
    tools = tools or Tools()
    tools.forget()
    source = as_path(data)
    if not source.is_dir():
        raise BenchmarkError(f"--data {data}: no such folder; {benchmark.data.layout}")
    every = list(benchmark.read(source, split))
    items = every[:limit]
    _check_ids(benchmark, items)
    settings: dict[str, Any] = {"benchmark": benchmark.name, "split": split, "data": str(data)}
    if generator is not None:
        task = choose_task(benchmark, generator, task=task)
        settings |= {"task": task, "generator": dict(generator.settings)}
    else:
        settings |= {"predictions": str(predictions)}
    folder = as_path(out or default_folder(benchmark, settings))
    seconds: dict[str, float] = {}
    if generator is not None:
        store = Store(folder, benchmark.kind, {"task": task, **generator.settings})
        make_predictions(
            benchmark, items, generator=generator, task=task or "", store=store, batch=batch
        )
        meet("predictions")
        if benchmark.suite is not None:
            export_made(benchmark.suite, items, store=store)
            meet("export")
        if jax.process_index() > 0:
            meet("report")  # scoring may take long, and a process that ends ends the job
            return {}
        if benchmark.finish is not None:
            benchmark.finish(store.predictions, items)
        seconds["generate"] = time.monotonic() - started
        made = own_predictions(items, store=store, name=generator.name)
    else:
        made = foreign_predictions(benchmark, items, folder=predictions or "")
    if len(made.missing) == len(items):
        reason = next(iter(made.missing.values()))
        raise BenchmarkError(f"{benchmark.name}: no item has a prediction; the first: {reason}")
    common = _deviations(benchmark, source, num_items=len(items), split=split)
    run = {
        "run_id": folder.name,
        "title": f"{benchmark.title}: {made.name}",
        "description": benchmark.description,
        "git": git_state(),
        "command": command,
        "config": {**settings, "limit": limit},
        "seeds": sorted({item.seed for item in items}),
        "steps": generator.steps if generator else 0,
        "params": generator.params if generator else 0,
        "wall_clock_seconds": seconds,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "packages": package_versions(),
        "dataset_manifest_sha256": _manifest(items),
        "curves": {},
        "deviations": list(common),
    }
    write_json(folder / "settings.json", settings)
    if benchmark.suite is not None:
        run["deviations"] += _not_made(made)
        _keep_run(folder / "report", run)
        meet("report")
        return run | {"scores": [], "folder": str(folder / "report"), EXPORT: str(folder / EXPORT)}
    scored = time.monotonic()
    scores, rows = _scored(benchmark, items, made, tools)
    if not scores:
        raise BenchmarkError(
            f"{benchmark.name}: nothing to score; it needs {', '.join(benchmark.extractors)}: "
            f"{'; '.join(tools.missing.values())}"
        )
    entry = functools.partial(_entry, benchmark, split=split, seeds=run["seeds"], deviations=common)
    entries = [
        entry(score, rows=rows, samples=_sample_name(benchmark, score.protocol))
        for score in _primaries_first(benchmark, scores)
    ]
    for part, own in _parts(items).items():
        alone, rows = _scored(benchmark, own, made, tools)
        entries += [entry(score, rows=rows, part=part) for score in alone]
    seconds["score"] = time.monotonic() - scored
    not_scored = [f"Not scored: {what}." for what in tools.missing.values()]
    results = run | {"scores": entries, "deviations": [*common, *not_scored]}
    with local_folder(folder / "report") as place:
        for part in ("samples", "img"):
            shutil.rmtree(place / part, ignore_errors=True)
        for protocol in dict.fromkeys(score.protocol for score in scores):
            own = [score for score in scores if score.protocol == protocol]
            _write_samples(place, protocol, benchmark, items, made, own)
        write_results(place, results=results)
        report.build_report(place)
    meet("report")
    return results | {"folder": str(folder / "report")}


def _check_ids(benchmark: Benchmark, items: Sequence[Item]) -> None:
    if not items:
        raise BenchmarkError(f"{benchmark.name} has no items")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise BenchmarkError(f"{benchmark.name} has two items {item.id!r}")
        seen.add(item.id)
        if item.id.startswith("/") or ".." in item.id.split("/"):
            raise BenchmarkError(f"{benchmark.name}: the item {item.id!r} leaves the folder")


def _manifest(items: Sequence[Item]) -> str:
    return hashlib.sha256("".join(item.manifest for item in items).encode()).hexdigest()


def _not_made(made: Predictions) -> list[str]:
    """What a judge does not get."""
    if not made.missing:
        return []
    first, reason = next(iter(made.missing.items()))
    return [f"{len(made.missing)} pictures could not be made; the first, {first}: {reason}."]


def _keep_run(folder: epath.Path, run: Mapping[str, Any]) -> None:
    """Writes run.json; scores of an earlier run with other pictures go."""
    path = folder / "results.json"
    if path.exists():
        earlier = read_json(path)
        now = json.loads(json.dumps(run))
        if any(earlier.get(key) != now[key] for key in ("config", "dataset_manifest_sha256")):
            for name in (path.name, "index.html", "summary.md"):
                (folder / name).unlink(missing_ok=True)
    write_json(folder / RUN, run)


def _deviations(
    benchmark: Benchmark, data: epath.Path, *, num_items: int, split: str
) -> tuple[str, ...]:
    """What keeps every score of the run from being an official one."""
    found = list(benchmark.deviations)
    official = benchmark.counts.get(split)
    if official is not None and num_items != official:
        found.append(f"{num_items} items, and not the {official} of the suite.")
    if (data / MINIWORLD_MARK).exists():
        found.append("Drawn scenes of MiniWorld in the suite's layout, and not its pictures.")
    return tuple(found)


def _parts(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Items by part, where a suite has several."""
    found: dict[str, list[Item]] = {}
    for item in items:
        if item.part:
            found.setdefault(item.part, []).append(item)
    return found if len(found) > 1 else {}


Rows = Mapping[str, Mapping[tuple, float]]
"""Estimates by row and `Score.key`."""


def _scored(
    benchmark: Benchmark, items: Sequence[Item], made: Predictions, tools: Tools
) -> tuple[list[Score], Rows]:
    """The scores of items, and those of what needs no model."""
    if benchmark.score is None:
        raise ConfigError(f"the benchmark {benchmark.name} has neither score nor suite")
    scores = benchmark.score(items, made, tools)
    found = {}
    there = [item for item in items if item.id not in made.missing]
    for name, read in benchmark.rows.items():
        # the same items that the model is scored on
        row = Predictions(name, read, made.missing)
        found[name] = _estimates(benchmark.score(items, row, tools))
    if benchmark.shuffles and len(there) > 1:
        order = statistics.shuffled_order(len(there))
        partner = {item.id: there[place] for item, place in zip(there, order, strict=True)}
        shuffled = Predictions(made.name, made.read, made.missing, partner)
        found[SHUFFLED] = _estimates(benchmark.score(items, shuffled, tools))
    return scores, found


def _estimates(scores: Sequence[Score]) -> dict[tuple, float]:
    return {score.key: _interval(score)[0] for score in scores}


def _interval(score: Score) -> tuple[float, statistics.Interval | float]:
    """Value, and what `score_result` takes."""
    if isinstance(score.values, float):
        return score.values, score.values
    interval = statistics.interval(score.values)
    return interval.value, interval


def _primaries_first(benchmark: Benchmark, scores: Sequence[Score]) -> list[Score]:
    """The scores by protocol, in each the one first that its samples are sorted by."""
    found: list[Score] = []
    for protocol in dict.fromkeys(score.protocol for score in scores):
        own = [score for score in scores if score.protocol == protocol]
        primary = _primary(benchmark, own)
        found += [primary] * (primary is not None)
        found += [score for score in own if score is not primary]
    return found


def _primary(benchmark: Benchmark, scores: Sequence[Score]) -> Score | None:
    """Of the scores of one protocol that have items: of those with most, the benchmark's choice."""
    with_items = [score for score in scores if score.ids]
    most = max((len(score.items) for score in with_items), default=0)
    all_items = [score for score in with_items if len(score.items) == most]
    named = [score for score in all_items if score.metric == benchmark.samples]
    return next(iter(named or all_items), None)


def _sample_name(benchmark: Benchmark, protocol: str) -> str:
    name = benchmark.name.replace("+", "plus")
    return f"{name}-{protocol}" if protocol else name


def _entry(
    benchmark: Benchmark,
    score: Score,
    *,
    rows: Rows,
    split: str,
    seeds: Sequence[int],
    deviations: Sequence[str],
    samples: str | None = None,
    part: str = "",
) -> dict[str, Any]:
    failed = (f"{score.n_failed} items have no prediction.",) if score.n_failed else ()
    every = (*deviations, *score.deviations, *failed)
    protocol = f"{benchmark.name}/{score.protocol}" if score.protocol else benchmark.name
    detail = f", {score.protocol.replace('_', ' ')}" if score.protocol else ""
    return score_result(
        _interval(score)[1],
        benchmark=benchmark.name,
        protocol=protocol,
        title=f"{benchmark.title}{detail}" + (f": {part}" if part else ""),
        part=part or None,
        metric=score.metric,
        higher_is_better=score.higher_is_better,
        n_items=len(score.items),
        badge=SUBSTITUTE if every else OFFICIAL,
        split=split,
        description=benchmark.description,
        reference=score.reference,
        encoder=score.encoder,
        captions=score.captions,
        n_failed=score.n_failed,
        failures=score.failures if score.n_failed else None,
        rows={name: row[score.key] for name, row in rows.items() if score.key in row},
        seeds=seeds,
        samples=samples if score.ids else None,
        deviations=every,
    )


# ----------------------------------------------------------------------------------------- samples


def _write_samples(
    folder: Any,
    protocol: str,
    benchmark: Benchmark,
    items: Sequence[Item],
    made: Predictions,
    scores: Sequence[Score],
) -> None:
    primary = _primary(benchmark, scores)
    if primary is None:
        return
    columns = {_label(score): _by_item(score) for score in scores if score.ids}
    values = _by_item(primary)
    ids = set(primary.items)
    own = [item for item in items if item.id in ids]
    sign = 1.0 if primary.higher_is_better else -1.0
    worst = sorted(values, key=lambda key: sign * values[key])[:NUM_SHOWN]
    shown = {item.id for item in own[:NUM_SHOWN]} | set(worst)
    with SampleWriter(folder, task=_sample_name(benchmark, protocol)) as writer:
        for number, item in enumerate(own):
            value = values.get(item.id)
            writer.write(
                f"{number:05d}-{_plain(item.id)}",
                prompt=_prompt(item),
                value=value,
                seed_values=[] if value is None else [value],
                images=_images(benchmark, item, made) if item.id in shown else {},
                metrics={label: column.get(item.id) for label, column in columns.items()},
            )


def _by_item(score: Score) -> dict[str, float]:
    values = score.values
    if isinstance(values, statistics.Ratio):
        top, bottom = (np.asarray(part, np.float64) for part in values)
        values = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    return dict(zip(score.ids, np.asarray(values).tolist(), strict=True))


def _label(score: Score) -> str:
    encoder = score.encoder["name"] if score.encoder else ""
    parts = (score.protocol, score.metric, encoder, score.reference, score.captions or "")
    return " ".join(part for part in parts if part and part != "none")


def _plain(text: str) -> str:
    return "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in text)


def _prompt(item: Item) -> str:
    names = ("instruction", "expression", "caption")
    return next((item.text[name] for name in names if item.text.get(name)), "")


def _images(benchmark: Benchmark, item: Item, made: Predictions) -> dict[str, Any]:
    """Input, output and true result, where they are pictures."""
    found: dict[str, Any] = {}
    for kind in ("input", "target"):
        picture = item.truth.get(kind)
        if kind == "input" and picture is None:
            picture = next((v for v in item.given.values() if isinstance(v, Picture)), None)
        if isinstance(picture, Picture):
            found[kind] = np.asarray(picture.open())
    try:
        output = made(item)
    except MissingError:
        return found
    if benchmark.kind == "picture":
        found["output"] = np.asarray(output)
    elif benchmark.kind == "depth":
        low, high = np.quantile(output, [0.02, 0.98])
        depth = 1.0 - np.clip((output - low) / max(high - low, 1e-6), 0.0, 1.0)
        found["output"] = pictures.depth_to_rgb(1.0 + depth, near=1.0, far=2.0)
    return found


def score_table(results: Mapping[str, Any]) -> str:
    """The scores as aligned plain text, one line each."""
    rows = [("protocol", "metric", "encoder", "against", "captions", "value [95 %]", "n", "rows")]
    for score in results["scores"]:
        interval = score["ci95"]
        bounds = "" if interval is None else f" [{', '.join(map(format_number, interval))}]"
        failed = f" ({score['n_failed']} failed)" if score["n_failed"] else ""
        rows.append(
            (
                score["protocol"],
                score["metric"],
                score["encoder"]["name"] if score["encoder"] else "",
                score["reference"],
                score["captions"] or "",
                f"{format_number(score['value'])}{bounds}",
                f"{score['n_items']}{failed}",
                ", ".join(f"{name} {format_number(v)}" for name, v in score["rows"].items()),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
