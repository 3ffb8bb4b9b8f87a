"""From config values to a source of raw data.

    make_source({"format": "tar", "path": "gs://bucket/edits-{000..099}.tar",
                 "fields": {"source": "input.jpg", "edited": "output.jpg", "instruction": "txt"}})

| key | formats | what |
|---|---|---|
| `format` | | folder, tar, parquet, tfds, davis, subjects, scenes, annotated, pairs, miniworld |
| `path` | all | folder, file or pattern, on a disk or in a bucket |
| `add`, `add_of` | all | `AddedConditions`: conditions, and the field that they are made from |
| `tags` | all | `AddedTags`: context tags of every sample |
| `fields`, `optional_texts`, `halves`, `border` | folder, tar, parquet | `TableSource` |
| `layout` | folder | `open_folder` |
| `num_kept` | parquet | `ParquetTable` |
| `name`, `split` | tfds | `find_prepared`, `PreparedTable`; `path` holds all data sets |
| `fields`, `num_views` | tfds | `open_structure` |
| `fields` | annotated | `AnnotatedSource`, of tars or parquet files |
| `image_set`, `resolution` | davis | `DavisSource` |
| `num_views` | subjects, scenes | `SubjectSource`, `SceneSource` |
| `window`, `downscale`, `caption_keys`, `swap_xz`, `scale` | scenes | `SceneSource` |

`pairs` (`PairSource`) and `miniworld` (`MiniWorldPictures`) build the samples of the task.
"""

import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from data_pipelines.curate.pairs import PairError
from data_pipelines.miniworld.pictures import MiniWorldPictures
from data_pipelines.sources import annotated
from data_pipelines.sources.annotated import AnnotatedSource
from data_pipelines.sources.base import RawSource, SourceError, check_bounds
from data_pipelines.sources.conditions import CONDITIONS, AddedConditions
from data_pipelines.sources.davis import DavisSource
from data_pipelines.sources.folders import LAYOUTS, open_folder
from data_pipelines.sources.pairs import PairSource
from data_pipelines.sources.parquet import ParquetTable
from data_pipelines.sources.prepared import PreparedTable, find_prepared
from data_pipelines.sources.scenes import DOWNSCALES, SceneSource
from data_pipelines.sources.structures import open_structure
from data_pipelines.sources.subjects import SubjectSource
from data_pipelines.sources.tables import Table, TableSource
from data_pipelines.sources.tags import AddedTags
from data_pipelines.sources.tars import TarTable
from unidiff_jax.config import config_error
from unidiff_jax.tasks import Task


class _Option(NamedTuple):
    """What a key takes: a test, its words, and a value that works."""

    fits: Callable[[Any], bool]
    words: str
    example: Any


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(map(_is_text, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_bounds(value: Any) -> bool:
    return _is_count(value) or (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(map(_is_count, value))
        and value[0] <= value[1]
    )


def _are_fields(value: Any) -> bool:
    if isinstance(value, Mapping):
        return bool(value) and all(map(_is_text, value)) and all(map(_is_text, value.values()))
    return value is None or (_are_texts(value) and bool(value))


def _are_halves(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping)
        and all(_is_text(k) and _are_texts(v) and len(v) == 2 for k, v in value.items())
    )


_COMMON = {
    "path": _Option(_is_text, "takes a folder, file or pattern", "data/edits"),
    "add": _Option(
        lambda v: _are_texts(v) and set(v) <= set(CONDITIONS),
        f"takes a tuple of {', '.join(CONDITIONS)}",
        ("blurred",),
    ),
    "add_of": _Option(_is_text, "takes the name of a field", "image"),
    "tags": _Option(_are_texts, "takes a tuple of tags", ("realistic style",)),
}
_TABLE = {
    "fields": _Option(
        _are_fields,
        "takes the column of each field, names of columns, or None",
        {"image": "jpg", "caption": "txt"},
    ),
    "optional_texts": _Option(_are_texts, "takes a tuple of fields", ("caption",)),
    "halves": _Option(
        _are_halves,
        "takes two fields for a field, or None",
        {"pair": ("edited", "source")},
    ),
    "border": _Option(lambda v: v == 0 or _is_count(v), "takes a whole number of pixels", 8),
}
_VIEWS = {
    "num_views": _Option(_are_bounds, "takes a count or (least, largest), from 1 up", (2, 4)),
}
_OPTIONS: dict[str, dict[str, _Option]] = {
    "folder": {
        **_TABLE,
        "layout": _Option(
            lambda v: v is None or v in LAYOUTS,
            f"takes None or one of {', '.join(LAYOUTS)}",
            LAYOUTS[0],
        ),
    },
    "tar": _TABLE,
    "parquet": {**_TABLE, "num_kept": _Option(_is_count, "takes a count from 1 up", 4)},
    "tfds": {
        **_VIEWS,
        "fields": _TABLE["fields"],
        "name": _Option(_is_text, "takes the name of a data set", "ref_coco/refcoco_unc"),
        "split": _Option(_is_text, "takes a split or a part of one", "train"),
    },
    "davis": {
        "image_set": _Option(
            lambda v: v is None or _is_text(v), "takes a file of ImageSets or None", "2017/train"
        ),
        "resolution": _Option(_is_text, "takes a folder of JPEGImages", "480p"),
    },
    "subjects": _VIEWS,
    "scenes": {
        **_VIEWS,
        "window": _Option(
            lambda v: v is None or _is_count(v), "takes a count of frames or None", 24
        ),
        "downscale": _Option(
            lambda v: v is None or (_is_count(v) and v in DOWNSCALES),
            f"takes None or one of {', '.join(map(str, DOWNSCALES))}",
            4,
        ),
        "caption_keys": _Option(_are_texts, "takes a tuple of keys", ("caption",)),
        "swap_xz": _Option(lambda v: isinstance(v, bool), "takes true or false", True),
        "scale": _Option(
            lambda v: isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1e9,
            "takes a length above 0",
            1.7,
        ),
    },
    "annotated": {"fields": _TABLE["fields"]},
    "pairs": {},
    "miniworld": {},
}

_TABLES: dict[str, Callable[..., Table]] = {
    "folder": open_folder,
    "tar": TarTable,
    "parquet": ParquetTable,
}
_BUILT: dict[str, Callable[..., RawSource]] = {"pairs": PairSource, "miniworld": MiniWorldPictures}
"""Formats whose samples are built for a task."""


def make_source(
    settings: Mapping[str, Any] | ConfigDict, *, key: str = "source", task: Task | None = None
) -> RawSource:
    """Opens the source that plain config values describe.

    Args:
      settings: keys of the table above.
      key: what messages call the settings: the config's dotted key.
      task: what samples are for; the formats `pairs` and `miniworld` need it.

    Raises:
      ConfigError: an unknown key, a wrong value, or data that do not fit; names the key and a value
        that works.

    Example:
      >>> make_source({"format": "subjects", "path": "data/people", "num_views": (2, 4)})
    """
    values = _plain(settings)
    kind = values.pop("format", None)
    if kind not in _OPTIONS:
        raise config_error(
            f"{key}.format", f"is {kind!r}, must be one of {', '.join(_OPTIONS)}", "folder"
        )
    options = {**_COMMON, **_OPTIONS[kind]}
    for name, value in values.items():
        if name not in options:
            near = difflib.get_close_matches(name, options, n=1, cutoff=0.0)[0]
            raise config_error(
                f"{key}.{name}",
                f"no such key of the format {kind!r}, the nearest is {near}",
                options[near].example,
                example_key=f"{key}.{near}",
            )
        if not options[name].fits(value):
            problem = f"{options[name].words}, got {value!r}"
            raise config_error(f"{key}.{name}", problem, options[name].example)
    for name in ("path", "name") if kind == "tfds" else ("path",):
        if name not in values:
            raise config_error(f"{key}.{name}", "is missing", options[name].example)
    add, of = values.pop("add", ()), values.pop("add_of", "image")
    tags = values.pop("tags", ())
    source = _open(kind, values, key, task)
    if add:
        try:
            source = AddedConditions(source, add, of=of)
        except SourceError as error:
            raise config_error(f"{key}.add_of", str(error), source.fields[0]) from None
    return AddedTags(source, tags) if tags else source


def _open(kind: str, values: dict[str, Any], key: str, task: Task | None) -> RawSource:
    path = values.pop("path")
    if "num_views" in values:
        values["num_views"] = check_bounds(_bounds(values["num_views"]))
    if kind == "tfds":
        return _open_prepared(path, values, key)
    try:
        if kind == "subjects":
            return SubjectSource(path, **values)
        if kind == "davis":
            return DavisSource(path, **values)
        if kind in _BUILT:
            return _build(kind, path, key, task)
        if kind == "annotated":
            return _open_annotated(path, values, key, task)
        if kind == "scenes":
            window, views = values.get("window"), values.get("num_views", (2, 6))
            if window is not None and window < views[1]:
                problem = f"is {window}, must hold the largest num_views={views[1]}"
                raise config_error(f"{key}.window", problem, 4 * views[1])
            return SceneSource(path, **values)
        own = {name: values.pop(name) for name in ("layout", "num_kept") if name in values}
        table = _TABLES[kind](path, **own)
    except SourceError as error:
        raise config_error(f"{key}.path", str(error)) from None
    try:
        return TableSource(table, **values)
    except SourceError as error:
        raise config_error(f"{key}.fields", str(error)) from None


def _open_prepared(path: str, values: dict[str, Any], key: str) -> RawSource:
    at = "name"
    try:
        folder = find_prepared(path, values.pop("name"))
        at = "split"
        table = PreparedTable(folder, split=values.pop("split", "train"))
        at = "num_views" if "num_views" in values and "fields" not in values else "fields"
        return open_structure(table, **values)
    except SourceError as error:
        raise config_error(f"{key}.{at}", str(error)) from None


def _open_annotated(path: str, values: dict[str, Any], key: str, task: Task | None) -> RawSource:
    if task is None or task.name != annotated.TASK:
        raise config_error(f"{key}.task", "must be the task of annotated pictures", annotated.TASK)
    table = ParquetTable(path) if path.endswith(".parquet") else TarTable(path)
    try:
        return AnnotatedSource(table, task=task, **values)
    except SourceError as error:
        raise config_error(f"{key}.fields", str(error)) from None


def _build(kind: str, path: str, key: str, task: Task | None) -> RawSource:
    if task is None:
        problem = f"is missing: the format {kind!r} builds samples for a task"
        raise config_error(f"{key}.task", problem, "next_frame")
    try:
        return _BUILT[kind](path, task=task)
    except PairError as error:
        raise config_error(f"{key}.path", str(error)) from None
    except SourceError as error:
        raise config_error(f"{key}.task", str(error), "next_frame") from None


def _bounds(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _plain(settings: Any) -> dict[str, Any]:
    """Dicts instead of ConfigDicts."""
    if isinstance(settings, ConfigDict):
        settings = settings.to_dict()
    return {
        name: _plain(value) if isinstance(value, Mapping | ConfigDict) else value
        for name, value in settings.items()
    }
