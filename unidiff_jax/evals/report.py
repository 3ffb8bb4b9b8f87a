"""The report of a benchmark run: one folder, one page, nothing printed that is not on file.

    results.json            provenance, one entry a task, one a benchmark's score, curves
    samples/<name>.jsonl    one line an item, in the fixed order of the item ids
    img/<name>/*.png        what the lines point at
    index.html, summary.md  rebuilt from the three above, and from published.json beside this file

The page is a single file, pictures included, so that it can be mailed; its content policy forbids
it to fetch anything. Tables of scores sort and filter by a script in the page, others need none. It
shows the first K items and the worst K items of each task: nobody picks. Every number on it carries
`data-value` (raw) and `data-key` (a JSON pointer, RFC 6901, into results.json or, with
`data-source`, into a line of samples or published.json), so that a test can compare all of them
with the files.

    python -m unidiff_jax.evals.report FOLDER
"""

import argparse
import base64
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from unidiff_jax.evals import statistics
from unidiff_jax.evals.charts import format_number, json_pointer, make_bar, make_panels
from unidiff_jax.evals.results import read_results, read_samples
from unidiff_jax.evals.results_schema import BADGES, IMAGE_KINDS, MINIATURE, ReportError
from unidiff_jax.evals.scoreboard import RUN, Table, make_tables
from unidiff_jax.outside import InputError, decode_picture, read_file

NUM_SHOWN = 8
"""K: the first K and the worst K items of a task are on the page."""

MAX_SIDE = 192
"""Larger pictures are shrunk to this many pixels, or a page of photographs could not be mailed."""

MINIATURE_NOTE = "say whether a mechanism works. They do not compare with published ones."


class Thumbnail(NamedTuple):
    """A picture as a data URI with its size in CSS pixels."""

    uri: str
    width: int
    height: int


def _thumbnail(folder: Path, *, path: str, where: str) -> Thumbnail:
    """Embed a PNG: enlarged by a whole factor to 96 CSS pixels or more, or shrunk to MAX_SIDE."""
    full = (folder / path).resolve()
    if not full.is_relative_to((folder / "img").resolve()):
        raise ReportError(f"{where}: image path {path!r} is not under img/")
    try:
        data = read_file(full)
        image = decode_picture(data, name=str(full), formats=["PNG"])
        if max(image.size) > MAX_SIDE:
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            buffer = io.BytesIO()
            image.save(buffer, format="PNG", optimize=True)
            data = buffer.getvalue()
        width, height = image.size
    except FileNotFoundError:
        raise ReportError(f"{where}: image {path!r} does not exist") from None
    except (OSError, InputError) as error:
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
    samples: Sequence[Mapping[str, Any]], *, task: str, higher_is_better: bool, folder: Path
) -> dict[str, Any]:
    """First K and worst K rows, and which kinds of picture they have; no value is the worst."""
    worst_value = -np.inf if higher_is_better else np.inf
    values = [worst_value if s["value"] is None else s["value"] for s in samples]
    values = np.array(values) * (1 if higher_is_better else -1)
    worst = np.argsort(values, kind="stable")[:NUM_SHOWN].tolist()
    first = list(range(min(NUM_SHOWN, len(samples))))
    blocks = [("First", first), ("Worst", worst)]
    rows = [
        {"title": title, "rows": _rows(samples, order=order, folder=folder, task=task)}
        for title, order in blocks
        if order
    ]
    shown = [row["thumbnails"] for block in rows for row in block["rows"]]
    kinds = [kind for kind in IMAGE_KINDS if any(kind in row for row in shown)]
    side = max((image.width for row in shown for image in row.values()), default=96)
    return {"blocks": rows, "kinds": kinds, "side": side}


def _markdown_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _summary(results: Mapping[str, Any]) -> str:
    """Verdicts, scores, provenance and deviations as Markdown."""
    lines = [f"# {_title(results)} ({_badge(results)})"]
    if results["tasks"]:
        lines += _markdown_verdicts(results["tasks"])
    for table in make_tables(results["scores"]):
        lines += _markdown_scores(table)
    number = format_number
    git = results["git"]
    dirty = {True: ", with uncommitted changes", False: "", None: ""}[git["dirty"]]
    lines += [
        "",
        f"Run `{results['run_id']}` at git `{git['sha']}`{dirty};"
        f" config `{results['config_hash']}`; {number(results['params'])} parameters,"
        f" {number(results['steps'])} steps; {results['device']}.",
    ]
    if results["tasks"] or any(score["badge"] == MINIATURE for score in results["scores"]):
        lines += ["", f"Miniature numbers {MINIATURE_NOTE}"]
    if results["deviations"]:
        lines += ["", "Known deviations:", "", *(f"- {text}" for text in results["deviations"])]
    return "\n".join(lines) + "\n"


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_markdown_cell(cell) for cell in cells) + " |"


def _markdown_verdicts(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "",
        "| Task | Metric | Value [95 % CI] | Best floor | Shuffled | Ceiling | Items | Verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    number = format_number
    for task in tasks:
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
        lines.append(_markdown_row(cells))
    return lines


def _markdown_scores(table: Table) -> list[str]:
    lines = [
        "",
        f"## {table.name}",
        "",
        "| Protocol | Metric | Of | Value [95 % CI] | Encoder | Reference | Badge or source |",
        "|---|---|---|---|---|---|---|",
    ]
    for group in table.groups:
        for row in group.rows:
            score, value = row.score, row.text
            if row.kind == RUN and score["ci95"]:
                value += f" [{', '.join(map(format_number, score['ci95']))}]"
            if row.kind == RUN and score["n_failed"]:
                value += f", {score['n_failed']} of {score['n_items']} failed"
            captions = f" ({score['captions']})" if score and score["captions"] else ""
            source = row.badge
            if row.source:
                fault = f" FAULT: {row.source.fault}" if row.source.fault else ""
                source = f"{row.source.paper}, {row.source.table}, {row.source.evidence}.{fault}"
            metric = group.metric + ("" if group.higher_is_better else " (lower is better)")
            protocol = f"{group.protocol}, {group.part}" if group.part else group.protocol
            cells = [protocol, metric, row.method + captions, value]
            lines.append(_markdown_row([*cells, row.encoder, row.reference, source]))
    return lines


def _title(results: Mapping[str, Any]) -> str:
    return results.get("title") or ("MiniWorld benchmark" if results["tasks"] else "Benchmarks")


def _badge(results: Mapping[str, Any]) -> str:
    """What the numbers of the page are, all kinds of them."""
    badges = {MINIATURE} if results["tasks"] else set()
    badges |= {score["badge"] for score in results["scores"]}
    return results.get("badge") or " · ".join(badge for badge in BADGES if badge in badges)


def build_report(folder: str | Path) -> Path:
    """Rebuild index.html and summary.md from results.json, samples/ and img/; return the page.

    Raises ReportError, naming the file and the line, if any of them is missing or malformed. The
    same files give the same bytes.
    """
    folder = Path(folder)
    results = read_results(folder)
    # The first score that names a file is the one whose values its lines hold.
    leading: dict[str, Mapping[str, Any]] = {}
    for score in results["scores"]:
        if score["samples"]:
            leading.setdefault(score["samples"], score)
    names = {*(task["task"] for task in results["tasks"]), *leading}
    for path in sorted((folder / "samples").glob("*.jsonl")):
        if path.stem not in names:
            raise ReportError(
                f"samples/{path.name}: results.json has no task {path.stem!r}, and no score of it"
            )
    tasks = []
    for task in results["tasks"]:
        samples = read_samples(folder, task=task["task"], num_items=task["n_items"])
        gallery = _gallery(
            samples,
            task=task["task"],
            higher_is_better=task["higher_is_better"],
            folder=folder,
        )
        tasks.append({"data": task, "bar": make_bar(task), **gallery})
    outputs = []
    for name, score in leading.items():
        unscored = score["n_failed"]
        samples = read_samples(folder, task=name, num_items=score["n_items"], unscored=unscored)
        gallery = _gallery(
            samples, task=name, higher_is_better=score["higher_is_better"], folder=folder
        )
        outputs.append({"name": name, "data": score, **gallery})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(
        results=results,
        title=_title(results),
        badge=_badge(results),
        tasks=tasks,
        tables=make_tables(results["scores"]),
        outputs=outputs,
        miniature_note=MINIATURE_NOTE,
        panels=make_panels(results["curves"]),
        config_text=json.dumps(results["config"], indent=2),
        format_number=format_number,
        pointer=json_pointer,
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
