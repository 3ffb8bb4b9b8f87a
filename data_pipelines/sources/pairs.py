"""Samples of tasks, built from curated pairs of video frames (UniReal section 3.2 and Table 1).

| task | UniReal's data set | what is built |
|---|---|---|
| `next_frame` | Video Frame2Frame | both frames, the caption as the change between them |
| `customize` | Video Multi-object | things cut out of the earlier frame, and the later frame |
| `interleave` | | the caption with things cut out of the earlier frame, and the later frame |
| `insert` | Video Object Insertion | one such thing, and the later frame with a hole over it |
| `inpaint` | Video ObjectAdd | a frame with a hole over a thing, and the caption |
| `segment` | Video SEG | a frame, and the mask of a thing by its name |
| `depth`, `depth_to_image` | Video Control | a frame and its depth (`relative_nearness`) |
| `edges`, `edges_to_image` | Video Control | a frame and its Canny edges |
| `deblur`, `upscale` | | a frame and a worse one (`conditions`) |
| `semantic_to_image`, `layout_to_image` | | a frame, and masks or boxes of its named things in \
colours that the caption names (`unidiff_jax.sample.color_maps`) |

A thing is what has a name and covers `objects.MIN_SHARE` to `MAX_SHARE` of each frame that it is
needed in. Tasks of one frame take either, at random. Depth is what the pair has: a depth model is
asked when pairs are curated.

Holes that are grey boxes, the shares and the random colours are our choice: the paper says nothing
of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image

from data_pipelines import objects
from data_pipelines.curate.pairs import Pair, PairError, decode_pair, open_pairs
from data_pipelines.interleaved import Entity, draw_count, interleave
from data_pipelines.sources.base import (
    SampleError,
    SourceError,
    UnsuitableError,
    check_index,
    draw_field,
)
from data_pipelines.sources.conditions import CONDITIONS
from unidiff_jax.paths import AnyPath
from unidiff_jax.sample.color_maps import COLORS, color_tags, draw_boxes, draw_masks
from unidiff_jax.tasks import Task

MAX_SHARE = 0.8
"""What covers more of a picture is its background, and a hole of that size leaves no picture."""

MAX_UNKNOWN_DEPTH = 0.01
"""Share of a frame's pixels that may have no depth; they are drawn as far."""

SCENARIOS = ("static scenario", "dynamic scenario")
"""Tags that say how the later frame differs from the earlier one."""

Fields = dict[str, Any]
Builder = Callable[[Pair, np.random.Generator], Fields]


class PairSource:
    """Samples of one task from a folder of curated pairs; a `RawSource`.

    Example:
      >>> source = PairSource("data/pairs", task=get_task("customize"))
      >>> source.sample(0, np.random.default_rng(0))["references"]
    """

    def __init__(self, folder: AnyPath, *, task: Task):
        """Opens the folder.

        Raises:
          SourceError: nothing builds the task's samples from pairs.
          PairError: see `open_pairs`.
        """
        if task.name not in BUILDERS:
            raise SourceError(
                f"no sample of {task.name!r} is built from pairs; tasks are: {', '.join(BUILDERS)}"
            )
        self._folder, self._task = folder, task
        self._records = open_pairs(folder)

    @property
    def fields(self) -> tuple[str, ...]:
        frames = (frame.field for frame in self._task.frames)
        masks = ["entity_masks"] if self._task.optional else []
        return (*frames, *self._task.prompt_fields, *filter(None, [self._task.region]), *masks)

    def __len__(self) -> int:
        return len(self._records)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A pair as a sample of the task, with its context tags; see `RawSource.sample`.

        Raises:
          UnsuitableError: the pair has nothing for the task.
        """
        check_index(index, len(self))
        try:
            pair = decode_pair(self._records[index])
        except PairError as error:
            raise SampleError(f"{self._folder}: pair {index}: {error}") from None
        sample = build(pair, task=self._task, rng=rng)
        for frame in self._task.frames:
            sample[frame.field] = draw_field(sample[frame.field], codec=frame.codec)
        if "entity_masks" in sample:
            sample["entity_masks"] = draw_field(sample["entity_masks"], codec="mask")
        if region := self._task.region:
            sample[region] = draw_field(sample[region], codec="mask")
        return sample


def build(pair: Pair, *, task: Task, rng: np.random.Generator) -> Fields:
    """The fields of a task from a pair: arrays that the frames' codecs draw, texts, and `tags`.

    Raises:
      UnsuitableError: the pair has nothing for the task.
    """
    tags = [tag for tag in pair.tags if tag not in SCENARIOS]
    return {"tags": tags, **BUILDERS[task.name](pair, rng)}


# ------------------------------------------------------------------------------------ both frames


def _next_frame(pair: Pair, rng: np.random.Generator) -> Fields:
    del rng
    earlier, later = pair.frames
    return {
        "earlier": earlier,
        "later": later,
        "change": _caption(pair),
        "tags": list(pair.tags),
    }


def _customize(pair: Pair, rng: np.random.Generator) -> Fields:
    things = _things(pair, 0, 1)
    if not things:
        raise UnsuitableError("no thing in both frames")
    chosen = objects.draw_things(things, rng, most=objects.MAX_ASSETS)
    return {
        "later": pair.frames[1],
        "assets": [objects.cut_out(pair.frames[0], pair.masks[0] == i) for i in chosen],
        "references": objects.name_references([pair.names[i] for i in chosen], first=1),
        "caption": _caption(pair),
        "tags": list(pair.tags),
    }


def _interleave(pair: Pair, rng: np.random.Generator) -> Fields:
    caption, (before, now) = _caption(pair), pair.masks
    entities = [
        Entity([pair.names[i]], now == i, objects.cut_out(pair.frames[0], before == i))
        for i in _things(pair, 0, 1)
    ]
    found = interleave(caption, entities, count=draw_count(rng), rng=rng)
    del found["shown"]
    return {"later": pair.frames[1], **found, "tags": list(pair.tags)}


def _insert(pair: Pair, rng: np.random.Generator) -> Fields:
    things = [i for i in _things(pair, 0, 1) if _leaves_enough(pair.masks[1] == i)]
    if not things:
        raise UnsuitableError("no thing in both frames that a hole can cover")
    [thing] = objects.draw_things(things, rng, most=1)
    return {
        "later": pair.frames[1],
        "canvas": objects.cover(pair.frames[1], [pair.masks[1] == thing]),
        "hole": objects.boxes([pair.masks[1] == thing], shape=pair.masks[1].shape),
        "assets": [objects.cut_out(pair.frames[0], pair.masks[0] == thing)],
        # the canvas is IMG1
        "references": objects.name_references([pair.names[thing]], first=2),
    }


# -------------------------------------------------------------------------------------- one frame


def _inpaint(pair: Pair, rng: np.random.Generator) -> Fields:
    choices = [
        (n, i) for n in (0, 1) for i in _things(pair, n) if _leaves_enough(pair.masks[n] == i)
    ]
    if not choices:
        raise UnsuitableError("no thing that a hole can cover")
    n, thing = _choose(choices, rng)
    return {
        "image": pair.frames[n],
        "holed": objects.cover(pair.frames[n], [pair.masks[n] == thing]),
        "hole": objects.boxes([pair.masks[n] == thing], shape=pair.masks[n].shape),
        "caption": _caption(pair),
    }


def _segment(pair: Pair, rng: np.random.Generator) -> Fields:
    choices = [(n, i) for n in (0, 1) for i in _things(pair, n) if _means_one(pair, n, i)]
    if not choices:
        raise UnsuitableError("no thing whose name means it alone")
    n, thing = _choose(choices, rng)
    return {
        "image": pair.frames[n],
        "mask": pair.masks[n] == thing,
        "expression": pair.names[thing].strip(),
    }


def _depth(pair: Pair, rng: np.random.Generator) -> Fields:
    if pair.depth is None:
        raise UnsuitableError("no depth")
    n = int(rng.integers(2))
    return {"image": pair.frames[n], "depth": relative_nearness(pair.depth[n])}


def _semantic(pair: Pair, rng: np.random.Generator) -> Fields:
    n, things, colors = _colored_things(pair, rng)
    masks = np.stack([pair.masks[n] == i for i in things])
    tags = color_tags([pair.names[i] for i in things], kind="mask", colors=colors)
    return {
        "image": pair.frames[n],
        "semantic": draw_masks(masks, colors=colors),
        "caption": f"{tags} {_caption(pair)}",
    }


def _layout(pair: Pair, rng: np.random.Generator) -> Fields:
    n, things, colors = _colored_things(pair, rng)
    height, width = pair.masks[n].shape
    boxes = []
    for i in things:
        rows, columns = objects.box_of(pair.masks[n] == i)
        boxes.append((columns.start, rows.start, columns.stop, rows.stop))
    tags = color_tags([pair.names[i] for i in things], kind="boundingbox", colors=colors)
    return {
        "image": pair.frames[n],
        "layout": draw_boxes(np.array(boxes), size=(width, height), colors=colors),
        "caption": f"{tags} {_caption(pair)}",
    }


def _condition(field: str) -> Builder:
    """Builds a frame and the condition that is made from it."""

    def make(pair: Pair, rng: np.random.Generator) -> Fields:
        frame = _choose(pair.frames, rng)
        made = CONDITIONS[field](Image.fromarray(frame), rng)[field]
        return {"image": frame, field: np.asarray(made)}

    return make


def _with_caption(builder: Builder) -> Builder:
    return lambda pair, rng: {**builder(pair, rng), "caption": _caption(pair)}


BUILDERS: Mapping[str, Builder] = {
    "next_frame": _next_frame,
    "customize": _customize,
    "interleave": _interleave,
    "insert": _insert,
    "inpaint": _inpaint,
    "segment": _segment,
    "depth": _depth,
    "depth_to_image": _with_caption(_depth),
    "edges": _condition("edges"),
    "edges_to_image": _with_caption(_condition("edges")),
    "deblur": _with_caption(_condition("blurred")),
    "upscale": _with_caption(_condition("small")),
    "semantic_to_image": _semantic,
    "layout_to_image": _layout,
}
"""By the task's name; each raises UnsuitableError where a pair has nothing for the task."""


# ------------------------------------------------------------------------------------------ parts


def relative_nearness(depth: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Inverse depth, scaled to [0, 1] picture by picture: 1 is the nearest pixel, 0 the farthest.

    That is what affine-invariant depth models give. Infinite depth is the farthest; pixels without
    depth (0, negative or not a number) are drawn as far.

    Raises:
      UnsuitableError: too many pixels without depth, or all equally far.
    """
    depth = depth.astype(np.float32)
    known = depth > 0
    if known.mean() < 1 - MAX_UNKNOWN_DEPTH:
        raise UnsuitableError("depth is missing in parts of the frame")
    inverse = np.divide(1.0, depth, out=np.zeros_like(depth), where=known)
    far, near = inverse[known].min(), inverse[known].max()
    if near == far:
        raise UnsuitableError("depth is the same everywhere")
    return np.clip((inverse - far) / (near - far), 0.0, 1.0)


def _caption(pair: Pair) -> str:
    caption = " ".join(pair.caption.split())
    if not caption:
        raise UnsuitableError("no caption")
    return caption


def _things(pair: Pair, *frames: int) -> list[int]:
    """Ids of the things that all these frames show."""
    ids = pair.masks[list(frames)]
    return [
        i
        for i, name in sorted(pair.names.items())
        if objects.bare_name(name)
        and objects.is_seen(ids, i)
        and (ids == i).mean(axis=(1, 2)).max() <= MAX_SHARE
    ]


def _leaves_enough(mask: Bool[np.ndarray, "h w"]) -> bool:
    """Whether a hole over the thing leaves enough of the picture."""
    rows, columns = objects.box_of(mask)
    return (rows.stop - rows.start) * (columns.stop - columns.start) <= MAX_SHARE * mask.size


def _means_one(pair: Pair, n: int, thing: int) -> bool:
    """Whether a thing's name fits no other thing in the frame: `dog` fits `a brown dog` too."""
    words = _words(pair.names[thing])
    present = set(np.unique(pair.masks[n]).tolist()) - {thing}
    return not any(words <= _words(pair.names[i]) for i in present if i in pair.names)


def _words(name: str) -> set[str]:
    return set(objects.bare_name(name).casefold().split())


def _colored_things(pair: Pair, rng: np.random.Generator) -> tuple[int, list[int], list[str]]:
    """A frame, its things from large to small, so that none hides a smaller one, and colours."""
    frames = [n for n in (0, 1) if _things(pair, n)]
    if not frames:
        raise UnsuitableError("no thing with a name")
    n = _choose(frames, rng)
    things = sorted(_things(pair, n), key=lambda i: -int((pair.masks[n] == i).sum()))[: len(COLORS)]
    colors = rng.permutation(list(COLORS))[: len(things)].tolist()
    return n, things, colors


def _choose(options: Sequence[Any] | np.ndarray, rng: np.random.Generator) -> Any:
    return options[int(rng.integers(len(options)))]
