"""Pictures whose things are annotated: words, boxes and masks, as grounding and segmentation give.

A column `entities` holds a list, or a JSON text of one; what is not needed may be missing:

    [{"name": "a red ball", "box": [0.1, 0.4, 0.3, 0.6],
      "mask": {"size": [480, 640], "counts": "..."}}, ...]

`name` stands in the caption. `box` is left, top, right, bottom as shares of the picture. `mask` has
COCO's run lengths (`curate.run_lengths`); without it the box is the mask.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool

from data_pipelines import objects
from data_pipelines.curate.run_lengths import RunLengthError, decode_mask
from data_pipelines.interleaved import Entity, draw_count, interleave
from data_pipelines.sources.base import (
    SampleError,
    SourceError,
    UnsuitableError,
    check_index,
    draw_field,
    read_picture,
)
from data_pipelines.sources.tables import Table
from unidiff_jax.tasks import Task

COLUMNS = {"image": "jpg", "caption": "txt", "entities": "entities"}
"""Of a WebDataset with `entities` in KEY.json."""

TASK = "interleave"


class AnnotatedSource:
    """Samples of the task `interleave`, whose references are cut out of the picture itself.

    Example:
      >>> source = AnnotatedSource(TarTable("data/annotated-{000..009}.tar"), task=task)
      >>> source.sample(0, np.random.default_rng(0))["slots"]
    """

    def __init__(self, table: Table, *, task: Task, fields: Mapping[str, str] | None = None):
        """Checks the columns.

        Args:
          table: rows.
          task: `interleave`.
          fields: columns of the picture, the caption and the entities; None is `COLUMNS`.

        Raises:
          SourceError: a column that the table lacks, or another task.
        """
        if task.name != TASK:
            raise SourceError(f"annotated pictures are for the task {TASK!r}, not {task.name!r}")
        self._table, self._columns = table, {**COLUMNS, **(fields or {})}
        unknown = set(self._columns) - set(COLUMNS)
        missing = [c for c in self._columns.values() if c not in table.columns]
        if unknown or missing:
            raise SourceError(
                f"fields={self._columns}: fields are {', '.join(COLUMNS)}, columns are "
                f"{', '.join(table.columns) or 'none'}"
            )

    fields = ("later", "assets", "slots", "entity_masks")

    def __len__(self) -> int:
        return len(self._table)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A picture with some of its things as references; see `RawSource.sample`."""
        check_index(index, len(self))
        name = self._table.name(index)
        row = self._table.row(index, tuple(self._columns.values()))
        cells = {field: row.get(column) for field, column in self._columns.items()}
        if not isinstance(cells["image"], bytes):
            raise SampleError(f"{name}: {self._columns['image']} is no picture")
        picture = read_picture(cells["image"], name=name)
        caption = " ".join(str(cells["caption"] or "").split())
        if not caption:
            raise UnsuitableError("no caption")
        pixels = np.asarray(picture)
        entities = read_entities(cells["entities"], pixels=pixels, name=name)
        found = interleave(caption, entities, count=draw_count(rng), rng=rng)
        return {
            "later": picture,
            "slots": found["slots"],
            "assets": draw_field(found["assets"], codec="rgb"),
            "entity_masks": draw_field(found["entity_masks"], codec="mask"),
        }


def read_entities(value: Any, *, pixels: np.ndarray, name: str) -> list[Entity]:
    """The things of a picture that are large enough to be references.

    Args:
      value: the cell, see the module.
      pixels: uint8 (h, w, 3).
      name: what messages call the row.

    Raises:
      SampleError: another structure, a box outside the picture, or a mask of another size.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise SampleError(f"{name}: entities are no JSON: {error}") from None
    if not isinstance(value, list) or not all(isinstance(entity, Mapping) for entity in value):
        raise SampleError(f"{name}: entities are {type(value).__name__}, not a list of objects")
    entities = []
    for number, entity in enumerate(value):
        what = f"{name}: entity {number}"
        words = entity.get("name")
        if not isinstance(words, str) or not objects.bare_name(words):
            raise SampleError(f"{what} has no name")
        mask = _read_mask(entity, shape=pixels.shape[:2], what=what)
        if mask.mean() >= objects.MIN_SHARE:
            entities.append(Entity([words], mask, objects.cut_out(pixels, mask)))
    return entities


def _read_mask(
    entity: Mapping[str, Any], *, shape: tuple[int, int], what: str
) -> Bool[np.ndarray, "h w"]:
    if entity.get("mask") is not None:
        try:
            mask = decode_mask(entity["mask"])
        except RunLengthError as error:
            raise SampleError(f"{what}: mask: {error}") from None
        if mask.shape != shape:
            raise SampleError(f"{what}: the mask has {mask.shape} pixels, the picture {shape}")
        return mask
    try:
        left, top, right, bottom = (float(side) for side in entity["box"])
    except (KeyError, TypeError, ValueError):
        raise SampleError(f"{what} has neither a mask nor a box of four numbers") from None
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise SampleError(
            f"{what}: box {[left, top, right, bottom]} must be shares of the picture, left < right "
            "and top < bottom"
        )
    mask, (height, width) = np.zeros(shape, bool), shape
    rows = slice(math.floor(top * height), math.ceil(bottom * height))
    mask[rows, math.floor(left * width) : math.ceil(right * width)] = True
    return mask
