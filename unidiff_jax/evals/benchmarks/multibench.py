"""MultiBench, made again: two or three given objects in one picture (UNIMO-G section 4.1).

The paper says that it has 40 objects, ten in each of four categories, five templates, 2,300 prompts
with two or three objects, and four pictures a prompt. Neither its objects nor its prompts were
published. This is a **re-creation**: the templates and counts are the paper's, the objects are
those whose pictures the user has, and numbers cannot be compared with the paper's.

    living/dog.png    wearing/hat.png    toy/kite.png    food/pizza/00.jpg, food/pizza/01.jpg ...

The name of a file, or of a folder with several pictures, is what prompts call its object. Ten
objects a category make 300 prompts of two objects and 2,000 of three. A model that reads pictures
between words is asked `<img>dog.png</img> wearing <img>hat.png</img>`.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from data_pipelines.subjects.names import phrase
from unidiff_jax.evals.benchmarks.base import (
    PICTURE_SUFFIXES,
    Benchmark,
    BenchmarkError,
    Data,
    Item,
    Picture,
    Predictions,
    Score,
    picture_file,
    pictures_in,
)
from unidiff_jax.evals.benchmarks.scoring import Tools
from unidiff_jax.evals.benchmarks.subject_driven import (
    ENCODERS,
    SAMPLES,
    TASKS,
    score_subjects,
    subject_fields,
)
from unidiff_jax.tasks import PLACEHOLDER

CATEGORIES = ("living", "wearing", "toy", "food")
OBJECTS = 10
"""Of each category, in the paper."""

TEMPLATES = (
    "{living} wearing {wearing}",
    "{living} is playing with {toy}",
    "{living} is eating {food}",
    "{living} wearing {wearing}, is playing with {toy}",
    "{living} wearing {wearing}, is eating {food}",
)


def find_objects(folder: epath.Path) -> dict[str, dict[str, list[Picture]]]:
    """Pictures by name in each category, the one that the model is shown first.

    Raises:
      BenchmarkError: a category has none, or two of one name.
    """
    found: dict[str, dict[str, list[Picture]]] = {}
    for category in CATEGORIES:
        place = folder / category
        own: dict[str, list[Picture]] = {}
        for path in sorted(place.iterdir(), key=str) if place.is_dir() else []:
            if path.is_dir():
                name, files = path.name, [f"{path.name}/{file}" for file in pictures_in(path)]
            elif path.suffix.lower() in PICTURE_SUFFIXES:
                name, files = path.stem, [path.name]
            else:
                continue
            if name in own:
                raise BenchmarkError(f"{place} has two objects {name!r}")
            own[name] = [picture_file(folder, f"{category}/{file}") for file in files]
        found[category] = own
    if not all(found.values()):
        has = ", ".join(f"{category} {len(own)}" for category, own in found.items())
        raise BenchmarkError(
            f"{folder} must hold {OBJECTS} objects in each of {', '.join(CATEGORIES)}, such as "
            f"{CATEGORIES[0]}/dog.png; it has: {has}"
        )
    return found


def read_multibench(folder: epath.Path, split_name: str) -> list[Item]:
    """Every template with every choice of objects, mixed, so that a few are of all templates.

    Raises:
      BenchmarkError: a category without objects.
    """
    del split_name
    objects = find_objects(folder)
    chosen = [
        (template, names)
        for template in TEMPLATES
        for names in itertools.product(*(objects[slot] for slot in _slots(template)))
    ]
    order = np.random.default_rng(0).permutation(len(chosen))
    return [
        item
        for number in order.tolist()
        for item in _prompt_items(number, *chosen[number], objects=objects)
    ]


def _slots(template: str) -> list[str]:
    """Its categories, in order."""
    return sorted(
        (slot for slot in CATEGORIES if f"{{{slot}}}" in template),
        key=lambda slot: template.index(f"{{{slot}}}"),
    )


def _prompt_items(
    number: int,
    template: str,
    names: Sequence[str],
    *,
    objects: Mapping[str, Mapping[str, list[Picture]]],
) -> list[Item]:
    slots = _slots(template)
    pictures = [objects[slot][name] for slot, name in zip(slots, names, strict=True)]
    words = template.format_map(dict(zip(slots, map(phrase, names), strict=True)))
    fields = subject_fields(
        words,
        names,
        [own[0] for own in pictures],
        slots=template.format_map(dict.fromkeys(slots, PLACEHOLDER)),
    )
    return [
        Item(
            id=f"{number:04d}_{seed}",
            seed=seed,
            truth={"prompt": words, "references": pictures, "input": pictures[0][0]},
            **fields,
        )
        for seed in range(SAMPLES)
    ]


def _score_multibench(items: Sequence[Item], made: Predictions, tools: Tools) -> list[Score]:
    found = []
    for protocol, count in (("", 0), ("two", 2), ("three", 3)):
        chosen = [item for item in items if count in (0, len(item.truth["references"]))]
        found += score_subjects(
            chosen,
            made,
            tools,
            protocol=protocol,
            references=lambda item: item.truth["references"],
            grouped=False,
        )
    return found


MULTIBENCH = Benchmark(
    name="multibench",
    title="MultiBench (a re-creation: the paper's data are not public)",
    tables=("UNIMO-G, MultiBench",),
    tasks=TASKS,
    counts={"test": 2300 * SAMPLES},
    read=read_multibench,
    score=_score_multibench,
    extractors=ENCODERS,
    description=(
        "Prompts over two or three objects, 4 pictures each. CLIP-I and DINO: mean cosine with the "
        "pictures of each object, averaged over the objects; CLIP-T: cosine with the prompt; "
        "average: of the three. Means over pictures."
    ),
    data=Data(
        where="the user's own pictures of objects",
        licence="the user's",
        size="10 objects in each of 4 categories",
        layout="living/<name>.png, wearing/..., toy/..., food/...; or a folder of pictures a name",
    ),
    deviations=(
        "MultiBench's objects and prompts are not public: these are others, by its templates.",
        "The paper names neither encoders nor the pictures that it compares with.",
    ),
    rows={"copy input": lambda item: item.truth["input"].open()},
    shuffles=True,
    samples="clip_i",
)
