"""Zero-shot depth by the protocol of Marigold (Ke et al. 2024, section 4.1; its code, 2025).

A prediction knows depth up to scale and shift, so both are fitted to the ground truth of each
picture by least squares, on valid pixels; then come clipping to the set's range and the errors.

    score = evaluate(prediction, target=depth, depth_set=SETS["nyuv2"])

`affine` fits depth to depth. `disparity` fits to 1 / depth, for models whose output grows towards
the camera. A paper's number says little without the one that was used. The fit may have a negative
scale, which lets an inverted map pass: `DepthScore.scale` tells, and belongs in the report.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from unidiff_jax.evals.metrics import depth_absrel, depth_delta

Map = Float[np.ndarray, "h w"]
Mask = Bool[np.ndarray, "h w"]

ALIGNMENTS = ("affine", "disparity")

MIN_DISPARITY = 1e-3
"""Fitted disparities below it, negative ones too, become it: at most 1000 units of depth."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthSet:
    """How a data set is scored.

    Attributes:
      min_depth: in metres; predictions are clipped to the range, and pixels are valid inside it,
        ends excluded, unless the set brings masks.
      max_depth: likewise.
      rows: share of the rows that counts, from and to; None is all.
      columns: likewise.
      pixel_rows: rows that count, for sets of one size.
      pixel_columns: likewise.
      brings_masks: valid is what the set's own mask says, and nothing else.
      max_resolution: the longer side at which the fit is made (`fit`); 0 is the full one.
    """

    min_depth: float
    max_depth: float
    rows: tuple[float, float] | None = None
    columns: tuple[float, float] | None = None
    pixel_rows: tuple[int, int] | None = None
    pixel_columns: tuple[int, int] | None = None
    brings_masks: bool = False
    max_resolution: int = 0


SETS = {
    "nyuv2": DepthSet(
        min_depth=1e-3, max_depth=10.0, pixel_rows=(45, 471), pixel_columns=(41, 601)
    ),
    "kitti": DepthSet(
        min_depth=1e-5,
        max_depth=80.0,
        rows=(0.3324324, 0.91351351),
        columns=(0.0359477, 0.96405229),
    ),
    "eth3d": DepthSet(min_depth=1e-5, max_depth=np.inf, max_resolution=1024),
    "scannet": DepthSet(min_depth=1e-3, max_depth=10.0),
    "diode": DepthSet(min_depth=0.6, max_depth=350.0, brings_masks=True),
}
"""Eigen et al.'s crops of NYUv2 and KITTI (2014); KITTI's is of the benchmark's 352 x 1216
(`kitti_benchmark_crop`)."""


class DepthScore(NamedTuple):
    """Scores of one picture.

    Attributes:
      absrel: mean of |p - g| / g over valid pixels.
      delta1: share of the valid pixels with max(p / g, g / p) < 1.25.
      scale: of the fit; negative when the prediction is upside down.
      shift: of the fit, in metres, or in 1 / metres for disparity.
      num_pixels: valid pixels.
    """

    absrel: float
    delta1: float
    scale: float
    shift: float
    num_pixels: int


class Aligned(NamedTuple):
    """A fitted map, and scale and shift of the fit."""

    values: Map
    scale: float
    shift: float


def kitti_benchmark_crop(values: np.ndarray) -> np.ndarray:
    """The 352 x 1216 pixels (h, w, ...) at the bottom and the middle.

    Raises:
      ValueError: a smaller picture.
    """
    height, width = values.shape[:2]
    if height < 352 or width < 1216:
        raise ValueError(f"{height} x {width} pixels hold no crop of 352 x 1216")
    top, left = height - 352, (width - 1216) // 2
    return values[top : top + 352, left : left + 1216]


def valid_pixels(target: Map, *, depth_set: DepthSet, mask: Mask | None = None) -> Mask:
    """The pixels that count.

    Args:
      target: ground truth in metres; 0 where there is none.
      depth_set: of `SETS`.
      mask: the set's own mask, for the sets that bring one.

    Raises:
      ValueError: a mask where the set brings none, or none where it does.
    """
    if (mask is not None) != depth_set.brings_masks:
        wanted = "needs the set's own mask" if depth_set.brings_masks else "takes no mask"
        raise ValueError(f"this depth set {wanted}; see depth_protocol.SETS")
    if mask is not None:
        return np.asarray(mask, bool)
    valid = (target > depth_set.min_depth) & (target < depth_set.max_depth)
    (top, bottom), (left, right) = (
        pixels or tuple(int(share * side) for share in shares or (0.0, 1.0))
        for pixels, shares, side in (
            (depth_set.pixel_rows, depth_set.rows, target.shape[0]),
            (depth_set.pixel_columns, depth_set.columns, target.shape[1]),
        )
    )
    inside = np.zeros_like(valid)
    inside[top:bottom, left:right] = True
    return valid & inside


def fit(prediction: Map, *, target: Map, valid: Mask, max_resolution: int = 0) -> Aligned:
    """Least-squares scale and shift of the prediction onto the target.

    Args:
      prediction: any scale.
      target: same shape.
      valid: pixels that the fit sees.
      max_resolution: of pictures with a longer side, the fit sees every so-manieth column. (The
        official code thins out no rows: its `Upsample` takes them for channels.)

    Raises:
      ValueError: maps of different shapes, or fewer than two valid pixels.
    """
    prediction, target = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
    if not prediction.shape == target.shape == valid.shape:
        raise ValueError(f"maps must pair: {prediction.shape}, {target.shape}, {valid.shape}")
    columns = _columns(target.shape[1], max(target.shape), max_resolution)
    x, y = (values[:, columns][valid[:, columns]] for values in (prediction, target))
    if len(x) < 2:
        raise ValueError(f"a fit needs at least 2 valid pixels, got {len(x)}")
    matrix = np.stack([x, np.ones_like(x)], axis=1)
    scale, shift = np.linalg.lstsq(matrix, y, rcond=None)[0]
    return Aligned(prediction * scale + shift, float(scale), float(shift))


def _columns(width: int, longest: int, max_resolution: int) -> Int[np.ndarray, "k"]:
    """The columns that PyTorch's nearest interpolation keeps."""
    if not max_resolution or longest <= max_resolution:
        return np.arange(width)
    factor = max_resolution / longest
    places = np.arange(int(width * factor), dtype=np.float32) * np.float32(1 / factor)
    return np.minimum(places.astype(np.int64), width - 1)


def evaluate(
    prediction: Map,
    *,
    target: Map,
    depth_set: DepthSet,
    mask: Mask | None = None,
    alignment: Literal["affine", "disparity"] = "affine",
) -> DepthScore:
    """Scores of one picture; a benchmark's number is the mean over pictures.

    Args:
      prediction: at the target's size, any scale.
      target: depth in metres; 0 where there is none.
      depth_set: of `SETS`.
      mask: the set's own mask, for the sets that bring one.
      alignment: one of `ALIGNMENTS`.

    Raises:
      ValueError: another alignment, maps that do not pair, a prediction that is not finite, or too
        few valid pixels.
    """
    if alignment not in ALIGNMENTS:
        raise ValueError(f"alignment={alignment!r} is unknown; one of {', '.join(ALIGNMENTS)}")
    if not np.isfinite(prediction).all():
        raise ValueError("the prediction is not finite; score it as failed")
    target = np.asarray(target, np.float64)
    valid = valid_pixels(target, depth_set=depth_set, mask=mask)
    if alignment == "affine":
        found = fit(prediction, target=target, valid=valid, max_resolution=depth_set.max_resolution)
        depth = found.values
    else:
        disparity = np.divide(1.0, target, out=np.zeros_like(target), where=target > 0)
        found = fit(
            prediction,
            target=disparity,
            valid=valid & (target > 0) & (prediction > 0),
            max_resolution=depth_set.max_resolution,
        )
        depth = 1.0 / np.maximum(found.values, MIN_DISPARITY)
    depth = np.maximum(np.clip(depth, depth_set.min_depth, depth_set.max_depth), 1e-6)
    errors = {"target": target[None], "mask": valid[None]}
    return DepthScore(
        absrel=float(depth_absrel(depth[None], **errors)[0]),
        delta1=float(depth_delta(depth[None], **errors)[0]),
        scale=found.scale,
        shift=found.shift,
        num_pixels=int(valid.sum()),
    )
