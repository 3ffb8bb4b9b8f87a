"""Pretrained models in folders as Hugging Face writes them: `config.json` and safetensors.

Nothing is downloaded, no code of a checkpoint runs, and no pickled weights (.bin, .pt) are read.
Needs the extra `torch`; only the functions that load import PyTorch, so that this module always
imports.
"""

import abc
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from unidiff_jax.outside import InputError, read_object

Path = str | os.PathLike[str]

_OPTIONS: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class CheckpointError(ValueError):
    """A folder that is not the checkpoint of a model; the message says what is expected."""


class Pretrained(abc.ABC):
    """A stage with a pretrained model: it loads at first use and is pickled without the weights."""

    def __init__(self, folder: Path, *, device: str | None = None):
        """Remembers where the checkpoint is.

        Args:
          folder: of the checkpoint, as `save_pretrained` writes it.
          device: PyTorch's name of it; None takes `cuda` where there is one, else `cpu`.
        """
        self.folder = os.fspath(folder)
        self.device = device
        self._loaded: Any = None

    @abc.abstractmethod
    def _load(self) -> Any:
        """Loads all that the stage needs; raises CheckpointError."""

    @property
    def loaded(self) -> Any:
        """What `_load` returns, loaded once.

        Raises:
          CheckpointError: the folder has no such checkpoint.
          ImportError: PyTorch is missing.
        """
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}


def load_model(
    model_class: Any, folder: Path, *, model_types: Sequence[str], device: str | None
) -> Any:
    """A model in float32 and evaluation mode, on its device.

    Args:
      model_class: of transformers, such as `Sam2VideoModel`.
      folder: of the checkpoint.
      model_types: what `model_type` in `config.json` may be.
      device: see `Pretrained`.

    Raises:
      CheckpointError: no folder, no or another `config.json`, no safetensors, or tensors missing.
    """
    import torch

    check_folder(folder, model_types=model_types)
    try:
        model, report = model_class.from_pretrained(
            os.fspath(folder),
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            **_OPTIONS,
        )
    except ImportError:
        raise
    except Exception as error:  # safetensors and tokenizers raise kinds of their own, or bare ones
        raise CheckpointError(
            f"{folder}: cannot be loaded as {model_class.__name__} from safetensors: {error}"
        ) from error
    # transformers would go on with random numbers in their place.
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors of {model_class.__name__} are missing, such as "
            f"{', '.join(missing[:3])}"
        )
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().to(device)


def load_processor(processor_class: Any, folder: Path) -> Any:
    """What prepares a model's pictures and words.

    Raises:
      CheckpointError: its files are missing from the folder, or are of another processor.
    """
    try:
        return processor_class.from_pretrained(os.fspath(folder), **_OPTIONS)
    except ImportError:
        raise
    except Exception as error:  # as above
        raise CheckpointError(
            f"{folder}: has no {processor_class.__name__} (preprocessor_config.json, "
            f"tokenizer.json, ...): {error}"
        ) from error


def check_folder(folder: Path, *, model_types: Sequence[str]) -> None:
    """Checks that a folder's `config.json` is of one of some models.

    Raises:
      CheckpointError: it is not; the message names the folder and what is expected.
    """
    expected = f"expected a checkpoint of {' or '.join(model_types)} in Hugging Face's layout"
    config = read_json(pathlib.Path(folder) / "config.json")
    if config is None:
        raise CheckpointError(f"{folder}: no config.json; {expected}")
    if config.get("model_type") not in model_types:
        raise CheckpointError(f"{folder}: model_type {config.get('model_type')!r}; {expected}")


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """A file with a JSON object; None where there is none.

    Raises:
      CheckpointError: it is not JSON, or no object.
    """
    if not path.is_file():
        return None
    try:
        return read_object(path)
    except InputError as error:
        raise CheckpointError(str(error)) from None
