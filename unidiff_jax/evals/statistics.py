"""Intervals and the word "learned".

Items (scenes) are the unit of sampling. The sampling seeds of one item are averaged first, because
they share its scene and are not independent; then items are resampled with replacement. A
comparison resamples *pairs*: the same items for both sides, so that what makes an item easy or
hard cancels. Intervals are percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13).

The rule, fixed before training. A task is **learned** when, on at least 300 held-out items with at
least 3 sampling seeds each, the lower 95 % paired-bootstrap bound of

    (i)  value - best trivial floor                                   is above 0, and
    (ii) value - the same outputs scored against shuffled conditions  is above 0.

Otherwise it is "not learned". (i) asks for more than a trick that needs no model: a copy of the
input, the mean image. (ii) alone catches a model that ignores its condition and draws pretty
pictures. The best floor is the one with the best mean. A task may add a minimum that the interval
of the value itself must clear.

For (ii) the shuffled condition must be one that the same input could have had. For depth any other
scene will do. For an edit, only *another instruction on the same image* will: against the target of
another scene, a mere copy of the input already looks conditioned.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MIN_ITEMS = 300
MIN_SEEDS = 3
NUM_RESAMPLES = 4000
ROUNDING = 1e-9
"""A margin must exceed this, not 0: averaging three equal numbers can leave 1e-17 of "progress"."""

PerItem = Float[np.ndarray, "n"] | Float[np.ndarray, "n seeds"]


class Ratio(NamedTuple):
    """A metric that is a ratio of sums over items, such as cIoU = sum(I) / sum(U)."""

    numerator: PerItem
    denominator: PerItem


Scores = PerItem | Ratio
"""One value an item, or one an item and seed (metric: the mean), or a `Ratio` of such arrays."""


class Interval(NamedTuple):
    """A point estimate on all items and its percentile bootstrap bounds."""

    value: float
    low: float
    high: float


class Verdict(NamedTuple):
    """What the rule says of a task and every number that it used.

    `over_floor` and `over_shuffled` are paired differences, signed so that positive is better
    whichever way the metric points.
    """

    learned: bool
    reason: str
    value: Interval
    floor: float
    floor_name: str
    floors: dict[str, float]
    shuffled: float
    over_floor: Interval
    over_shuffled: Interval
    higher_is_better: bool
    num_items: int
    num_seeds: int


def _item_means(values: PerItem, *, name: str) -> Float[np.ndarray, "n"]:
    """Average the seeds of an item; raise on shapes and values that cannot be resampled."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2) or 0 in values.shape:
        raise ValueError(f"{name} must have shape (items,) or (items, seeds), got {values.shape}")
    values = values.reshape(len(values), -1)
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise ValueError(
            f"{name} has {len(bad)} items without a finite value, the first at index {bad[0]}: "
            "leave items that the protocol excludes out of every column, and give a failed output "
            "the worst value"
        )
    return values.mean(axis=1)


def _columns(scores: Scores, *, name: str) -> list[Float[np.ndarray, "n"]]:
    """[values] for a mean, [numerator, denominator] for a ratio, seeds averaged."""
    if not isinstance(scores, Ratio):
        return [_item_means(scores, name=name)]
    columns = [_item_means(part, name=f"{name}.{key}") for key, part in scores._asdict().items()]
    if len(columns[0]) != len(columns[1]):
        raise ValueError(f"{name} has {len(columns[0])} numerators, {len(columns[1])} denominators")
    if columns[1].min() < 0 or columns[1].sum() <= 0:
        raise ValueError(f"{name}.denominator must be non-negative with a positive sum")
    return columns


def _estimate(
    columns: list[Float[np.ndarray, "n"]], *, order: Int[np.ndarray, "r n"]
) -> Float[np.ndarray, "r"]:
    """The metric on each resample."""
    sums = [column[order].sum(axis=-1) for column in columns]
    if len(sums) == 1:
        return sums[0] / order.shape[-1]
    # A resample can miss every item with a denominator; its ratio is then 0 / 0, counted as 0.
    return np.divide(sums[0], sums[1], out=np.zeros_like(sums[0]), where=sums[1] > 0)


def _interval(samples: Float[np.ndarray, "r"], *, value: float, confidence: float) -> Interval:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(samples, [tail, 1.0 - tail])
    return Interval(value=float(value), low=float(low), high=float(high))


def bootstrap_order(
    num_items: int, *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Int[np.ndarray, "num_resamples num_items"]:
    """Item indices of each resample. One seed gives one set of resamples: that is the pairing."""
    rng = np.random.default_rng(seed)
    return rng.integers(num_items, size=(num_resamples, num_items), dtype=np.int32)


def estimate(scores: Scores) -> float:
    """The metric on all items: the mean over items, or the ratio of sums."""
    columns = _columns(scores, name="scores")
    return float(_estimate(columns, order=np.arange(len(columns[0]))[None])[0])


def interval(
    scores: Scores,
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The metric with its percentile bootstrap interval over items.

    >>> interval(np.ones(10))
    Interval(value=1.0, low=1.0, high=1.0)
    """
    columns = _columns(scores, name="scores")
    order = bootstrap_order(len(columns[0]), num_resamples=num_resamples, seed=seed)
    samples = _estimate(columns, order=order)
    return _interval(samples, value=estimate(scores), confidence=confidence)


def mean_of_groups(
    groups: Mapping[str, Scores],
    *,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean of the groups' metrics, each group resampled by itself (a stratified bootstrap).

    What suites mean by an average over tasks: a group counts the same however many items it has.

    >>> mean_of_groups({"few": np.ones(2), "many": np.zeros(8)}).value
    0.5
    """
    if not groups:
        raise ValueError("groups is empty: name at least one, e.g. {'single_object': scores}")
    samples = np.zeros(num_resamples)
    for place, (name, scores) in enumerate(sorted(groups.items())):
        columns = _columns(scores, name=name)
        order = bootstrap_order(len(columns[0]), num_resamples=num_resamples, seed=seed + place)
        samples += _estimate(columns, order=order) / len(groups)
    value = float(np.mean([estimate(scores) for scores in groups.values()]))
    return _interval(samples, value=value, confidence=confidence)


def paired_difference(
    scores: Scores,
    *,
    baseline: Scores,
    confidence: float = 0.95,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """scores - baseline with its interval; both sides are resampled with the same items.

    Item i of both must be the same item. The numbers of seeds may differ. Raises ValueError if the
    numbers of items differ.
    """
    ours, theirs = _columns(scores, name="scores"), _columns(baseline, name="baseline")
    if len(ours[0]) != len(theirs[0]):
        raise ValueError(f"cannot pair {len(ours[0])} items with a baseline of {len(theirs[0])}")
    order = bootstrap_order(len(ours[0]), num_resamples=num_resamples, seed=seed)
    samples = _estimate(ours, order=order) - _estimate(theirs, order=order)
    value = estimate(scores) - estimate(baseline)
    return _interval(samples, value=value, confidence=confidence)


def shuffled_order(num_items: int, *, seed: int = 0) -> Int[np.ndarray, "num_items"]:
    """A random permutation that leaves no item in its place: one cycle through all items.

    `target[order]` are the shuffled conditions to score the same outputs against. Raises ValueError
    below two items.
    """
    if num_items < 2:
        raise ValueError(f"shuffling conditions needs at least 2 items, got {num_items}")
    cycle = np.random.default_rng(seed).permutation(num_items)
    order = np.empty(num_items, dtype=np.int64)
    order[cycle] = np.roll(cycle, 1)
    return order


def _negate(scores: Scores) -> Scores:
    if isinstance(scores, Ratio):
        return Ratio(numerator=-np.asarray(scores.numerator), denominator=scores.denominator)
    return -np.asarray(scores)


def _num_seeds(scores: Scores) -> int:
    part = np.asarray(scores.numerator if isinstance(scores, Ratio) else scores)
    return part.shape[1] if part.ndim == 2 else 1


def verdict(
    values: Scores,
    *,
    floors: Mapping[str, Scores],
    shuffled: Scores,
    higher_is_better: bool = True,
    minimum: float | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Verdict:
    """Apply the rule of the module docstring to one task.

    Args:
        values: the model's scores, shape (items, seeds), or a Ratio of such arrays.
        floors: scores of each trivial predictor on the same items, (items,) or (items, seeds).
        shuffled: the same outputs scored against shuffled conditions, like `values`.
        higher_is_better: False for errors.
        minimum: the value's own interval must lie wholly beyond it (above, or below for errors).
        num_resamples: bootstrap resamples.
        seed: of the resampling.

    The numbers of items (300) and seeds (3) are constants, not arguments: a rule that a run can
    relax is not a rule.

    >>> rng = np.random.default_rng(0)
    >>> model = 0.8 + 0.1 * rng.standard_normal((300, 3))
    >>> verdict(model, floors={"copy": np.zeros(300)}, shuffled=model - 0.5).learned
    True
    """
    if not floors:
        raise ValueError("floors is empty: name at least one trivial predictor, e.g. 'copy'")
    for name, baseline in {**floors, "shuffled": shuffled}.items():
        if isinstance(baseline, Ratio) != isinstance(values, Ratio):
            raise ValueError(f"{name!r} and the values must both be means or both be ratios")
    sign = 1.0 if higher_is_better else -1.0
    options = {"num_resamples": num_resamples, "seed": seed}

    def margin(baseline: Scores) -> Interval:
        if higher_is_better:
            return paired_difference(values, baseline=baseline, **options)
        return paired_difference(_negate(values), baseline=_negate(baseline), **options)

    floor_means = {name: estimate(scores) for name, scores in floors.items()}
    floor_name = max(floor_means, key=lambda name: sign * floor_means[name])
    value = interval(values, **options)
    over_floor, over_shuffled = margin(floors[floor_name]), margin(shuffled)
    num_items = len(_columns(values, name="values")[0])
    num_seeds = _num_seeds(values)

    failures = []
    if num_items < MIN_ITEMS:
        failures.append(f"too few items ({num_items} of {MIN_ITEMS})")
    if num_seeds < MIN_SEEDS:
        failures.append(f"too few seeds ({num_seeds} of {MIN_SEEDS})")
    if not over_floor.low > ROUNDING:
        failures.append(f"does not beat the best floor, {floor_name} ({_text(over_floor)})")
    if not over_shuffled.low > ROUNDING:
        failures.append(f"does not beat shuffled conditions ({_text(over_shuffled)})")
    if minimum is not None:
        worst = value.low if higher_is_better else value.high
        if not sign * worst > sign * minimum:
            side = "above" if higher_is_better else "below"
            failures.append(f"interval not {side} the task's minimum ({worst:.3f}, {minimum:.3f})")
    success = (
        f"beats the best floor, {floor_name}, by {_text(over_floor)} "
        f"and shuffled conditions by {_text(over_shuffled)}"
    )
    if minimum is not None:
        success += f"; its interval clears the task's minimum, {minimum:.3f}"
    return Verdict(
        learned=not failures,
        reason="; ".join(failures) or success,
        value=value,
        floor=floor_means[floor_name],
        floor_name=floor_name,
        floors=floor_means,
        shuffled=estimate(shuffled),
        over_floor=over_floor,
        over_shuffled=over_shuffled,
        higher_is_better=higher_is_better,
        num_items=num_items,
        num_seeds=num_seeds,
    )


def _text(margin: Interval) -> str:
    return f"{margin.value:+.3f} [{margin.low:+.3f}, {margin.high:+.3f}]"
