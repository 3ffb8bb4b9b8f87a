"""MiniWorld's protocols for changes: instruction edits by kind, and the last frame of a clip.

Both ask what a picture looks like after a change that is said in words, and both are shuffled with
another change of the *same* picture: against the result of another scene, a mere copy of the input
already looks conditioned.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipelines.miniworld import edits, video
from data_pipelines.miniworld.scene import FLOORS, Scene
from unidiff_jax.evals import metrics
from unidiff_jax.evals.miniworld_protocol import (
    Item,
    Items,
    Protocol,
    RGBs,
    Setting,
    collect,
    draw,
    from_unit,
    read,
    redraw,
    scene_of,
    stack,
)
from unidiff_jax.evals.statistics import shuffled_order

SUCCESS_GAIN, SUCCESS_OUTSIDE = 0.5, 0.03
"""An edit succeeds when its gain exceeds the first and its L1 outside stays below the second."""

MIN_SHADOW_PIXELS = 5
_DRAWS = 8  # of another edit or clip, before the item is left out


def edit_protocol(setting: Setting, *, kind: str) -> Protocol:
    """Editing pairs of one kind, an entry of the results of its own."""

    def vary(item: dict[str, Any], rng: np.random.Generator) -> dict[str, Any] | None:
        record, edit = item["record"], item["edit"]
        before, after = scene_of(item, edit["before"]), scene_of(item, edit["after"])
        instances = record.instance[[edit["before"], edit["after"]]]
        item["objects"] = (instances > 0).any(axis=0)
        item["shadow_change"] = (
            record.shadow[edit["before"]] != record.shadow[edit["after"]]
        ) & ~item["objects"]
        other = _another_edit(before, after, rng, kind=kind)
        if other is None:
            return None
        drawing = redraw(other.after, item, setting)
        objects = (record.instance[edit["before"]] > 0) | (drawing.instance > 0)
        change = {"edited": drawing.rgb, "objects": objects}
        changed = [
            metrics.changed_pixels(item["source"][None], target=target[None]).any()
            for target in (item["edited"], drawing.rgb)
        ]
        return change if all(changed) else None

    found = collect(setting, "edit", vary=vary, edit_kinds=(kind,))

    def score(outputs: RGBs, items: Items) -> np.ndarray:
        return metrics.edit_gain(
            read(outputs),
            source=stack(items, "source"),
            target=stack(items, "edited"),
            also=stack(items, "objects"),
        )

    def details(outputs: RGBs, items: Items) -> dict[str, np.ndarray]:
        pair = {"source": stack(items, "source"), "target": stack(items, "edited")}
        outside = metrics.edit_l1_outside(read(outputs), **pair)
        kept = np.nan_to_num(outside) < SUCCESS_OUTSIDE
        values = {
            "gain on changed pixels": metrics.edit_gain(read(outputs), **pair),
            "L1 outside": outside,
            "success": ((score(outputs, items) > SUCCESS_GAIN) & kept).astype(np.float64),
        }
        if kind in ("add", "remove", "move"):
            values["shadow gain"] = _shadow_gain(read(outputs), items)
        return values

    order = shuffled_order(len(found.items))
    floors = {
        "copy": draw(found.items, "source"),
        "training mean": from_unit(setting.training.mean_image, like=found.items),
        "another item's target": draw([found.items[i] for i in order], "edited"),
        **_edit_floors(found.items, setting, kind=kind),
    }
    return Protocol(
        name=f"edit_{kind}",
        title=f"Editing: {kind}",
        metric="edit gain",
        text=(
            "1 - L1(output, exact result) / L1(input, exact result) on the pixels that change or "
            "show an object, at least -1 an item: a copy scores 0, and changing another object "
            "costs as much as the edit brings. Shuffled: the same outputs against the exact result "
            "of another instruction of this kind on the same picture. Success: gain above "
            f"{SUCCESS_GAIN} and L1 outside below {SUCCESS_OUTSIDE}."
        ),
        **found._asdict(),
        floors=floors,
        score=score,
        details=details,
        worst=metrics.LOWEST_RATIO_SCORE,
    )


def _another_edit(
    before: Scene, after: Scene, rng: np.random.Generator, *, kind: str
) -> edits.Edit | None:
    """An edit of the same kind with another result."""
    for _ in range(_DRAWS):
        edit = edits.sample_edit(before, rng, kind=kind)
        if edit is not None and not _same_picture(edit.after, after):
            return edit
    return None


def _same_picture(first: Scene, second: Scene) -> bool:
    """Whether two scenes look alike; ids do not show."""

    def look(scene: Scene):
        bodies = [dataclasses.replace(o, id=0) for o in scene.objects]
        return scene.floor, scene.light, scene.camera, sorted(map(repr, bodies))

    return look(first) == look(second)


def _edit_floors(items: Items, setting: Setting, *, kind: str) -> dict[str, RGBs]:
    """Predictors that get half of the instruction right, drawn from the exact scene graph."""

    def drawn(change: Callable[[Scene, Item], Scene]) -> RGBs:
        pictures = []
        for item in items:
            scene = change(scene_of(item, item["edit"]["before"]), item)
            pictures.append({"x": redraw(scene, item, setting).rgb})
        return draw(pictures, "x")

    def recolor_all(scene: Scene, item: Item) -> Scene:
        color = scene_of(item, item["edit"]["after"]).object(item["edit"]["object"]).color
        bodies = tuple(dataclasses.replace(o, color=color) for o in scene.objects)
        return dataclasses.replace(scene, objects=bodies)

    def remove_all(scene: Scene, item: Item) -> Scene:
        return dataclasses.replace(scene, objects=())

    rng = np.random.default_rng(0)

    def guess_floor(scene: Scene, item: Item) -> Scene:
        others = [floor for floor in FLOORS if floor != scene.floor]
        return dataclasses.replace(scene, floor=others[rng.integers(len(others))])

    if kind == "recolor":
        return {"recolour all": drawn(recolor_all)}
    if kind == "remove":
        return {"remove all": drawn(remove_all)}
    if kind == "background":
        return {"random floor": drawn(guess_floor)}
    return {}


def _shadow_gain(outputs: np.ndarray, items: Items) -> np.ndarray:
    """The gain on floor pixels that only a shadow changes; what cut and paste cannot have."""
    source, target = stack(items, "source") / 255.0, stack(items, "edited") / 255.0
    where = stack(items, "shadow_change")
    error = (np.abs(outputs / 255.0 - target).mean(-1) * where).sum((1, 2))
    copy = (np.abs(source - target).mean(-1) * where).sum((1, 2))
    valid = (where.sum((1, 2)) >= MIN_SHADOW_PIXELS) & (copy > 0)
    gain = 1.0 - np.divide(error, copy, out=np.ones_like(copy), where=valid)
    return np.where(valid, np.maximum(gain, metrics.LOWEST_RATIO_SCORE), np.nan)


def next_frame_protocol(setting: Setting) -> Protocol:
    """From the first frame of a clip and what happens to its last frame."""

    def vary(item: dict[str, Any], rng: np.random.Generator) -> dict[str, Any] | None:
        scene, images = scene_of(item), item["record"].clip["images"]
        for _ in range(_DRAWS):
            clip = video.frames(scene, rng, len(images))
            if clip.description == item["record"].clip["description"]:
                continue
            later = redraw(clip.scenes[-1], item, setting).rgb
            changed = [
                metrics.changed_pixels(item["earlier"][None], target=target[None]).any()
                for target in (item["later"], later)
            ]
            return {"later": later} if all(changed) else None
        return None

    found = collect(setting, "next_frame", vary=vary)
    order = shuffled_order(len(found.items))

    def score(outputs: RGBs, items: Items) -> np.ndarray:
        pair = {"source": stack(items, "earlier"), "target": stack(items, "later")}
        return metrics.edit_gain(read(outputs), **pair)

    def details(outputs: RGBs, items: Items) -> dict[str, np.ndarray]:
        return {"PSNR (dB)": metrics.psnr(read(outputs), target=stack(items, "later"))}

    return Protocol(
        name="next_frame",
        title=found.task.title,
        metric="gain over copying",
        text=(
            "1 - L1(output, last frame) / L1(first frame, last frame) on the pixels that change, "
            "at least -1 an item. How far things move is not in the text, so 1 is out of reach. "
            "Shuffled: the same outputs against the last frame of another change of the same scene."
        ),
        **found._asdict(),
        floors={
            "copy": draw(found.items, "earlier"),
            "training mean": from_unit(setting.training.mean_image, like=found.items),
            "another item's target": draw([found.items[i] for i in order], "later"),
        },
        score=score,
        details=details,
        worst=metrics.LOWEST_RATIO_SCORE,
    )
