"""Encoded data sets: pictures that the autoencoder has turned into latents once, for training.

    FOLDER/NAME/manifest.json                      what was encoded, and how (`shards`)
    FOLDER/NAME/train-00000-of-00008.array_record  records
    FOLDER/NAME/train-00000-of-00008.json          {records, bytes, sha256, largest, skipped,
                                                    unsuitable}

A record is one example of one task as a safetensors blob: `mean.N` and `std.N`, float16 (rows,
columns, channels), the posterior over the latents of frame N at the scale that the model sees. Ray
frames have no `std`. Its texts and tags are JSON in the blob's metadata. Training draws latents
from the posteriors in the step (`flow.draw_latents`), so that epochs differ. Where the autoencoder
runs in the step (`unidiff_jax.models.pixels`), `mean.N` are blocks of pixels without a `std`. For
guidance on channels a record may hold `region`, float16 (rows, columns), the share of each latent
pixel that is to be made, and `features`, float32 (assets, width), of the reference objects. For
references in the prompt these may be pixels (uint8), and `entities`, float16 (assets, rows,
columns), is the share of each latent pixel that a reference covers in the picture that is made.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import shards
from data_pipelines.blobs import BlobError, pack_blob, unpack_blob
from data_pipelines.shards import ManifestError, ShardError
from unidiff_jax.outside import fits
from unidiff_jax.paths import AnyPath, as_path
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
      tags: context tags of the example's own, beside the task's (`unidiff_jax.tasks`).
      region: (rows, columns) the task's region, on the grid of the latents; None for none.
      features: (assets, width) of the reference objects (`identity`); None for none.
      entities: (assets, rows, columns) where they are, on the grid of the latents; None for none.
    """

    means: Sequence[np.ndarray]
    stds: Sequence[np.ndarray]
    texts: Mapping[str, str | list[str]]
    tags: Sequence[str] = ()
    region: np.ndarray | None = None
    features: np.ndarray | None = None
    entities: np.ndarray | None = None


def encode_record(example: EncodedExample) -> bytes:
    """An example as one safetensors blob."""
    tensors = {}
    for number, (mean, std) in enumerate(zip(example.means, example.stds, strict=True)):
        tensors[f"mean.{number}"] = np.ascontiguousarray(mean, np.float16)
        if std.any():
            tensors[f"std.{number}"] = np.ascontiguousarray(std, np.float16)
    if example.region is not None:
        tensors["region"] = np.ascontiguousarray(example.region, np.float16)
    if example.features is not None:
        kind = np.uint8 if example.features.dtype == np.uint8 else np.float32
        tensors["features"] = np.ascontiguousarray(example.features, kind)
    if example.entities is not None:
        tensors["entities"] = np.ascontiguousarray(example.entities, np.float16)
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
        tensors = {
            name: array if array.dtype == np.uint8 else array.astype(np.float32)
            for name, array in stored.items()
        }
        means = [tensors[f"mean.{n}"] for n in range(sum(k.startswith("mean.") for k in tensors))]
        stds = [
            tensors.get(f"std.{n}", np.zeros(mean.shape, np.float32))
            for n, mean in enumerate(means)
        ]
        example = EncodedExample(
            means,
            stds,
            values["texts"],
            tuple(values.get("tags", ())),
            region=tensors.get("region"),
            features=tensors.get("features"),
            entities=tensors.get("entities"),
        )
    except (BlobError, KeyError, TypeError) as error:
        raise EncodedError(f"not an encoded example of schema {SCHEMA!r}: {error}") from None
    if fault := _fault(example):
        raise EncodedError(f"a damaged encoded example: {fault}")
    return example


def _fault(example: EncodedExample) -> str | None:
    """What of an example its attributes do not allow."""
    shapes = [mean.shape for mean in example.means]
    if not shapes or any(len(shape) != 3 or 0 in shape for shape in shapes):
        return f"frames of the shapes {shapes}, not (rows, columns, channels)"
    if [std.shape for std in example.stds] != shapes:
        return "deviations of other shapes than their means"
    for name, values in (("region", example.region), ("features", example.features)):
        if values is not None and values.ndim != 2:
            return f"{name} of shape {values.shape}"
    if not fits(example.texts, {str: (str, [str])}) or [] in example.texts.values():
        return "texts that are none"
    return None if fits(list(example.tags), [str]) else "tags that are no texts"


class EncodedSource:
    """The examples of one task in one or several encoded folders; a `mixture.Source`.

    Example:
      >>> source = EncodedSource(["data/latents/edits"], task=get_task("edit"), split="train")
      >>> source.item(source[0], get_task("edit"), np.random.default_rng(0))["latents"]
    """

    def __init__(self, folders: Sequence[AnyPath], *, task: Task, split: str, spare: float = 0.0):
        """Opens a split.

        Args:
          folders: made by `launch.encode`.
          task: of the examples.
          split: train or validation.
          spare: the share of the records that may be lost with their files (`shards.open_files`).

        Raises:
          EncodedError: a folder is missing, unfinished, of another task, or holds nothing.
        """
        places: list[tuple[AnyPath, str]] = []
        self._holds_pixels = False
        for folder in folders:
            manifest = read_manifest(folder)
            if manifest.get("task") != task.name:
                raise EncodedError(
                    f"{folder} holds task {manifest.get('task')!r}, not {task.name!r}"
                )
            if not fits(manifest, {"shards": {split: int}, "autoencoder": dict}):
                raise EncodedError(f"{folder} tells no number of {split} shards; {_again(folder)}")
            self._holds_pixels |= "blocks_of_pixels" in manifest["autoencoder"]
            try:
                names = shards.shard_names(split, manifest["shards"][split])
            except ValueError as error:
                raise EncodedError(f"{folder}: {error}; {_again(folder)}") from None
            places += [(folder, name) for name in names]
        try:
            opened = shards.open_shards(places, spare=spare)
        except ShardError as error:
            raise EncodedError(f"{error}; {_again(folders[0])}") from None
        if opened is None:
            shown = ", ".join(map(str, folders))
            raise EncodedError(f"no {split} example of task {task.name!r} in {shown}")
        self._records, self._count = opened.records, len(opened.records)
        self.largest = Largest()
        for entry in opened.entries:
            if entry["records"]:
                if not fits(entry, {"largest": dict.fromkeys(vars(self.largest), int)}):
                    raise EncodedError(f"a shard tells no bounds; {_again(folders[0])}")
                self.largest = self.largest.with_entry(entry["largest"])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> EncodedExample:
        return decode_record(self._records[index])

    def name(self, index: int) -> str:
        return self._records.name(index)

    def item(
        self, record: EncodedExample, task: Task, rng: np.random.Generator
    ) -> Mapping[str, Any]:
        """Latents, their deviations (pixels have none), tags, what guides on channels, and texts;
        where a text is a choice, one of them.
        """
        texts = {
            name: text if isinstance(text, str) else text[int(rng.integers(len(text)))]
            for name, text in record.texts.items()
        }
        item = {"latents": record.means, "tags": record.tags, **texts}
        if not self._holds_pixels:
            item["stds"] = record.stds
        if task.region and record.region is not None:
            item[task.region] = record.region
        if record.features is not None:
            item["features"] = record.features
        if record.entities is not None:
            item["entity_masks"] = record.entities
        return item


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


def read_manifest(folder: AnyPath) -> dict[str, Any]:
    """The folder's manifest.

    Raises:
      EncodedError: there is none, or of another schema.
    """
    try:
        return shards.read_manifest(folder, schema=SCHEMA)
    except ManifestError as error:
        raise EncodedError(f"{error}; {_again(folder)}") from None


def _again(folder: AnyPath) -> str:
    name = as_path(folder).name
    return f"encode it with: python -m launch.encode --config CONFIG --only {name}"
