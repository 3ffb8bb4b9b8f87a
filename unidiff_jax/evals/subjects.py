"""The protocol of identity: a thing that one picture shows is drawn into a scene, and recognised.

Things are held-out subjects (`data_pipelines.subjects`). The prompt says where the thing stands and
on what background, and of the thing nothing but its place in the prompt: what it looks like comes
from the reference alone, which is drawn larger, turned, lit and perhaps mirrored otherwise.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from data_pipelines import objects
from data_pipelines.subjects.items import SubjectScenes
from unidiff_jax.evals import metrics
from unidiff_jax.evals.miniworld_protocol import (
    Items,
    Protocol,
    RGBs,
    TooFewItemsError,
    draw,
    read,
    stack,
)
from unidiff_jax.evals.statistics import shuffled_order
from unidiff_jax.tasks import get_task

SUBJECT_TASKS = ("personalize",)
"""Entries of the results whose items are subjects."""

CANDIDATES = 10
"""A drawn thing is recognised among so many."""

FOREGROUND = 40
"""What differs from the background by more levels of a colour is a thing."""

SIDE = 12
"""Pixels a side at which things are compared."""

Look = Float[np.ndarray, "side side 3"]


def look_of(picture: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> Look:
    """A thing on white in its bounding box, at `SIDE` pixels a side, in [0, 1]."""
    alone = objects.cut_out(picture, mask)
    return cv2.resize(alone, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def find_thing(
    picture: UInt8[np.ndarray, "h w 3"], *, behind: UInt8[np.ndarray, "h w 3"]
) -> Bool[np.ndarray, "h w"]:
    """The largest connected part of a picture that is not its background; perhaps empty."""
    differs = np.abs(picture.astype(int) - behind).max(axis=-1) > FOREGROUND
    count, labels, stats, _ = cv2.connectedComponentsWithStats(differs.astype(np.uint8))
    if count < 2:
        return differs
    return labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def distance(first: Look, second: Look) -> float:
    """Mean absolute difference, mirrored or not, of which the prompt says nothing."""
    return float(min(np.abs(first - second).mean(), np.abs(first[:, ::-1] - second).mean()))


def personalize_protocol(source: SubjectScenes, *, num_items: int) -> Protocol:
    """Scenes of one thing that is given by its picture alone.

    Args:
      source: of the split.
      num_items: the first so many that it offers.

    Raises:
      TooFewItemsError: fewer than two, or fewer than `CANDIDATES` different things.
    """
    task = get_task("personalize")
    indices, items = [], []
    for index in range(len(source)):
        if len(items) == num_items:
            break
        item = source.item(source[index], task, np.random.default_rng([task.id, index]))
        if item is not None and len(item["words"]) == 1:
            indices.append(index)
            items.append(dict(item))
    if len(items) < 2:
        raise TooFewItemsError(f"{task.title}: the split has {len(items)} items, at least 2")
    order = _add_candidates(items)

    def score(outputs: RGBs, items: Items) -> np.ndarray:
        return np.asarray(
            [_is_recognised(rgb, item) for rgb, item in zip(read(outputs), items, strict=True)],
            np.float64,
        )

    def details(outputs: RGBs, items: Items) -> dict[str, np.ndarray]:
        pixels = read(outputs)
        masks = [find_thing(x, behind=i["behind"]) for x, i in zip(pixels, items, strict=True)]
        nearest = [
            distance(look_of(x, mask), item["own"]) if mask.any() else np.nan
            for x, mask, item in zip(pixels, masks, items, strict=True)
        ]
        return {
            "thing found": np.asarray([is_seen(mask) for mask in masks], np.float64),
            "distance to the thing": np.asarray(nearest),
            "PSNR (dB)": metrics.psnr(pixels, target=stack(items, "later")),
        }

    truth = draw(items, "later")
    return Protocol(
        name="personalize",
        task=task,
        title=task.title,
        metric=f"recognised among {CANDIDATES}",
        text=(
            "What differs from the background that the prompt names is cut out and compared with "
            f"the true thing and {CANDIDATES - 1} other held-out ones, at {SIDE} x {SIDE} pixels, "
            "mirrored or not; 1 if the true one is nearest. Shuffled: the same outputs, with one "
            "of the others in the place of the true thing."
        ),
        indices=tuple(indices),
        items=items,
        others=[item | _exchanged(item) for item in items],
        floors={
            "another thing": truth[order],
            "background": draw(items, "behind"),
            "mean thing": np.broadcast_to(truth.mean(axis=0), truth.shape),
        },
        score=score,
        details=details,
        worst=0.0,
    )


def _add_candidates(items: list[dict[str, Any]]) -> np.ndarray:
    """Gives each item its own look and those of others; returns an order without fixed points."""
    for item in items:
        item["own"] = look_of(item["later"], item["instance"] == 1)
    order = shuffled_order(len(items))
    for number, item in enumerate(items):
        place, found = number, []
        for _ in items:
            place = int(order[place])
            other = items[place]
            if other["words"] != item["words"]:
                found.append(other["own"])
            if len(found) == CANDIDATES - 1:
                break
        if len(found) < CANDIDATES - 1:
            raise TooFewItemsError(
                f"the split has {1 + len(found)} different things, {CANDIDATES} are compared"
            )
        item["candidates"] = found
    return order


def _exchanged(item: Mapping[str, Any]) -> dict[str, Any]:
    first, *rest = item["candidates"]
    return {"own": first, "candidates": [*rest, item["own"]]}


def _is_recognised(picture: UInt8[np.ndarray, "h w 3"], item: Mapping[str, Any]) -> bool:
    mask = find_thing(picture, behind=item["behind"])
    if not is_seen(mask):
        return False
    look = look_of(picture, mask)
    own = distance(look, item["own"])
    return all(own < distance(look, other) for other in item["candidates"])


def is_seen(mask: Bool[np.ndarray, "h w"]) -> bool:
    """Whether a thing is large enough to be one."""
    return float(mask.mean()) >= objects.MIN_SHARE
