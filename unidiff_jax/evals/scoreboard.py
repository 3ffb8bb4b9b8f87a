"""Scores of benchmarks beside what is published, grouped for the report.

A group is one metric of one protocol: this run's values (one an encoder, caption filter and
reference), the same metric of answers that need no model, and published values. Numbers of a
miniature and of papers never stand in one table: a miniature score gets no published values, and
`check_table` refuses a table that mixes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from unidiff_jax.evals.charts import format_number, json_pointer
from unidiff_jax.evals.published import PublishedValue, published_values
from unidiff_jax.evals.results_schema import BADGES, MINIATURE, ReportError

RUN, TRIVIAL, PUBLISHED = ROW_KINDS = ("this run", "no model", "published")


class Footnote(NamedTuple):
    """What a reader must know of published values: said once a group, marked at each value."""

    mark: str
    text: str
    is_fault: bool


class Row(NamedTuple):
    """One line of a table.

    `pointer` leads to the number in results.json, or in published.json if `kind` is PUBLISHED;
    `text` is how it is shown. The marks are positions in [0, 100], better to the right.
    """

    kind: str
    method: str
    value: float
    text: str
    pointer: str
    encoder: str
    reference: str
    badge: str
    score: Mapping[str, Any] | None = None
    index: int | None = None
    source: PublishedValue | None = None
    mark: float = 0.0
    low: float | None = None
    high: float | None = None
    footnotes: tuple[Footnote, ...] = ()


class Group(NamedTuple):
    """All rows of one metric of one protocol, or of one part of its items, this run's first."""

    benchmark: str
    protocol: str
    part: str
    title: str
    metric: str
    higher_is_better: bool
    rows: list[Row]
    footnotes: list[Footnote]


class Table(NamedTuple):
    """Groups that may stand together, and the choices of its filters."""

    name: str
    groups: list[Group]
    protocols: list[str]
    parts: list[str]
    encoders: list[str]
    badges: list[str]
    kinds: list[str]


def published_beside(score: Mapping[str, Any]) -> list[PublishedValue]:
    """The published values that may stand beside a score: none beside a miniature's or a part's."""
    if score["badge"] == MINIATURE or score.get("part"):
        return []
    return published_values(score["benchmark"], score["metric"], protocol=score["protocol"])


def check_table(groups: Iterable[Group]) -> None:
    """Raises ReportError if a table holds a miniature's number and a paper's or a protocol's."""
    badges = {row.badge for group in groups for row in group.rows}
    if MINIATURE in badges and len(badges) > 1:
        others = sorted(badges - {MINIATURE})
        raise ReportError(f"one table has numbers of a {MINIATURE} and of: {', '.join(others)}")


def make_tables(scores: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The tables of the page: first the protocols' with published values, then the miniature's."""
    tables = []
    numbered = list(enumerate(scores))
    for name, miniature in (("Scores", False), ("Miniature scores", True)):
        chosen = [(i, s) for i, s in numbered if (s["badge"] == MINIATURE) == miniature]
        if not chosen:
            continue
        groups = make_groups(chosen)
        check_table(groups)
        rows = [row for group in groups for row in group.rows]
        order = {badge: place for place, badge in enumerate((*BADGES, PUBLISHED))}
        tables.append(
            Table(
                name=name,
                groups=groups,
                protocols=_unique(group.protocol for group in groups),
                parts=_unique(group.part for group in groups if group.part),
                encoders=_unique(row.encoder for row in rows),
                badges=sorted({row.badge for row in rows}, key=order.__getitem__),
                kinds=[kind for kind in ROW_KINDS if any(row.kind == kind for row in rows)],
            )
        )
    return tables


def make_groups(scores: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Group]:
    """Groups of (place in results["scores"], score), in the order of their first score.

    Raises ReportError where scores of one group disagree on which direction is better.
    """

    found: dict[tuple, list[tuple[int, Mapping[str, Any]]]] = {}
    for index, score in scores:
        key = (score["protocol"], score["split"], score["metric"], score.get("part"))
        found.setdefault(key, []).append((index, score))
    groups = []
    for members in found.values():
        first = members[0][1]
        if len({score["higher_is_better"] for _, score in members}) > 1:
            raise ReportError(f"{first['protocol']}: {first['metric']} is better both ways")
        rows = [row for i, score in members for row in _own_rows(i, score)]
        published = {value: None for _, score in members for value in published_beside(score)}
        footnotes = _footnotes(published)
        rows += [_published_row(value, footnotes) for value in published]
        groups.append(
            Group(
                benchmark=first["benchmark"],
                protocol=first["protocol"],
                part=first.get("part") or "",
                title=first["title"],
                metric=first["metric"],
                higher_is_better=first["higher_is_better"],
                rows=_placed(rows, higher_is_better=first["higher_is_better"]),
                footnotes=list(footnotes.values()),
            )
        )
    return groups


def _own_rows(index: int, score: Mapping[str, Any]) -> list[Row]:
    encoder, judge = score["encoder"], score["judge"]
    scored_by = encoder["name"] if encoder else f"judge: {judge['name']}" if judge else "none"
    common = {
        "encoder": scored_by,
        "reference": score["reference"],
        "badge": score["badge"],
        "score": score,
        "index": index,
    }
    values = {(RUN, "this run"): (score["value"], ("value",))}
    values |= {(TRIVIAL, name): (v, ("rows", name)) for name, v in score["rows"].items()}
    low, high = score["ci95"] or (None, None)
    return [
        Row(
            kind=kind,
            method=name,
            value=value,
            text=format_number(value),
            pointer=json_pointer("scores", index, *path),
            low=low if kind == RUN else None,
            high=high if kind == RUN else None,
            **common,
        )
        for (kind, name), (value, path) in values.items()
    ]


def _footnotes(values: Iterable[PublishedValue]) -> dict[str, Footnote]:
    texts = {text: None for value in values for text in (value.fault, *value.notes) if text}
    faults = {value.fault for value in values}
    return {
        text: Footnote(mark=str(number), text=text, is_fault=text in faults)
        for number, text in enumerate(texts, start=1)
    }


def _published_row(value: PublishedValue, footnotes: Mapping[str, Footnote]) -> Row:
    digits = len(value.printed.partition(".")[2]) + len(str(int(value.scale))) - 1
    return Row(
        kind=PUBLISHED,
        method=value.method,
        value=value.value,
        text=f"{value.value:.{digits}f}",
        pointer=value.pointer,
        encoder=value.encoder,
        reference=value.reference,
        badge=PUBLISHED,
        source=value,
        footnotes=tuple(footnotes[text] for text in (value.fault, *value.notes) if text),
    )


def _placed(rows: Sequence[Row], *, higher_is_better: bool) -> list[Row]:
    """Marks of all rows on one axis."""
    values = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    start, end = min(values), max(values)

    def place(value: float | None) -> float | None:
        if value is None:
            return None
        share = 0.5 if end == start else (value - start) / (end - start)
        return round(4 + 92 * (share if higher_is_better else 1 - share), 2)

    placed = []
    for row in rows:
        bounds = (None, None) if row.low is None else sorted((place(row.low), place(row.high)))
        placed.append(row._replace(mark=place(row.value), low=bounds[0], high=bounds[1]))
    return placed


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
