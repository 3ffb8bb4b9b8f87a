"""Numbers, verdict bars and curves of the report, placed; the page's template draws them."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


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


def json_pointer(*keys: str | int) -> str:
    """JSON pointer (RFC 6901) to a key."""
    return "".join("/" + str(key).replace("~", "~0").replace("/", "~1") for key in keys)


def make_bar(task: Mapping[str, Any]) -> Bar:
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


def make_panels(curves: Mapping[str, Sequence[Sequence[float]]]) -> list[Panel]:
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
                    pointer=json_pointer("curves", name, len(points) - 1, 1),
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
