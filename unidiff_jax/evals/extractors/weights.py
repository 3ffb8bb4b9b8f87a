"""Weights of extractors: safetensors, or PyTorch's files where PyTorch is installed."""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import FolderError, open_file
from unidiff_jax.export.mapping import Tensor
from unidiff_jax.paths import AnyPath, as_path

TORCH_ENDINGS = (".pth", ".pt", ".bin")

_CONVERT = (
    "import sys, torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in "
    "torch.load(sys.argv[1], map_location='cpu', weights_only=True).items()}, sys.argv[2])"
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Tensors of one or more files.

    Attributes:
      tensors: by official name.
      sha256: of the file in hexadecimal; of the files' digests in order of their names, where there
        are several.
    """

    tensors: Mapping[str, Tensor]
    sha256: str


def read_weights(path: AnyPath) -> Weights:
    """Reads a file, or all files of a folder: its safetensors if it has any, else PyTorch's.

    Raises:
      ConfigError: PyTorch's format, and PyTorch is not installed; says how to convert.
      FolderError: no weights, or a damaged file.
    """
    path = as_path(path)
    files = _files(path) if path.is_dir() else [path]
    tensors: dict[str, Any] = {}
    digests = []
    for file in files:
        if not file.is_file():
            raise FolderError(f"{file} is missing")
        found = open_file(file) if file.suffix == ".safetensors" else _load_torch(file)
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise FolderError(f"{path}: more than one file holds {', '.join(twice[:3])}")
        tensors |= found
        with file.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256"))  # pyright: ignore[reportArgumentType]
    if len(digests) == 1:
        return Weights(tensors, digests[0].hexdigest())
    joined = hashlib.sha256(b"".join(digest.digest() for digest in digests))
    return Weights(tensors, joined.hexdigest())


def _files(folder: epath.Path) -> list[epath.Path]:
    files = sorted(folder.iterdir())
    for endings in ((".safetensors",), TORCH_ENDINGS):
        found = [file for file in files if file.suffix in endings]
        if found:
            return found
    raise FolderError(f"{folder} holds no .safetensors, {' or '.join(TORCH_ENDINGS)}")


def _load_torch(file: epath.Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ModuleNotFoundError:
        raise ConfigError(
            f"{file} is in PyTorch's format, and torch is not installed; run: "
            "./launch/environment.sh torch, or convert it once where torch is:\n"
            f'python -c "{_CONVERT}" {file} {file.with_suffix(".safetensors")}'
        ) from None
    try:
        with file.open("rb") as stream:
            values: Any = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises kinds of its own, pickle's and zipfile's
        raise FolderError(f"{file} is no state dict of PyTorch: {error}") from None
    if not isinstance(values, dict) or not all(torch.is_tensor(v) for v in values.values()):
        raise FolderError(f"{file} is no state dict of PyTorch: it holds more than tensors")
    return {name: tensor.float().numpy() for name, tensor in values.items()}
