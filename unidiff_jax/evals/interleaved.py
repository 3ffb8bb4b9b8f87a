"""Prompts with pictures between the words, judged by which thing stands where.

Held-out subjects as `subjects`, in scenes of one to three things beside each other, all of them
given by pictures: `<p> on the left and <p> on the right, on a light blue background`. The drawn
picture is cut into as many equal strips as it has things, along the axis that the prompt speaks of.
In each strip the largest part that differs from the background is compared with the thing that
belongs there, with the other things of the prompt and with further held-out ones.

| entry | what the model is given |
|---|---|
| `interleave_1`, `interleave_2`, `interleave_3` | so many pictures in the prompt |
| `interleave_swapped` | two pictures, exchanged: each thing is to stand in the other's place |
| `interleave_words` | the words alone: what names tell of things that were never seen |
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from data_pipelines.subjects.captions import PLACEHOLDER, say_places
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
from unidiff_jax.evals.subjects import CANDIDATES, Look, distance, find_thing, is_seen, look_of
from unidiff_jax.tasks import get_task


class Entry(NamedTuple):
    """What an entry asks.

    Attributes:
      things: number of pictures and things.
      swapped: whether the pictures are exchanged.
      words: whether words stand in the pictures' place.
    """

    things: int
    swapped: bool = False
    words: bool = False


ENTRIES = {
    "interleave_1": Entry(1),
    "interleave_2": Entry(2),
    "interleave_3": Entry(3),
    "interleave_swapped": Entry(2, swapped=True),
    "interleave_words": Entry(2, words=True),
}
"""By name, in the order of the results."""


TRIES = 24
"""Scenes of a record that are drawn in search of one whose things stand beside each other."""


def interleave_protocol(source: SubjectScenes, name: str, *, num_items: int) -> Protocol:
    """The protocol of one of `ENTRIES`.

    Args:
      source: of the split.
      name: of the entry.
      num_items: the first so many that it offers.

    Raises:
      TooFewItemsError: fewer than two, or fewer than `CANDIDATES` different things.
    """
    entry, task = ENTRIES[name], get_task("interleave")
    indices, items = [], []
    for index in range(len(source)):
        if len(items) == num_items:
            break
        item = _compose(source, index, entry.things)
        if item is not None:
            indices.append(index)
            items.append(item)
    title = f"{task.title}: {_title(entry)}"
    if len(items) < 2:
        raise TooFewItemsError(f"{title}: the split has {len(items)} items, at least 2")
    order = _add_candidates(items)
    if entry.swapped:
        items = [{**item, "assets": item["assets"][::-1], **_turned(item)} for item in items]
    if entry.words:
        items = [
            item | {"slots": item["caption"], "assets": [], "entity_masks": []} for item in items
        ]

    def score(outputs: RGBs, items: Items) -> np.ndarray:
        pairs = zip(read(outputs), items, strict=True)
        return np.asarray([_share_recognised(rgb, item) for rgb, item in pairs], np.float64)

    def details(outputs: RGBs, items: Items) -> dict[str, np.ndarray]:
        pixels = read(outputs)
        masks = [_find(x, item) for x, item in zip(pixels, items, strict=True)]
        whole = [all(map(is_seen, own)) for own in masks]
        return {
            "all things found": np.asarray(whole, np.float64),
            "all recognised": (score(outputs, items) == 1).astype(np.float64),
            "PSNR (dB)": metrics.psnr(pixels, target=stack(items, "later")),
        }

    truth = draw(items, "later")
    return Protocol(
        name=name,
        task=task,
        title=title,
        metric=f"recognised among {CANDIDATES} in its place",
        text=(
            "The picture is cut into as many strips as it has things, along the axis of the "
            "prompt. In each, what differs from the background that the prompt names is compared "
            f"with the thing that belongs there and {CANDIDATES - 1} others, first those of the "
            "other strips; the share of strips whose own thing is nearest. Shuffled: the same "
            + (
                "outputs, with the things in the next strips' places."
                if entry.things > 1
                else "outputs, with one of the others in the place of the true thing."
            )
        ),
        indices=tuple(indices),
        items=items,
        others=[item | _turned(item) for item in items],
        floors={
            "another scene": truth[order],
            "background": draw(items, "behind"),
            "mean scene": np.broadcast_to(truth.mean(axis=0), truth.shape),
        },
        score=score,
        details=details,
        worst=0.0,
        bounded=not entry.swapped,  # no picture shows the exchanged things
    )


def _title(entry: Entry) -> str:
    if entry.swapped:
        return "two pictures exchanged"
    if entry.words:
        return "words alone"
    return f"{entry.things} picture{'s' if entry.things > 1 else ''}"


def _compose(source: SubjectScenes, index: int, things: int) -> dict[str, Any] | None:
    """The first scene of a record that is of the kind; None where none of `TRIES` is."""
    task, record = get_task("interleave"), source[index]
    for attempt in range(TRIES):
        item = source.item(record, task, np.random.default_rng([task.id, index, attempt]))
        if item is not None and (strips := _strips(item, things)) is not None:
            return {**item, **strips}
    return None


def _strips(item: Mapping[str, Any], things: int) -> dict[str, Any] | None:
    """The axis of an item, and by strip its things' looks and words; None where it is not of the
    kind.
    """
    shown = item["shown"]
    if len(item["words"]) != things or len(shown) != things:
        return None
    places, axis = say_places(item["instance"], things), 0
    if things > 1:
        if places is None or not item["slots"].startswith(f"{PLACEHOLDER} {places[shown[0]]}"):
            return None
        axis = int("at the top" in places)  # 0: strips side by side
    middles = [np.argwhere(item["instance"] == 1 + i).mean(axis=0)[1 - axis] for i in range(things)]
    order = np.argsort(middles).tolist()
    own = [look_of(item["later"], item["instance"] == 1 + i) for i in order]
    return {"axis": axis, "own": own, "named": [item["words"][i] for i in order]}


def _add_candidates(items: list[dict[str, Any]]) -> np.ndarray:
    """Gives each item looks of others, `candidates`; returns an order without fixed points."""
    order = shuffled_order(len(items))
    for number, item in enumerate(items):
        wanted, place = CANDIDATES - len(item["own"]), number
        found: list[Look] = []
        for _ in items:
            place = int(order[place])
            other = items[place]
            pairs = zip(other["named"], other["own"], strict=True)
            found += [look for words, look in pairs if words not in item["words"]]
        if len(found) < wanted:
            raise TooFewItemsError(
                f"the split has {len(item['own']) + len(found)} different things, {CANDIDATES} are "
                "compared"
            )
        item["candidates"] = found[:wanted]
    return order


def _turned(item: Mapping[str, Any]) -> dict[str, Any]:
    """The looks, each in the next strip's place; a lone one's place goes to a candidate."""
    first, *rest = item["own"]
    if rest:
        return {"own": [*rest, first]}
    other, *others = item["candidates"]
    return {"own": [other], "candidates": [*others, first]}


def _find(
    picture: UInt8[np.ndarray, "h w 3"], item: Mapping[str, Any]
) -> list[Bool[np.ndarray, "h w"]]:
    """What is seen in each strip."""
    count, masks = len(item["own"]), []
    edges = np.rint(np.linspace(0, len(picture), count + 1)).astype(int)
    for start, stop in itertools.pairwise(edges):
        strip: list[Any] = [slice(None), slice(None)]
        strip[1 - item["axis"]] = slice(start, stop)
        inside = np.array(item["behind"])
        inside[tuple(strip)] = picture[tuple(strip)]
        masks.append(find_thing(inside, behind=item["behind"]))
    return masks


def _share_recognised(picture: UInt8[np.ndarray, "h w 3"], item: Mapping[str, Any]) -> float:
    """Share of strips in which the thing that belongs there is the nearest of all."""
    hits = 0
    for number, mask in enumerate(_find(picture, item)):
        if not is_seen(mask):
            continue
        look = look_of(picture, mask)
        others = [*item["own"][:number], *item["own"][number + 1 :], *item["candidates"]]
        own = distance(look, item["own"][number])
        hits += all(own < distance(look, other) for other in others)
    return hits / len(item["own"])
