"""What a benchmark protocol is, and the items, pictures and scenes that all of them share.

A `Protocol` scores *outputs*, arrays as they leave the sampler, against *items*. A model, an oracle
(the truth through the 8-bit codec) and a trivial predictor are therefore scored by the same code,
and the shuffled control is the same outputs scored against other items. The protocols themselves
are in `miniworld_tasks` and `miniworld_changes`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from data_pipelines.miniworld.items import MiniWorldSource
from data_pipelines.miniworld.render import Rendering, render
from data_pipelines.miniworld.scene import Scene, from_dict
from unidiff_jax.evals.miniworld_training import TrainingStatistics
from unidiff_jax.evals.statistics import Ratio, Scores, shuffled_order
from unidiff_jax.frames import CODECS
from unidiff_jax.tasks import Task, get_task

Item = Mapping[str, Any]
Items = Sequence[Item]
RGBs = Float[np.ndarray, "b h w 3"]
"""One output an item: RGB in about [-1, 1], before the codec."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How one task is judged.

    Attributes:
      name: of the entry in the results; an edit kind is an entry of its own.
      task: what the model is asked.
      title, metric, text: what a reader sees; `text` says how it is scored.
      indices: records that the items come from.
      items: with the fields of the task.
      others: the same items with another condition's result in the place of theirs.
      floors: outputs of trivial predictors.
      score: outputs and items to the primary metric, higher is better.
      details: outputs and items to further numbers; NaN where one is undefined.
      worst: what an output scores that is not finite.
      minimum: what the value's interval must clear besides the floors.
      bounded: False where the oracle's score has no meaning (PSNR).
    """

    name: str
    task: Task
    title: str
    metric: str
    text: str
    indices: tuple[int, ...]
    items: Items
    others: Items
    floors: Mapping[str, RGBs]
    score: Callable[[RGBs, Items], Scores]
    details: Callable[[RGBs, Items], dict[str, np.ndarray]]
    worst: float | Ratio
    minimum: float | None = None
    bounded: bool = True


class Setting(NamedTuple):
    """What all protocols share: the data, the training split's statistics and the item count."""

    folder: str
    split: str
    training: TrainingStatistics
    num_items: int
    samples: int
    min_reference_objects: int


class TooFewItemsError(ValueError):
    """A split without two items for a task: nothing can be shuffled."""


# ----------------------------------------------------------------------------------------- items


class _Found(NamedTuple):
    task: Task
    indices: tuple[int, ...]
    items: list[dict[str, Any]]
    others: list[dict[str, Any]]


_Vary = Callable[[dict[str, Any], np.random.Generator], dict[str, Any] | None]


def collect(
    setting: Setting,
    task_name: str,
    *,
    vary: _Vary | None = None,
    edit_kinds: Sequence[str] = (),
    min_reference_objects: int = 1,
) -> _Found:
    """The first items that the split offers.

    `vary` gives fields of an item with another condition, or None to leave the item out; without it
    the items themselves are shuffled. A caption is always the one that names every object.
    """
    task = get_task(task_name)
    source = MiniWorldSource(
        setting.folder,
        split=setting.split,
        edit_kinds=edit_kinds,
        min_reference_objects=min_reference_objects,
    )
    indices, items, others = [], [], []
    for index in range(len(source)):
        if len(items) == setting.num_items:
            break
        rng = np.random.default_rng([task.id, index])
        found = source.item(source[index], task, rng)
        if found is None:
            continue
        item = dict(found)
        if "caption" in item:
            item["caption"] = item["record"].captions[0][0]
        change = vary(item, rng) if vary else {}
        if change is None:
            continue
        indices.append(index)
        items.append(item)
        others.append(item | change)
    if len(items) < 2:
        raise TooFewItemsError(
            f"{task.title}{' ' + '/'.join(edit_kinds) if edit_kinds else ''}: "
            f"the {setting.split} split has {len(items)} items, at least 2 are needed"
        )
    if vary is None:
        others = [items[i] for i in shuffled_order(len(items))]
    return _Found(task, tuple(indices), items, others)


def stack(items: Items, field: str) -> np.ndarray:
    return np.stack([item[field] for item in items])


def draw(items: Items, field: str, *, codec: str = "rgb") -> RGBs:
    """A field of each item as the model's picture."""
    return np.stack([CODECS[codec].draw(item[field]) for item in items])


def read(outputs: RGBs, *, codec: str = "rgb") -> np.ndarray:
    return np.stack([CODECS[codec].read(output) for output in outputs])


def from_unit(image: Float[np.ndarray, "*b h w 3"], *, like: Items) -> RGBs:
    """A picture in [0, 1], or one for each item, as outputs."""
    size = like[0]["record"].rgb.shape[1:]
    return np.broadcast_to(image * 2.0 - 1.0, (len(like), *size)).astype(np.float32)


def oracle(protocol: Protocol) -> RGBs:
    """The truth as 8-bit pictures: what a perfect model gives."""
    spec = next(f for f in protocol.task.frames if f.field in protocol.task.generate)
    return draw(
        [{"x": rgb} for rgb in read(draw(protocol.items, spec.field, codec=spec.codec))], "x"
    )


def scene_of(item: Item, image: int = 0) -> Scene:
    return from_dict(item["record"].scenes[image])


def objects_of(item: Item) -> list[dict[str, Any]]:
    return item["record"].scenes[0]["objects"]


def colors_of(items: Items) -> list[list[str]]:
    return [[body["color"] for body in objects_of(item)] for item in items]


def redraw(scene: Scene, item: Item, setting: Setting) -> Rendering:
    return render(scene, item["record"].rgb.shape[1], samples=setting.samples)
