"""A benchmark run on disk: what its report is made of, and nothing that it is not made of.

    results.json            provenance, one entry a task, curves
    samples/<task>.jsonl    one line an item, in the fixed order of the item ids
    img/<task>/*.png        what the lines point at

Everything is checked when it is written and when it is read; a fault names file, line and key.
"""

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unidiff_jax.config import config_hash
from unidiff_jax.evals import pictures, statistics

SCHEMA_VERSION = 1
IMAGE_KINDS = ("input", "condition", "output", "target", "error")
VERDICTS = ("learned", "not learned")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint", "numpy", "scipy")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME_HELP = "letters, digits, '.', '_' and '-', e.g. 'depth' or 'scene-00012'"


class ReportError(ValueError):
    """A results folder that cannot be shown as it is. The message names file, line and key."""


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


def write_results(folder: str | Path, *, results: Mapping[str, Any]) -> Path:
    """Check `results` and write `folder/results.json`; numpy numbers and arrays are converted.

    Keys (all required unless marked): run_id, git {sha, dirty}, command, config, config_hash
    (filled in), seeds, steps, params, wall_clock_seconds {stage: s}, device, packages,
    dataset_manifest_sha256, tasks (see `task_result`), curves {name: [[step, value], ...]},
    deviations [text], and optionally title, badge, description. Curves named "panel/line" share a
    panel. Raises ReportError with every fault at once.
    """
    content = {"schema_version": SCHEMA_VERSION, **results}
    content = json.loads(json.dumps(content, default=_plain))
    if isinstance(content.get("config"), dict):
        content.setdefault("config_hash", config_hash(content["config"]))
    _raise_faults("results", faults=list(_faults(content)))
    path = Path(folder) / "results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


class SampleWriter:
    """Writes the items of one task: a line to samples/<task>.jsonl, pictures to img/<task>/.

    Write all items, in the fixed order of their ids: the page shows the first K and the worst K.
    Items that are neither may go without images. The file is replaced, not appended to.

    >>> with SampleWriter(folder, task="depth") as writer:  # doctest: +SKIP
    ...     images = {"input": rgb, "output": output, "target": target, "error": error}
    ...     writer.write("00000", prompt="[[depth]]", value=0.7, seed_values=[0.7], images=images)
    """

    def __init__(self, folder: str | Path, *, task: str):
        _check_name(task, what="task")
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
        value: float,
        seed_values: Sequence[float],
        images: Mapping[str, pictures.AnyImage],
    ) -> None:
        """Write one item.

        Args:
            id: unique in the task; becomes part of the file names.
            prompt: the text as the model read it.
            value: the item's score, seeds averaged.
            seed_values: the score of each seed. The picture shown is that of the first.
            images: any of input, condition, output, target, error; see `pictures` for
                depth, masks and error maps.
        """
        _check_name(id, what="id")
        if id in self._ids:
            raise ReportError(f"task {self.task!r} has two items with id {id!r}")
        unknown = sorted(set(images) - set(IMAGE_KINDS))
        if unknown:
            raise ReportError(f"images have keys {unknown}; known are {list(IMAGE_KINDS)}")
        numbers = [float(value), *(float(v) for v in seed_values)]
        if not all(math.isfinite(x) for x in numbers):
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
            "value": numbers[0],
            "seed_values": numbers[1:],
            "images": paths,
        }
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


def _check_name(name: str, *, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ReportError(f"{what} {name!r} must consist of {_NAME_HELP}")


# ---------------------------------------------------------------------------- check and read


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_number(v) for v in value.values())


def _is_seeds(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_count(v) for v in value)


def _is_interval(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(_is_number(v) for v in value)
        and value[0] <= value[1]
    )


def _is_git(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_text(value.get("sha"))
        and value.get("dirty", 0) in (True, False, None)
    )


def _is_curves(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(points, list)
        and points
        and all(
            isinstance(p, list) and len(p) == 2 and all(_is_number(v) for v in p) for p in points
        )
        for points in value.values()
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(v) for v in value)


_RUN_KEYS = {
    "schema_version": (lambda v: v == SCHEMA_VERSION, f"{SCHEMA_VERSION}"),
    "run_id": (_is_text, "text, e.g. 'miniworld-seed0'"),
    "git": (_is_git, "{'sha': text, 'dirty': true, false or null}"),
    "command": (_is_text, "text"),
    "config": (lambda v: isinstance(v, dict), "a nested dict"),
    "config_hash": (_is_text, "config_hash(config)"),
    "seeds": (_is_seeds, "a list of integers, e.g. [0]"),
    "steps": (_is_count, "an integer"),
    "params": (_is_count, "an integer"),
    "wall_clock_seconds": (_is_numbers, "{'render': 1.0, 'train': 1.0, 'evaluate': 1.0}"),
    "device": (_is_text, "text, e.g. 'cpu, 2 cores'"),
    "packages": (lambda v: isinstance(v, dict) and _is_texts([*v.values()]), "{name: version}"),
    "dataset_manifest_sha256": (_is_text, "text"),
    "tasks": (lambda v: isinstance(v, list) and bool(v), "a list with one entry a task"),
    "curves": (_is_curves, "{name: [[step, value], ...]} of finite numbers"),
    "deviations": (_is_texts, "a list of sentences; [] if there is none"),
}
_OPTIONAL_TEXTS = ("title", "badge", "description")
_TASK_KEYS = {
    "task": (lambda v: isinstance(v, str) and bool(_NAME.fullmatch(v)), _NAME_HELP),
    "title": (_is_text, "text"),
    "metric": (_is_text, "text"),
    "higher_is_better": (lambda v: isinstance(v, bool), "true or false"),
    "value": (_is_number, "a finite number"),
    "ci95": (_is_interval, "[low, high]"),
    "floor": (_is_number, "a finite number"),
    "floor_name": (_is_text, "a key of floors"),
    "floors": (lambda v: _is_numbers(v) and bool(v), "{name: finite number}, at least one"),
    "ceiling": (lambda v: v is None or _is_number(v), "a finite number, or null if unbounded"),
    "shuffled": (_is_number, "a finite number"),
    "verdict": (lambda v: v in VERDICTS, " or ".join(repr(v) for v in VERDICTS)),
    "reason": (_is_text, "text"),
    "n_items": (_is_count, "an integer"),
    "n_failed": (_is_count, "an integer"),
    "seeds": (_is_seeds, "a list of integers, e.g. [0, 1, 2]"),
    "secondary": (_is_numbers, "{metric: finite number}"),
    "protocol": (_is_text, "text"),
    "split": (_is_text, "text, e.g. 'test'"),
}
_SAMPLE_KEYS = {
    "id": (lambda v: isinstance(v, str) and bool(_NAME.fullmatch(v)), _NAME_HELP),
    "prompt": (lambda v: isinstance(v, str), "text"),
    "value": (_is_number, "a finite number"),
    "seed_values": (lambda v: isinstance(v, list) and all(map(_is_number, v)), "a list of numbers"),
    "images": (
        lambda v: isinstance(v, dict) and set(v) <= set(IMAGE_KINDS) and _is_texts([*v.values()]),
        f"{{kind: path}} with kinds {', '.join(IMAGE_KINDS)}",
    ),
}


def _key_faults(entry: Any, *, keys: Mapping[str, Any], where: str) -> Iterator[str]:
    if not isinstance(entry, dict):
        yield f"{where} must be an object"
        return
    for key, (check, expected) in keys.items():
        if key not in entry:
            yield f"{where}{key} is missing; expected {expected}"
        elif not check(entry[key]):
            yield f"{where}{key} is {json.dumps(entry[key])[:80]}; expected {expected}"


def _faults(results: Mapping[str, Any]) -> Iterator[str]:
    """Everything that is wrong with the content of results.json."""
    faults = list(_key_faults(results, keys=_RUN_KEYS, where=""))
    faults += [
        f"{key} must be text" for key in _OPTIONAL_TEXTS if not _is_text(results.get(key, "-"))
    ]
    yield from faults
    if faults:
        return
    if results["config_hash"] != config_hash(results["config"]):
        yield "config_hash is not the hash of config"
    names = [task.get("task") for task in results["tasks"] if isinstance(task, dict)]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        yield f"two tasks are called {name!r}"
    for i, task in enumerate(results["tasks"]):
        faults = list(_key_faults(task, keys=_TASK_KEYS, where=f"tasks[{i}]."))
        yield from faults or _rule_faults(task, where=f"tasks[{i}] ({task['task']})")


def _rule_faults(task: Mapping[str, Any], *, where: str) -> Iterator[str]:
    """What no result of the rule can look like, whoever wrote the entry."""
    if task["floors"].get(task["floor_name"]) != task["floor"]:
        yield f"{where}: floor is not floors[{task['floor_name']!r}]"
    sign = 1 if task["higher_is_better"] else -1
    best = max(sign * floor for floor in task["floors"].values())
    if sign * task["floor"] < best:
        yield f"{where}: {task['floor_name']!r} is not the best floor"
    if task["verdict"] == VERDICTS[0]:
        if task["n_items"] < statistics.MIN_ITEMS or len(task["seeds"]) < statistics.MIN_SEEDS:
            yield (
                f"{where}: 'learned' needs {statistics.MIN_ITEMS} items and "
                f"{statistics.MIN_SEEDS} seeds"
            )
        if sign * task["value"] <= max(best, sign * task["shuffled"]):
            yield f"{where}: 'learned' needs a value beyond floor and shuffled"


def _raise_faults(where: str, *, faults: Sequence[str]) -> None:
    if faults:
        raise ReportError(f"{where}: " + ("\n  " if len(faults) > 1 else "") + "\n  ".join(faults))


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
    _raise_faults("results.json", faults=list(_faults(results)))
    return results


def read_samples(folder: Path, *, task: str, num_items: int) -> list[dict[str, Any]]:
    """All lines of a task; an absent file is an empty list. Raises on the first bad line.

    There is a line for each of `num_items`, or the worst items would be the worst of a selection.
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
            _raise_faults(where, faults=list(_key_faults(sample, keys=_SAMPLE_KEYS, where="")))
            if sample["id"] in line_of:
                raise ReportError(
                    f"{where}: id {sample['id']!r} is that of line {line_of[sample['id']]}"
                )
            line_of[sample["id"]] = number
            samples.append(sample)
    if len(samples) != num_items:
        raise ReportError(
            f"samples/{task}.jsonl: {len(samples)} lines, but results.json has n_items {num_items}"
        )
    return samples
