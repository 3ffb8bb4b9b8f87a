"""MiniWorld's protocols: for each task the items, the metric, the floors and the shuffled control.

| task | metric | the shuffled condition |
|---|---|---|
| depth | object-depth skill | another scene |
| segment | cIoU | another object of the same picture |
| depth_to_image | silhouette IoU | the same scene with other colours on its objects |
| edit | gain on changed and object pixels | another edit of the same kind and picture |
| next_frame | gain on changed pixels | another change of the same picture |
| layout_to_image | silhouette IoU | the mirrored layout |
| inpaint | PSNR in the hole | the hidden object in another colour |
| text_to_image | colour-shape binding | the same colours with exchanged shapes |

Floors may read the condition and the training split (`miniworld_training`); some draw on the exact
scene graph, which makes them stronger than any trick without a model. Which items are scored is
decided here, before an output is seen: an item without another condition is left out.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipelines.miniworld.render import PALETTE
from data_pipelines.miniworld.scene import COLORS, SHAPES
from unidiff_jax.evals import metrics
from unidiff_jax.evals.miniworld_changes import edit_protocol, next_frame_protocol
from unidiff_jax.evals.miniworld_maps import depth_protocol, segment_protocol
from unidiff_jax.evals.miniworld_protocol import (
    Items,
    Protocol,
    RGBs,
    Setting,
    collect,
    colors_of,
    draw,
    from_unit,
    objects_of,
    read,
    redraw,
    scene_of,
    stack,
)
from unidiff_jax.evals.miniworld_training import min_object_pixels
from unidiff_jax.evals.statistics import shuffled_order

# --------------------------------------------------------------------------------- depth to image


def _expected_colors(items: Items) -> np.ndarray:
    """Label map of the colour that each pixel of an object must show."""
    instances = np.stack([item["record"].instance[0] for item in items])
    colors = [item.get("colors", own) for item, own in zip(items, colors_of(items), strict=True)]
    return metrics.instance_colors(instances, colors=colors, palette=PALETTE)


def _exchanged(values: list[str], *, choices: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The objects' values moved round; where that changes nothing, one other value for all."""
    if len(set(values)) > 1:
        return values[1:] + values[:1]
    others = [value for value in choices if value != values[0]]
    return [others[rng.integers(len(others))]] * len(values)


def _exchange_colors(item: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    colors = [body["color"] for body in objects_of(item)]
    return {"colors": _exchanged(colors, choices=COLORS, rng=rng)}


def _verified(outputs: RGBs) -> list[list[metrics.DetectedObject]]:
    min_pixels = min_object_pixels(outputs.shape[1:3])
    return metrics.detect_objects(read(outputs), palette=PALETTE, min_pixels=min_pixels)


def _training_pictures(setting: Setting, count: int) -> RGBs:
    pictures = setting.training.pictures
    return draw([{"x": pictures[i % len(pictures)]} for i in range(count)], "x")


def _depth_to_image(setting: Setting) -> Protocol:
    found = collect(setting, "depth_to_image", vary=_exchange_colors)
    training = setting.training
    count = len(found.items)
    usual = max(training.color_counts, key=training.color_counts.__getitem__)
    first = np.stack([PALETTE[colors[0]] for colors in colors_of(found.items)])[:, None, None]
    silhouettes = np.stack([item["record"].instance[0] > 0 for item in found.items])[..., None]

    def score(outputs: RGBs, items: Items) -> np.ndarray:
        labels = metrics.color_labels(read(outputs), palette=PALETTE)
        return _silhouette_iou(labels, _expected_colors(items))

    def details(outputs: RGBs, items: Items) -> dict[str, np.ndarray]:
        scores = metrics.object_list_scores(_verified(outputs), colors=colors_of(items))
        expected = _expected_colors(items)
        return {
            "colour agreement": metrics.color_agreement(
                read(outputs), expected=expected, palette=PALETTE
            ),
            "colour recall": scores.color_recall,
            "object count right": scores.count_exact,
            "PSNR (dB)": metrics.psnr(read(outputs), target=stack(items, "image")),
        }

    return Protocol(
        name="depth_to_image",
        title=found.task.title,
        metric="silhouette IoU",
        text=(
            "IoU of the pixels that show a colour with those that should, mean over an item's "
            "colours; the caption names every object. Colouring the floor costs, so that colour "
            "agreement on object pixels alone, which one colour everywhere satisfies, is not "
            "judged. The floor 'one caption colour on the objects' has the exact silhouettes. "
            "Shuffled: the same outputs against the same scene with its colours exchanged."
        ),
        **found._asdict(),
        floors={
            "training mean": from_unit(training.mean_image, like=found.items),
            "another picture": _training_pictures(setting, count),
            "most frequent colour": from_unit(PALETTE[usual], like=found.items),
            "one caption colour": from_unit(first, like=found.items),
            "one caption colour on the objects": from_unit(
                np.where(silhouettes, first, 0.5), like=found.items
            ),
        },
        score=score,
        details=details,
        worst=0.0,
    )


# ------------------------------------------------------------------- layout, inpainting, text only


def _layout_to_image(setting: Setting) -> Protocol:
    def vary(item: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        return {"mirrored": True}

    found = collect(setting, "layout_to_image", vary=vary)

    def turned(items: Items, maps: np.ndarray) -> np.ndarray:
        return np.stack(
            [m[:, ::-1] if "mirrored" in item else m for item, m in zip(items, maps, strict=True)]
        )

    def score(outputs: RGBs, items: Items) -> np.ndarray:
        labels = metrics.color_labels(read(outputs), palette=PALETTE)
        return _silhouette_iou(labels, turned(items, _expected_colors(items)))

    def details(outputs: RGBs, items: Items) -> dict[str, np.ndarray]:
        instances = turned(items, np.stack([item["record"].instance[0] for item in items]))
        boxes = [
            metrics.instance_boxes(instance, num_objects=len(objects_of(item)))
            for instance, item in zip(instances, items, strict=True)
        ]
        scores = metrics.layout_scores(_verified(outputs), boxes=boxes, colors=colors_of(items))
        return {"box IoU": scores.iou, "box recall": scores.recall}

    truth = draw(found.items, "image")
    return Protocol(
        name="layout_to_image",
        title=found.task.title,
        metric="silhouette IoU",
        text=(
            "IoU of the pixels that show a colour with those that should, mean over an item's "
            "colours. The box IoU beside it is not judged: a copy of the layout frame, one of the "
            "floors, already has the right boxes. Shuffled: the same outputs against the mirrored "
            "layout, whose colours are the same."
        ),
        **found._asdict(),
        floors={
            "copy of the layout": draw(found.items, "layout"),
            "mirrored picture": truth[:, :, ::-1],
            "another picture": _training_pictures(setting, len(truth)),
        },
        score=score,
        details=details,
        worst=0.0,
    )


def _silhouette_iou(labels: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """IoU by colour, mean over the colours that an item should show."""
    total, count = np.zeros(len(labels)), np.zeros(len(labels))
    for k in range(1, len(PALETTE) + 1):
        target = expected == k
        count += (present := target.any(axis=(1, 2)))
        total += present * metrics.mask_iou(labels == k, target=target)
    return total / count


def _inpaint(setting: Setting) -> Protocol:
    def vary(item: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        scene, instance = scene_of(item), item["record"].instance[0]
        hidden = max(scene.objects, key=lambda o: _box_overlap(instance == o.id, item["hole"]))
        item["object"] = hidden.id
        others = [color for color in COLORS if color != hidden.color]
        recolored = dataclasses.replace(hidden, color=others[rng.integers(len(others))])
        return {"image": redraw(scene.with_object(recolored), item, setting).rgb}

    found = collect(setting, "inpaint", vary=vary)
    holes = stack(found.items, "hole")[..., None]
    holed = draw(found.items, "holed")
    colors = np.stack(
        [setting.training.color_means[scene_of(i).object(i["object"]).color] for i in found.items]
    )
    surroundings = np.stack(
        [np.median(rgb[~hole[..., 0]], axis=0) for rgb, hole in zip(holed, holes, strict=True)]
    )

    def filled(fill: RGBs) -> RGBs:
        return np.where(holes, fill, holed)

    def score(outputs: RGBs, items: Items) -> np.ndarray:
        return metrics.hole_psnr(
            read(outputs), target=stack(items, "image"), hole=stack(items, "hole")
        )

    def details(outputs: RGBs, items: Items) -> dict[str, np.ndarray]:
        hole = stack(items, "hole")
        psnr = metrics.psnr(read(outputs), target=stack(items, "image"), mask=~hole)
        expected = np.where(hole, _expected_colors(items), 0)
        agreement = metrics.color_agreement(read(outputs), expected=expected, palette=PALETTE)
        return {"PSNR outside (dB)": psnr, "colour agreement in the hole": agreement}

    empty = []
    for item in found.items:
        scene = scene_of(item).without_object(item["object"])
        empty.append({"x": redraw(scene, item, setting).rgb})
    return Protocol(
        name="inpaint",
        title=found.task.title,
        metric="PSNR in the hole (dB)",
        text=(
            "Peak signal-to-noise ratio in the box around one object; the caption names it. The "
            "floor 'empty floor' is the exact scene without the object, 'object colour' the "
            "training mean of the right colour. Shuffled: the same outputs against the same scene "
            "with the hidden object in another colour."
        ),
        **found._asdict(),
        floors={
            "empty floor": filled(draw(empty, "x")),
            "surroundings": filled(surroundings[:, None, None]),
            "training mean": filled(from_unit(setting.training.mean_image, like=found.items)),
            "object colour": filled(from_unit(colors[:, None, None], like=found.items)),
        },
        score=score,
        details=details,
        worst=0.0,
        bounded=False,
    )


def _box_overlap(mask: np.ndarray, hole: np.ndarray) -> float:
    """IoU of a mask's bounding box with a hole."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return 0.0
    box = np.zeros_like(hole)
    box[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    return float((box & hole).sum() / (box | hole).sum())


def _exchange_shapes(item: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    colors, shapes = zip(*_bodies([item])[0], strict=True)
    return {
        "bodies": list(zip(colors, _exchanged(list(shapes), choices=SHAPES, rng=rng), strict=True))
    }


def _bodies(items: Items) -> list[list[tuple[str, str]]]:
    """Colour and shape of the objects that an item should show."""
    return [
        item.get("bodies", [(body["color"], body["shape"]) for body in objects_of(item)])
        for item in items
    ]


def _text_to_image(setting: Setting) -> Protocol:
    found = collect(setting, "text_to_image", vary=_exchange_shapes)
    training = setting.training
    usual = max(training.shape_counts, key=training.shape_counts.__getitem__)

    def score(outputs: RGBs, items: Items) -> np.ndarray:
        detections = _verified(outputs)
        shapes = training.shape_verifier(read(outputs), detections)
        return metrics.multiset_agreement(
            [
                [(body.color, shape) for body, shape in zip(bodies, names, strict=True)]
                for bodies, names in zip(detections, shapes, strict=True)
            ],
            expected=_bodies(items),
        )

    def details(outputs: RGBs, items: Items) -> dict[str, np.ndarray]:
        scores = metrics.object_list_scores(_verified(outputs), colors=colors_of(items))
        return {
            "object count right": scores.count_exact,
            "colours right": scores.list_exact,
            "colour recall": scores.color_recall,
        }

    truth = draw(found.items, "image")
    one_shape = []
    for item in found.items:
        scene = scene_of(item)
        bodies = tuple(dataclasses.replace(body, shape=usual) for body in scene.objects)
        one_shape.append(redraw(dataclasses.replace(scene, objects=bodies), item, setting).rgb)
    return Protocol(
        name="text_to_image",
        title=found.task.title,
        metric="colour-shape binding",
        text=(
            "Verified objects with the colour and the shape of one of the caption's, each counted "
            "once, over the number of objects (of the caption's or of the picture's, whichever is "
            "more); shapes are named by nearest training objects, whose mistakes "
            "on small objects make the ceiling. The floor 'one shape' is the exact scene with "
            f"every object a {usual}. Shuffled: the same outputs against the caption with its "
            "shapes exchanged between its colours."
        ),
        **found._asdict(),
        floors={
            "another caption's picture": truth[shuffled_order(len(truth))],
            "constant picture": _best_constant(setting, found.items, score),
            "one shape": draw([{"x": rgb} for rgb in one_shape], "x"),
        },
        score=score,
        details=details,
        worst=0.0,
    )


def _best_constant(
    setting: Setting, items: Items, score: Callable[[RGBs, Items], np.ndarray]
) -> RGBs:
    """The one training picture that scores best on these very captions: a generous floor."""
    pictures = _training_pictures(setting, min(16, len(setting.training.pictures)))
    repeated = (np.broadcast_to(p, (len(items), *p.shape)) for p in pictures)
    return max(repeated, key=lambda outputs: score(outputs, items).mean())


_MAKERS: dict[str, Callable[[Setting], Protocol]] = {
    "depth": depth_protocol,
    "segment": segment_protocol,
    "depth_to_image": _depth_to_image,
    "next_frame": next_frame_protocol,
    "layout_to_image": _layout_to_image,
    "inpaint": _inpaint,
    "text_to_image": _text_to_image,
}


def make_protocol(name: str, setting: Setting) -> Protocol:
    """The protocol of a task, or of one edit kind as in `edit_recolor`.

    Raises:
      TooFewItemsError: the split has fewer than two items for it.
    """
    if name.startswith("edit_"):
        return edit_protocol(setting, kind=name.removeprefix("edit_"))
    return _MAKERS[name](setting)
