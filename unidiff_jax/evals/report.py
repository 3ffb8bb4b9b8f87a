"""The report of a benchmark run: one folder, one page, nothing printed that is not on file.

    results.json            provenance, one entry a task, curves
    samples/<task>.jsonl    one line an item, in the fixed order of the item ids
    img/<task>/*.png        what the lines point at
    index.html, summary.md  rebuilt from the three above and from nothing else

The page is a single file without scripts or links, pictures included, so that it can be mailed. It
shows the first K items and the worst K items of each task: nobody picks. Every number on it carries
`data-value` (raw) and `data-key` (a JSON pointer, RFC 6901, into results.json or, with
`data-source`, into a line of samples), so that a test can compare all of them with the files.

    python -m unidiff_jax.evals.report FOLDER
"""

import argparse
import base64
import functools
import hashlib
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image

from unidiff_jax.evals import pictures, statistics

SCHEMA_VERSION = 1
NUM_SHOWN = 8
"""K: the first K and the worst K items of a task are on the page."""

IMAGE_KINDS = ("input", "condition", "output", "target", "error")
VERDICTS = ("learned", "not learned")
DEFAULT_TITLE = "MiniWorld benchmark"
DEFAULT_BADGE = "miniature"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "grain", "orbax-checkpoint", "numpy", "scipy")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME_HELP = "letters, digits, '.', '_' and '-', e.g. 'depth' or 'scene-00012'"


class ReportError(ValueError):
    """A results folder that cannot be shown as it is. The message names file, line and key."""


# ---------------------------------------------------------------------------- what a run hands in


def config_hash(config: Mapping[str, Any]) -> str:
    """sha256 of the config as JSON with sorted keys: equal configs, equal hashes."""
    canonical = json.dumps(config, sort_keys=True, default=_plain)
    return hashlib.sha256(canonical.encode()).hexdigest()


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


# ---------------------------------------------------------------------------- checks


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


def _read_results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    try:
        results = _load_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{path} does not exist; write it with write_results") from None
    except ValueError as error:
        raise ReportError(f"results.json: not JSON ({error})") from error
    _raise_faults("results.json", faults=list(_faults(results)))
    return results


def _read_samples(folder: Path, *, task: str, num_items: int) -> list[dict[str, Any]]:
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
            except ValueError as error:
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


# ---------------------------------------------------------------------------- what the page shows


class Thumbnail(NamedTuple):
    """A picture as a data URI with its size in CSS pixels."""

    uri: str
    width: int
    height: int


class Bar(NamedTuple):
    """Marks of the verdict bar in [0, 100], better to the right; ceiling None if unbounded."""

    value: float
    low: float
    high: float
    floor: float
    shuffled: float
    ceiling: float | None


class Tick(NamedTuple):
    at: float
    label: str


class Line(NamedTuple):
    """One curve: SVG path, its name within the panel and the pointer to its last value."""

    name: str
    path: str
    last: float
    pointer: str


class Panel(NamedTuple):
    """Curves that share axes, in a drawing of 100 x 100 with y downwards."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    log_scale: bool


def format_number(value: float | int | None) -> str:
    """How the report prints a number: integers in full, others with three or fewer decimals."""
    if value is None:
        return "none"
    if isinstance(value, int):
        return f"{value:,}"
    magnitude = abs(value)
    decimals = 3 if magnitude < 9.9995 else 2 if magnitude < 99.995 else 1
    if 0 < magnitude < 5e-4:
        return f"{value:.1e}"
    return f"{value:,.{decimals}f}"


def _pointer(*keys: str | int) -> str:
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def _thumbnail(folder: Path, *, path: str, where: str) -> Thumbnail:
    """Embed a PNG, enlarged by a whole factor to 96 CSS pixels or more."""
    full = (folder / path).resolve()
    if not full.is_relative_to((folder / "img").resolve()):
        raise ReportError(f"{where}: image path {path!r} is not under img/")
    try:
        data = full.read_bytes()
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            width, height = image.size
            image.verify()
    except FileNotFoundError:
        raise ReportError(f"{where}: image {path!r} does not exist") from None
    except (OSError, SyntaxError) as error:
        raise ReportError(f"{where}: image {path!r} is not a readable PNG ({error})") from error
    factor = max(1, -(-96 // max(width, height)))
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    return Thumbnail(uri=uri, width=width * factor, height=height * factor)


def _rows(
    samples: Sequence[Mapping[str, Any]], *, order: Sequence[int], folder: Path, task: str
) -> list[dict[str, Any]]:
    """The lines `order` of a task, with their pictures embedded."""
    rows = []
    for i in order:
        where = f"samples/{task}.jsonl:{i + 1}"
        pictures_of = {
            kind: _thumbnail(folder, path=path, where=where)
            for kind, path in samples[i]["images"].items()
        }
        source = f"samples/{task}.jsonl"
        rows.append({**samples[i], "line": i, "source": source, "thumbnails": pictures_of})
    return rows


def _gallery(
    samples: Sequence[Mapping[str, Any]], *, task: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """First K and worst K rows, and which kinds of picture they have."""
    values = np.array([sample["value"] for sample in samples])
    if not task["higher_is_better"]:
        values = -values
    worst = np.argsort(values, kind="stable")[:NUM_SHOWN].tolist()
    first = list(range(min(NUM_SHOWN, len(samples))))
    blocks = [("First", first), ("Worst", worst)]
    rows = [
        {"title": title, "rows": _rows(samples, order=order, folder=folder, task=task["task"])}
        for title, order in blocks
        if order
    ]
    shown = [row["thumbnails"] for block in rows for row in block["rows"]]
    kinds = [kind for kind in IMAGE_KINDS if any(kind in row for row in shown)]
    side = max((image.width for row in shown for image in row.values()), default=96)
    return {"blocks": rows, "kinds": kinds, "side": side}


def _bar(task: Mapping[str, Any]) -> Bar:
    """Place the marks between the lowest and the highest of them, with a margin on both sides."""
    marks = {
        "value": task["value"],
        "low": task["ci95"][0],
        "high": task["ci95"][1],
        "floor": task["floor"],
        "shuffled": task["shuffled"],
    }
    if task["ceiling"] is not None:
        marks["ceiling"] = task["ceiling"]
    sign = 1 if task["higher_is_better"] else -1
    signed = {name: sign * value for name, value in marks.items()}
    start, end = min(signed.values()), max(signed.values())
    span = (end - start) or 1.0
    placed = {name: round(4 + 92 * (value - start) / span, 2) for name, value in signed.items()}
    if sign < 0:
        placed["low"], placed["high"] = placed["high"], placed["low"]
    return Bar(**{"ceiling": None, **placed})


def _linear_ticks(low: float, high: float, *, count: int) -> list[float]:
    """About `count` round numbers in [low, high]: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for multiples in ((1, 2, 5), (1, 3), (1,)):
        ticks = [m * 10.0**p for p in powers for m in multiples if low <= m * 10.0**p <= high]
        if len(ticks) <= 6:
            break
    return ticks


def _tick_label(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def _position(value: float, *, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def _height(value: float, *, low: float, high: float, log_scale: bool) -> float:
    if log_scale:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return round(100 - _position(value, low=low, high=high), 2)


def _panels(curves: Mapping[str, Sequence[Sequence[float]]]) -> list[Panel]:
    """Group curves by the part of their name before the first slash, and scale each group."""
    groups: dict[str, list[str]] = {}
    for name in curves:
        groups.setdefault(name.partition("/")[0], []).append(name)
    panels = []
    for title, names in groups.items():
        steps = [step for name in names for step, _ in curves[name]]
        values = [value for name in names for _, value in curves[name]]
        x_low, x_high = min(steps), max(steps)
        y_low, y_high = min(values), max(values)
        log_scale = y_low > 0 and y_high / y_low > 10
        if not log_scale:
            y_low = min(y_low, 0.0) if y_low >= 0 and y_low < 0.5 * y_high else y_low
        x_high = x_high if x_high > x_low else x_low + 1
        if y_high <= y_low:
            y_low, y_high = y_low - 0.5, y_high + 0.5
        x_of = functools.partial(_position, low=x_low, high=x_high)
        y_of = functools.partial(_height, low=y_low, high=y_high, log_scale=log_scale)
        lines = []
        for name in names:
            points = curves[name]
            stride = -(-len(points) // 400)  # 400 points a curve: finer than the drawing
            kept = [*points[:-1:stride], points[-1]]
            path = "M" + " L".join(f"{x_of(step)},{y_of(value)}" for step, value in kept)
            lines.append(
                Line(
                    name=name.partition("/")[2] or name,
                    path=path,
                    last=points[-1][1],
                    pointer=_pointer("curves", name, len(points) - 1, 1),
                )
            )
        y_marks = _log_ticks(y_low, y_high) if log_scale else _linear_ticks(y_low, y_high, count=4)
        panels.append(
            Panel(
                title=title,
                lines=lines,
                x_ticks=[
                    Tick(x_of(v), _tick_label(v)) for v in _linear_ticks(x_low, x_high, count=4)
                ],
                y_ticks=[Tick(y_of(v), _tick_label(v)) for v in y_marks],
                log_scale=log_scale,
            )
        )
    return panels


# ---------------------------------------------------------------------------- the two documents


def _markdown_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _summary(results: Mapping[str, Any]) -> str:
    """The verdict table, provenance and deviations as Markdown."""
    lines = [
        f"# {results.get('title', DEFAULT_TITLE)} ({results.get('badge', DEFAULT_BADGE)})",
        "",
        "| Task | Metric | Value [95 % CI] | Best floor | Shuffled | Ceiling | Items | Verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    number = format_number
    for task in results["tasks"]:
        low, high = task["ci95"]
        cells = [
            task["title"],
            task["metric"] + ("" if task["higher_is_better"] else " (lower is better)"),
            f"{number(task['value'])} [{number(low)}, {number(high)}]",
            f"{number(task['floor'])} ({task['floor_name']})",
            number(task["shuffled"]),
            number(task["ceiling"]),
            f"{number(task['n_items'])} x {number(len(task['seeds']))} seeds",
            f"**{task['verdict']}**: {task['reason']}",
        ]
        lines.append("| " + " | ".join(_markdown_cell(cell) for cell in cells) + " |")
    git = results["git"]
    dirty = {True: ", with uncommitted changes", False: "", None: ""}[git["dirty"]]
    lines += [
        "",
        f"Run `{results['run_id']}` at git `{git['sha']}`{dirty};"
        f" config `{results['config_hash']}`; {number(results['params'])} parameters,"
        f" {number(results['steps'])} steps; {results['device']}.",
        "",
        "Miniature numbers say whether a mechanism works. They do not compare with published ones.",
    ]
    if results["deviations"]:
        lines += ["", "Known deviations:", "", *(f"- {text}" for text in results["deviations"])]
    return "\n".join(lines) + "\n"


def build_report(folder: str | Path) -> Path:
    """Rebuild index.html and summary.md from results.json, samples/ and img/; return the page.

    Raises ReportError, naming the file and the line, if any of them is missing or malformed. The
    same files give the same bytes.
    """
    folder = Path(folder)
    results = _read_results(folder)
    names = {task["task"] for task in results["tasks"]}
    for path in sorted((folder / "samples").glob("*.jsonl")):
        if path.stem not in names:
            raise ReportError(f"samples/{path.name}: results.json has no task {path.stem!r}")
    tasks = []
    for task in results["tasks"]:
        samples = _read_samples(folder, task=task["task"], num_items=task["n_items"])
        gallery = _gallery(samples, task=task, folder=folder)
        tasks.append({"data": task, "bar": _bar(task), **gallery})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        results=results,
        title=results.get("title", DEFAULT_TITLE),
        badge=results.get("badge", DEFAULT_BADGE),
        tasks=tasks,
        panels=_panels(results["curves"]),
        config_text=json.dumps(results["config"], indent=2),
        format_number=format_number,
        pointer=_pointer,
        raw=json.dumps,
        min_items=statistics.MIN_ITEMS,
        min_seeds=statistics.MIN_SEEDS,
    )
    path = folder / "index.html"
    path.write_text(page, encoding="utf-8")
    (folder / "summary.md").write_text(_summary(results), encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: rebuild the report of FOLDER. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m unidiff_jax.evals.report",
        description="Rebuild index.html and summary.md from results.json, samples/ and img/.",
    )
    parser.add_argument("folder", type=Path, help="folder with results.json")
    folder = parser.parse_args(arguments).folder
    try:
        print(build_report(folder))
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
