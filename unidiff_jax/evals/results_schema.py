"""What results.json and the lines of samples may hold, and what contradicts itself.

A run has `tasks`, each judged learned or not (`results.task_result`), or `scores`, numbers of a
benchmark's protocol (`results.score_result`), or both.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from unidiff_jax.config import config_hash
from unidiff_jax.evals import statistics

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 had tasks alone."""

IMAGE_KINDS = ("input", "condition", "output", "target", "error")
VERDICTS = ("learned", "not learned")
REFERENCES = ("input", "gt", "text", "none")
"""What an output is compared with; none for a distribution or a judge."""

OFFICIAL, SUBSTITUTE, MINIATURE = BADGES = (
    "official protocol",
    "official metric, substitute weights or data",
    "miniature",
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NAME_HELP = "letters, digits, '.', '_' and '-', e.g. 'depth' or 'scene-00012'"
_ID = re.compile(r"[a-z0-9][a-z0-9_.+-]*(/[a-z0-9][a-z0-9_.+-]*)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ReportError(ValueError):
    """A results folder that cannot be shown as it is. The message names file, line and key."""


def check_name(name: str, *, what: str) -> None:
    """Raises ReportError for a name that could not be part of a file's."""
    if not _NAME.fullmatch(name):
        raise ReportError(f"{what} {name!r} must consist of {_NAME_HELP}")


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


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and bool(_ID.fullmatch(value))


def _is_file_record(value: Any, *, keys: set[str]) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == keys
        and all(map(_is_text, value.values()))
        and bool(_SHA256.fullmatch(value["sha256"]))
    )


_RUN_KEYS = {
    "schema_version": (lambda v: v in READABLE_VERSIONS, f"{SCHEMA_VERSION}"),
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
    "tasks": (lambda v: isinstance(v, list), "a list with one entry a task"),
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
_SCORE_KEYS = {
    "benchmark": (_is_id, "an id, e.g. 'magicbrush'"),
    "protocol": (_is_id, "a path of ids, e.g. 'magicbrush/single_turn'"),
    "title": (_is_text, "text"),
    "metric": (_is_id, "an id, e.g. 'clip_i'"),
    "higher_is_better": (lambda v: isinstance(v, bool), "true or false"),
    "value": (_is_number, "a finite number"),
    "ci95": (lambda v: v is None or _is_interval(v), "[low, high], or null without items"),
    "n_items": (_is_count, "an integer"),
    "n_failed": (_is_count, "an integer"),
    "failures": (lambda v: v is None or _is_text(v), "text, or null if nothing failed"),
    "encoder": (
        lambda v: v is None or _is_file_record(v, keys={"name", "sha256", "preprocess"}),
        "{'name': text, 'sha256': 64 hexadecimal digits, 'preprocess': text}, or null",
    ),
    "judge": (
        lambda v: v is None or _is_file_record(v, keys={"name", "date", "sha256"}),
        "{'name': text, 'date': text, 'sha256': 64 hexadecimal digits}, or null",
    ),
    "reference": (lambda v: v in REFERENCES, " or ".join(map(repr, REFERENCES))),
    "captions": (lambda v: v is None or _is_text(v), "text, e.g. 'captions differ', or null"),
    "part": (lambda v: v is None or _is_text(v), "text, e.g. 'background', or null for the whole"),
    "rows": (_is_numbers, "{name: finite number}, e.g. {'copy input': 0.861}"),
    "seeds": (_is_seeds, "a list of integers, e.g. [0]"),
    "badge": (lambda v: v in BADGES, " or ".join(map(repr, BADGES))),
    "split": (_is_text, "text, e.g. 'test'"),
    "description": (_is_text, "text"),
    "samples": (lambda v: v is None or (_is_text(v) and bool(_NAME.fullmatch(v))), _NAME_HELP),
    "deviations": (_is_texts, "a list of sentences; [] if there is none"),
}
SAMPLE_KEYS = {
    "id": (lambda v: isinstance(v, str) and bool(_NAME.fullmatch(v)), _NAME_HELP),
    "prompt": (lambda v: isinstance(v, str), "text"),
    "value": (lambda v: v is None or _is_number(v), "a finite number"),
    "seed_values": (lambda v: isinstance(v, list) and all(map(_is_number, v)), "a list of numbers"),
    "images": (
        lambda v: isinstance(v, dict) and set(v) <= set(IMAGE_KINDS) and _is_texts([*v.values()]),
        f"{{kind: path}} with kinds {', '.join(IMAGE_KINDS)}",
    ),
}


def key_faults(entry: Any, *, keys: Mapping[str, Any], where: str) -> Iterator[str]:
    """What is missing from an entry, or is not what `keys` asks for."""
    if not isinstance(entry, dict):
        yield f"{where} must be an object"
        return
    for key, (check, expected) in keys.items():
        if key not in entry:
            yield f"{where}{key} is missing; expected {expected}"
        elif not check(entry[key]):
            yield f"{where}{key} is {json.dumps(entry[key])[:80]}; expected {expected}"


def faults(results: Mapping[str, Any]) -> Iterator[str]:
    """Everything that is wrong with the content of results.json."""
    found = list(key_faults(results, keys=_RUN_KEYS, where=""))
    found += [
        f"{key} must be text" for key in _OPTIONAL_TEXTS if not _is_text(results.get(key, "-"))
    ]
    scores = results.get("scores", [])
    if not isinstance(scores, list):
        found.append("scores must be a list with one entry a score")
    elif not scores and not results.get("tasks"):
        found.append("tasks and scores are empty; expected an entry of task_result or score_result")
    yield from found
    if found:
        return
    if results["config_hash"] != config_hash(results["config"]):
        yield "config_hash is not the hash of config"
    tasks = results["tasks"]
    names = [task.get("task") for task in tasks if isinstance(task, dict)]
    for name in sorted({str(name) for name in names if names.count(name) > 1}):
        yield f"two tasks are called {name!r}"
    for i, task in enumerate(tasks):
        found = list(key_faults(task, keys=_TASK_KEYS, where=f"tasks[{i}]."))
        yield from found or _rule_faults(task, where=f"tasks[{i}] ({task['task']})")
    seen: dict[tuple, int] = {}
    for i, score in enumerate(scores):
        if isinstance(score, dict):
            score = {"part": None, **score}  # older files have none
        found = list(key_faults(score, keys=_SCORE_KEYS, where=f"scores[{i}]."))
        yield from found or _score_faults(score, where=f"scores[{i}] ({score['protocol']})")
        if found:
            continue
        if score["samples"] in names:
            yield f"scores[{i}].samples is {score['samples']!r}, the name of a task"
        first = seen.setdefault(score_key(score), i)
        if first != i:
            yield f"scores[{i}] ({score['protocol']}): the same number as scores[{first}]"


def score_key(score: Mapping[str, Any]) -> tuple:
    """What tells one score of a run from another."""
    encoder = score["encoder"] and score["encoder"]["name"]
    judge = score["judge"] and score["judge"]["name"]
    return (
        *(score[key] for key in ("protocol", "split", "metric", "reference", "captions")),
        score.get("part"),
        encoder,
        judge,
    )


def _score_faults(score: Mapping[str, Any], *, where: str) -> Iterator[str]:
    if score["protocol"].partition("/")[0] != score["benchmark"]:
        yield f"{where}: protocol must begin with the benchmark, {score['benchmark']!r}"
    if score["n_failed"] > score["n_items"]:
        yield f"{where}: n_failed exceeds n_items"
    if bool(score["n_failed"]) != bool(score["failures"]):
        yield f"{where}: failures must say what became of the n_failed items, e.g. 'counted as 0'"
    if score["badge"] == OFFICIAL and score["deviations"]:
        yield f"{where}: a score with deviations cannot have the badge {OFFICIAL!r}"


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
