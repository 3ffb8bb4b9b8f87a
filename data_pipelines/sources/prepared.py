"""Data sets that TensorFlow Datasets prepared, as a table; read without TensorFlow.

    DATA_DIR/ref_coco/refcoco_unc/1.1.0/dataset_info.json  features.json
                                        ref_coco-train.array_record-00000-of-00016  ...

`tfds build NAME --file_format=array_record` writes such a folder once, on any machine that has
TensorFlow. Records of that format can be read at random; the default format, tfrecord, cannot.

A column is the path of a feature, joined by dots: `image`, `captions.text`, `objects.refexp.raw`.
Feature classes of the library tell what a record holds, but pictures are kept as the bytes of their
files, so that they are decoded as those of every other source are.
"""

import concurrent.futures
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from etils import epath
from tensorflow_datasets.core import features as tfds_features
from tensorflow_datasets.core import naming, splits
from tensorflow_datasets.core.example_parser import ExampleParserNp
from tensorflow_datasets.core.features.feature import TensorInfo
from tensorflow_datasets.core.utils.py_utils import flatten_nest_dict

from data_pipelines.sources import files
from data_pipelines.sources.base import SampleError, SourceError
from unidiff_jax.outside import fits, shown

_FORMAT = "array_record"
_INFO, _FEATURES = "dataset_info.json", "features.json"
_UNFINISHED = "incomplete."  # begins the name that a folder has while it is prepared
_FEATURE_CLASSES = "tensorflow_datasets.core.features."  # other modules are never imported
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


class _Column(NamedTuple):
    """What is stored under the path of a feature."""

    path: str  # joined by slashes, as in records
    kind: str  # picture, text, label, number or array
    info: TensorInfo
    labels: list[str]


def find_prepared(data_dir: str, name: str) -> epath.Path:
    """The folder of a prepared data set.

    Args:
      data_dir: folder of all data sets, on a disk or in a bucket.
      name: `NAME`, `NAME/CONFIG`, and either with `:VERSION`; without it the newest is taken.

    Raises:
      SourceError: it is not there, has several configs, or was prepared in another format.
    """
    root = epath.Path(data_dir).expanduser()
    dataset, _, version = name.partition(":")
    if not root.is_dir():
        raise SourceError(f"no such folder: {data_dir}; {_how_to_prepare(data_dir, dataset)}")
    try:
        folder = files.inside(root, dataset)
    except SampleError as error:
        raise SourceError(str(error)) from None
    if not folder.is_dir():
        raise SourceError(
            f"{data_dir} has no data set {dataset!r}, it has: "
            f"{', '.join(files.list_folders(root)) or 'none'}; {_how_to_prepare(data_dir, dataset)}"
        )
    inner = [name for name in files.list_folders(folder) if not name.startswith(_UNFINISHED)]
    versions = sorted(filter(_VERSION.fullmatch, inner), key=_version_key)
    if not versions and inner and "/" not in dataset:
        if len(inner) > 1:
            raise SourceError(
                f"{dataset!r} has the configs {', '.join(inner)}: name one, for example "
                f"{dataset}/{inner[0]}"
            )
        return find_prepared(data_dir, f"{dataset}/{inner[0]}{name[len(dataset) :]}")
    if not versions or version not in ("", *versions):
        raise SourceError(
            f"{folder} has no version {version or '1.0.0'}, it has: "
            f"{', '.join(versions) or 'none'}; {_how_to_prepare(data_dir, dataset)}"
        )
    folder /= version or versions[-1]
    if not ((folder / _INFO).exists() and (folder / _FEATURES).exists()):
        raise SourceError(
            f"{folder} has no {_INFO} and {_FEATURES}, so its preparation did not end; "
            f"{_how_to_prepare(data_dir, dataset)}"
        )
    record = _read_json(folder / _INFO)
    others = record.get("alternativeFileFormats", [])
    formats = {str(kind) for kind in (record.get("fileFormat", "tfrecord"), *_as_list(others))}
    if _FORMAT not in formats:
        raise SourceError(
            f"{folder} is prepared as {', '.join(sorted(formats))}, which cannot be read at "
            f"random; convert it: tfds convert_format --dataset_version_dir={folder} "
            f"--out_file_format={_FORMAT} --out_dir=FOLDER, or "
            f"{_how_to_prepare(data_dir, dataset)}"
        )
    return folder


class PreparedTable:
    """Examples of one split, in the order of its files.

    Cells are those of `tables.Table`: labels are their names, and what lies in nested sequences is
    one list. `values` gives what cells cannot hold, such as arrays.
    """

    def __init__(self, folder: epath.Path, *, split: str = "train"):
        """Reads what the records hold; reads no record.

        Args:
          folder: see `find_prepared`.
          split: such as `train`, or a part of one as `train[:10%]`.

        Raises:
          SourceError: no such split, missing files, or features that cannot be understood.
        """
        self._name = f"{folder} {split}"
        self._columns = _read_columns(folder)
        self._records = ArrayRecordDataSource(_find_records(folder, split))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns whose cells are pictures, texts or numbers."""
        return tuple(name for name, column in self._columns.items() if column.kind != "array")

    @property
    def features(self) -> tuple[str, ...]:
        """All columns, with those that only `values` reads."""
        return tuple(self._columns)

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        return f"{self._name} example {index}"

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        return {name: _cell(value) for name, value in self.values(index, columns).items()}

    def values(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        """What an example holds.

        Pictures are the bytes of their files, texts and names of labels are str; in sequences they
        are lists, nested as the sequences are. Numbers are arrays of the feature's shape.
        None is where the example has nothing, or a label that is not set.

        Raises:
          SampleError: the example cannot be read.
        """
        chosen = {name: self._columns[name] for name in columns}
        # no more is parsed than is asked for, since maps are long lists of numbers; but the parser
        # must know all nested sequences
        nested = [column for column in self._columns.values() if column.info.sequence_rank > 1]
        parser = ExampleParserNp({c.path: c.info for c in (*chosen.values(), *nested)})
        try:
            found = parser.parse_example(self._records[index])
        except (OSError, RuntimeError, ValueError, LookupError, AttributeError) as error:
            raise SampleError(f"{self.name(index)} cannot be read: {error}") from None
        return {
            name: _value(found[column.path], column, name=f"{self.name(index)}: {name}")
            for name, column in chosen.items()
        }


def _read_splits(folder: epath.Path) -> splits.SplitDict:
    record = _read_json(folder / _INFO)
    try:
        if not fits({"splits": [], **record}, {"name": str, "splits": [{"name": str}]}):
            raise TypeError("no name, or splits without one")
        template = naming.ShardedFileTemplate(
            data_dir=folder, dataset_name=record["name"], filetype_suffix=_FORMAT
        )
        return splits.SplitDict(
            [
                splits.SplitInfo(
                    name=entry["name"],
                    shard_lengths=[int(length) for length in _as_list(entry.get("shardLengths"))],
                    num_bytes=int(entry.get("numBytes", 0)),
                    filename_template=template.replace(
                        split=entry["name"], template=str(entry.get("filepathTemplate", ""))
                    ),
                )
                for entry in record.get("splits", ())
            ]
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SourceError(f"{folder / _INFO} cannot be understood: {error!r}") from None


def _find_records(folder: epath.Path, split: str) -> list[Any]:
    """Which records of which files a split has."""
    known = _read_splits(folder)
    try:
        found = known[split].file_instructions
    except (LookupError, ValueError, AssertionError, AttributeError, TypeError) as error:
        reason = (str(error).strip() or "no such split").splitlines()[0]
        raise SourceError(
            f"{folder}: split {split!r}: {reason}; splits are: {', '.join(known) or 'none'}, and "
            "parts of them such as train[:10%]"
        ) from None
    if not found:
        raise SourceError(f"{folder}: the split {split!r} has no examples")
    for part in found:
        if epath.Path(part.filename).parent != folder:
            raise SourceError(f"{folder / _INFO} names the file {part.filename} of another folder")
    with concurrent.futures.ThreadPoolExecutor(files.NUM_READERS) as pool:
        there = list(pool.map(lambda part: epath.Path(part.filename).exists(), found))
    missing = [part.filename for part, is_there in zip(found, there, strict=True) if not is_there]
    if missing:
        raise SourceError(
            f"{folder}: {len(missing)} files of the split {split!r} are missing, first {missing[0]}"
        )
    return found


def _read_columns(folder: epath.Path) -> dict[str, _Column]:
    try:
        features = tfds_features.FeatureConnector.from_json(
            _without_videos(_read_json(folder / _FEATURES))
        )
        features.load_metadata(folder, feature_name=None)  # names of labels
        infos = flatten_nest_dict(features.get_serialized_info())
    except Exception as error:  # those of Protocol Buffers share no base class of their own
        raise SourceError(f"{folder / _FEATURES} cannot be understood: {error}") from None
    columns = {}
    for path, feature in sorted(_leaves(features), key=lambda leaf: leaf[0]):  # files have no order
        info = infos.get(path)
        if not isinstance(info, TensorInfo):  # an array of unknown size is stored in parts
            continue
        kind = _kind(feature, info)
        if kind is not None:
            labels = feature.names if kind == "label" else []
            columns[path.replace("/", ".")] = _Column(path, kind, info, labels)
    return columns


def _leaves(feature: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(feature, tfds_features.FeaturesDict):
        for name, inner in feature.items():
            yield from _leaves(inner, f"{path}/{name}" if path else name)
    elif type(feature) is tfds_features.Sequence:
        yield from _leaves(feature.feature, path)
    else:
        yield path, feature


def _kind(feature: Any, info: TensorInfo) -> str | None:
    """None for numbers that are stored as bytes: packed arrays, and pictures of floats."""
    if isinstance(feature, tfds_features.Image):
        return "picture" if feature.np_dtype in (np.uint8, np.uint16) else None
    if isinstance(feature, tfds_features.ClassLabel):
        return "label"
    if feature.np_dtype in (np.object_, np.str_):
        return "text"
    if info.np_dtype == np.object_:
        return None
    return "array" if info.shape else "number"


def _without_videos(value: Any) -> Any:
    """Features with videos as the sequences of images that they are stored as.

    The class of videos is the only one that needs TensorFlow, for the name of its dtype. Data sets
    that were converted from older ones keep the `features.json` of their time, of which there are
    three kinds: features by `type` and `content`; these with a JSON text for content; and by
    `pythonClassName`.

    Raises:
      ValueError: a class of another module than the features', which the library would import.
    """
    if not isinstance(value, Mapping):
        return value
    if isinstance(value.get("content"), str) and "proto_cls" in value:
        value = {**value, "content": files.decode_json(value["content"], name="a feature")}
    value = {name: _without_videos(inner) for name, inner in value.items()}
    named = [value[key] for key in ("pythonClassName", "type") if isinstance(value.get(key), str)]
    for kind in named:
        if "." in kind and not kind.startswith(_FEATURE_CLASSES):
            raise ValueError(f"the class {shown(kind)} is not one of {_FEATURE_CLASSES}*")
    if not named or not named[0].endswith(".Video"):
        return value
    content = value.get("video") or value["content"]
    shape = content["shape"]
    length, *size = shape["dimensions"] if isinstance(shape, Mapping) else shape
    image = {
        "shape": {"dimensions": [-1 if side is None else side for side in size]},
        "dtype": content.get("dtype", "uint8"),
        "encodingFormat": content.get("encodingFormat", "png"),
    }
    inner = {"pythonClassName": _class_name(tfds_features.Image), "image": image}
    return {
        "pythonClassName": _class_name(tfds_features.Sequence),
        "sequence": {"feature": inner, "length": -1 if length is None else length},
    }


def _class_name(feature: type) -> str:
    return f"{feature.__module__}.{feature.__name__}"


def _value(value: Any, column: _Column, *, name: str) -> Any:
    if value is None or column.kind in ("number", "array"):
        return value
    if isinstance(value, list | np.ndarray):
        return [_value(item, column, name=name) for item in value]
    if column.kind == "label":
        return column.labels[value] if 0 <= value < len(column.labels) else None
    return files.decode_text(value, name=name) if column.kind == "text" else value


def _cell(value: Any) -> Any:
    return [item for item in _flat(value) if item is not None] if isinstance(value, list) else value


def _flat(value: list[Any]) -> Iterator[Any]:
    for item in value:
        if isinstance(item, list):
            yield from _flat(item)
        else:
            yield item


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return files.read_json(path)
    except SampleError as error:
        raise SourceError(str(error)) from None


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _how_to_prepare(data_dir: str, dataset: str) -> str:
    return f"prepare it: tfds build {dataset} --file_format={_FORMAT} --data_dir={data_dir}"
