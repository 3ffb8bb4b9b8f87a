"""What the training split alone tells: means and fits that a trivial predictor may use.

A benchmark number means nothing beside no number. The floors of `miniworld_tasks` are built from
these statistics, measured at the resolution in use, and never from the split that is scored.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from data_pipelines.miniworld.items import MiniWorldSource
from data_pipelines.miniworld.render import PALETTE
from unidiff_jax.evals.shapes import ShapeVerifier

NUM_RECORDS = 4000
"""Records that are read, from the first: beyond these the means no longer move."""

NUM_PICTURES = 64
"""Training pictures that are kept, as outputs of a model that ignores its condition."""


class TrainingStatistics(NamedTuple):
    """Means and least-squares fits over the base pictures of the training split.

    Attributes:
      mean_image: per pixel, in [0, 1].
      mean_depth: per pixel, scene units; the prior of the object-depth skill.
      object_depth: median depth of an object pixel, scene units.
      luminance_fit: depth of an object pixel = fit . (1, luminance).
      ramp_fit: depth of an object pixel = fit . (1, row, column), both in [0, 1].
      color_means: mean of an object's pixels by its colour, in [0, 1].
      color_counts: objects of each colour.
      shape_counts: objects of each shape.
      shape_verifier: names the shape of a detected object.
      pictures: the first training pictures.
    """

    mean_image: Float[np.ndarray, "h w 3"]
    mean_depth: Float[np.ndarray, "h w"]
    object_depth: float
    luminance_fit: Float[np.ndarray, "2"]
    ramp_fit: Float[np.ndarray, "3"]
    color_means: dict[str, Float[np.ndarray, "3"]]
    color_counts: dict[str, int]
    shape_counts: dict[str, int]
    shape_verifier: ShapeVerifier
    pictures: UInt8[np.ndarray, "k h w 3"]


def luminance(images: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b"]:
    """Rec. 601 luma of images in [0, 1]."""
    return images @ np.array([0.299, 0.587, 0.114])


def min_object_pixels(size: tuple[int, int]) -> int:
    """`detect_objects`' 15 pixels are for 64-pixel pictures; a quarter of them at 32."""
    return max(2, round(15 * size[0] * size[1] / 64**2))


def pixel_grid(size: tuple[int, int]) -> Float[np.ndarray, "h w 2"]:
    """Row and column of every pixel, in [0, 1]."""
    axes = [np.linspace(0.0, 1.0, n) for n in size]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def training_statistics(
    source: MiniWorldSource, *, num_records: int = NUM_RECORDS
) -> TrainingStatistics:
    """Reads the first `num_records` records of the training split."""
    records = [source[i] for i in range(min(num_records, len(source)))]
    rgb = np.stack([record.rgb[0] for record in records])
    images = rgb / 255.0
    depth = np.stack([record.depth[0] for record in records]).astype(np.float64)
    instance = np.stack([record.instance[0] for record in records])
    on_object = instance > 0
    target = depth[on_object]
    grid = np.broadcast_to(pixel_grid(depth.shape[1:]), (*depth.shape, 2))[on_object]
    luma = luminance(images[on_object])[:, None]

    shapes = [[body["shape"] for body in record.scenes[0]["objects"]] for record in records]

    sums = {name: np.zeros(3) for name in PALETTE}
    pixels = dict.fromkeys(PALETTE, 0)
    counts = dict.fromkeys(PALETTE, 0)
    for i, record in enumerate(records):
        for body in record.scenes[0]["objects"]:
            seen = images[i][instance[i] == body["id"]]
            sums[body["color"]] += seen.sum(axis=0)
            pixels[body["color"]] += len(seen)
            counts[body["color"]] += 1
    return TrainingStatistics(
        mean_image=images.mean(axis=0),
        mean_depth=depth.mean(axis=0),
        object_depth=float(np.median(target)),
        luminance_fit=_fit(luma, target),
        ramp_fit=_fit(grid, target),
        color_means={
            name: sums[name] / pixels[name] if pixels[name] else np.asarray(PALETTE[name])
            for name in PALETTE
        },
        color_counts=counts,
        shape_counts=dict(Counter(shape for row in shapes for shape in row)),
        shape_verifier=ShapeVerifier.fit(
            rgb,
            instances=instance,
            shapes=shapes,
            palette=PALETTE,
            min_pixels=min_object_pixels(rgb.shape[1:3]),
        ),
        pictures=rgb[:NUM_PICTURES],
    )


def _fit(
    features: Float[np.ndarray, "n k"], target: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "k+1"]:
    """Least squares with a constant, which comes first."""
    design = np.concatenate([np.ones((len(features), 1)), features], axis=1)
    return np.linalg.lstsq(design, target, rcond=None)[0]
