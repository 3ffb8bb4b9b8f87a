"""Training and evaluation items from subjects: scenes are drawn as they are asked for.

| field | what |
|---|---|
| image, caption | a scene of one to three things, and what it shows |
| mask, expression | one of its things, and what it is called |
| holed | the scene with a grey box over one thing |
| later | a scene, to be made from references |
| assets, references | some of its things, each alone on white, drawn otherwise, and their names |
| canvas | the scene with a grey box over the one thing that is referred to |
| slots | the caption with `captions.PLACEHOLDER` for each of those things, in order of `assets` |
| entity_masks | where the things of `assets` are; for `interleave`, whose scenes have as many \
of them as UNIMO-G's prompts (`interleaved.RATES`), up to three |
| views, captions, name | scenes of one thing in the same look, what each shows, and its name |

A task whose prompt has `slots`, but no frames of `assets`, gets one of these all the same: for its
features, which stand at the placeholder. `identity` takes subjects of several looks alone: there
words do not tell which look is meant.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines import objects
from data_pipelines.interleaved import Entity, draw_count, interleave
from data_pipelines.subjects.captions import caption, expression, say_places
from data_pipelines.subjects.names import are_apart, has_side, phrase
from data_pipelines.subjects.records import Subject, SubjectError, decode_subject, open_subjects
from data_pipelines.subjects.scenes import Scene, draw_asset, draw_scene
from unidiff_jax.paths import AnyPath
from unidiff_jax.tasks import TASKS, Task

_FIELDS = frozenset(
    "image caption mask expression holed later assets references canvas slots views captions "
    "name".split()
)


def can_fill(task: Task) -> bool:
    """Whether scenes have what a task's frames and prompts ask for."""
    return {frame.field for frame in task.frames} | {*task.prompt_fields} <= _FIELDS


TASK_NAMES = tuple(name for name, task in TASKS.items() if can_fill(task))
"""Tasks whose fields scenes can fill."""

SCENES = 8
"""Scenes of a subject in one pass over a split."""

NUM_THINGS = {1: 0.4, 2: 0.4, 3: 0.2}
"""How often a scene has so many things."""

UNPLACED = 0.25
"""Share of captions and expressions that say nothing of places."""

MIN_LOOKS = 3
"""Looks from which on a subject's words do not tell its identity."""

NUM_VIEWS = (2, 3)

TRIES = 16
"""Drawings in which a thing may be seen too little, before a scene is given up."""


class SubjectScenes:
    """Subjects of one split, and scenes of them for every task of `TASK_NAMES`.

    Example:
      >>> source = SubjectScenes("data/subjects-32", split="train", size=32)
      >>> source.item(source[0], get_task("customize"), np.random.default_rng(0))["assets"]
    """

    def __init__(self, folder: AnyPath, *, split: str, size: int):
        """Opens a split.

        Args:
          folder: made by `launch.subjects`.
          split: train, validation or test.
          size: pixels a side of the pictures.

        Raises:
          SubjectError: no such folder or split, or its looks are smaller than the pictures.
        """
        opened = open_subjects(folder, split)
        if opened.size < size:
            raise SubjectError(
                f"{folder} has looks of {opened.size} pixels a side, for pictures of {size}; make "
                f"others with python -m launch.subjects --size {size}"
            )
        self._records, self._words, self._size = opened.records, opened.words, size

    def __len__(self) -> int:
        return SCENES * len(self._records)

    def __getitem__(self, index: int) -> Subject:
        """The subject of which a scene is to be drawn."""
        return decode_subject(self._records[range(len(self))[index] % len(self._records)])

    def name(self, index: int) -> str:
        return self._records.name(range(len(self))[index] % len(self._records))

    def prompts(self, index: int, rng: np.random.Generator) -> list[str]:
        """Texts of a random scene, for training a tokenizer."""
        things = self._company(self[index], rng)
        words = [thing.words for thing in things]
        texts = [objects.name_references(words, first=1), *map(expression, words)]
        scene = self._draw([(thing, 0) for thing in things], rng)
        return texts if scene is None else [*texts, _caption(words, scene, rng)]

    def item(
        self, record: Subject, task: Task, rng: np.random.Generator
    ) -> Mapping[str, Any] | None:
        """Fields for a task, with random choices from `rng`; None where the record has none.

        Beside the task's own fields an item has what evaluation needs: `words` of the things,
        `instance` (uint8 (h, w), 1 + number of the thing), `behind` (the picture without things),
        `shown` (numbers of the things that the
        item is about, in the order of `assets`) and, with `holed`, the `hole` (bool (h, w)).
        """
        frames = {frame.field for frame in task.frames}
        fields = frames | {*task.prompt_fields}
        if "views" in fields:
            few = task.name == "identity" and len(record.looks) < MIN_LOOKS
            return None if few else self._views(record, rng)
        wanted = min(draw_count(rng), max(NUM_THINGS)) if task.optional else 0
        things = [
            (thing, int(rng.integers(len(thing.looks))))
            for thing in self._company(record, rng, least=max(wanted, 1))
        ]
        scene = self._draw(things, rng)
        if scene is None:
            return None
        words, order = [thing.words for thing, _ in things], rng.permutation(len(things)).tolist()
        places = say_places(scene.instance, len(things))
        item: dict[str, Any] = {"words": words, "instance": scene.instance, "behind": scene.behind}
        said = places if rng.random() >= UNPLACED else None
        item["caption"] = caption(words, background=scene.background, places=said, order=order)
        if task.optional:
            entities = [
                Entity([phrase(thing.words)], scene.instance == n, self._asset(thing, look, rng))
                for n, (thing, look) in enumerate(things, start=1)
            ]
            found = interleave(item["caption"], entities, count=wanted, rng=rng)
            return {**item, **found, "later": scene.picture}
        one = int(rng.integers(len(things)))
        mask = scene.instance == 1 + one
        if "image" in fields:
            item["image"] = scene.picture
        if "mask" in fields:
            named = places[one] if places is not None and rng.random() >= UNPLACED else None
            item["mask"], item["expression"] = mask, expression(words[one], place=named)
            item["shown"] = [one]
        if "holed" in fields:
            item["holed"] = objects.cover(scene.picture, [mask])
            item["hole"] = np.zeros(mask.shape, bool)
            item["hole"][objects.box_of(mask)] = True
            item["shown"] = [one]
        if "later" in fields:
            item["later"] = scene.picture
        if {"assets", "slots"} & fields:
            has_canvas = "canvas" in fields
            alone = has_canvas or "assets" not in frames
            count = 1 if alone else int(rng.integers(1, len(things) + 1))
            chosen = {one, *rng.permutation(len(things))[: count - 1].tolist()}
            item["shown"] = shown = [i for i in order if i in chosen]
            item["assets"] = [self._asset(things[i][0], things[i][1], rng) for i in shown]
            item["references"] = objects.name_references(
                [words[i] for i in shown], first=2 if has_canvas else 1
            )
            item["slots"] = caption(
                words, background=scene.background, places=said, order=order, replaced=shown
            )
            if has_canvas:
                item["canvas"] = objects.cover(scene.picture, [mask])
        return item

    def _company(
        self, record: Subject, rng: np.random.Generator, *, least: int = 1
    ) -> list[Subject]:
        """The subject and others whose words tell them apart, in random order."""
        count = int(rng.choice(list(NUM_THINGS), p=list(NUM_THINGS.values())))
        count = max(count, least)
        things = [record]
        for place in rng.permutation(len(self._words)).tolist():
            if len(things) == count:
                break
            if all(are_apart(self._words[place], thing.words) for thing in things):
                things.append(decode_subject(self._records[place]))
        return [things[i] for i in rng.permutation(len(things))]

    def _draw(
        self, things: Sequence[tuple[Subject, int]], rng: np.random.Generator
    ) -> Scene | None:
        """A scene in which every thing is seen; None where one is too thin."""
        looks = [thing.looks[look] for thing, look in things]
        sided = [has_side(thing.words) for thing, _ in things]
        least = objects.MIN_SHARE * self._size**2
        for _ in range(TRIES):
            scene = draw_scene(looks, size=self._size, sided=sided, rng=rng)
            if np.bincount(scene.instance.ravel(), minlength=len(looks) + 1)[1:].min() >= least:
                return scene
        return None

    def _asset(self, thing: Subject, look: int, rng: np.random.Generator) -> np.ndarray:
        return draw_asset(thing.looks[look], size=self._size, sided=has_side(thing.words), rng=rng)

    def _views(self, record: Subject, rng: np.random.Generator) -> Mapping[str, Any] | None:
        look = int(rng.integers(len(record.looks)))
        count = int(rng.integers(NUM_VIEWS[0], NUM_VIEWS[1] + 1))
        drawn = [self._draw([(record, look)], rng) for _ in range(count)]
        scenes = [scene for scene in drawn if scene is not None]
        if len(scenes) < count:
            return None
        captions = [
            f"[[img{i}]] {_caption([record.words], scene, rng)}" for i, scene in enumerate(scenes)
        ]
        return {
            "views": [scene.picture for scene in scenes],
            "captions": " ".join(captions),
            "name": record.words,
            "words": [record.words],
            "look": look,
        }


def _caption(words: Sequence[str], scene: Scene, rng: np.random.Generator) -> str:
    places = say_places(scene.instance, len(words)) if rng.random() >= UNPLACED else None
    return caption(words, background=scene.background, places=places)


def num_frames(task: Task) -> int:
    """The most frames that an item of a task has."""
    fields = {frame.field for frame in task.frames}
    most = NUM_VIEWS[1] if "views" in fields else objects.MAX_ASSETS
    once = not task.repeats or "canvas" in fields
    return len(task.frames) + (0 if once else task.repeats * (most - 1))
