"""Interleaved prompts: pictures of entities in the place of their words (UNIMO-G section 3.3).

    a fox on the left and a pizza on the right
    <p> on the left and a pizza on the right          and a picture of the fox

`interleave` turns a caption, and what is known of the things in it, into the fields of the task
`interleave`. Three sources use it:

| from | pictures of entities |
|---|---|
| annotated images (`sources.annotated`) | cut out of the picture itself, as in the paper |
| video (`sources.pairs`, `miniworld.items`) | cut out of another frame |
| composed scenes (`subjects.items`) | drawn anew, otherwise turned, mirrored and lit |

The paper says how many entities its prompts have, not how they were drawn. Here the number is drawn
from these shares, and all are taken where there are fewer.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from data_pipelines import objects
from unidiff_jax.tasks import PLACEHOLDER

RATES = (0.16, 0.368, 0.258, 0.123, 0.091)
"""Share of prompts with 0, 1, 2, 3, and with 4 or more entities (appendix, mean 1.67)."""

MAX_ENTITIES = len(RATES) - 1
"""Stands for four or more."""

PLAIN = 0.1
"""Share of examples of the second stage that are captions without any picture."""


class Entity(NamedTuple):
    """A thing that a caption names.

    Attributes:
      names: what the caption may call it, the most telling first, with or without an article.
      mask: where it is in the picture that is to be made.
      picture: the thing alone, of any size.
    """

    names: Sequence[str]
    mask: Bool[np.ndarray, "h w"]
    picture: UInt8[np.ndarray, "rows columns 3"]


class Span(NamedTuple):
    """Characters of a caption, `caption[start:stop]`."""

    start: int
    stop: int


def draw_count(rng: np.random.Generator) -> int:
    """How many entities a prompt is to have, by `RATES`."""
    return int(rng.choice(len(RATES), p=RATES))


def interleave(
    caption: str, entities: Sequence[Entity], *, count: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Fields of the task `interleave` but for the picture that is made.

    Args:
      caption: of that picture.
      entities: things in it; those that the caption does not name, or names more than once, cannot
        be chosen.
      count: how many become pictures, see `draw_count`; fewer where there are fewer.
      rng: chooses them.

    Returns:
      `slots`, the caption with `PLACEHOLDER` for each chosen entity and its article; in the order
      of the caption `assets`, their pictures, `entity_masks`, where they are, and `shown`, their
      numbers.
    """
    spans = find_spans(caption, [entity.names for entity in entities])
    named = [i for i, span in enumerate(spans) if span is not None]
    chosen = rng.permutation(named)[:count].tolist() if named else []
    order = sorted(chosen, key=lambda i: spans[i])
    slots, end = "", 0
    for i in order:
        slots += caption[end : spans[i].start] + PLACEHOLDER
        end = spans[i].stop
    return {
        "slots": slots + caption[end:],
        "assets": [entities[i].picture for i in order],
        "entity_masks": [entities[i].mask for i in order],
        "shown": order,
    }


def find_spans(caption: str, names: Sequence[Sequence[str]]) -> list[Span | None]:
    """Where a caption names each of some things, with the article; None where it is not clear.

    It is clear if one of the thing's names stands in the caption once, no other thing has that
    name, and it is no part of another thing's longer name: in `a dog and a hot dog` the dog is `a
    dog`.

    Args:
      caption: a sentence.
      names: of each thing what it may be called, the most telling first.

    Example:
      >>> find_spans("a dog and a ball", [["ball"], ["the dog"], ["cat"]])
      [Span(start=10, stop=16), Span(start=0, stop=5), None]
    """
    bare = [[objects.bare_name(name).casefold() for name in own] for own in names]
    found: list[Span | None] = [None] * len(names)
    taken = np.zeros(len(caption) + 1, bool)
    candidates = {(name, thing) for thing, own in enumerate(bare) for name in own if name}
    rank = {(name, thing): bare[thing].index(name) for name, thing in candidates}
    for name, thing in sorted(candidates, key=lambda c: (-len(c[0]), rank[c], c[1])):
        spans = [span for span in _occurrences(caption, name) if not taken[slice(*span)].any()]
        unique = not any(name in own for i, own in enumerate(bare) if i != thing)
        if found[thing] is None and len(spans) == 1 and unique:
            found[thing] = spans[0]
        for span in spans:  # a longer name's words are no shorter name's
            taken[slice(*span)] = True
    return found


def _occurrences(caption: str, name: str) -> list[Span]:
    words = rf"(?<!\w)(?:(?:a|an|the|some)\s+)?{re.escape(name)}(?!\w)"
    return [Span(*match.span()) for match in re.finditer(words, caption, re.IGNORECASE)]
