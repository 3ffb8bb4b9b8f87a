"""The miniature benchmark: samples held-out items, judges them, writes the report.

    pipeline = Pipeline.from_workdir("runs/quickstart")
    results = evaluate(pipeline, "runs/quickstart/report", origin=Origin(step=6000))
    print(verdict_table(results))

Three parts that can be had alone: `make_protocols` (what is asked and how it is scored), `sample`
(outputs of a model) and `judge` (outputs to a verdict). `judge` takes arrays, so that an oracle, an
untrained network and a trivial predictor go through it too; the tests do that.
"""

import functools
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.build import make_miniworld, make_subjects
from data_pipelines.miniworld import edits, manifest
from data_pipelines.miniworld.items import TASK_NAMES
from data_pipelines.mixture import parse_mixture, stable_id
from unidiff_jax.config import ConfigError, to_dict
from unidiff_jax.evals import report, statistics
from unidiff_jax.evals.interleaved import ENTRIES, interleave_protocol
from unidiff_jax.evals.miniworld_protocol import Protocol, Setting, TooFewItemsError, oracle
from unidiff_jax.evals.miniworld_report import deviations, write_samples
from unidiff_jax.evals.miniworld_tasks import make_protocol
from unidiff_jax.evals.miniworld_training import training_statistics
from unidiff_jax.evals.results import git_state, package_versions, task_result, write_results
from unidiff_jax.evals.subjects import SUBJECT_TASKS, personalize_protocol
from unidiff_jax.paths import as_path
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.train.state import count_parameters

Outputs = Float[np.ndarray, "items seeds h w 3"]
"""RGB in about [-1, 1] as the sampler gives it, before the codec."""


class EvalSettings(NamedTuple):
    """The config's `eval`: items a task, sampling seeds, solver steps, guidance."""

    num_items: int = statistics.MIN_ITEMS
    seeds: int = statistics.MIN_SEEDS
    num_steps: int = 8
    guidance: float = 1.0


class Origin(NamedTuple):
    """Where the weights come from, for the report.

    Attributes:
      step: of the checkpoint.
      run_id: name of the run.
      command: that evaluates.
      seconds: wall clock of earlier stages by name.
      curves: of training, {name: [[step, value], ...]}.
    """

    step: int
    run_id: str = "run"
    command: str = "evaluate()"
    seconds: Mapping[str, float] = {}
    curves: Mapping[str, list[list[float]]] = {}


class Judged(NamedTuple):
    """What `judge` finds.

    Attributes:
      verdict: of the rule.
      ceiling: the oracle's score; None where it has no meaning.
      secondary: further numbers, means over items and seeds.
      values: score of each item and seed (a ratio's quotient).
      n_failed: outputs that were not finite and scored the worst value.
    """

    verdict: statistics.Verdict
    ceiling: float | None
    secondary: dict[str, float]
    values: Float[np.ndarray, "items seeds"]
    n_failed: int


class Protocols(NamedTuple):
    """What can be judged, and a sentence for each entry that the split cannot offer."""

    protocols: list[Protocol]
    missing: list[str]


# ------------------------------------------------------------------------------------------ judge


def entry_names(config: ConfigDict, tasks: Sequence[str] = ()) -> list[str]:
    """Entries of the results: the config's tasks, or those named; `edit` is one entry a kind.

    Raises:
      ConfigError: a name is no task.
    """
    kinds = config.data.edit_kinds or edits.KINDS
    every = {name: [name] for name in (*TASK_NAMES, *SUBJECT_TASKS)}
    every |= {f"edit_{kind}": [f"edit_{kind}"] for kind in edits.KINDS}
    every |= {name: [name] for name in ENTRIES} | {"interleave": list(ENTRIES)}
    every["edit"] = [f"edit_{kind}" for kind in edits.KINDS if kind in kinds]
    trained = {mix.task.name for mix in parse_mixture(config.data.tasks)}
    of_subjects = (*SUBJECT_TASKS, "interleave")
    drawn = () if config.data.get("kind", "miniworld") == "subjects" else TASK_NAMES
    wanted = tasks or [name for name in (*drawn, *of_subjects) if name in trained]
    unknown = [name for name in wanted if name not in every]
    if unknown:
        raise ConfigError(f"no task {unknown[0]!r} to evaluate; tasks are: {', '.join(every)}")
    return list(dict.fromkeys(entry for name in wanted for entry in every[name]))


def make_protocols(
    config: ConfigDict, names: Sequence[str], *, split: str = "test", num_items: int | None = None
) -> Protocols:
    """Reads the split and measures what the training split gives away.

    Args:
      config: the run's.
      names: from `entry_names`.
      split: `test`, or `heldout` for scenes that training excludes by construction.
      num_items: items an entry; the first that the split offers.
    """
    num_items = num_items or EvalSettings().num_items
    of_subjects = {*SUBJECT_TASKS, *ENTRIES}
    setting = None
    if not of_subjects.issuperset(names):
        setting = Setting(
            folder=config.data.folder,
            split=split,
            training=training_statistics(make_miniworld(config, split="train")),
            num_items=num_items,
            samples=manifest.read(config.data.folder).settings.samples,
            min_reference_objects=config.data.min_reference_objects,
        )
    protocols, missing = [], []
    for name in names:
        try:
            if setting is not None and name not in of_subjects:
                protocols.append(make_protocol(name, setting))
                continue
            subjects = make_subjects(config, split=split)
            if name in ENTRIES:
                found = interleave_protocol(subjects, name, num_items=num_items)
            else:
                found = personalize_protocol(subjects, num_items=num_items)
            protocols.append(found)
        except TooFewItemsError as error:
            missing.append(f"Not evaluated: {error}.")
    return Protocols(protocols, missing)


def judge(protocol: Protocol, outputs: Outputs) -> Judged:
    """Applies a protocol and the rule to outputs, whoever made them."""
    finite = np.isfinite(outputs).all(axis=(2, 3, 4))
    clean = np.where(finite[..., None, None, None], outputs, np.float32(0))
    values = _score_seeds(protocol, clean, finite, protocol.items)
    verdict = statistics.verdict(
        values,
        floors={n: protocol.score(f, protocol.items) for n, f in protocol.floors.items()},
        shuffled=_score_seeds(protocol, clean, finite, protocol.others),
        minimum=protocol.minimum,
    )
    ceiling = statistics.estimate(protocol.score(oracle(protocol), protocol.items))
    details = [protocol.details(seed, protocol.items) for seed in clean.swapaxes(0, 1)]
    secondary = {name: np.stack([d[name] for d in details]) for name in details[0]}
    return Judged(
        verdict=verdict,
        ceiling=ceiling if protocol.bounded else None,
        secondary={k: float(np.nanmean(v)) for k, v in secondary.items() if np.isfinite(v).any()},
        values=_quotient(values),
        n_failed=int((~finite).sum()),
    )


def _score_seeds(
    protocol: Protocol, outputs: Outputs, finite: np.ndarray, items: Sequence[Mapping[str, Any]]
) -> statistics.Scores:
    """Scores (items, seeds); an output that is not finite gets the worst value."""
    columns = [protocol.score(seed, items) for seed in outputs.swapaxes(0, 1)]
    if isinstance(protocol.worst, statistics.Ratio):
        parts = [
            np.where(finite, np.stack(part, axis=1), worst)
            for part, worst in zip(zip(*columns, strict=True), protocol.worst, strict=True)
        ]
        return statistics.Ratio(*parts)
    return np.where(finite, np.stack(columns, axis=1), protocol.worst)


def _quotient(values: statistics.Scores) -> np.ndarray:
    if isinstance(values, statistics.Ratio):
        return np.asarray(values.numerator) / np.maximum(values.denominator, 1.0)
    return values


# ------------------------------------------------------------------------------ sample and report


def sample(
    pipeline: Pipeline,
    protocol: Protocol,
    *,
    settings: EvalSettings,
    on_seed: Callable[[], Any] = lambda: None,
) -> Outputs:
    """Outputs of a model for a protocol's items; the noise depends on item and seed alone."""
    examples = [
        (
            protocol.task,
            pipeline.maker.example(protocol.task, item, example_id=stable_id(protocol.task, index)),
        )
        for index, item in zip(protocol.indices, protocol.items, strict=True)
    ]
    (field,) = protocol.task.generate
    seeds = []
    for seed in range(settings.seeds):
        made = pipeline.generate(
            examples, seeds=[seed], num_steps=settings.num_steps, guidance=settings.guidance
        )
        seeds.append(np.stack([frames[0][field] for frames in made]))
        on_seed()
    return np.stack(seeds, axis=1)


def evaluate(
    pipeline: Pipeline,
    folder: str | pathlib.Path,
    *,
    origin: Origin,
    tasks: Sequence[str] = (),
    split: str = "test",
    settings: EvalSettings | None = None,
) -> dict[str, Any]:
    """Evaluates a model and writes its report; see the module docstring.

    Args:
      pipeline: the model; its config says which data and tasks.
      folder: results.json, samples/, img/, index.html and summary.md are written here, and what an
        earlier evaluation left of these is removed.
      origin: where the weights come from.
      tasks: names; none is every task of the config.
      split: of the data.
      settings: None is the config's `eval`.

    Returns:
      The content of results.json.

    Raises:
      ConfigError: an unknown task, or a split in which no task has two items.
    """
    started = time.monotonic()
    folder, config = pathlib.Path(folder), pipeline.config
    settings = settings or settings_of(config)
    names = entry_names(config, tasks)
    protocols, missing = make_protocols(config, names, split=split, num_items=settings.num_items)
    if not protocols:
        raise ConfigError(f"nothing to evaluate: {' '.join(missing)}")
    for part in ("samples", "img"):
        shutil.rmtree(folder / part, ignore_errors=True)
    entries = []
    total = settings.seeds * sum(len(p.items) for p in protocols)
    with tqdm(total=total, unit="picture", desc="evaluate", mininterval=1.0) as bar:
        for protocol in protocols:
            bar.set_postfix_str(protocol.name)
            advance = functools.partial(bar.update, len(protocol.items))
            outputs = sample(pipeline, protocol, settings=settings, on_seed=advance)
            judged = judge(protocol, outputs)
            write_samples(folder, protocol=protocol, outputs=outputs, values=judged.values)
            entries.append(
                task_result(
                    judged.verdict,
                    task=protocol.name,
                    title=protocol.title,
                    metric=protocol.metric,
                    seeds=range(settings.seeds),
                    ceiling=judged.ceiling,
                    protocol=protocol.text,
                    split=split,
                    n_failed=judged.n_failed,
                    secondary=judged.secondary,
                )
            )
    results = {
        "run_id": origin.run_id,
        "git": git_state(),
        "command": origin.command,
        "config": evaluated_config(config, settings=settings, split=split, tasks=tasks),
        "seeds": [config.seed],
        "steps": origin.step,
        "params": count_parameters(pipeline.params),
        "wall_clock_seconds": {**origin.seconds, "evaluate": time.monotonic() - started},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}, {os.cpu_count()} cores",
        "packages": package_versions(),
        "dataset_manifest_sha256": manifest.sha256(as_path(config.data.folder) / manifest.NAME),
        "tasks": entries,
        "curves": origin.curves,
        "deviations": [*deviations(config, split=split), *missing],
    }
    write_results(folder, results=results)
    report.build_report(folder)
    return results


def settings_of(config: ConfigDict) -> EvalSettings:
    """The config's `eval`, with defaults for what it leaves out."""
    return EvalSettings(**config.get("eval", {}))


def evaluated_config(
    config: ConfigDict, *, settings: EvalSettings, split: str, tasks: Sequence[str]
) -> dict[str, Any]:
    """The config as results.json holds it: the run's, with what was evaluated in `eval`."""
    chosen = {**settings._asdict(), "split": split, "tasks": list(tasks)}
    return {**to_dict(config), "eval": chosen}
