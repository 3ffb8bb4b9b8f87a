"""Model folders as Hugging Face writes them: `config.json` and safetensors, one file or several.

Tensors are read where they are indexed, so that a large checkpoint never lies in memory as a whole.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
from etils import epath
from safetensors.numpy import save_file

from unidiff_jax.paths import AnyPath, as_path, is_remote, write_json, written_whole

WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
"""Names that diffusers and transformers give the weights, without their ending."""


class FolderError(ValueError):
    """A folder that cannot be read; the message says which file and why."""


class FileTensor:
    """One tensor of a local file, read where it is indexed."""

    def __init__(self, handle: Any, name: str):
        self._slice = handle.get_slice(name)
        self.shape = tuple(self._slice.get_shape())

    def __getitem__(self, index: Any) -> np.ndarray:
        if not self.shape:
            return np.asarray(self._slice[...])
        return np.asarray(self._slice[index])


_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


class _Bytes(NamedTuple):
    """The bytes of a bucket's file that were read last."""

    start: int
    stop: int
    data: bytes


class BucketFile:
    """A safetensors file in a bucket: its header is read once, tensors by range."""

    def __init__(self, path: epath.Path):
        """Reads the header; raises FileNotFoundError, or ValueError for a damaged file."""
        size = path.stat().length
        self._path, self._last = path, _Bytes(0, 0, b"")
        with path.open("rb") as file:
            self.start = 8 + int.from_bytes(file.read(8), "little")
            if self.start > size:
                raise ValueError(f"its header ends at byte {self.start} of {size}")
            self.entries = json.loads(file.read(self.start - 8))
        self.entries.pop("__metadata__", None)
        end = self.start + max((e["data_offsets"][1] for e in self.entries.values()), default=0)
        if end != size:
            raise ValueError(f"it has {size} bytes instead of {end}")

    def read(self, start: int, stop: int) -> bytes:
        """Bytes of the data part. The last ones are kept: the devices of a process ask in turn for
        parts of one tensor.
        """
        last = self._last
        if (last.start, last.stop) != (start, stop):
            with self._path.open("rb") as file:
                file.seek(self.start + start)
                last = self._last = _Bytes(start, stop, file.read(stop - start))
        return last.data


class BucketTensor:
    """One tensor of a `BucketFile`, read where it is indexed: only the rows that are asked for."""

    def __init__(self, file: BucketFile, name: str):
        entry = file.entries[name]
        self._file, (self._start, self._stop) = file, entry["data_offsets"]
        self._dtype = np.dtype(_DTYPES[entry["dtype"]])
        self.shape = tuple(entry["shape"])

    def __getitem__(self, index: Any) -> np.ndarray:
        if not self.shape:
            return self._rows(0, 1).reshape(())
        first, *others = index if isinstance(index, tuple) else (index,)
        if not isinstance(first, slice) or first.step not in (None, 1):
            return self._rows(0, self.shape[0])[index]
        start, stop, _ = first.indices(self.shape[0])
        return self._rows(start, max(start, stop))[(slice(None), *others)]

    def _rows(self, start: int, stop: int) -> np.ndarray:
        row = (self._stop - self._start) // max(1, self.shape[0] if self.shape else 1)
        data = self._file.read(self._start + start * row, self._start + stop * row)
        return np.frombuffer(data, self._dtype).reshape(stop - start, *self.shape[1:])


def read_config(folder: AnyPath, *, name: str = "config.json") -> dict[str, Any]:
    """The folder's JSON settings.

    Raises:
      FolderError: there is no such file, or it is no JSON object.
    """
    path = as_path(folder) / name
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        raise FolderError(
            f"{folder} holds no {name}: it is no folder of a released model"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FolderError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise FolderError(f"{path} must hold a JSON object")
    return values


def open_tensors(folder: AnyPath) -> dict[str, FileTensor | BucketTensor]:
    """All tensors of a folder by name.

    Raises:
      FolderError: no weights, a file of the index that is missing, or a damaged file; every fault
        is named.
    """
    folder = as_path(folder)
    for stem in WEIGHT_NAMES:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _open_files(folder, sorted(set(_weight_map(index).values())), _weight_map(index))
        if (folder / f"{stem}.safetensors").is_file():
            return _open_files(folder, [f"{stem}.safetensors"], None)
    wanted = " or ".join(f"{stem}.safetensors" for stem in WEIGHT_NAMES)
    raise FolderError(f"{folder} holds no {wanted} (nor its .index.json)")


def _weight_map(index: epath.Path) -> Mapping[str, str]:
    values = read_config(index.parent, name=index.name).get("weight_map")
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise FolderError(f"{index} has no weight_map of tensor to file")
    return values


def _open_files(
    folder: epath.Path, files: Sequence[str], weight_map: Mapping[str, str] | None
) -> dict[str, FileTensor | BucketTensor]:
    tensors: dict[str, FileTensor | BucketTensor] = {}
    faults = []
    for file in files:
        if pathlib.PurePath(file).name != file:
            faults.append(f"{file!r} in the index is no plain file name")
            continue
        try:
            tensors |= _open_file(folder / file)
        except FileNotFoundError:
            faults.append(f"{folder / file} is missing")
        except (safetensors.SafetensorError, OSError, ValueError, LookupError) as error:
            faults.append(f"{folder / file} is damaged: {error}")
    if weight_map:
        faults += [
            f"{folder / file} holds no {name}, though the index says so"
            for name, file in weight_map.items()
            if name not in tensors and not any(file in fault for fault in faults)
        ]
    if faults:
        raise FolderError("\n".join(faults))
    return tensors


def _open_file(path: epath.Path) -> dict[str, FileTensor | BucketTensor]:
    if is_remote(path):
        file = BucketFile(path)
        return {name: BucketTensor(file, name) for name in file.entries}
    handle = safetensors.safe_open(path, framework="np")
    return {name: FileTensor(handle, name) for name in handle.keys()}


def weights_digest(folder: AnyPath) -> str:
    """SHA-256 over the folder's `config.json` and weight files, in hexadecimal.

    Raises:
      FolderError: the folder holds no weights.
    """
    files = sorted(as_path(folder).glob("*.safetensors"))
    if not files:
        raise FolderError(f"{folder} holds no safetensors file")
    digest = hashlib.sha256()
    for path in (as_path(folder) / "config.json", *files):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


MAX_FILE_BYTES = 5 * 10**9
"""More than this is cut into several files, as Hugging Face does."""


def write_model(
    folder: AnyPath,
    tensors: Mapping[str, np.ndarray],
    *,
    config: Mapping[str, Any],
    stem: str = WEIGHT_NAMES[0],
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
    """Writes `config.json` and safetensors, one file or several with their index; what
    `open_tensors` looks for comes last and whole.

    Args:
      folder: is made.
      tensors: by official name.
      config: JSON-able.
      stem: file name without ending, one of `WEIGHT_NAMES`.
      max_file_bytes: of the tensors of a file; a larger tensor has a file of its own.
    """
    folder = as_path(folder)
    write_json(folder / "config.json", config)
    files: list[dict[str, np.ndarray]] = [{}]
    for name, tensor in tensors.items():
        if files[-1] and _total_bytes(files[-1]) + tensor.nbytes > max_file_bytes:
            files.append({})
        files[-1][name] = tensor
    total, weight_map = len(files), {}
    for number, part in enumerate(files, start=1):
        name = f"{stem}-{number:05}-of-{total:05}.safetensors"
        if total == 1:
            name = f"{stem}.safetensors"
        with written_whole(folder / name) as file:
            save_file(part, file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    if total > 1:
        index = {"metadata": {"total_size": _total_bytes(tensors)}, "weight_map": weight_map}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _total_bytes(tensors: Mapping[str, np.ndarray]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
