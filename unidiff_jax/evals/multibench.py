"""MultiBench, made again: two or three given objects in one picture (UNIMO-G section 4.1).

The paper says that it has 40 objects, ten in each of four categories, five templates, 2,300 prompts
with two or three objects, and four pictures a prompt. Neither its objects nor its prompts were
published. This is a **re-creation**: the templates and counts are the paper's, the objects are
those whose pictures the user has, and numbers cannot be compared with the paper's.

    FOLDER/living/dog.png  FOLDER/wearing/hat.png  FOLDER/toy/kite.png  FOLDER/food/pizza.png  ...

A file's name is what prompts call its object; ten pictures a category make 300 prompts of two
objects and 2,000 of three. `launch.multibench` writes

    OUT/prompts.jsonl          {"number", "text", "prompt", "objects": {category: name}} a line
    OUT/samples/00000_0.png    picture 0 of prompt 0

for scoring with DINO and CLIP: `score` takes embeddings, of whatever encoder.
"""

import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from data_pipelines.subjects.names import phrase
from unidiff_jax.config import ConfigError
from unidiff_jax.paths import AnyPath, as_path, written_whole
from unidiff_jax.prompts import ImageReference, Part, format_prompt

CATEGORIES = ("living", "wearing", "toy", "food")
OBJECTS = 10
"""Of each category."""

TEMPLATES = (
    "{living} wearing {wearing}",
    "{living} is playing with {toy}",
    "{living} is eating {food}",
    "{living} wearing {wearing}, is playing with {toy}",
    "{living} wearing {wearing}, is eating {food}",
)
SAMPLES = 4
"""Pictures a prompt."""

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


class Prompt(NamedTuple):
    """One prompt.

    Attributes:
      number: in the order of the benchmark.
      objects: name by category, in the order of the template.
      text: in words alone, for CLIP-T.
      parts: with a reference to each object's picture (`prompts.Part`).
    """

    number: int
    objects: Mapping[str, str]
    text: str
    parts: Sequence[Part]


def read_references(folder: AnyPath) -> dict[str, dict[str, pathlib.Path]]:
    """Picture by name in each category.

    Raises:
      ConfigError: a category has not `OBJECTS` pictures; says how many each has.
    """
    found = {}
    for category in CATEGORIES:
        inside = pathlib.Path(folder) / category
        files = sorted(inside.iterdir()) if inside.is_dir() else []
        found[category] = {file.stem: file for file in files if file.suffix.lower() in _ENDINGS}
    counts = {category: len(files) for category, files in found.items()}
    if set(counts.values()) != {OBJECTS}:
        has = ", ".join(f"{category} {count}" for category, count in counts.items())
        raise ConfigError(
            f"{folder} must hold {OBJECTS} pictures in each of {', '.join(CATEGORIES)}, such as "
            f"{CATEGORIES[0]}/dog.png; it has: {has}"
        )
    return found


def make_prompts(references: Mapping[str, Mapping[str, pathlib.Path]]) -> Iterator[Prompt]:
    """All prompts: every template with every choice of objects, 2,300 of ten a category."""
    number = 0
    for template in TEMPLATES:
        slots = [category for category in CATEGORIES if f"{{{category}}}" in template]
        for names in itertools.product(*(references[category] for category in slots)):
            objects = dict(zip(slots, names, strict=True))
            yield Prompt(
                number,
                objects,
                template.format_map({slot: phrase(name) for slot, name in objects.items()}),
                _fill(template, {slot: references[slot][name] for slot, name in objects.items()}),
            )
            number += 1


def _fill(template: str, pictures: Mapping[str, pathlib.Path]) -> list[Part]:
    parts: list[Part] = []
    for words in template.replace("{", "\0{").replace("}", "}\0").split("\0"):
        if words:
            slot = words.strip("{}")
            parts.append(ImageReference(pictures[slot]) if words[0] == "{" else words)
    return parts


def write_prompts(folder: AnyPath, prompts: Sequence[Prompt]) -> None:
    """Writes `prompts.jsonl`; a name stands for its picture as `prompts.parse_prompt` reads it."""
    with written_whole(as_path(folder) / "prompts.jsonl") as file:
        file.write_text("".join(json.dumps(_line(prompt)) + "\n" for prompt in prompts))


def _line(prompt: Prompt) -> dict[str, Any]:
    return {
        "number": prompt.number,
        "text": prompt.text,
        "prompt": format_prompt(prompt.parts),
        "objects": dict(prompt.objects),
    }


def sample_name(number: int, sample: int) -> str:
    """The file of a picture, under `samples`."""
    return f"{number:05}_{sample}.png"


class Score(NamedTuple):
    """Means over prompts and samples.

    Attributes:
      pictures: cosine to the pictures of the prompt's objects, averaged over these (DINO, CLIP-I).
      text: cosine to the words (CLIP-T).
      exchanged: as `pictures`, to all objects that are not the prompt's: what chance gives.
    """

    pictures: float
    text: float
    exchanged: float


def score(
    prompts: Sequence[Prompt],
    *,
    samples: Float[np.ndarray, "prompts samples d"],
    references: Mapping[str, Float[np.ndarray, "d"]],
    texts: Float[np.ndarray, "prompts d"] | None = None,
    text_samples: Float[np.ndarray, "prompts samples e"] | None = None,
) -> Score:
    """Scores embeddings of length 1.

    Args:
      prompts: those that were sampled.
      samples: embeddings of their pictures.
      references: embedding of each object, by name.
      texts: embeddings of their words; None leaves CLIP-T out (NaN).
      text_samples: embeddings of their pictures in the space of the words; None is `samples`.
    """
    own, other = [], []
    for prompt, found in zip(prompts, samples, strict=True):
        mine = [references[name] for name in prompt.objects.values()]
        own.append(np.mean([found @ vector for vector in mine]))
        rest = [
            vector for name, vector in references.items() if name not in prompt.objects.values()
        ]
        other.append(np.mean([found @ vector for vector in rest]) if rest else np.nan)
    said = np.nan
    if texts is not None:
        pictures = samples if text_samples is None else text_samples
        said = float(np.mean(np.einsum("psd,pd->ps", pictures, texts)))
    return Score(float(np.mean(own)), said, float(np.mean(other)))
