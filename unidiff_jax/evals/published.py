"""Published values with where they were read and what is wrong with them.

`published.json` holds them as tables: a paper, its table, the columns (metric, scale, reference)
and the rows as they are printed. A value counts only with its conditions, so each carries the
encoder ("not stated" where a paper does not say), what outputs were compared with, and the kind of
evidence: "full text" was read in the paper, "official repository" in the code or card that belongs
to it, "secondary copy" in notes, issues or other papers. Known errors stay in, with a `fault` that
every page shows.
"""

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

EVIDENCE = ("full text", "official repository", "secondary copy")


class PublishedValue(NamedTuple):
    """One number of a table.

    Attributes:
      benchmark, metric: ids as in `results.score_result`.
      protocol: id of the protocol, where it is a narrower one than the benchmark's; else None.
      value: in our unit; `printed` divided by `scale`.
      printed: digits as in the paper.
      scale: 100 for percent.
      method: the row, a model's name.
      paper, source: title, and where the table was read.
      table: its number, or what it shows.
      column: the metric's name in the paper.
      encoder: name, or "not stated".
      reference: "input", "gt", "text", "none" or "not stated".
      evidence: one of EVIDENCE.
      notes: what a reader must know.
      fault: what is wrong with the number; "" for nothing known.
      pointer: JSON pointer to `printed` in published.json.
    """

    benchmark: str
    metric: str
    protocol: str | None
    value: float
    printed: str
    scale: float
    method: str
    paper: str
    source: str
    table: str
    column: str
    encoder: str
    reference: str
    evidence: str
    notes: tuple[str, ...]
    fault: str
    pointer: str


@functools.cache
def _all_values() -> tuple[PublishedValue, ...]:
    content = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
    return tuple(
        value
        for i, table in enumerate(content["tables"])
        for value in _read_table(table, content["papers"], pointer=f"/tables/{i}")
    )


def _read_table(
    table: Mapping[str, Any], papers: Mapping[str, Mapping[str, str]], *, pointer: str
) -> Iterator[PublishedValue]:
    paper = papers[table["paper"]]
    for r, (method, *cells) in enumerate(table["rows"]):
        row_note = table.get("row_notes", {}).get(method)
        for c, (column, printed) in enumerate(zip(table["columns"], cells, strict=True), start=1):
            if printed is None:
                continue
            scale = column.get("scale", 1)
            yield PublishedValue(
                benchmark=table["benchmark"],
                metric=column["metric"],
                protocol=table.get("protocol"),
                value=float(printed) / scale,
                printed=printed,
                scale=scale,
                method=method,
                paper=paper["title"],
                source=paper["source"],
                table=table["table"],
                column=column["printed"],
                encoder=table["encoder"],
                reference=column["reference"],
                evidence=table["evidence"],
                notes=tuple(filter(None, (row_note, table.get("note")))),
                fault=column.get("fault", ""),
                pointer=f"{pointer}/rows/{r}/{c}",
            )


def published_values(
    benchmark: str, metric: str | None = None, *, protocol: str | None = None
) -> list[PublishedValue]:
    """The published values of a benchmark, in the order of the tables.

    Args:
      benchmark: id, e.g. "magicbrush".
      metric: id, e.g. "clip_i"; None for all.
      protocol: leaves out the values of narrower protocols than this; None for all.

    >>> [v.printed for v in published_values("gso_pose", "cc_0.3")]
    ['0.20', '0.32']
    """
    return [
        value
        for value in _all_values()
        if value.benchmark == benchmark
        and metric in (None, value.metric)
        and (protocol is None or value.protocol in (None, protocol))
    ]


def benchmarks() -> list[str]:
    """Ids of the benchmarks with published values."""
    return sorted({value.benchmark for value in _all_values()})
