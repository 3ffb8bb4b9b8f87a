"""Training and evaluation items from MiniWorld records: the fields that tasks ask for.

| field | what |
|---|---|
| image, caption | base picture and one of its captions |
| depth | nearness in [0, 1] of the base picture |
| mask, expression | the object that a referring expression means |
| source, edited, instruction | an edit pair |
| changed | mask of the pixels that the edit changes, shadows with them |
| earlier, later, change | first and last frame of the clip; what happens, or an instruction |
| layout | bounding boxes of the objects, filled with their colours, on black |
| holed | base picture with a grey box over one object |
| assets, references | objects cut out of the clip's first frame, on white, and their names |
| canvas | last frame of the clip with grey boxes over those objects |
| slots, entity_masks | a caption of the clip's last frame, and where its `assets` are there |
| tags | whether the camera of the clip stands still |

Depth is drawn as inverse depth between two fixed planes, near bright (the reading of
affine-invariant depth models): nearness = (1 / z - 1 / FAR) / (1 / NEAR - 1 / FAR).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import objects
from data_pipelines.interleaved import Entity, draw_count, interleave
from data_pipelines.miniworld import language
from data_pipelines.miniworld.records import Record, decode, open_records
from data_pipelines.miniworld.render import PALETTE
from data_pipelines.miniworld.scene import TEXTURES
from unidiff_jax.evals.metrics import changed_pixels
from unidiff_jax.paths import AnyPath
from unidiff_jax.tasks import Task

TASK_NAMES = (
    "text_to_image",
    "depth",
    "depth_to_image",
    "segment",
    "edit",
    "next_frame",
    "layout_to_image",
    "inpaint",
)
"""Tasks whose fields a record can fill."""

NEAR, FAR = 3.5, 16.0
"""Depth planes in scene units; every visible point lies between them."""

CAMERA_CLIPS = ("turn", "rise")
"""Kinds of clips in which only the camera moves."""


def nearness(depth: np.ndarray) -> np.ndarray:
    """Scene units to [0, 1], 1 is near."""
    depth = np.asarray(depth, np.float32)
    return np.clip((1 / depth - 1 / FAR) / (1 / NEAR - 1 / FAR), 0.0, 1.0)


def to_depth(near: np.ndarray) -> np.ndarray:
    """Inverse of `nearness`, in scene units."""
    return 1.0 / (1 / FAR + np.clip(near, 0.0, 1.0) * (1 / NEAR - 1 / FAR))


class MiniWorldSource:
    """Records of one split, and items for every task.

    Example:
      >>> source = MiniWorldSource("data/miniworld-32", split="train")
      >>> source.item(source[0], get_task("depth"), np.random.default_rng(0))["depth"]
    """

    def __init__(
        self,
        folder: AnyPath,
        *,
        split: str,
        edit_kinds: Sequence[str] = (),
        min_reference_objects: int = 1,
        num_captions: int | None = None,
        spare: float = 0.0,
    ):
        """Opens a split.

        Args:
          folder: made by `launch.miniworld`.
          split: train, validation, test or heldout.
          edit_kinds: edits that the `edit` task uses; empty is all.
          min_reference_objects: scenes with fewer objects have no referring expression (with one
            object the expression tells nothing).
          num_captions: use the first so many captions; the first names every object with its
            colour, the others may leave some out. None is all.
          spare: see `open_records`.
        """
        self._records = open_records(folder, split, spare=spare)
        self._edit_kinds = frozenset(edit_kinds)
        self._min_reference_objects = min_reference_objects
        self._num_captions = num_captions

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        return decode(self._records[index])

    def name(self, index: int) -> str:
        return self._records.name(index)

    def item(
        self, record: Record, task: Task, rng: np.random.Generator
    ) -> Mapping[str, Any] | None:
        """Fields for a task, with random choices from `rng`; None where the record has none.

        Beside the task's own fields an item holds `record`, and what evaluation needs to score it:
        `object` (the id that the text is about), `edit` (the edit's dict), `hole` (bool mask under
        grey boxes).
        """
        fields = {frame.field for frame in task.frames}
        item: dict[str, Any] = {"record": record}
        if "slots" in task.prompt_fields:
            return self._interleave(record, rng)
        if "image" in fields:
            item["image"] = record.rgb[0]
            item["caption"] = _choose(record.captions[0][: self._num_captions], rng)
        if "depth" in fields:
            item["depth"] = nearness(record.depth[0])
        if "layout" in fields:
            item["layout"] = draw_layout(record.scenes[0], record.instance[0])
        if "holed" in fields:
            item["holed"], item["hole"] = cut_hole(record, rng)
        if "mask" in fields:
            choices = [r for r in record.references if r["image"] == 0]
            if not choices or len(record.scenes[0]["objects"]) < self._min_reference_objects:
                return None
            chosen = _choose(choices, rng)
            item["expression"], item["object"] = chosen["expression"], chosen["object"]
            item["mask"] = record.instance[0] == chosen["object"]
        if "edited" in fields:
            edits = [
                e for e in record.edits if not self._edit_kinds or e["kind"] in self._edit_kinds
            ]
            if not edits:
                return None
            edit = _choose(edits, rng)
            item["edit"], item["instruction"] = edit, edit["instruction"]
            item["object"] = edit["object"]
            item["source"], item["edited"] = record.rgb[edit["before"]], record.rgb[edit["after"]]
        if "changed" in fields:
            # and not the changed object's: one meaning for every kind of edit, a new floor too
            pair = item["source"][None], item["edited"][None]
            item["changed"] = changed_pixels(pair[0], target=pair[1])[0]
        if "later" in fields:
            if record.clip is None:
                return None
            first, last = record.clip["images"][0], record.clip["images"][-1]
            item["earlier"], item["later"] = record.rgb[first], record.rgb[last]
            item["change"] = record.clip["description"]
            if "earlier" in fields and rng.random() < 0.5:
                item["change"] = language.as_instruction(rng, item["change"])
            moves = record.clip["kind"] in CAMERA_CLIPS
            item["tags"] = ("dynamic scenario" if moves else "static scenario",)
        if "assets" in fields:
            has_canvas = "canvas" in fields
            ends = record.instance[[first, last]]
            bodies = record.scenes[0]["objects"]
            seen = [body for body in bodies if objects.is_seen(ends, body["id"])]
            found = objects.draw_things(seen, rng, most=1 if has_canvas else objects.MAX_ASSETS)
            if not found:
                return None
            item["assets"] = [cut_out(record, first, body["id"]) for body in found]
            item["caption"] = _choose(record.captions[last][: self._num_captions], rng)
            names = [f"{body['color']} {body['shape']}" for body in found]
            # given frames are named in order, and a canvas comes before the objects
            item["references"] = objects.name_references(names, first=2 if has_canvas else 1)
            if has_canvas:
                masks = [record.instance[last] == body["id"] for body in found]
                item["canvas"] = objects.cover(record.rgb[last], masks)
                item["hole"] = objects.boxes(masks, shape=masks[0].shape)
        return item

    def _interleave(self, record: Record, rng: np.random.Generator) -> Mapping[str, Any] | None:
        """The clip's last frame, of whose objects some are shown by the first."""
        if record.clip is None:
            return None
        first, last = record.clip["images"][0], record.clip["images"][-1]
        caption = _choose(record.captions[last][: self._num_captions], rng)
        ends = record.instance[[first, last]]
        bodies = [b for b in record.scenes[0]["objects"] if objects.is_seen(ends, b["id"])]
        entities = [
            Entity(_names(b), ends[1] == b["id"], cut_out(record, first, b["id"])) for b in bodies
        ]
        found = interleave(caption, entities, count=draw_count(rng), rng=rng)
        return {"record": record, "later": record.rgb[last], "caption": caption, **found}


def _names(body: Mapping[str, Any]) -> list[str]:
    """What captions call an object, the most telling first."""
    texture = TEXTURES[body["texture"]] if body["texture"] else None
    color, shape = body["color"], body["shape"]
    whole = language.Phrase(body["size"], texture, color, shape)
    return [str(whole), str(language.Phrase(color=color, shape=shape))]


def draw_layout(scene: Mapping[str, Any], instance: np.ndarray) -> np.ndarray:
    """Boxes of the visible objects, far ones first, in their palette colours on black."""
    layout = np.zeros((*instance.shape, 3), np.uint8)
    boxes = []
    for body in scene["objects"]:
        rows, columns = np.nonzero(instance == body["id"])
        if len(rows):
            boxes.append((rows.max(), rows.min(), columns.min(), columns.max(), body["color"]))
    for bottom, top, left, right, color in sorted(boxes):
        layout[top : bottom + 1, left : right + 1] = np.round(PALETTE[color] * 255)
    return layout


def cut_hole(record: Record, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Base picture with a grey box around one object, and the box as a mask."""
    body = _choose(record.scenes[0]["objects"], rng)
    mask = record.instance[0] == body["id"]
    return objects.cover(record.rgb[0], [mask]), objects.boxes([mask], shape=mask.shape)


def cut_out(record: Record, image: int, body: int) -> np.ndarray:
    """An object alone on white, as large as the picture allows (nearest neighbour)."""
    mask = record.instance[image] == body
    alone = objects.cut_out(record.rgb[image], mask)
    side, height, width = len(mask), *alone.shape[:2]
    scale = side / max(height, width)
    rows = np.minimum((np.arange(round(height * scale)) / scale).astype(int), height - 1)
    columns = np.minimum((np.arange(round(width * scale)) / scale).astype(int), width - 1)
    asset = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - len(rows)) // 2, (side - len(columns)) // 2
    asset[top : top + len(rows), left : left + len(columns)] = alone[np.ix_(rows, columns)]
    return asset


def prompts(record: Record) -> list[str]:
    """Every text of a record, for training a tokenizer."""
    texts = [caption for captions in record.captions for caption in captions]
    texts += [r["expression"] for r in record.references]
    texts += [e["instruction"] for e in record.edits]
    return texts + ([record.clip["description"]] if record.clip else [])


def _choose(options: Sequence[Any], rng: np.random.Generator) -> Any:
    return options[int(rng.integers(len(options)))]
