"""Model folders as Hugging Face writes them: `config.json` and safetensors, one file or several.

Tensors are read where they are indexed, so that a large checkpoint never lies in memory as a whole.
"""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

WEIGHT_NAMES = ("diffusion_pytorch_model", "model")
"""Names that diffusers and transformers give the weights, without their ending."""


class FolderError(ValueError):
    """A folder that cannot be read; the message says which file and why."""


class FileTensor:
    """One tensor of a file, read where it is indexed."""

    def __init__(self, handle: Any, name: str):
        self._slice = handle.get_slice(name)
        self.shape = tuple(self._slice.get_shape())

    def __getitem__(self, index: Any) -> np.ndarray:
        if not self.shape:
            return np.asarray(self._slice[...])
        return np.asarray(self._slice[index])


def read_config(folder: str | pathlib.Path, *, name: str = "config.json") -> dict[str, Any]:
    """The folder's JSON settings.

    Raises:
      FolderError: there is no such file, or it is no JSON object.
    """
    path = pathlib.Path(folder) / name
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


def open_tensors(folder: str | pathlib.Path) -> dict[str, FileTensor]:
    """All tensors of a folder by name.

    Raises:
      FolderError: no weights, a file of the index that is missing, or a damaged file; every fault
        is named.
    """
    folder = pathlib.Path(folder)
    for stem in WEIGHT_NAMES:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _open_files(folder, sorted(set(_weight_map(index).values())), _weight_map(index))
        if (folder / f"{stem}.safetensors").is_file():
            return _open_files(folder, [f"{stem}.safetensors"], None)
    wanted = " or ".join(f"{stem}.safetensors" for stem in WEIGHT_NAMES)
    raise FolderError(f"{folder} holds no {wanted} (nor its .index.json)")


def _weight_map(index: pathlib.Path) -> Mapping[str, str]:
    values = read_config(index.parent, name=index.name).get("weight_map")
    if not isinstance(values, dict) or not all(isinstance(v, str) for v in values.values()):
        raise FolderError(f"{index} has no weight_map of tensor to file")
    return values


def _open_files(
    folder: pathlib.Path, files: Sequence[str], weight_map: Mapping[str, str] | None
) -> dict[str, FileTensor]:
    tensors: dict[str, FileTensor] = {}
    faults = []
    for file in files:
        if pathlib.PurePath(file).name != file:
            faults.append(f"{file!r} in the index is no plain file name")
            continue
        try:
            handle = safetensors.safe_open(folder / file, framework="np")
        except FileNotFoundError:
            faults.append(f"{folder / file} is missing")
            continue
        except (safetensors.SafetensorError, OSError) as error:
            faults.append(f"{folder / file} is damaged: {error}")
            continue
        tensors |= {name: FileTensor(handle, name) for name in handle.keys()}
    if weight_map:
        faults += [
            f"{folder / file} holds no {name}, though the index says so"
            for name, file in weight_map.items()
            if name not in tensors and not any(file in fault for fault in faults)
        ]
    if faults:
        raise FolderError("\n".join(faults))
    return tensors


def weights_digest(folder: str | pathlib.Path) -> str:
    """SHA-256 over the folder's `config.json` and weight files, in hexadecimal.

    Raises:
      FolderError: the folder holds no weights.
    """
    files = sorted(pathlib.Path(folder).glob("*.safetensors"))
    if not files:
        raise FolderError(f"{folder} holds no safetensors file")
    digest = hashlib.sha256()
    for path in (pathlib.Path(folder) / "config.json", *files):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def write_json(path: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Writes settings, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def write_model(
    folder: str | pathlib.Path,
    tensors: Mapping[str, np.ndarray],
    *,
    config: Mapping[str, Any],
    stem: str = WEIGHT_NAMES[0],
) -> None:
    """Writes `config.json` and one safetensors file; the weights come last and whole.

    Args:
      folder: is made.
      tensors: by official name.
      config: JSON-able.
      stem: file name without ending, one of `WEIGHT_NAMES`.
    """
    folder = pathlib.Path(folder)
    write_json(folder / "config.json", config)
    partial = folder / f"{stem}.partial"
    save_file(dict(tensors), partial, metadata={"format": "pt"})
    partial.replace(folder / f"{stem}.safetensors")
