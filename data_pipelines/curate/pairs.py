"""The record of a pair: two frames of one shot, with masks, words and how much moved.

    FOLDER/manifest.json                          {schema, shards, ...}
    FOLDER/pairs-00000-of-00008.array_record      records; no file where there are none
    FOLDER/pairs-00000-of-00008.json              what is known of the shard (`shards`)

A record is a safetensors blob (`data_pipelines.blobs`): `frame.N` (a JPEG or PNG file), `mask.N` (a
PNG of ids) and, where the clip has it, `depth.N` (float16), for N = 0 (earlier) and 1 (later); the
rest is JSON. Both frames have one size.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from data_pipelines import shards
from data_pipelines.blobs import BlobError, pack_blob, unpack_blob
from data_pipelines.shards import ManifestError, ShardError
from unidiff_jax.outside import decode_picture, decode_values, fits
from unidiff_jax.paths import AnyPath

SCHEMA = "pair/1"
NAME = "pairs"
"""What record files begin with."""

_KEY = "unidiff_pair"
_FORM = {
    "names": {str: str},
    "caption": str,
    "clip": str,
    "times": [float],
    "tags": [str],
    "flow": float,
    "difference": float,
}
_AGAIN = "curate the clips again with python -m launch.curate"


class PairError(ValueError):
    """A record or folder of pairs that cannot be used; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two frames of a shot.

    Attributes:
      frames: uint8 (2, H, W, 3), RGB: earlier and later.
      masks: uint8 (2, H, W), ids of things, 0 for none; the same thing has the same id in both.
      names: what an id is called; things without a name are left out.
      caption: of the shot as a video: also the instruction from the earlier to the later frame.
      clip: name of the clip.
      times: seconds of the two frames from the clip's start.
      tags: context tags (UniReal section 3.1), such as "dynamic scenario".
      flow: mean length of the optical flow, in picture diagonals.
      difference: mean absolute difference of the pixels, in [0, 1].
      depth: float16 (2, H, W), z-depth in the data's units; None without.
    """

    frames: np.ndarray
    masks: np.ndarray
    names: Mapping[int, str]
    caption: str
    clip: str
    times: tuple[float, float]
    tags: Sequence[str]
    flow: float
    difference: float
    depth: np.ndarray | None = None


def encode_pair(pair: Pair, *, lossless: bool = False) -> bytes:
    """A pair as one blob; frames as JPEG of quality 95, or as PNG."""
    arrays = {}
    for n in range(2):
        bgr = cv2.cvtColor(pair.frames[n], cv2.COLOR_RGB2BGR)
        options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
        arrays[f"frame.{n}"] = _file(".png", bgr) if lossless else _file(".jpg", bgr, options)
        arrays[f"mask.{n}"] = _file(".png", pair.masks[n])
        if pair.depth is not None:
            arrays[f"depth.{n}"] = np.asarray(pair.depth[n], np.float16)
    values = {
        "schema": SCHEMA,
        "names": {str(i): name for i, name in pair.names.items()},
        "caption": pair.caption,
        "clip": pair.clip,
        "times": list(pair.times),
        "tags": list(pair.tags),
        "flow": pair.flow,
        "difference": pair.difference,
    }
    return pack_blob(arrays, values, key=_KEY)


def decode_pair(blob: bytes) -> Pair:
    """The pair in a blob.

    Raises:
      PairError: no pair, one of another schema, or masks or depth of another size than the frames.
    """
    try:
        arrays, values = unpack_blob(blob, key=_KEY)
        schema = values.pop("schema")
        if schema != SCHEMA:
            raise PairError(f"the pairs have schema {schema!r}, not {SCHEMA!r}: {_AGAIN}")
        if not fits(values, _FORM) or len(values["times"]) != 2:
            raise ValueError(f"{', '.join(_FORM)} are missing or of other types")
        frames = [decode_picture(arrays[f"frame.{n}"].tobytes(), name=f"frame {n}") for n in (0, 1)]
        masks = [decode_values(arrays[f"mask.{n}"].tobytes(), name=f"mask {n}") for n in (0, 1)]
        depth = None
        if "depth.0" in arrays:
            depth = np.stack([arrays[f"depth.{n}"] for n in range(2)])
        pair = Pair(
            frames=np.stack([np.asarray(frame) for frame in frames]),
            masks=np.stack(masks),
            depth=depth,
            names={int(i): name for i, name in values.pop("names").items()},
            times=tuple(values.pop("times")),
            **values,
        )
    except (BlobError, KeyError, TypeError, ValueError, cv2.error) as error:
        if isinstance(error, PairError):
            raise
        raise PairError(f"not a pair of schema {SCHEMA!r}: {error}") from None
    size = pair.frames.shape[:3]
    if pair.masks.dtype != np.uint8 or (pair.depth is not None and pair.depth.dtype.kind != "f"):
        raise PairError(f"pair of {pair.clip}: masks are no bytes, or depth is no float")
    if pair.masks.shape != size or (pair.depth is not None and pair.depth.shape != size):
        raise PairError(f"pair of {pair.clip}: masks or depth have another size than its frames")
    return pair


def open_pairs(folder: AnyPath) -> ArrayRecordDataSource:
    """Random access to the encoded pairs of a folder, local or in a bucket.

    Raises:
      PairError: no such folder, another schema, no pairs, or a shard that is missing, unfinished or
        not whole; the message has the command that makes the folder.

    Example:
      >>> decode_pair(open_pairs("data/pairs")[0]).caption
    """
    try:
        manifest = shards.read_manifest(folder, schema=SCHEMA)
        names = shards.shard_names(NAME, manifest["shards"])
        opened = shards.open_shards((folder, name) for name in names)
    except (ManifestError, ShardError) as error:
        raise PairError(f"{error}: {_AGAIN}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise PairError(f"{folder}/manifest.json is damaged ({error!r}): {_AGAIN}") from None
    if opened is None:
        raise PairError(f"{folder} holds no pairs: no clip gave one; {_AGAIN} and other settings")
    return opened.records


def _file(kind: str, picture: np.ndarray, options: Sequence[int] = ()) -> np.ndarray:
    done, data = cv2.imencode(kind, picture, list(options))
    if not done:
        raise ValueError(f"OpenCV cannot write a {kind} of shape {picture.shape}")
    return data
