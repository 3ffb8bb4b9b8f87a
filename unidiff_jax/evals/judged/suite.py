"""What the suites share: prompts, what is asked of an exporter, and scores from judged items."""

import datetime
import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from etils import epath
from PIL import Image

from unidiff_jax.evals import statistics
from unidiff_jax.evals.results import score_result
from unidiff_jax.evals.results_schema import OFFICIAL, SUBSTITUTE, ReportError
from unidiff_jax.paths import AnyPath, as_path, written_whole
from unidiff_jax.sample.images import decode_picture, open_picture

LEFT_OUT = "left out of the mean"

Values = Mapping[str, Mapping[str, Sequence[float | None]]]
"""{group: {prompt: one value a picture or reply, None for what failed}}."""


class Given(NamedTuple):
    """A picture that a prompt comes with: a name that is unique in the data, and what opens it."""

    name: str
    read: Callable[[], Image.Image]


class Prompt(NamedTuple):
    """One prompt of a suite.

    Attributes:
      id: unique in the suite; a path of names.
      text: words as the suite has them.
      given: pictures to be edited or referred to.
      group: the suite's task or category.
      count: how many pictures are made of it.
      extra: what the layout or the score needs besides.
    """

    id: str
    text: str
    given: tuple[Given, ...] = ()
    group: str = ""
    count: int = 1
    extra: Mapping[str, Any] = {}


class Judge(NamedTuple):
    """Who judged, and when (ISO date): judges change silently."""

    name: str
    date: str


class Suite(NamedTuple):
    """A benchmark whose own script, or judge, scores pictures that lie in its own layout.

    Attributes:
      name: id, as in the published values.
      title: what a reader sees.
      task: what a model is asked for: "text_to_image", "edit" or "customize".
      judge: the official judge's name.
      num_prompts: of the official data; None where the official number is not certain.
      read_prompts: from the suite's own files, in the order that its layout numbers them.
      files: of a prompt, in the layout, relative to the export's folder.
      write: puts a prompt's pictures there.
      import_results: `(results, prompts, judge)` to entries of results.json's `scores`.
      command: the official one, for people.
    """

    name: str
    title: str
    task: str
    judge: str
    num_prompts: int | None
    read_prompts: Callable[[Path], list[Prompt]]
    files: Callable[[Prompt], list[str]]
    write: Callable[[epath.Path, Prompt, Sequence[Image.Image]], None]
    import_results: Callable[[Path, Sequence[Prompt], Judge], list[dict[str, Any]]]
    command: str


# ---------------------------------------------------------------------------- files


def read_json(path: Path) -> Any:
    """Raises ReportError where the file is absent or no JSON."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise ReportError(f"{path}: not JSON ({error})") from None


def read_json_lines(path: Path) -> list[Any]:
    """As `read_json`, one value a line; empty lines are none."""
    values = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except ValueError as error:
                raise ReportError(f"{path}:{number}: not JSON ({error})") from None
    return values


def read_text(path: Path) -> str:
    """Raises ReportError where the file is absent."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ReportError(f"{path} does not exist") from None


def found_files(folder: Path, pattern: str) -> list[Path]:
    """Files below a folder, sorted; raises ReportError where there is none."""
    paths = sorted(Path(folder).glob(pattern))
    if not paths:
        raise ReportError(f"{folder} has no {pattern}")
    return paths


def read_parquet(folder: Path, *, columns: Sequence[str]) -> Iterator[tuple[Path, int, int, dict]]:
    """(file, row group, row in it, values) of all rows of `*train*.parquet` below a folder."""
    for path in found_files(folder, "**/*train*.parquet"):
        file = pq.ParquetFile(path)
        missing = sorted(set(columns) - set(file.schema_arrow.names))
        if missing:
            raise ReportError(f"{path} has no column {', '.join(missing)}")
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=list(columns)).to_pylist()
            for row, values in enumerate(rows):
                yield path, group, row, values


@functools.lru_cache(maxsize=1)
def _pictures_of(path: Path, group: int, column: str) -> list[Any]:
    """A column of encoded pictures; one row group is held at a time, since they are large."""
    return pq.ParquetFile(path).read_row_group(group, columns=[column])[column].to_pylist()


def parquet_picture(path: Path, group: int, row: int, column: str, *, place: int | None) -> Given:
    """A picture of a table, read when it is opened; `place` is that in a list of pictures."""
    name = f"{path.name}/{group}/{row}/{column}" + ("" if place is None else f"/{place}")

    def read() -> Image.Image:
        cell = _pictures_of(path, group, column)[row]
        return decode_picture((cell if place is None else cell[place])["bytes"], name=name)

    return Given(name, read)


def picture_file(folder: Path, name: str) -> Given:
    """A picture file, opened when it is needed."""
    return Given(name, functools.partial(open_picture, Path(folder) / name))


def save_picture(picture: Image.Image, path: AnyPath) -> None:
    """Writes a picture whole, PNG or JPEG (quality 95) by its ending."""
    format = {".png": "PNG", ".jpg": "JPEG"}[as_path(path).suffix]
    with written_whole(path) as file:
        options = {"quality": 95} if format == "JPEG" else {}
        picture.convert("RGB").save(file, format=format, **options)


def save_each(suite_files: Callable[[Prompt], list[str]]):
    """The `write` of a layout with one file a picture."""

    def write(folder: epath.Path, prompt: Prompt, pictures: Sequence[Image.Image]) -> None:
        for name, picture in zip(suite_files(prompt), pictures, strict=True):
            save_picture(picture, folder / name)

    return write


def sha256_of(paths: Sequence[Path]) -> str:
    """Of the files' bytes, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(Path(path).read_bytes())
    return digest.hexdigest()


# ---------------------------------------------------------------------------- scores


def number_in(value: Any, *, low: float, high: float) -> float | None:
    """A number in [low, high], or text of one; None is a failure to parse, and stays one."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and low <= number <= high else None


def check_known(found: Sequence[str], *, prompts: Mapping[str, Prompt], where: str) -> None:
    """Raises ReportError if results are of prompts that the data do not have, or twice of one."""
    unknown = sorted(set(found) - set(prompts))
    if unknown:
        raise ReportError(f"{where}: {unknown[0]!r} is no prompt of the data ({len(unknown)} such)")
    if len(set(found)) < len(found):
        twice = next(key for key in found if found.count(key) > 1)
        raise ReportError(f"{where}: two results for {twice!r}")


def judged_scores(
    values: Values,
    *,
    suite: str,
    title: str,
    protocol: str,
    metric: str,
    description: str,
    judge: Judge,
    replies: Sequence[Path],
    reference: str = "none",
    over: str = "groups",
    each_group: bool = False,
    deviations: Sequence[str] = (),
    failures: str = LEFT_OUT,
    split: str = "test",
) -> list[dict[str, Any]]:
    """Entries of results.json's `scores`: the mean over groups or items, and perhaps each group's.

    A prompt is the unit of the interval; a value that failed is in no mean, and is counted.

    Args:
      values: see `Values`; every expected value has a place, None if it failed.
      over: "groups" for the mean of the groups' means, "items" for the mean over all values.
      each_group: an entry for each group too, with the group's name as metric.
      replies: files that the values were read from; their sha256 is kept.
      others: see `score_result`.

    Raises:
      ReportError: a group without a single valid value, where its mean is needed. Over items such
        a group counts among the failures, and gets no entry of its own.
    """
    ratios = {}
    for group, prompts in values.items():
        valid = [[v for v in found if v is not None] for found in prompts.values()]
        ratios[group] = statistics.Ratio(
            numerator=np.array([sum(found) for found in valid], dtype=np.float64),
            denominator=np.array([len(found) for found in valid], dtype=np.float64),
        )
    empty = [group for group, ratio in ratios.items() if not ratio.denominator.sum()]
    if empty and (over == "groups" or len(empty) == len(ratios)):
        raise ReportError(f"{protocol}: {empty[0]!r} has no valid result for {metric}")
    try:
        datetime.date.fromisoformat(judge.date)
    except ValueError:
        raise ReportError(f"date {judge.date!r} is not an ISO date, e.g. 2026-11-23") from None
    judged_by = {**judge._asdict(), "sha256": sha256_of(replies)}

    def entry(name: str, groups: Mapping[str, statistics.Ratio]) -> dict[str, Any]:
        if over == "groups":
            score = statistics.mean_of_groups(groups)
        else:
            columns = zip(*groups.values(), strict=True)
            score = statistics.interval(statistics.Ratio(*(np.concatenate(c) for c in columns)))
        found = [v for group in groups for prompt in values[group].values() for v in prompt]
        n_failed = sum(value is None for value in found)
        return score_result(
            score,
            benchmark=suite,
            protocol=protocol,
            title=title,
            metric=name,
            higher_is_better=True,
            n_items=len(found),
            n_failed=n_failed,
            failures=failures if n_failed else None,
            badge=SUBSTITUTE if deviations else OFFICIAL,
            split=split,
            description=description,
            reference=reference,
            judge=judged_by,
            deviations=deviations,
        )

    entries = [entry(metric, ratios)]
    if each_group:
        named = {group: ratio for group, ratio in ratios.items() if group not in empty}
        entries += [entry(metric_id(group), {group: ratio}) for group, ratio in named.items()]
    return entries


def metric_id(name: str) -> str:
    """A group's name as a metric: lower case, with '_' between words."""
    return "_".join(name.lower().replace("-", " ").split())


def usual_deviations(suite: Suite, prompts: Sequence[Prompt], judge: Judge) -> list[str]:
    """A judge or a number of prompts other than the official ones."""
    found = []
    if judge.name != suite.judge:
        found.append(f"Judged by {judge.name}, officially by {suite.judge}.")
    if suite.num_prompts is not None and len(prompts) != suite.num_prompts:
        found.append(f"{len(prompts)} prompts; the suite has {suite.num_prompts}.")
    return found
