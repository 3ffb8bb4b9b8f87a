"""Cosines between features of CLIP and DINO: the columns of editing and subject benchmarks.

Features come from `evals.extractors`, one row a picture or text, normalised or not: every function
normalises. All return one number an item, float64.

| column | function | of |
|---|---|---|
| CLIP_dir | `clip_direction` | change of the picture, change of the caption |
| CLIP_im, CLIP-I | `clip_image` | output and input, or output and ground truth: say which |
| CLIP_out, CLIP-T | `clip_text` | output and its caption or prompt |
| DINO | `dino` | as CLIP-I |
| DreamBench's CLIP-I and DINO | `mean_over_references` | a sample and all pictures of its subject |

A picture or text whose features are zero has no direction: its cosines are NaN, which the
statistics refuse.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

Features = Float[np.ndarray, "n d"]
PerItem = Float[np.ndarray, "n"]

MIN_CHANGE = 1e-5
"""A shorter difference of two unit vectors is no change but rounding: encoding one picture in two
batches already moves float32 features by some 1e-7. Different pictures are above 1e-2."""


def clip_image(output: Features, *, reference: Features) -> PerItem:
    """Cosine of each output with its reference picture, in [-1, 1]."""
    return _cosine(output, reference)


def clip_text(output: Features, *, text: Features, floor: float | None = None) -> PerItem:
    """Cosine of each output with its text.

    Args:
      output: of pictures.
      text: of their captions.
      floor: the lowest score; DreamBench's usual code has 0, MagicBrush's none.
    """
    found = _cosine(output, text)
    return found if floor is None else np.maximum(found, floor)


def dino(output: Features, *, reference: Features) -> PerItem:
    """Cosine of each output with its reference picture, in [-1, 1]."""
    return _cosine(output, reference)


def clip_direction(
    output: Features, *, source: Features, source_text: Features, output_text: Features
) -> PerItem:
    """Cosine between the picture's change and the caption's (Gal et al. 2022, as used by Brooks et
    al. 2023): both are differences of normalised features.

    Where the picture or the caption does not change by `MIN_CHANGE`, the score is 0: a copy of the
    input scores 0, and so do equal captions, which `captions_differ` tells.
    """
    picture = _unit(output) - _unit(source)
    text = _unit(output_text) - _unit(source_text)
    lengths = np.stack([np.linalg.norm(change, axis=-1) for change in (picture, text)])
    moved = (lengths >= MIN_CHANGE).all(axis=0)
    product = np.sum(picture * text, axis=-1) / np.where(moved, lengths.prod(axis=0), 1.0)
    return np.where(moved | np.isnan(product), product, 0.0)


def captions_differ(
    source: Sequence[str], *, output: Sequence[str]
) -> Bool[np.ndarray, "num_items"]:
    """Which items' captions differ for CLIP, which sees neither case nor the number of spaces.

    Emu Edit's test set has pairs that do not, whose direction is no signal: report the scores of
    all items and those of these, each with its number of items.
    """
    pairs = zip(source, output, strict=True)
    return np.array([a.lower().split() != b.lower().split() for a, b in pairs], bool)


def mean_over_references(
    samples: Float[np.ndarray, "n d"], *, references: Float[np.ndarray, "r d"]
) -> PerItem:
    """Each sample's mean cosine with all pictures of its subject (Ruiz et al. 2023, section 4.1).

    Args:
      samples: generated pictures of one subject.
      references: real pictures of it. The one that the model was given is among them.

    Raises:
      ValueError: no references.
    """
    if not len(references):
        raise ValueError("a subject needs at least one reference picture")
    return (_unit(samples) @ _unit(references).T).mean(axis=1)


def _unit(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Rows of length 1; zero rows become NaN."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2:
        raise ValueError(f"features must have shape (n, d), got {features.shape}")
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.where(length > 0, features / np.where(length > 0, length, 1.0), np.nan)


def _cosine(a: Features, b: Features) -> PerItem:
    if np.shape(a) != np.shape(b):
        raise ValueError(f"features must pair: {np.shape(a)} and {np.shape(b)}")
    return np.sum(_unit(a) * _unit(b), axis=1)
