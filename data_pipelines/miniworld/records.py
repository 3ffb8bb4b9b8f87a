"""The MiniWorld record: one scene, its edits and its clip as one safetensors blob.

The N images of a record are image 0 (the base scene), then one image for each edit, then the
clip's further frames. Tensors lie in the blob as safetensors; all text is one JSON string in its
`__metadata__` (`blobs`).
"""

import concurrent.futures
import dataclasses
from typing import Any

import numpy as np

from data_pipelines.blobs import BlobError, pack_blob, unpack_blob
from data_pipelines.miniworld import manifest as manifests
from data_pipelines.miniworld.manifest import SCHEMA, RecordsError
from data_pipelines.shards import RecordFile, Records, ShardError, open_files, size_problem
from unidiff_jax.outside import fits
from unidiff_jax.paths import AnyPath, as_path

_KEY = "miniworld"
_TENSORS = {
    "rgb": np.uint8,
    "depth": np.float16,
    "instance": np.uint8,
    "shadow": np.uint8,
    "camera_to_world": np.float32,
    "intrinsics": np.float32,
}
_FORM = {
    "id": int,
    "split": str,
    "heldout": (str, None),
    "scenes": [{"objects": [{"id": int, "shape": str, "color": str}]}],
    "captions": [[str]],
    "references": [{"expression": str, "object": int, "image": int}],
    "edits": [{"kind": str, "instruction": str, "before": int, "after": int, "object": int}],
    "clip": ({"kind": str, "images": [int], "description": str}, None),
}


@dataclasses.dataclass
class Record:
    """One scene and its related images.

    Attributes:
      rgb: uint8 (N, H, W, 3).
      depth: float16 (N, H, W), z-depth in scene units.
      instance: uint8 (N, H, W), object id, 0 for floor and backdrop.
      shadow: uint8 (N, H, W), 1 where the light does not reach.
      camera_to_world: float32 (N, 4, 4), OpenGL axes.
      intrinsics: float32 (N, 3, 3), in units of the image size.
      id: unique over all splits, below 2**30.
      split: train, validation, test or heldout.
      heldout: pair, azimuth, count, or None outside the held-out split.
      scenes: N scene dicts; `scene.from_dict` gives the scene.
      captions: for each image a list of two or more.
      references: dicts {expression, object, image}; the expression fits that object alone.
      edits: dicts {kind, instruction, before, after, object}; before and after index images,
        object is the id of the changed object, 0 for the floor.
      clip: {kind, images, description}, images in time order and beginning with 0; None if the
        record has no clip.
    """

    rgb: np.ndarray
    depth: np.ndarray
    instance: np.ndarray
    shadow: np.ndarray
    camera_to_world: np.ndarray
    intrinsics: np.ndarray
    id: int
    split: str
    heldout: str | None
    scenes: list[dict[str, Any]]
    captions: list[list[str]]
    references: list[dict[str, Any]]
    edits: list[dict[str, Any]]
    clip: dict[str, Any] | None


_METADATA = tuple(f.name for f in dataclasses.fields(Record) if f.name not in _TENSORS)


def encode(record: Record) -> bytes:
    """A record as one safetensors blob.

    Raises:
      ValueError: a tensor has another dtype than `Record` says.
    """
    tensors = {name: getattr(record, name) for name in _TENSORS}
    for name, array in tensors.items():
        if array.dtype != _TENSORS[name]:
            raise ValueError(f"{name} is {array.dtype}; make it {np.dtype(_TENSORS[name])}")
    metadata = {name: getattr(record, name) for name in _METADATA}
    return pack_blob(tensors, {"schema": SCHEMA, **metadata}, key=_KEY)


def decode(blob: bytes) -> Record:
    """The record in a blob; its arrays are read-only views of the blob.

    Example:
      record = decode(open_records("data/miniworld-32", "train")[0])

    Raises:
      RecordsError: the blob is no MiniWorld record, or one of another schema.
    """
    try:
        stored, metadata = unpack_blob(blob, key=_KEY)
        schema = metadata.pop("schema")
    except (BlobError, KeyError, TypeError, AttributeError) as error:
        raise RecordsError(f"not a MiniWorld record of schema {SCHEMA!r}: {error}") from None
    manifests.check_schema(
        schema, "render the data again with: python -m launch.miniworld --out FOLDER"
    )
    try:
        record = Record(**{name: stored[name] for name in _TENSORS}, **metadata)
    except (KeyError, TypeError) as error:
        raise RecordsError(f"damaged MiniWorld record: {error}") from None
    if fault := _fault(record):
        raise RecordsError(f"damaged MiniWorld record: {fault}")
    return record


def _fault(record: Record) -> str | None:
    """What of a record its attributes do not allow."""
    if record.rgb.ndim != 4 or 0 in record.rgb.shape:
        return f"rgb of shape {record.rgb.shape}"
    count, height, width, _ = record.rgb.shape
    maps = dict.fromkeys(("depth", "instance", "shadow"), (count, height, width))
    shapes = maps | {"rgb": (count, height, width, 3)}
    shapes |= {"camera_to_world": (count, 4, 4), "intrinsics": (count, 3, 3)}
    for name, dtype in _TENSORS.items():
        array = getattr(record, name)
        if array.shape != shapes[name] or array.dtype != dtype:
            return f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shapes[name]}"
    if not fits({name: getattr(record, name) for name in _FORM}, _FORM):
        return f"{', '.join(_FORM)} are missing or of other types"
    if len(record.scenes) != count or len(record.captions) != count or [] in record.captions:
        return f"not a scene and captions for each of {count} images"
    images = [image for edit in record.edits for image in (edit["before"], edit["after"])]
    images += [reference["image"] for reference in record.references]
    if record.clip is not None:
        images += record.clip["images"] or [count]
    return None if all(0 <= i < count for i in images) else f"an image beyond {count}"


def open_records(folder: AnyPath, split: str, *, spare: float = 0.0) -> Records:
    """Random access to the encoded records of one split; works as a Grain source.

    Example:
      source = open_records("data/miniworld-32", "train")
      dataset = grain.MapDataset.source(source).map(decode)

    Args:
      folder: a folder that `launch.miniworld` has rendered, local or in a bucket.
      split: train, validation, test or heldout.
      spare: the share of the records that may be lost with their files (`shards.open_files`).

    Raises:
      RecordsError: another schema, a split that was not rendered, or a missing or damaged file;
        the message has the command that renders the folder again.
    """
    folder = as_path(folder)
    manifest = manifests.read(folder)
    settings = manifest.settings
    command = settings.command(folder)
    shards = settings.shards_of(split)
    if not shards:
        rendered = sorted(name for name, count in settings.counts.items() if count)
        raise RecordsError(f"{folder} has no split {split!r}; it has {', '.join(rendered)}")

    def find(name: str) -> RecordFile:
        path, entry, count = folder / name, manifest.files.get(name), len(shards[name])
        if entry is None:
            return RecordFile(str(path), count, f"{path} is not rendered yet")
        if entry["records"] != count:
            problem = f"{path} has {entry['records']} records instead of {count}"
            return RecordFile(str(path), count, problem)
        return RecordFile(str(path), count, size_problem(path, entry["bytes"]))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:  # a bucket answers slowly
        files = list(pool.map(find, shards))
    try:
        return open_files(files, spare=spare)
    except ShardError as error:
        raise RecordsError(f"{error}; render it again with: {command}") from None
