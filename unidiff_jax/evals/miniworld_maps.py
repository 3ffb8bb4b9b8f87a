"""MiniWorld's protocols for maps: depth, and the mask of the object that an expression means."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.miniworld.items import nearness, to_depth
from unidiff_jax.evals import metrics
from unidiff_jax.evals.miniworld_protocol import (
    Items,
    Protocol,
    RGBs,
    Setting,
    collect,
    objects_of,
    read,
    stack,
)
from unidiff_jax.evals.miniworld_training import luminance, pixel_grid
from unidiff_jax.evals.statistics import Ratio
from unidiff_jax.frames import CODECS

MIN_DEPTH_SKILL = 0.3
"""Luminance alone reaches a skill above 0, so the depth task asks for more than that."""

# ----------------------------------------------------------------------------------------- depth


def depth_protocol(setting: Setting) -> Protocol:
    """Picture to depth, judged on objects in scene units."""
    found = collect(setting, "depth")
    training = setting.training
    prior = training.mean_depth

    def drawn(depth: np.ndarray) -> RGBs:
        depth = np.broadcast_to(depth, (len(found.items), *prior.shape))
        return np.stack([CODECS["depth"].draw(nearness(d)) for d in depth])

    def truth(items: Items) -> dict[str, np.ndarray]:
        records = [item["record"] for item in items]
        return {
            "target": np.stack([r.depth[0] for r in records]).astype(np.float64),
            "mask": np.stack([r.instance[0] > 0 for r in records]),
        }

    def score(outputs: RGBs, items: Items) -> np.ndarray:
        depth = to_depth(read(outputs, codec="depth"))
        return metrics.depth_skill(depth, prior=prior, **truth(items))

    def details(outputs: RGBs, items: Items) -> dict[str, np.ndarray]:
        depth, true = to_depth(read(outputs, codec="depth")), truth(items)
        return {
            "object AbsRel": metrics.depth_absrel(depth, **true),
            "object delta1": metrics.depth_delta(depth, **true),
        }

    luma = luminance(stack(found.items, "image") / 255.0)
    by_luma = training.luminance_fit[0] + training.luminance_fit[1] * luma
    ramp = training.ramp_fit[0] + pixel_grid(prior.shape) @ training.ramp_fit[1:]
    return Protocol(
        name="depth",
        title=found.task.title,
        metric="object-depth skill",
        text=(
            "Skill on object pixels: 1 - AbsRel / AbsRel of the training split's mean depth at "
            "each pixel, in scene units and without alignment, at least -1 an item. The fits are "
            "made on object pixels. Shuffled: the same outputs against another scene's depth and "
            "objects."
        ),
        **found._asdict(),
        floors={
            "training mean": drawn(prior),
            "luminance": drawn(np.clip(by_luma, 1.0, None)),
            "ramp": drawn(ramp),
            "constant": drawn(np.full(prior.shape, training.object_depth)),
        },
        score=score,
        details=details,
        worst=metrics.LOWEST_RATIO_SCORE,
        minimum=MIN_DEPTH_SKILL,
    )


# -------------------------------------------------------------------------- referring segmentation


def segment_protocol(setting: Setting) -> Protocol:
    """The object that an expression means, among others in the same picture."""

    def vary(item: dict[str, Any], rng: np.random.Generator) -> dict[str, Any] | None:
        instance = item["record"].instance[0]
        ids = [b["id"] for b in objects_of(item) if b["id"] != item["object"]]
        seen = [i for i in ids if (instance == i).any()]
        if not seen or not item["mask"].any():
            return None
        return {"mask": instance == seen[rng.integers(len(seen))]}

    found = collect(
        setting,
        "segment",
        vary=vary,
        min_reference_objects=max(2, setting.min_reference_objects),
    )
    instances = np.stack([item["record"].instance[0] for item in found.items])

    def score(outputs: RGBs, items: Items) -> Ratio:
        mask = read(outputs, codec="mask")
        return Ratio(*metrics.mask_overlap(mask, target=stack(items, "mask")))

    def details(outputs: RGBs, items: Items) -> dict[str, np.ndarray]:
        mask, target = read(outputs, codec="mask"), stack(items, "mask")
        return {
            "mIoU": metrics.mask_iou(mask, target=target),
            "P@.5": metrics.mask_precision(mask, target=target),
        }

    rng = np.random.default_rng(0)
    largest, chosen = [], []
    for instance in instances:
        ids, counts = np.unique(instance[instance > 0], return_counts=True)
        largest.append(instance == ids[counts.argmax()])
        chosen.append(instance == ids[rng.integers(len(ids))])
    centered = pixel_grid(instances.shape[1:]) - 0.5
    disc = np.broadcast_to((centered**2).sum(-1) < 0.2**2, instances.shape)

    def drawn(masks: Sequence[np.ndarray] | np.ndarray) -> RGBs:
        return np.stack([CODECS["mask"].draw(mask) for mask in masks])

    return Protocol(
        name="segment",
        title=found.task.title,
        metric="cIoU",
        text=(
            "Cumulative IoU (sum of intersections over sum of unions) on scenes of two or more "
            "objects. The floors use the exact masks of the objects. Shuffled: the same outputs "
            "against another object of the same picture."
        ),
        **found._asdict(),
        floors={
            "all objects": drawn(instances > 0),
            "largest object": drawn(largest),
            "random object": drawn(chosen),
            "centre disc": drawn(disc),
            "empty": drawn(np.zeros_like(disc)),
        },
        score=score,
        details=details,
        worst=Ratio(0.0, float(instances[0].size)),
    )
