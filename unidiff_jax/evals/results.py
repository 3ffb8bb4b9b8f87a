"""A benchmark run on disk: what its report is made of, and nothing that it is not made of.

    results.json            provenance, one entry a task, one a benchmark's score, curves
    samples/<name>.jsonl    one line an item, in the fixed order of the item ids
    img/<name>/*.png        what the lines point at

Everything is checked when it is written and when it is read; a fault names file, line and key.
"""

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unidiff_jax.config import config_hash
from unidiff_jax.evals import pictures, statistics
from unidiff_jax.evals.results_schema import (
    IMAGE_KINDS,
    SAMPLE_KEYS,
    SCHEMA_VERSION,
    VERDICTS,
    ReportError,
    check_name,
    faults,
    key_faults,
    score_key,
)

PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint", "numpy", "scipy")

# ---------------------------------------------------------------------------- write


def git_state(folder: str | Path | None = None) -> dict[str, Any]:
    """{"sha", "dirty"} of the checkout that holds `folder`; {"unknown", None} outside of one.

    Untracked files count as dirty, since a run may have imported them. The default folder is this
    file's; an installed copy that a foreign repository merely contains is "unknown".
    """
    here = Path(__file__)
    folder, probe = (here.parent, here.name) if folder is None else (Path(folder), ".")

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", probe)
        return {"sha": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return {"sha": "unknown", "dirty": None}


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those of the named packages that are installed."""
    versions = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def task_result(
    verdict: statistics.Verdict,
    *,
    task: str,
    title: str,
    metric: str,
    seeds: Sequence[int],
    ceiling: float | None,
    protocol: str,
    split: str,
    n_failed: int = 0,
    secondary: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """One entry of `results["tasks"]`.

    Args:
        verdict: from `statistics.verdict`.
        task: short name, also of the samples file.
        title: what a reader sees.
        metric: name of the metric with its protocol, e.g. "object-depth skill".
        seeds: the sampling seeds, as many as the verdict's columns.
        ceiling: what a perfect model would score, verifier included; None if unbounded.
        protocol: one or two sentences: items, inputs, scoring, how conditions are shuffled.
        split: name of the held-out split.
        n_failed: outputs that could not be scored and were given the worst value.
        secondary: further numbers, shown but not judged.
    """
    if len(seeds) != verdict.num_seeds:
        raise ReportError(f"{task}: {len(seeds)} seeds named, {verdict.num_seeds} judged")
    return {
        "task": task,
        "title": title,
        "metric": metric,
        "higher_is_better": verdict.higher_is_better,
        "value": verdict.value.value,
        "ci95": [verdict.value.low, verdict.value.high],
        "floor": verdict.floor,
        "floor_name": verdict.floor_name,
        "floors": dict(verdict.floors),
        "ceiling": ceiling,
        "shuffled": verdict.shuffled,
        "over_floor": verdict.over_floor._asdict(),
        "over_shuffled": verdict.over_shuffled._asdict(),
        "verdict": VERDICTS[0] if verdict.learned else VERDICTS[1],
        "reason": verdict.reason,
        "n_items": verdict.num_items,
        "n_failed": n_failed,
        "seeds": list(seeds),
        "secondary": dict(secondary or {}),
        "protocol": protocol,
        "split": split,
    }


def score_result(
    score: statistics.Interval | float,
    *,
    benchmark: str,
    protocol: str,
    title: str,
    metric: str,
    higher_is_better: bool,
    n_items: int,
    badge: str,
    split: str,
    description: str,
    reference: str,
    encoder: Mapping[str, str] | None = None,
    captions: str | None = None,
    part: str | None = None,
    judge: Mapping[str, str] | None = None,
    n_failed: int = 0,
    failures: str | None = None,
    rows: Mapping[str, float] | None = None,
    seeds: Sequence[int] = (0,),
    samples: str | None = None,
    deviations: Sequence[str] = (),
) -> dict[str, Any]:
    """One entry of `results["scores"]`: one metric, of one protocol, with one encoder.

    Args:
        score: from `statistics.interval`; a bare number for what has no items to resample, such as
            FID, or comes from another script without its items.
        benchmark: key into the published values, e.g. "magicbrush".
        protocol: id, path-like, the benchmark first, e.g. "magicbrush/single_turn". Whatever makes
            numbers incomparable has an id of its own, e.g. "dpg_bench/official", "dpg_bench/fixed".
        title: what a reader sees, e.g. "MagicBrush test, single turn".
        metric: id in the scale of the published values, e.g. "clip_i".
        higher_is_better: False for errors.
        n_items: items of the protocol, those that failed included.
        badge: one of `results_schema.BADGES`: OFFICIAL, SUBSTITUTE, MINIATURE.
        split: name of the split.
        description: one or two sentences: items, inputs, scoring.
        reference: what an output is compared with: "input", "gt", "text" or "none".
        encoder: {"name", "sha256" of its weights file, "preprocess"}; None for none.
        captions: the filter of the captions, "all" or "captions differ"; None where there is none.
        part: of the items, that is scored alone, e.g. a kind of edit; None is the whole.
        judge: {"name", "date", "sha256" of its raw replies}; None for none.
        n_failed: items without a valid output or reply.
        failures: how they enter the value, e.g. "left out of the mean"; required if there are any.
        rows: the same metric of what needs no model, on the same items: {"copy input": .861}.
        seeds: of the sampling.
        samples: name of the samples file whose items these are. The first score that names a file
            is the one that its lines' `value` belongs to.
        deviations: from the official protocol; with one, the badge cannot be OFFICIAL.
    """
    value, low, high = score if isinstance(score, statistics.Interval) else (score, None, None)
    return {
        "benchmark": benchmark,
        "protocol": protocol,
        "title": title,
        "metric": metric,
        "higher_is_better": higher_is_better,
        "value": value,
        "ci95": None if low is None else [low, high],
        "n_items": n_items,
        "n_failed": n_failed,
        "failures": failures,
        "encoder": None if encoder is None else dict(encoder),
        "judge": None if judge is None else dict(judge),
        "reference": reference,
        "captions": captions,
        "part": part,
        "rows": dict(rows or {}),
        "seeds": list(seeds),
        "badge": badge,
        "split": split,
        "description": description,
        "samples": samples,
        "deviations": list(deviations),
    }


def write_results(folder: str | Path, *, results: Mapping[str, Any]) -> Path:
    """Check `results` and write `folder/results.json`; numpy numbers and arrays are converted.

    Keys (all required unless marked): run_id, git {sha, dirty}, command, config, config_hash
    (filled in), seeds, steps, params, wall_clock_seconds {stage: s}, device, packages,
    dataset_manifest_sha256, tasks (see `task_result`) or scores (see `score_result`) or both,
    curves {name: [[step, value], ...]}, deviations [text], and optionally title, badge,
    description. Curves named "panel/line" share a panel. Raises ReportError with every fault at
    once.
    """
    content = {"schema_version": SCHEMA_VERSION, "tasks": [], "scores": [], **results}
    content = json.loads(json.dumps(content, default=_plain))
    if isinstance(content.get("config"), dict):
        content.setdefault("config_hash", config_hash(content["config"]))
    _raise_faults("results", list(faults(content)))
    path = Path(folder) / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


RUN = "run.json"
"""Beside results.json: a run whose scores are still to come, as `write_results` takes it."""


def add_scores(folder: str | Path, *, scores: Sequence[Mapping[str, Any]]) -> Path:
    """Adds scores that came from elsewhere to a run, in place of older ones of the same number.

    The run is that of `folder/results.json`, or of `folder/run.json` where nothing was scored yet.
    Raises ReportError where there is neither, or what `write_results` raises.
    """
    folder = Path(folder)
    if (folder / "results.json").exists():
        run = read_results(folder)
    elif (folder / RUN).exists():
        run = _load_json((folder / RUN).read_text(encoding="utf-8"))
    else:
        raise ReportError(f"{folder} has no results.json and no {RUN}: whose scores are these?")
    new = {score_key(score) for score in scores}
    kept = [score for score in run.get("scores", []) if score_key(score) not in new]
    run = {key: value for key, value in run.items() if key != "schema_version"}
    return write_results(folder, results={**run, "scores": [*kept, *scores]})


class SampleWriter:
    """Writes the items of one task, or of one set of outputs that a benchmark scores.

    A line goes to samples/<task>.jsonl, pictures to img/<task>/.

    Write all items, in the fixed order of their ids: the page shows the first K and the worst K.
    Items that are neither may go without images. The file is replaced, not appended to.

    >>> with SampleWriter(folder, task="depth") as writer:  # doctest: +SKIP
    ...     images = {"input": rgb, "output": output, "target": target, "error": error}
    ...     writer.write("00000", prompt="[[depth]]", value=0.7, seed_values=[0.7], images=images)
    """

    def __init__(self, folder: str | Path, *, task: str):
        check_name(task, what="task")
        self.folder, self.task = Path(folder), task
        self._ids: set[str] = set()
        (self.folder / "samples").mkdir(parents=True, exist_ok=True)
        (self.folder / "img" / task).mkdir(parents=True, exist_ok=True)
        path = self.folder / "samples" / f"{task}.jsonl"
        self._file = path.open("w", encoding="utf-8")

    def write(
        self,
        id: str,
        *,
        prompt: str,
        value: float | None,
        seed_values: Sequence[float],
        images: Mapping[str, pictures.AnyImage],
        metrics: Mapping[str, float | None] | None = None,
    ) -> None:
        """Write one item.

        Args:
            id: unique in the task; becomes part of the file names.
            prompt: the text as the model read it.
            value: the item's score, seeds averaged; None for an item of a benchmark that could not
                be scored, which the page counts among the worst.
            seed_values: the score of each seed. The picture shown is that of the first.
            images: any of input, condition, output, target, error; see `pictures` for
                depth, masks and error maps.
            metrics: further scores of a benchmark's item, by metric.
        """
        check_name(id, what="id")
        if id in self._ids:
            raise ReportError(f"task {self.task!r} has two items with id {id!r}")
        unknown = sorted(set(images) - set(IMAGE_KINDS))
        if unknown:
            raise ReportError(f"images have keys {unknown}; known are {list(IMAGE_KINDS)}")
        numbers = [float(v) for v in seed_values]
        scores = {"": value, **(metrics or {})}
        scores = {name: None if v is None else float(v) for name, v in scores.items()}
        if not all(math.isfinite(x) for x in (*scores.values(), *numbers) if x is not None):
            raise ReportError(f"item {id!r} of {self.task!r} has a value that is not finite")
        self._ids.add(id)
        paths = {}
        for kind in (kind for kind in IMAGE_KINDS if kind in images):
            paths[kind] = f"img/{self.task}/{id}_{kind}.png"
            picture = Image.fromarray(pictures.to_rgb(images[kind]))
            picture.save(self.folder / paths[kind], optimize=True)
        line = {
            "id": id,
            "prompt": prompt,
            "value": scores.pop(""),
            "seed_values": numbers,
            "images": paths,
        }
        if scores:
            line["metrics"] = scores
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "SampleWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise ReportError(f"{value!r} ({type(value).__name__}) has no place in JSON")


# ---------------------------------------------------------------------------- read


def _raise_faults(where: str, found: Sequence[str]) -> None:
    if found:
        raise ReportError(f"{where}: " + ("\n  " if len(found) > 1 else "") + "\n  ".join(found))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _load_json(text: str) -> Any:
    return json.loads(text, parse_constant=_no_constant)


def read_results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    try:
        results = _load_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{path} does not exist; write it with write_results") from None
    except (ValueError, RecursionError) as error:
        raise ReportError(f"results.json: not JSON ({error})") from error
    _raise_faults("results.json", list(faults(results)))
    scores = [{"part": None, **score} for score in results.get("scores", [])]
    return {**results, "scores": scores}


def read_samples(
    folder: Path, *, task: str, num_items: int, unscored: int = 0
) -> list[dict[str, Any]]:
    """All lines of a task; an absent file is an empty list. Raises on the first bad line.

    There is a line for each of `num_items`, or the worst items would be the worst of a selection.
    At most `unscored` of them have no value.
    """
    path = folder / "samples" / f"{task}.jsonl"
    if not path.exists():
        return []
    samples, line_of = [], {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"samples/{task}.jsonl:{number}"
            try:
                sample = _load_json(line)
            except (ValueError, RecursionError) as error:
                raise ReportError(f"{where}: not JSON ({error})") from error
            _raise_faults(where, list(key_faults(sample, keys=SAMPLE_KEYS, where="")))
            if sample["id"] in line_of:
                raise ReportError(
                    f"{where}: id {sample['id']!r} is that of line {line_of[sample['id']]}"
                )
            line_of[sample["id"]] = number
            samples.append(sample)
    absent = [line_of[sample["id"]] for sample in samples if sample["value"] is None]
    if len(absent) > unscored:
        raise ReportError(
            f"samples/{task}.jsonl:{absent[unscored]}: value is null on {len(absent)} lines, but "
            f"results.json has {unscored} items without a score"
        )
    if len(samples) != num_items:
        raise ReportError(
            f"samples/{task}.jsonl: {len(samples)} lines, but results.json has n_items {num_items}"
        )
    return samples
