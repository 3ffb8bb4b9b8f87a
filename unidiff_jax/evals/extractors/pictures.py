"""Pictures as the benchmarks' networks read them, on the host.

Scores hang on the filter, on antialiasing and on rounding to eight bits, so each preprocessing does
what its official code does:

| name | of | what |
|---|---|---|
| `clip` | CLIP | shorter side to 224 (PIL, bicubic), centre, CLIP's mean and deviation |
| `instruct_pix2pix` | CLIP | squeezed to 224 x 224 by PyTorch's bicubic, which does not antialias |
| `imagenet` | DINO | shorter side to 256 (PIL, bicubic), centre of 224, ImageNet's colours |
| `clean` | FID | PIL's bicubic of each channel as floats, so without rounding (clean-fid) |
| `legacy_pytorch` | FID | PyTorch's bilinear, which does not antialias (pytorch-fid) |
| `legacy_tensorflow` | FID | TensorFlow 1's bilinear, which also shifts by half a pixel |
| `lpips` | LPIPS | as it is, RGB in [-1, 1] |
| `structure` | DINO's keys | PyTorch's bilinear, ImageNet's colours, but of values in [0, 255] |

`structure` repeats PIE-Bench's code, whose environment has torchvision 0.13 (no antialiasing) and
which does not divide by 255 before it takes ImageNet's mean and deviation.

Pictures that are not RGB are converted first, and transparency is dropped.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float
from PIL import Image

from unidiff_jax.sample.clip import MEAN as CLIP_MEAN
from unidiff_jax.sample.clip import STD as CLIP_STD

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Of the RGB values in [0, 1] of ImageNet."""

Filter = Literal["torch_bicubic", "torch_bilinear", "tensorflow_bilinear"]
Values = Float[np.ndarray, "h w c"]


def preprocess(picture: Image.Image, *, name: str, size: int) -> Float[np.ndarray, "h w 3"]:
    """One picture, float32.

    Args:
      picture: of any size.
      name: see the table above.
      size: pixels a side of the result; `lpips` keeps the picture's own.
    """
    picture = picture.convert("RGB")
    if name == "clip":
        values = _colors(_center(picture, shorter=size, size=size))
        return _normalize(values, CLIP_MEAN, CLIP_STD)
    if name == "instruct_pix2pix":
        values = resample(_colors(picture), size=(size, size), kind="torch_bicubic")
        return _normalize(values, CLIP_MEAN, CLIP_STD)
    if name == "imagenet":
        values = _colors(_center(picture, shorter=size * 256 // 224, size=size))
        return _normalize(values, IMAGENET_MEAN, IMAGENET_STD)
    if name == "clean":
        channels = [np.asarray(c, np.float32) for c in picture.split()]
        resized = [
            Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC) for c in channels
        ]
        values = np.stack([np.asarray(c) for c in resized], axis=-1).clip(0, 255)
        return (values - 128) / 128
    if name == "legacy_pytorch":
        return 2 * resample(_colors(picture), size=(size, size), kind="torch_bilinear") - 1
    if name == "legacy_tensorflow":
        rgb = np.asarray(picture, np.float32)
        return (resample(rgb, size=(size, size), kind="tensorflow_bilinear") - 128) / 128
    if name == "lpips":
        return np.asarray(picture, np.float32) / np.float32(127.5) - 1
    if name == "structure":
        values = resample(np.asarray(picture), size=(size, size), kind="torch_bilinear")
        return _normalize(values, IMAGENET_MEAN, IMAGENET_STD)
    raise ValueError(f"preprocess={name!r} is unknown; for example clip")


def resample(values: Values, *, size: tuple[int, int], kind: Filter) -> Values:
    """Values at another height and width, float32, without antialiasing.

    Args:
      values: any channels.
      size: height and width of the result.
      kind: `torch_bicubic` (a = -0.75) and `torch_bilinear` are PyTorch's `interpolate` without
        aligned corners; `tensorflow_bilinear` is TensorFlow 1's, whose pixels lie at their corners.
    """
    values = np.asarray(values, np.float64)
    for axis in (0, 1):
        places, weights = _taps(values.shape[axis], size[axis], kind)
        values = np.moveaxis(values, axis, 0)
        values = sum(values[p] * w[:, None, None] for p, w in zip(places, weights, strict=True))
        values = np.moveaxis(values, 0, axis)
    return values.astype(np.float32)


def _taps(old: int, new: int, kind: Filter) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each tap of the filter, where each of the `new` places reads, and its weight."""
    place = np.arange(new) * (old / new)
    if kind != "tensorflow_bilinear":
        place += (old / new - 1) / 2
    if kind == "torch_bilinear":
        place = np.maximum(place, 0)
    first = np.floor(place).astype(np.int64)
    part = place - first
    if kind == "torch_bicubic":
        weights = [_cubic(part + 1), _cubic(part), _cubic(1 - part), _cubic(2 - part)]
        places = [first - 1, first, first + 1, first + 2]
    else:
        weights, places = [1 - part, part], [first, first + 1]
    return [np.clip(p, 0, old - 1) for p in places], weights


def _cubic(x: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' cubic kernel (1981) at distances from 0 to 2."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, far)


def _center(picture: Image.Image, *, shorter: int, size: int) -> Image.Image:
    """Shorter side to so many pixels, then the middle, with torchvision's rounding."""
    least = min(picture.size)
    width, height = (int(shorter * side / least) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return picture.crop((left, top, left + size, top + size))


def _colors(picture: Image.Image) -> Values:
    return np.asarray(picture, np.float32) / np.float32(255)


def _normalize(values: Values, mean: tuple[float, ...], std: tuple[float, ...]) -> Values:
    return (values - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
