"""Compares evaluated runs: arms of an experiment, each trained with several seeds.

    python -m launch.compare --run all=runs/unireal/all-0 --run all=runs/unireal/all-1 \\
        --run video=runs/unireal/video-0 --run video=runs/unireal/video-1 --out docs/unireal

Writes OUT.json, OUT.md and OUT.png from the runs' reports. The first arm is the reference: the
others' differences from it are paired over items, whose scores are averaged over training and
sampling seeds first. Training seeds are few, so their values are shown as they are.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from PIL import Image

from launch import command
from launch.evaluate import report_folder
from unidiff_jax.config import ConfigError
from unidiff_jax.evals import pictures, statistics
from unidiff_jax.evals.charts import format_number
from unidiff_jax.paths import AnyPath, as_path, write_json, written_whole

Runs = Mapping[str, Sequence[str]]
"""Workdirs of each arm."""


class Scored(NamedTuple):
    """One entry of one run: its result, and the scores (items, sampling seeds)."""

    result: dict[str, Any]
    scores: np.ndarray


def define_flags() -> None:
    flags.DEFINE_multi_string("run", [], "ARM=WORKDIR, repeatable; several a name are its seeds.")
    flags.DEFINE_string("out", None, "Where to write, without an ending.", required=True)
    flags.DEFINE_string("split", "test", "Split of the reports.")
    flags.DEFINE_string("picture", "edit_move", "Entry whose first items the picture shows.")
    flags.DEFINE_integer("rows", 8, "Items of the picture.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    values = flags.FLAGS
    runs = parse_runs(values.run)
    compared = compare(runs, split=values.split)
    write_json(f"{values.out}.json", compared)
    table = format_table(compared)
    with written_whole(f"{values.out}.md") as file:
        file.write_text(table)
    with written_whole(f"{values.out}.png") as file:
        draw(runs, values.picture, split=values.split, num_rows=values.rows).save(file)
    print(table)


def parse_runs(values: Sequence[str]) -> Runs:
    """Workdirs by arm, in the order given.

    Raises:
      ConfigError: not ARM=WORKDIR, or fewer than two arms.
    """
    runs: dict[str, list[str]] = {}
    for value in values:
        name, found, workdir = value.partition("=")
        if not (name and found and workdir):
            raise ConfigError(f"--run={value!r} is not ARM=WORKDIR, such as all=runs/unireal/all-0")
        runs.setdefault(name, []).append(workdir)
    if len(runs) < 2:
        raise ConfigError("--run: name two arms or more")
    return runs


def compare(runs: Runs, *, split: str = "test") -> dict[str, Any]:
    """Numbers of all arms, on the entries that every run has.

    Returns:
      {"arms": {arm: {"runs": [{"workdir", "steps", "train_seconds", "git"}], "entries": {entry:
      {"values", "value", "shuffled", "learned", "over_floor", "difference"}}}}, "entries": {entry:
      {"title", "metric", "floor", "floor_name", "ceiling"}}}

    Raises:
      FileNotFoundError: a run without a report.
      ConfigError: runs that were evaluated on other items.
    """
    scored = {
        arm: [read_scores(workdir, split=split) for workdir in workdirs]
        for arm, workdirs in runs.items()
    }
    everywhere = [run for found in scored.values() for run in found]
    names = [name for name in everywhere[0] if all(name in run for run in everywhere)]
    reference = next(iter(runs))
    arms: dict[str, Any] = {}
    for arm, found in scored.items():
        entries = {}
        for name in names:
            ours, theirs = (_item_means(scored[a], name) for a in (arm, reference))
            if len(ours) != len(theirs):
                raise ConfigError(f"{arm} and {reference} have other items in {name}")
            results = [run[name].result for run in found]
            entries[name] = {
                "values": [result["value"] for result in results],
                "value": float(np.mean([result["value"] for result in results])),
                "shuffled": [result["shuffled"] for result in results],
                "over_floor": [result["over_floor"] for result in results],
                "over_shuffled": [result["over_shuffled"] for result in results],
                "learned": [result["verdict"] == "learned" for result in results],
                "secondary": [result["secondary"] for result in results],
                "difference": statistics.paired_difference(ours, baseline=theirs)._asdict(),
            }
        arms[arm] = {"runs": [_provenance(w, split=split) for w in runs[arm]], "entries": entries}
    shown = ("title", "metric", "floor", "floor_name", "ceiling", "n_items", "seeds")
    first = everywhere[0]
    return {
        "reference": reference,
        "split": split,
        "entries": {name: {k: first[name].result[k] for k in shown} for name in names},
        "arms": arms,
    }


def read_scores(workdir: AnyPath, *, split: str) -> dict[str, Scored]:
    """The entries of a run's report whose value is a mean over items; a ratio cannot be paired so.

    Raises:
      FileNotFoundError: no report.
    """
    folder = report_folder(workdir, split=split)
    results = json.loads((folder / "results.json").read_text())
    found = {}
    for result in results["tasks"]:
        lines = (folder / "samples" / f"{result['task']}.jsonl").read_text().splitlines()
        scores = np.asarray([json.loads(line)["seed_values"] for line in lines], float)
        if np.isclose(scores.mean(), result["value"], atol=1e-6):
            found[result["task"]] = Scored(result, scores)
    return found


def format_table(compared: Mapping[str, Any]) -> str:
    """A Markdown table: an arm a row, an entry a column, and differences from the reference."""
    entries, reference = compared["entries"], compared["reference"]
    lines = [
        "| arm | " + " | ".join(f"{e['title']} ({e['metric']})" for e in entries.values()) + " |",
        "|---" * (1 + len(entries)) + "|",
        "| *floor* | " + " | ".join(_floor(e) for e in entries.values()) + " |",
    ]
    for arm, found in compared["arms"].items():
        cells = []
        for name in entries:
            entry = found["entries"][name]
            cell = " / ".join(map(format_number, entry["values"]))
            if arm != reference:
                d = entry["difference"]
                cell += f" ({d['value']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}])"
            cells.append(cell + ("" if all(entry["learned"]) else " *"))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"One value a training seed. In brackets: the mean's difference from `{reference}` with "
        "its 95 % interval over items. A star: not with every seed above the floor and above "
        "shuffled instructions.",
    ]
    return "\n".join(lines) + "\n"


def draw(runs: Runs, entry: str, *, split: str, num_rows: int) -> Image.Image:
    """The first items of an entry: input, what the first run of each arm made of it, and the truth.

    Raises:
      FileNotFoundError: a run has not been evaluated on the entry.
    """
    rows: list[list[Any]] = []
    captions: list[str] = []
    for arm, workdirs in runs.items():
        folder = report_folder(workdirs[0], split=split)
        lines = (folder / "samples" / f"{entry}.jsonl").read_text().splitlines()[:num_rows]
        for number, line in enumerate(map(json.loads, lines)):
            if arm == next(iter(runs)):
                rows.append([_open(folder / line["images"]["input"])])
                # the words alone: arms may begin their prompts otherwise
                captions.append(line["prompt"].rpartition("]] ")[2])
            rows[number].append(_open(folder / line["images"]["output"]))
            if arm == list(runs)[-1]:
                rows[number].append(_open(folder / line["images"]["target"]))
    return pictures.grid(rows, columns=("input", *runs, "target"), captions=captions, cell=96)


def _item_means(found: Sequence[Mapping[str, Scored]], name: str) -> np.ndarray:
    """Score of each item, averaged over training and sampling seeds."""
    return np.mean([run[name].scores.mean(1) for run in found], axis=0)


def _provenance(workdir: AnyPath, *, split: str) -> dict[str, Any]:
    results = json.loads((report_folder(workdir, split=split) / "results.json").read_text())
    return {
        "workdir": str(workdir),
        "steps": results["steps"],
        "train_seconds": results["wall_clock_seconds"].get("train"),
        "seed": results["config"].get("seed"),
        "git": results["git"],
        "device": results["device"],
    }


def _floor(entry: Mapping[str, Any]) -> str:
    return f"{format_number(entry['floor'])} ({entry['floor_name']})"


def _open(path: AnyPath) -> np.ndarray:
    with as_path(path).open("rb") as file:
        return np.asarray(Image.open(file).convert("RGB"))


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
