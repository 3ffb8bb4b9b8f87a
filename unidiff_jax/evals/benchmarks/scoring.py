"""What all scores share: extractors that are loaded once, features that are computed once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from unidiff_jax.config import ConfigError
from unidiff_jax.evals.benchmarks.base import Item, Picture, Predictions
from unidiff_jax.evals.extractors import load_extractor
from unidiff_jax.paths import AnyPath, as_path

BATCH = 32
"""Pictures that an extractor gets at a time."""

_SUFFIXES = ("", ".safetensors", ".pth", ".onnx")


class Tools:
    """Extractors of a folder, by kind.

    `FOLDER/clip-b32/` is the extractor of that kind, or `FOLDER/inception.pth`. A kind that is not
    there is in `missing`, and what needs it is not scored; the run says so.

    Example:
      >>> tools = Tools("weights")
      >>> tools.features("clip-b32", pictures)  # (n, 512)
    """

    def __init__(self, folder: AnyPath | None = None, *, loaded: Mapping[str, Any] | None = None):
        """Loads nothing yet.

        Args:
          folder: of the extractors; None for none.
          loaded: extractors by kind, in place of the folder's.

        Raises:
          ConfigError: no such folder.
        """
        self._folder = None if folder is None else as_path(folder)
        if self._folder is not None and not self._folder.is_dir():
            raise ConfigError(f"--extractors {folder}: no such folder")
        self._loaded = dict(loaded or {})
        self._features: dict[tuple[str, str], np.ndarray] = {}
        self.missing: dict[str, str] = {}

    def forget(self) -> None:
        """Drops features and what was missing: names of pictures are one benchmark's own."""
        self._features.clear()
        self.missing.clear()

    def get(self, kind: str, *, preprocess: str = "") -> Any:
        """The extractor, or None where the folder has none.

        Args:
          kind: of `extractors.KINDS`.
          preprocess: see `load_extractor`.
        """
        name = _name(kind, preprocess)
        if name not in self._loaded:
            path = self.path(kind)
            if path is None:
                return None
            self._loaded[name] = load_extractor(kind, path, preprocess=preprocess)
        return self._loaded[name]

    def path(self, kind: str) -> Any:
        """Where a kind's file or folder lies; None where there is none."""
        tried = [] if self._folder is None else [self._folder / f"{kind}{end}" for end in _SUFFIXES]
        found = next((path for path in tried if path.exists()), None)
        if found is None:
            where = self._folder or "--extractors, which is not given"
            self.missing[kind] = f"no {kind} in {where}"
        return found

    def features(
        self, kind: str, pictures: Sequence[Picture], *, preprocess: str = ""
    ) -> np.ndarray:
        """Features (n, d) of the suite's pictures."""
        return self._embed(
            _name(kind, preprocess),
            [(f"data/{picture.name}", picture.open) for picture in pictures],
            self.get(kind, preprocess=preprocess),
        )

    def made_features(
        self, kind: str, items: Sequence[Item], made: Predictions, *, preprocess: str = ""
    ) -> np.ndarray:
        """Features (n, d) of predictions."""
        return self._embed(
            _name(kind, preprocess),
            [(f"made/{made.key(item)}", lambda item=item: made(item)) for item in items],
            self.get(kind, preprocess=preprocess),
        )

    def text_features(self, kind: str, texts: Sequence[str]) -> np.ndarray:
        """Features (n, d) of texts."""
        every = sorted(set(texts))
        extractor = self.get(kind)
        parts = [extractor.texts(every[i : i + BATCH]) for i in range(0, len(every), BATCH)]
        places = {text: place for place, text in enumerate(every)}
        return np.concatenate(parts)[[places[text] for text in texts]]

    def _embed(self, name: str, sources: list[tuple[str, Any]], extractor: Any) -> np.ndarray:
        new = {key: read for key, read in sources if (name, key) not in self._features}
        keys = list(new)
        bar = tqdm(total=len(keys), unit="picture", desc=name, mininterval=1.0, disable=not keys)
        with bar:
            for start in range(0, len(keys), BATCH):
                part = keys[start : start + BATCH]
                found = extractor.images([new[key]() for key in part])
                self._features |= {(name, k): f for k, f in zip(part, found, strict=True)}
                bar.update(len(part))
        return np.stack([self._features[name, key] for key, _ in sources])


def split(items: Sequence[Item], made: Predictions) -> tuple[list[Item], dict[str, Any]]:
    """The items that have a prediction, and a `Score`'s `items` and `n_failed`."""
    there = [item for item in items if item.id not in made.missing]
    return there, {
        "items": tuple(item.id for item in items),
        "n_failed": len(items) - len(there),
    }


def _name(kind: str, preprocess: str) -> str:
    return f"{kind}/{preprocess}" if preprocess else kind


def identity(extractor: Any) -> dict[str, str]:
    """What the results keep of an extractor."""
    return {key: extractor.identity[key] for key in ("name", "sha256", "preprocess")}


def substitute(extractor: Any) -> tuple[str, ...]:
    """How its network differs from the released one, as a deviation; () if it does not."""
    what = extractor.identity.get("substitute", "")
    return (f"The extractor {extractor.identity['name']} is a substitute: {what}.",) if what else ()


def array(picture: Image.Image) -> np.ndarray:
    """A picture as a batch of one, uint8 (1, h, w, 3)."""
    return np.asarray(picture.convert("RGB"))[None]
