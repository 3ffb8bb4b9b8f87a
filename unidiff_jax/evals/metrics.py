"""Scores against exact ground truth: one number an item, so that a bootstrap can pair items.

Every function takes a batch of numpy arrays and returns an array of shape (b,) or a NamedTuple of
such arrays. Averages and intervals are the business of `unidiff_jax.evals.statistics`.

Conventions
    images   uint8 in [0, 255] or floating point in [0, 1], shape (b, h, w, 3)
    depth    floating point, scene units, positive, shape (b, h, w)
    masks    bool, shape (b, h, w)
    boxes    (y0, x0, y1, x1) in pixels, half open: a box of one pixel has y1 = y0 + 1
    labels   integers, 0 = background, k = the k-th name of the palette (from 1)
    palette  {name: (r, g, b)} in any scale: only hue is read from it

An item on which a metric is undefined (no object pixel, nothing changed) scores NaN. The statistics
refuse NaN: which items are scored is part of a task's protocol and is decided before any output is
seen. A *failed* output is another matter: it scores the worst value and counts in `n_failed`.

The colour verifier stands in for a learned detector: a pixel belongs to an object when its
saturation exceeds .5, its colour is the nearest palette hue, and objects are connected components.
It merges touching objects of one colour and splits an object that another one cuts in two, so its
score on ground-truth renders (the ceiling) belongs beside every number that uses it.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

Images = UInt8[np.ndarray, "b h w 3"] | Float[np.ndarray, "b h w 3"]
Depths = Float[np.ndarray, "b h w"]
Masks = Bool[np.ndarray, "b h w"]
Labels = Integer[np.ndarray, "b h w"]
PerItem = Float[np.ndarray, "b"]
Palette = Mapping[str, Sequence[float] | Float[np.ndarray, "3"]]

LOWEST_RATIO_SCORE = -1.0
"""Lower bound of an item's gain or skill (twice the reference's error): no item can dominate."""

PSNR_CAP = 60.0
"""dB given to an exact match. One grey level of error everywhere is 48.1 dB, so 60 is out of reach
of any 8-bit output that differs visibly, and a mean over items stays finite."""

CHANGE_THRESHOLD = 4 / 255
"""A pixel counts as changed by an edit when a channel moves by more than this."""


def as_float(images: Images) -> Float[np.ndarray, "b h w 3"]:
    """Images as float64 in [0, 1]; raises on other dtypes, on other shapes and on NaN."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must have shape (b, h, w, 3), got {images.shape}")
    if images.dtype == np.uint8:
        return images / 255.0
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be uint8 or floating point in [0, 1], got {images.dtype}")
    images = images.astype(np.float64)
    if not np.all((images >= -1e-3) & (images <= 1 + 1e-3)):  # NaN fails both comparisons
        raise ValueError("floating-point images must be finite and in [0, 1]; clip them first")
    return images


def masked_mean(values: Float[np.ndarray, "b h w"], *, mask: Masks) -> PerItem:
    """Mean of the values inside the mask, NaN where the mask is empty."""
    mask = np.broadcast_to(np.asarray(mask, dtype=bool), values.shape)
    count = mask.sum(axis=(1, 2))
    total = np.where(mask, values, 0.0).sum(axis=(1, 2))
    return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)


def _one_minus_ratio(error: PerItem, *, reference: PerItem, lower: float) -> PerItem:
    """1 - error / reference, clipped at `lower`; NaN where the reference itself is exact."""
    undefined = np.isnan(error) | np.isnan(reference) | (reference <= 1e-9)
    ratio = np.divide(error, reference, out=np.ones_like(error), where=~undefined)
    return np.where(undefined, np.nan, np.maximum(1.0 - ratio, lower))


# ---------------------------------------------------------------------------- depth


def depth_absrel(prediction: Depths, *, target: Depths, mask: Masks) -> PerItem:
    """Mean of |prediction - target| / target over the mask's pixels (Eigen et al. 2014), from 0 up.

    Metric depth: there is no scale-and-shift alignment, which would flatter a constant. Pass the
    object pixels as `mask`: on full frames the per-pixel training mean already looks excellent.
    A prediction that is not finite inside the mask scores inf.
    """
    with np.errstate(invalid="ignore"):
        error = np.abs(prediction - target) / np.maximum(target, 1e-6)
    return masked_mean(np.where(np.isfinite(prediction), error, np.inf), mask=mask)


def depth_delta(
    prediction: Depths, *, target: Depths, mask: Masks, threshold: float = 1.25
) -> PerItem:
    """Share of the mask's pixels with max(p / t, t / p) < threshold: delta1 of Eigen et al. 2014.

    A prediction that is zero, negative or not finite counts as wrong.
    """
    valid = np.isfinite(prediction) & (prediction > 0)
    safe = np.where(valid, prediction, 1.0)
    target = np.maximum(target, 1e-6)
    ratio = np.maximum(safe / target, target / safe)
    return masked_mean((valid & (ratio < threshold)).astype(np.float64), mask=mask)


def depth_skill(
    prediction: Depths,
    *,
    target: Depths,
    prior: Float[np.ndarray, "h w"] | Depths,
    mask: Masks,
    lower: float = LOWEST_RATIO_SCORE,
) -> PerItem:
    """Object-depth skill: 1 - AbsRel(prediction) / AbsRel(prior), per item, clipped to [lower, 1].

    `prior` is what is known without looking at the image, e.g. the per-pixel mean depth of the
    training scenes. 1 is exact, 0 is as good as the prior, negative is worse than it.
    """
    prior = np.broadcast_to(prior, target.shape)
    return _one_minus_ratio(
        depth_absrel(prediction, target=target, mask=mask),
        reference=depth_absrel(prior, target=target, mask=mask),
        lower=lower,
    )


# ---------------------------------------------------------------------------- masks


class MaskOverlap(NamedTuple):
    """Pixel counts of an item, to be summed over items for the cumulative IoU.

    cIoU = sum(intersection) / sum(union) over items; `statistics.Ratio(*mask_overlap(...))` gives
    its interval.
    """

    intersection: PerItem
    union: PerItem


def mask_from_rgb(images: Images, *, threshold: float = 0.5) -> Masks:
    """The fixed rule that turns a painted mask into a mask: mean of the channels > threshold."""
    return as_float(images).mean(axis=-1) > threshold


def mask_overlap(prediction: Masks, *, target: Masks) -> MaskOverlap:
    """Intersection and union of each item's masks, in pixels."""
    prediction, target = np.asarray(prediction, dtype=bool), np.asarray(target, dtype=bool)
    if prediction.shape != target.shape or prediction.ndim != 3:
        raise ValueError(
            f"masks must share one shape (b, h, w): {prediction.shape}, {target.shape}"
        )
    return MaskOverlap(
        intersection=(prediction & target).sum(axis=(1, 2)).astype(np.float64),
        union=(prediction | target).sum(axis=(1, 2)).astype(np.float64),
    )


def mask_iou(prediction: Masks, *, target: Masks) -> PerItem:
    """Intersection over union; two empty masks score 0 as in LAVT's test script. Mean: mIoU."""
    overlap = mask_overlap(prediction, target=target)
    return overlap.intersection / np.maximum(overlap.union, 1.0)


def mask_precision(prediction: Masks, *, target: Masks, threshold: float = 0.5) -> PerItem:
    """1 where the IoU reaches the threshold, else 0. Mean: P@threshold."""
    return (mask_iou(prediction, target=target) >= threshold).astype(np.float64)


# ---------------------------------------------------------------------------- edits


def changed_pixels(source: Images, *, target: Images, threshold: float = CHANGE_THRESHOLD) -> Masks:
    """Pixels at which the edit moves some channel by more than `threshold` (in [0, 1])."""
    return np.abs(as_float(target) - as_float(source)).max(axis=-1) > threshold


def edit_gain(
    output: Images,
    *,
    source: Images,
    target: Images,
    also: Masks | None = None,
    threshold: float = CHANGE_THRESHOLD,
    lower: float = LOWEST_RATIO_SCORE,
) -> PerItem:
    """1 - L1(output, target) / L1(source, target) on the changed pixels, clipped to [lower, 1].

    1 is the exact edit, 0 is a copy of the input, negative is worse than copying. Without the
    clip, an item with a faint change and a wild output could outweigh hundreds of others.

    `also` adds pixels that must stay as they are, such as those of the other objects: without them,
    recolouring everything scores as much as recolouring the right thing.
    """
    pixels = changed_pixels(source, target=target, threshold=threshold)
    pixels = pixels if also is None else pixels | also
    target = as_float(target)
    return _one_minus_ratio(
        masked_mean(np.abs(as_float(output) - target).mean(axis=-1), mask=pixels),
        reference=masked_mean(np.abs(as_float(source) - target).mean(axis=-1), mask=pixels),
        lower=lower,
    )


def edit_l1_outside(
    output: Images, *, source: Images, target: Images, threshold: float = CHANGE_THRESHOLD
) -> PerItem:
    """Mean |output - target| in [0, 1] where the edit changes nothing. Lower is better; copy: 0."""
    unchanged = ~changed_pixels(source, target=target, threshold=threshold)
    error = np.abs(as_float(output) - as_float(target)).mean(axis=-1)
    return masked_mean(error, mask=unchanged)


# ---------------------------------------------------------------------------- pixels


def psnr(
    output: Images, *, target: Images, mask: Masks | None = None, cap: float = PSNR_CAP
) -> PerItem:
    """Peak signal-to-noise ratio in dB, at most `cap`, over the mask's pixels if there is one.

    Give the object pixels as `mask` for novel views: the empty floor alone is worth 19 dB.
    """
    output, target = as_float(output), as_float(target)
    mask = np.ones(output.shape[:3], dtype=bool) if mask is None else mask
    error = masked_mean(np.square(output - target).mean(axis=-1), mask=mask)
    return -10.0 * np.log10(np.maximum(error, 10.0 ** (-cap / 10.0)))  # NaN stays NaN


def hole_psnr(output: Images, *, target: Images, hole: Masks, cap: float = PSNR_CAP) -> PerItem:
    """PSNR in dB inside the hole of an inpainting item; the pixels that were given do not count."""
    return psnr(output, target=target, mask=hole, cap=cap)


# ---------------------------------------------------------------------------- colour verifier


class DetectedObject(NamedTuple):
    """A connected component of one palette colour; `box` is (y0, x0, y1, x1), half open."""

    color: str
    box: tuple[int, int, int, int]
    num_pixels: int


class ObjectListScores(NamedTuple):
    """How well the verified objects of an image agree with the list that a caption names.

    count_exact: 1 where the number of objects is right. list_exact: 1 where the multiset of
    colours is right. color_recall: share of the named objects that were found, each found object
    counted once.
    """

    count_exact: PerItem
    list_exact: PerItem
    color_recall: PerItem


class LayoutScores(NamedTuple):
    """iou: mean over an item's boxes of the IoU with the object assigned to it (0 if there is
    none). recall: share of the boxes with IoU >= the threshold."""

    iou: PerItem
    recall: PerItem


class HSV(NamedTuple):
    """Hue in degrees [0, 360), saturation in [0, 1], value in the scale of the input."""

    hue: Float[np.ndarray, "*shape"]
    saturation: Float[np.ndarray, "*shape"]
    value: Float[np.ndarray, "*shape"]


def rgb_to_hsv(rgb: Float[np.ndarray, "*shape 3"]) -> HSV:
    """The hexcone model of Smith (1978), as in `colorsys.rgb_to_hsv`. Greys get hue 0."""
    rgb = np.asarray(rgb, dtype=np.float64)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    value = rgb.max(axis=-1)
    chroma = value - rgb.min(axis=-1)
    safe = np.where(chroma > 0, chroma, 1.0)
    sector = np.select(
        [value == red, value == green],
        [(green - blue) / safe, 2.0 + (blue - red) / safe],
        default=4.0 + (red - green) / safe,
    )
    hue = np.where(chroma > 0, (60.0 * sector) % 360.0, 0.0)
    saturation = np.divide(chroma, value, out=np.zeros_like(chroma), where=value > 0)
    return HSV(hue=hue, saturation=saturation, value=value)


def color_labels(
    images: Images, *, palette: Palette, min_saturation: float = 0.5, min_value: float = 16 / 255
) -> Labels:
    """Label map of the nearest palette hue; 0 where saturation or brightness is too low.

    `min_value` keeps the rounding of nearly black pixels, whose saturation is arbitrary, from
    becoming objects. Palette entries must be saturated colours.
    """
    reference = rgb_to_hsv(np.asarray(list(palette.values()), dtype=np.float64))
    grey = [name for name, s in zip(palette, reference.saturation, strict=True) if s <= 0.0]
    if grey:
        raise ValueError(f"palette entries without a hue cannot be verified: {', '.join(grey)}")
    hue, saturation, value = rgb_to_hsv(as_float(images))
    distance = np.abs(hue[..., None] - reference.hue)
    nearest = np.minimum(distance, 360.0 - distance).argmin(axis=-1)
    return np.where((saturation > min_saturation) & (value > min_value), nearest + 1, 0)


def instance_colors(
    instances: Integer[np.ndarray, "b h w"], *, colors: Sequence[Sequence[str]], palette: Palette
) -> Labels:
    """Ground-truth label map: `colors[i][k]` is the colour name of instance id k + 1 of item i."""
    index = {name: k for k, name in enumerate(palette, start=1)}
    labels = np.zeros(instances.shape, dtype=np.int64)
    for i, names in enumerate(colors):
        table = np.array([0, *(index[name] for name in names)])
        if instances[i].max(initial=0) >= len(table):
            raise ValueError(
                f"item {i} has instance id {instances[i].max()} but {len(names)} colours"
            )
        labels[i] = table[instances[i]]
    return labels


def color_agreement(
    images: Images, *, expected: Labels, palette: Palette, min_saturation: float = 0.5
) -> PerItem:
    """Share of an item's object pixels that show the object's colour, in [0, 1].

    `expected` comes from `instance_colors`; its zeros (floor) are not scored. A pixel that the
    verifier calls background is wrong.
    """
    labels = color_labels(images, palette=palette, min_saturation=min_saturation)
    return masked_mean((labels == expected).astype(np.float64), mask=expected > 0)


def detect_objects(
    images: Images, *, palette: Palette, min_pixels: int = 15, min_saturation: float = 0.5
) -> list[list[DetectedObject]]:
    """Connected components (8 neighbours) of one verified colour, the largest first, per item.

    `min_pixels` drops specks; 15 is half of the smallest object that MiniWorld's 64-pixel scenes
    admit. Scale it with the area of the image.
    """
    neighbours = np.ones((3, 3), dtype=bool)
    batch = color_labels(images, palette=palette, min_saturation=min_saturation)
    detections = []
    for labels in batch:
        found = []
        for k, name in enumerate(palette, start=1):
            components = np.zeros(labels.shape, dtype=np.int32)
            ndimage.label(labels == k, structure=neighbours, output=components)
            sizes = np.bincount(components.ravel())[1:]
            for size, region in zip(sizes, ndimage.find_objects(components), strict=True):
                if size >= min_pixels:
                    rows, columns = region
                    box = (rows.start, columns.start, rows.stop, columns.stop)
                    found.append(DetectedObject(color=name, box=box, num_pixels=int(size)))
        detections.append(sorted(found, key=lambda item: (-item.num_pixels, item.color, item.box)))
    return detections


def object_list_scores(
    detections: Sequence[Sequence[DetectedObject]], *, colors: Sequence[Sequence[str]]
) -> ObjectListScores:
    """Compare verified objects with the colours of the objects that each caption names."""
    if len(detections) != len(colors):
        raise ValueError(f"{len(detections)} items detected, {len(colors)} described")
    count_exact, list_exact, color_recall = [], [], []
    for found, named in zip(detections, colors, strict=True):
        have, want = Counter(item.color for item in found), Counter(named)
        count_exact.append(have.total() == want.total())
        list_exact.append(have == want)
        color_recall.append((have & want).total() / want.total() if want else np.nan)
    return ObjectListScores(
        *(np.asarray(x, dtype=np.float64) for x in (count_exact, list_exact, color_recall))
    )


def multiset_agreement(
    found: Sequence[Sequence[Hashable]], *, expected: Sequence[Sequence[Hashable]]
) -> PerItem:
    """Things that are both found and expected, each counted once, over the longer list's length.

    So a missing thing costs as much as one too many.
    """
    shares = [
        (Counter(have) & Counter(want)).total() / max(len(have), len(want)) if want else np.nan
        for have, want in zip(found, expected, strict=True)
    ]
    return np.asarray(shares, dtype=np.float64)


def box_iou(
    boxes: Float[np.ndarray, "n 4"] | Integer[np.ndarray, "n 4"],
    *,
    others: Float[np.ndarray, "m 4"] | Integer[np.ndarray, "m 4"],
) -> Float[np.ndarray, "n m"]:
    """Pairwise IoU of boxes (y0, x0, y1, x1), half open; a pair of empty boxes scores 0."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)[:, None]
    others = np.asarray(others, dtype=np.float64).reshape(-1, 4)[None]
    top_left = np.maximum(boxes[..., :2], others[..., :2])
    bottom_right = np.minimum(boxes[..., 2:], others[..., 2:])
    intersection = np.clip(bottom_right - top_left, 0.0, None).prod(axis=-1)
    area = np.clip(boxes[..., 2:] - boxes[..., :2], 0.0, None).prod(axis=-1)
    other_area = np.clip(others[..., 2:] - others[..., :2], 0.0, None).prod(axis=-1)
    union = area + other_area - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def layout_scores(
    detections: Sequence[Sequence[DetectedObject]],
    *,
    boxes: Sequence[np.ndarray],
    colors: Sequence[Sequence[str]],
    threshold: float = 0.5,
) -> LayoutScores:
    """Match an item's boxes, each with a colour, one to one to verified objects of that colour.

    The matching maximises the sum of IoUs. `boxes[i]` has shape (k, 4), `colors[i]` k names.
    An item without boxes scores NaN.
    """
    if not len(detections) == len(boxes) == len(colors):
        raise ValueError(
            f"{len(detections)} items detected, {len(boxes)} with boxes, {len(colors)} with colours"
        )
    means, recalls = [], []
    for i, (found, wanted, names) in enumerate(zip(detections, boxes, colors, strict=True)):
        wanted = np.asarray(wanted, dtype=np.float64).reshape(-1, 4)
        if len(wanted) != len(names):
            raise ValueError(f"item {i} has {len(wanted)} boxes but {len(names)} colours")
        same_color = np.array([[item.color == name for item in found] for name in names], bool)
        overlap = box_iou(wanted, others=np.array([item.box for item in found]))
        overlap = np.where(same_color.reshape(overlap.shape), overlap, 0.0)
        rows, columns = linear_sum_assignment(overlap, maximize=True)
        matched = np.zeros(len(wanted))
        matched[rows] = overlap[rows, columns]
        means.append(matched.mean() if len(matched) else np.nan)
        recalls.append((matched >= threshold).mean() if len(matched) else np.nan)
    return LayoutScores(iou=np.asarray(means), recall=np.asarray(recalls))


def instance_boxes(
    instances: Integer[np.ndarray, "h w"], *, num_objects: int
) -> Integer[np.ndarray, "num_objects 4"]:
    """Half-open boxes (y0, x0, y1, x1) of instance ids 1 .. num_objects; zeros if invisible."""
    regions = ndimage.find_objects(np.asarray(instances, dtype=np.int64), max_label=num_objects)
    return np.array(
        [
            (0, 0, 0, 0) if r is None else (r[0].start, r[1].start, r[0].stop, r[1].stop)
            for r in regions
        ],
        dtype=np.int64,
    ).reshape(-1, 4)
