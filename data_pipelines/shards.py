"""Folders of record files that long jobs write: what is finished, and with which settings.

    FOLDER/manifest.json                      schema and settings
    FOLDER/NAME-00000-of-00008.array_record   records; none where a shard is empty
    FOLDER/NAME-00000-of-00008.json           {records, bytes, sha256, ...}

A shard counts once its JSON file is there, which is written last. So a job that was stopped goes on
with the shards that are not finished.
"""

import concurrent.futures
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

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
    path = as_path(folder) / name
    described = path.with_suffix(".json")
    try:
        entry = read_object(described, limit=MAX_FILE)
        records, size = entry["records"], entry["bytes"]
        if not fits([records, size], [int]):
            raise TypeError(f"records={shown(records)}, bytes={shown(size)}")
    except FileNotFoundError:
        raise ShardError(f"{path} is not finished") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{described} is damaged ({error!r})") from None
    if records:
        try:
            found = path.stat().length
        except FileNotFoundError:
            raise ShardError(f"{path} is missing") from None
        if found != size:
            raise ShardError(f"{path} has {found} bytes instead of {size}")
    return entry


class Opened(NamedTuple):
    """Random access to the records of shards, in order, and what is known of each shard."""

    records: ArrayRecordDataSource
    entries: list[dict[str, Any]]


def open_shards(places: Iterable[tuple[AnyPath, str]]) -> Opened | None:
    """Opens finished shards; None where none has a record.

    Args:
      places: folder and name of each.

    Raises:
      ShardError: one is not finished, not whole or damaged.
    """
    places = list(places)
    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a bucket answers slowly
        entries = list(pool.map(lambda place: check_entry(*place), places))
    paths = [
        str(as_path(folder) / name)
        for (folder, name), entry in zip(places, entries, strict=True)
        if entry["records"]
    ]
    if not paths:
        return None
    try:
        records = ArrayRecordDataSource(paths)
        found = len(records)
    except (RuntimeError, ValueError, OSError) as error:
        raise ShardError(f"one of {paths[0]} and the other shards is damaged ({error})") from None
    wanted = sum(entry["records"] for entry in entries)
    if found != wanted:
        raise ShardError(f"{paths[0]} and the other shards have {found} records, not {wanted}")
    return Opened(records, entries)
