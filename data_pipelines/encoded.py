"""Encoded data sets: pictures that the autoencoder has turned into latents once, for training.

    FOLDER/NAME/manifest.json                      what was encoded, and how
    FOLDER/NAME/train-00000-of-00008.array_record  records
    FOLDER/NAME/train-00000-of-00008.json          {records, bytes, sha256, largest, skipped,
                                                    unsuitable}

A record is one example of one task as a safetensors blob: `mean.N` and `std.N`, float16 (rows,
columns, channels), the posterior over the latents of frame N at the scale that the model sees. Ray
frames have no `std`. Its texts and tags are JSON in the blob's metadata. Training draws latents
from the posteriors in the step (`flow.draw_latents`), so that epochs differ.

A shard counts once its JSON file is there, which is written last.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from data_pipelines.blobs import BlobError, pack_blob, unpack_blob
from unidiff_jax.config import ConfigError
from unidiff_jax.paths import AnyPath, as_path, written_whole
from unidiff_jax.tasks import Task

SCHEMA = "encoded/1"
SPLITS = ("train", "validation")
_KEY = "unidiff"


class EncodedError(ValueError):
    """An encoded folder or record that cannot be used; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class EncodedExample:
    """One example of one task.

    Attributes:
      means: a (rows, columns, channels) array a frame, in the task's order.
      stds: of the same shapes; zeros where the frame is exact.
      texts: the fields of the prompt; a list of texts is a choice.
      tags: context tags beside the task's, all of which the prompt has.
    """

    means: Sequence[np.ndarray]
    stds: Sequence[np.ndarray]
    texts: Mapping[str, str | list[str]]
    tags: Sequence[str] = ()


def encode_record(example: EncodedExample) -> bytes:
    """An example as one safetensors blob."""
    tensors = {}
    for number, (mean, std) in enumerate(zip(example.means, example.stds, strict=True)):
        tensors[f"mean.{number}"] = np.ascontiguousarray(mean, np.float16)
        if std.any():
            tensors[f"std.{number}"] = np.ascontiguousarray(std, np.float16)
    values = {"schema": SCHEMA, "texts": dict(example.texts), "tags": list(example.tags)}
    return pack_blob(tensors, values, key=_KEY)


def decode_record(blob: bytes) -> EncodedExample:
    """The example in a blob, in float32.

    Raises:
      EncodedError: the blob is no encoded example, or of another schema.
    """
    try:
        stored, values = unpack_blob(blob, key=_KEY)
        if values["schema"] != SCHEMA:
            raise EncodedError(f"the data have schema {values['schema']!r}, not {SCHEMA!r}")
        tensors = {name: array.astype(np.float32) for name, array in stored.items()}
        means = [tensors[f"mean.{n}"] for n in range(sum(k.startswith("mean.") for k in tensors))]
        stds = [
            tensors.get(f"std.{n}", np.zeros(mean.shape, np.float32))
            for n, mean in enumerate(means)
        ]
        # records from before there were tags have none, and are read
        return EncodedExample(means, stds, values["texts"], values.get("tags", []))
    except (BlobError, KeyError, TypeError) as error:
        raise EncodedError(f"not an encoded example of schema {SCHEMA!r}: {error}") from None


class EncodedSource:
    """The examples of one task in one or several encoded folders; a `mixture.Source`.

    Example:
      >>> source = EncodedSource(["data/latents/edits"], task=get_task("edit"), split="train")
      >>> source.item(source[0], get_task("edit"), np.random.default_rng(0))["latents"]
    """

    def __init__(self, folders: Sequence[AnyPath], *, task: Task, split: str):
        """Opens a split.

        Raises:
          EncodedError: a folder is missing, unfinished, of another task, or holds nothing.
        """
        paths, self.largest = [], Largest()
        for folder in map(as_path, folders):
            manifest = read_manifest(folder)
            if manifest["task"] != task.name:
                raise EncodedError(f"{folder} holds task {manifest['task']!r}, not {task.name!r}")
            names = shard_names(split, manifest["shards"][split])
            with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a bucket answers slowly
                entries = list(pool.map(functools.partial(read_entry, folder), names))
            for name, entry in zip(names, entries, strict=True):
                if entry is None:
                    raise EncodedError(f"{folder / name} is not encoded yet; {_again(folder)}")
                if entry["records"]:
                    paths.append(str(folder / name))
                    self.largest = self.largest.with_entry(entry["largest"])
        if not paths:
            shown = ", ".join(map(str, folders))
            raise EncodedError(f"no {split} example of task {task.name!r} in {shown}")
        try:
            self._records = ArrayRecordDataSource(paths)
            self._count = len(self._records)
        except (RuntimeError, ValueError, OSError) as error:
            raise EncodedError(f"a {split} file of {paths[0]}... is damaged: {error}") from None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> EncodedExample:
        return decode_record(self._records[index])

    def item(
        self, record: EncodedExample, task: Task, rng: np.random.Generator
    ) -> Mapping[str, Any]:
        """Latents, their deviations, tags and texts; where a text is a choice, one of them."""
        texts = {
            name: text if isinstance(text, str) else text[int(rng.integers(len(text)))]
            for name, text in record.texts.items()
        }
        return {"latents": record.means, "stds": record.stds, "tags": record.tags, **texts}


@dataclasses.dataclass(frozen=True)
class Largest:
    """Bounds of a data set's examples: places (latent pixels) and frames of the largest one."""

    places: int = 0
    frames: int = 0
    channels: int = 0

    def with_entry(self, entry: Mapping[str, int]) -> "Largest":
        return Largest(**{k: max(v, entry[k]) for k, v in dataclasses.asdict(self).items()})

    def with_example(self, example: EncodedExample) -> "Largest":
        return self.with_entry(
            {
                "places": sum(mean.shape[0] * mean.shape[1] for mean in example.means),
                "frames": len(example.means),
                "channels": example.means[0].shape[-1],
            }
        )


# ------------------------------------------------------------------------------------------ folder


def shard_names(split: str, count: int) -> list[str]:
    """Names of a split's record files."""
    return [f"{split}-{i:05d}-of-{count:05d}.array_record" for i in range(count)]


def read_manifest(folder: AnyPath) -> dict[str, Any]:
    """The folder's manifest.

    Raises:
      EncodedError: there is none, or of another schema.
    """
    path = as_path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        schema = manifest["schema"]
    except FileNotFoundError:
        raise EncodedError(f"{path} is missing; {_again(folder)}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise EncodedError(f"{path} is damaged ({error}); {_again(folder)}") from None
    if schema != SCHEMA:
        raise EncodedError(f"{path} has schema {schema!r}, not {SCHEMA!r}; {_again(folder)}")
    return manifest


def claim_folder(folder: AnyPath, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest, or checks that the folder was begun with the same one.

    Raises:
      ConfigError: it was begun with other settings; names those that differ.
    """
    folder = as_path(folder)
    wanted = json.loads(json.dumps({"schema": SCHEMA, **manifest}))
    if (folder / "manifest.json").exists():
        found = read_manifest(folder)
        other = [
            f"{k} was {found.get(k)!r}, now {wanted.get(k)!r}"
            for k in sorted(found.keys() | wanted.keys())
            if found.get(k) != wanted.get(k)
        ]
        if other:
            raise ConfigError(
                f"{folder} was encoded with other settings ({'; '.join(other)}); remove it, or "
                "choose another --set data.folder=FOLDER"
            )
        return
    write_json(folder / "manifest.json", wanted)


def read_entry(folder: AnyPath, name: str) -> dict[str, Any] | None:
    """What is known of a finished shard; None where it is missing or not whole."""
    path = as_path(folder) / name
    try:
        entry = json.loads(path.with_suffix(".json").read_text())
        whole = not entry["records"] or path.stat().length == entry["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return entry if whole else None


def write_entry(
    path: AnyPath,
    *,
    records: int,
    largest: Largest,
    skipped: Sequence[str],
    unsuitable: Mapping[str, int],
) -> None:
    """Says that a shard is finished.

    Args:
      path: of its records.
      records: their number.
      largest: of their bounds.
      skipped: what is wrong with each sample that could not be used.
      unsuitable: how many samples had nothing for the task, by reason.
    """
    path, digest = as_path(path), ""
    if records:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
    entry = {
        "records": records,
        "bytes": path.stat().length if records else 0,
        "sha256": digest,
        "largest": dataclasses.asdict(largest),
        "skipped": list(skipped),
        "unsuitable": dict(unsuitable),
    }
    write_json(path.with_suffix(".json"), entry)


def write_json(path: AnyPath, values: Any) -> None:
    """Writes in one step: a reader sees the old file or the new one."""
    with written_whole(path) as file:
        file.write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def _again(folder: AnyPath) -> str:
    name = as_path(folder).name
    return f"encode it with: python -m launch.encode --config CONFIG --only {name}"
