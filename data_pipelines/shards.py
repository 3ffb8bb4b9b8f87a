"""Folders of record files that long jobs write: what is finished, and with which settings.

    FOLDER/manifest.json                      schema and settings
    FOLDER/NAME-00000-of-00008.array_record   records; none where a shard is empty
    FOLDER/NAME-00000-of-00008.json           {records, bytes, sha256, ...}

A shard counts once its JSON file is there, which is written last. So a job that was stopped goes on
with the shards that are not finished.
"""

import bisect
import concurrent.futures
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from absl import logging
from array_record.python import array_record_module
from array_record.python.array_record_data_source import ArrayRecordDataSource

from unidiff_jax.config import ConfigError
from unidiff_jax.outside import MAX_FILE, InputError, fits, read_object, shown
from unidiff_jax.paths import AnyPath, as_path, write_json, written_whole

_WRITER_OPTIONS = "group_size:1"  # one record a chunk: training reads at random


class ShardError(ValueError):
    """A shard that is not finished, or whose files are not what they were."""


class ManifestError(ValueError):
    """A folder without a manifest, or with one that is damaged or of another schema."""


MAX_SHARDS = 99_999
"""Files of a name."""


def shard_names(name: str, count: int) -> list[str]:
    """Names of the record files.

    Raises:
      ValueError: the number is none from 0 to `MAX_SHARDS`.
    """
    if type(count) is not int or not 0 <= count <= MAX_SHARDS:
        raise ValueError(f"{shown(count)} shards of {name}; a count to {MAX_SHARDS}")
    return [f"{name}-{i:05d}-of-{count:05d}.array_record" for i in range(count)]


def read_manifest(folder: AnyPath, *, schema: str) -> dict[str, Any]:
    """The folder's manifest.

    Raises:
      ManifestError: there is none, or of another schema.
    """
    path = as_path(folder) / "manifest.json"
    try:
        manifest = read_object(path)
    except FileNotFoundError:
        raise ManifestError(f"{path} is missing") from None
    except InputError as error:
        raise ManifestError(f"the manifest is damaged: {error}") from None
    if manifest.get("schema") != schema:
        raise ManifestError(f"{path} has schema {shown(manifest.get('schema'))}, not {schema!r}")
    return manifest


def claim_folder(
    folder: AnyPath, manifest: Mapping[str, Any], *, schema: str, made: str, remedy: str
) -> None:
    """Writes the manifest, or checks that the folder was begun with the same one.

    Args:
      folder: to be written.
      manifest: settings, and all that decides the records.
      schema: of the records.
      made: what the folder was, such as "encoded", for the message.
      remedy: how to choose another folder, for the message.

    Raises:
      ConfigError: it was begun with other settings; names those that differ.
      ManifestError: its manifest cannot be read.
    """
    path = as_path(folder) / "manifest.json"
    wanted = json.loads(json.dumps({"schema": schema, **manifest}))
    if not path.exists():
        write_json(path, wanted)
        return
    found = read_manifest(folder, schema=schema)
    other = [
        f"{key} was {found.get(key)!r}, now {wanted[key]!r}"
        for key in sorted(wanted)
        if found.get(key) != wanted[key]
    ]
    if other:
        raise ConfigError(
            f"{folder} was {made} with other settings ({'; '.join(other)}); remove it, or {remedy}"
        )


def write_shard(path: AnyPath, records: Iterable[bytes]) -> int:
    """Writes a shard's records, in one step, and returns their number; none makes no file."""
    count = 0
    with written_whole(path) as partial:
        writer = array_record_module.ArrayRecordWriter(str(partial), _WRITER_OPTIONS)
        try:
            for record in records:
                writer.write(record)
                count += 1
        finally:
            writer.close()
            if not count:
                partial.unlink(missing_ok=True)
    return count


def write_entry(path: AnyPath, *, records: int, **known: Any) -> None:
    """Says that a shard is finished, and what else is known of it."""
    path, digest = as_path(path), ""
    if records:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    size = path.stat().length if records else 0
    write_json(
        path.with_suffix(".json"), {"records": records, "bytes": size, "sha256": digest, **known}
    )


def read_entry(folder: AnyPath, name: str) -> dict[str, Any] | None:
    """What is known of a finished shard; None where it is missing or not whole."""
    try:
        return check_entry(folder, name)
    except ShardError:
        return None


def check_entry(folder: AnyPath, name: str) -> dict[str, Any]:
    """What is known of a finished shard.

    Raises:
      ShardError: it is not finished, or its files are not whole.
    """
    entry = _read_entry(folder, name)
    if problem := _missing((folder, name), entry):
        raise ShardError(problem)
    return entry


def _read_entry(folder: AnyPath, name: str) -> dict[str, Any]:
    path = as_path(folder) / name
    described = path.with_suffix(".json")
    try:
        entry = read_object(described, limit=MAX_FILE)
        records, size = entry["records"], entry["bytes"]
        if not fits([records, size], [int]) or not all(0 <= n < 2**63 for n in (records, size)):
            raise TypeError(f"records={shown(records)}, bytes={shown(size)}")
        return entry
    except FileNotFoundError:
        raise ShardError(f"{path} is not finished") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{described} is damaged ({error!r})") from None


def _missing(place: tuple[AnyPath, str], entry: Mapping[str, Any]) -> str | None:
    """What is wrong with the size of a shard's file; None where nothing is."""
    path = as_path(place[0]) / place[1]
    return size_problem(path, entry["bytes"]) if entry["records"] else None


def size_problem(path: AnyPath, size: int) -> str | None:
    """Says that a file is missing or has another size; None where it is as it should be."""
    try:
        found = as_path(path).stat().length
    except FileNotFoundError:
        return f"{path} is missing"
    return None if found == size else f"{path} has {found} bytes instead of {size}"


class RecordFile(NamedTuple):
    """A file of records: how many there should be, and why they cannot be read, if so."""

    path: str
    count: int
    problem: str | None = None


class _Part(NamedTuple):
    """A file of known length in the form that ArrayRecordDataSource takes without opening it."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


class Records(ArrayRecordDataSource):
    """Random access to the records of files, in order, each with a name."""

    def __init__(self, files: Sequence[RecordFile]):
        """Opens no file: one that is lost is missed when its records are read."""
        super().__init__([_Part(file.path, 0, file.count, file.count) for file in files])
        self._names = [file.path for file in files]
        self._ends = list(itertools.accumulate(file.count for file in files))

    def name(self, index: int) -> str:
        """The file of a record and its place there, from 0."""
        file = bisect.bisect_right(self._ends, index)
        return f"{self._names[file]} record {index - (self._ends[file - 1] if file else 0)}"


def open_files(files: Sequence[RecordFile], *, spare: float = 0.0) -> Records:
    """Opens files of records; those that are lost keep their places in the order.

    Args:
      files: all of them, each with its problem where one is known.
      spare: the share of the records that may be lost; their reading fails.

    Raises:
      ShardError: more are lost; the message is the first problem.
    """
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a bucket answers slowly
        problems = list(pool.map(_problem, files))
    lost = [(file, said) for file, said in zip(files, problems, strict=True) if said]
    if sum(file.count for file, _ in lost) > spare * sum(file.count for file in files):
        raise ShardError(lost[0][1])
    for file, said in lost:
        logging.warning("%s: its %d records will be skipped", said, file.count)
    return Records(files)


def _problem(file: RecordFile) -> str | None:
    """Why a file's records cannot be read; None where they can."""
    if file.problem:
        return file.problem
    try:
        reader = array_record_module.ArrayRecordReader(file.path)
        found = reader.num_records()
        reader.close()
    except (RuntimeError, ValueError, OSError) as error:
        return f"{file.path} is damaged ({error})"
    if found != file.count:
        return f"{file.path} has {found} records instead of {file.count}"
    return None


class Opened(NamedTuple):
    """Random access to the records of shards, in order, and what is known of each shard."""

    records: Records
    entries: list[dict[str, Any]]


def open_shards(places: Iterable[tuple[AnyPath, str]], *, spare: float = 0.0) -> Opened | None:
    """Opens finished shards; None where none has a record.

    Args:
      places: folder and name of each.
      spare: see `open_files`.

    Raises:
      ShardError: one is not finished, or more than `spare` are not whole or damaged.
    """
    places = list(places)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a bucket answers slowly
        entries = list(pool.map(lambda place: _read_entry(*place), places))
        problems = list(pool.map(_missing, places, entries))
    files = [
        RecordFile(str(as_path(folder) / name), entry["records"], problem)
        for (folder, name), entry, problem in zip(places, entries, problems, strict=True)
        if entry["records"]
    ]
    return Opened(open_files(files, spare=spare), entries) if files else None
