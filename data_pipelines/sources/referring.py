"""Masks of things and the expressions that mean them."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.sources.base import SampleError, check_index, read_picture
from data_pipelines.sources.prepared import PreparedTable

MIN_SHARE = 0.002
"""A thing of fewer of the picture's pixels is not asked for: 11 pixels a side at 256."""


class ReferringSource:
    """Pictures whose objects have masks and expressions, in the features of TFDS' `ref_coco`.

    | field | what |
    |---|---|
    | `image` | the picture |
    | `mask` | one of its objects, white on black |
    | `expression` | one of the texts that mean the object |
    """

    COLUMNS = ("image", "objects.mask", "objects.refexp.raw")

    fields = ("image", "mask", "expression")

    def __init__(self, table: PreparedTable):
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A picture and one of its objects; see `RawSource.sample`."""
        check_index(index, len(self))
        name = self._table.name(index)
        values = self._table.values(index, self.COLUMNS)
        expressions = values["objects.refexp.raw"] or []
        pairs = [(n, text) for n, texts in enumerate(expressions) for text in texts if text]
        if not pairs:
            raise SampleError(f"{name}: no object has an expression")
        number, text = pairs[int(rng.integers(len(pairs)))]
        picture = read_picture(values["image"], name=f"{name}: image")
        mask = read_picture(values["objects.mask"][number], name=f"{name}: mask of object {number}")
        if mask.size != picture.size:
            raise SampleError(
                f"{name}: mask of object {number} has {mask.size} pixels, the picture "
                f"{picture.size}"
            )
        return {"image": picture, "mask": mask, "expression": text}


def draw_thing(
    ids: np.ndarray, names: Mapping[int, str], rng: np.random.Generator, *, name: str
) -> tuple[Image.Image, str]:
    """A thing's mask, white on black, and its name, which no other thing in the picture has.

    Args:
      ids: of things (h, w), 0 for none.
      names: of ids; things without a name are not drawn.
      rng: draws one.
      name: what messages call the picture.

    Raises:
      SampleError: no thing that is large enough has a name of its own.
    """
    found, counts = np.unique(ids, return_counts=True)
    seen = {int(i): count for i, count in zip(found, counts, strict=True) if int(i) in names}
    times = collections.Counter(names[i] for i in seen)
    usable: Sequence[int] = [
        i for i, count in seen.items() if times[names[i]] == 1 and count >= MIN_SHARE * ids.size
    ]
    if not usable:
        raise SampleError(f"{name}: no thing can be told from the others by its name")
    chosen = usable[int(rng.integers(len(usable)))]
    return Image.fromarray(ids == chosen).convert("RGB"), names[chosen]
