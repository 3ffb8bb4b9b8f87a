"""What one can say about a MiniWorld scene: captions, referring expressions, instructions.

All text is lower case over the small closed `VOCABULARY`; the only punctuation is a comma. Left
and right are the image's, in front of and behind are nearer to and farther from the camera.

A relation is *said* only where it holds by a clear margin. A referring expression must in
addition fit no other object even when the margin is dropped, so a reader who judges more
generously than the scene graph still finds one object.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.miniworld import geometry
from data_pipelines.miniworld.scene import COLORS, FLOORS, SHAPES, SIZES, TEXTURES, Object, Scene

RELATIONS = ("left of", "right of", "in front of", "behind")
# How an instruction or a caption may word each relation besides its own name.
_RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "in front of": ("in front of",),
    "behind": ("behind",),
}
DIRECTIONS = ("left", "right", "front", "back")
EXTREMES = {
    "leftmost": "left of",
    "rightmost": "right of",
    "nearest": "in front of",
    "farthest": "behind",
}
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
SIDE_MARGIN = 0.08  # image widths between two centres
DEPTH_MARGIN = 0.5  # scene units of z-depth between two centres

_OTHER_WORDS = (
    "a add and appears are away behind camera change colour delete disappears floor front in is "
    "left light make move moves object objects of on paint put remove right rises sinks slide "
    "slides take the there to turns with"
)
VOCABULARY = frozenset(
    (
        *(*SHAPES, *(f"{shape}s" for shape in SHAPES)),
        *(*COLORS, *SIZES, *TEXTURES[1:], *FLOORS),
        *(*NUMBERS.values(), *EXTREMES, *DIRECTIONS),
        *_OTHER_WORDS.split(),
    )
)


class Seen(NamedTuple):
    """Where an object's centre is in the picture: x in image widths, z-depth in scene units."""

    x: float
    depth: float


class Reference(NamedTuple):
    """An expression that fits one object; `kind` is attribute, extreme or relation."""

    expression: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Phrase:
    """A noun phrase; None leaves an attribute open."""

    size: str | None = None
    texture: str | None = None
    color: str | None = None
    shape: str | None = None

    def fits(self, candidate: Object) -> bool:
        """Whether the object has every attribute that the phrase names."""
        return (
            self.size in (None, candidate.size)
            and self.texture in (None, TEXTURES[candidate.texture])
            and self.color in (None, candidate.color)
            and self.shape in (None, candidate.shape)
        )

    def __str__(self) -> str:
        words = (self.size, self.texture, self.color, self.shape or "object")
        return " ".join(w for w in words if w)


def describe(target: Object) -> Phrase:
    """The phrase that names every attribute; a plain texture is not mentioned."""
    texture = TEXTURES[target.texture] if target.texture else None
    return Phrase(target.size, texture, target.color, target.shape)


def view(scene: Scene) -> dict[int, Seen]:
    """Object id -> where its centre is seen."""
    centers = np.array([o.center for o in scene.objects])
    seen = geometry.project(scene.camera.frame, centers).tolist()
    return {o.id: Seen(x, depth) for o, (x, _, depth) in zip(scene.objects, seen, strict=True)}


def related(first: Seen, second: Seen, relation: str, *, margin: float = 1.0) -> bool:
    """Whether `first` is in `relation` to `second` by `margin` times the usual clearance."""
    if relation == "left of":
        return second.x - first.x > margin * SIDE_MARGIN
    if relation == "right of":
        return first.x - second.x > margin * SIDE_MARGIN
    if relation == "in front of":
        return second.depth - first.depth > margin * DEPTH_MARGIN
    return first.depth - second.depth > margin * DEPTH_MARGIN


def _attribute_phrases(scene: Scene, target: Object) -> list[Phrase]:
    """Phrases that fit the target alone, those with fewest words first."""
    full = vars(describe(target))
    names = [name for name, value in full.items() if value is not None]
    phrases = [
        Phrase(**{name: full[name] for name in chosen})
        for count in range(1, len(names) + 1)
        for chosen in itertools.combinations(names, count)
    ]
    return [p for p in phrases if not any(p.fits(o) for o in scene.objects if o.id != target.id)]


def references(scene: Scene, object_id: int) -> list[Reference]:
    """Every unambiguous expression for an object; empty if the language has none.

    Raises:
      KeyError: the scene has no such object.
    """
    target = scene.object(object_id)
    seen = view(scene)
    others = [o for o in scene.objects if o.id != object_id]
    found = [Reference(f"the {p}", "attribute") for p in _attribute_phrases(scene, target)]
    if len(scene.objects) == 1:
        found.append(Reference("the object", "attribute"))
    openings = [
        Phrase(),
        Phrase(shape=target.shape),
        Phrase(color=target.color, shape=target.shape),
    ]
    for phrase in openings:
        rivals = [o for o in others if phrase.fits(o)]
        if not rivals:
            continue  # the phrase alone names the target
        for extreme, relation in EXTREMES.items():
            if all(related(seen[object_id], seen[o.id], relation) for o in rivals):
                found.append(Reference(f"the {extreme} {phrase}", "extreme"))
        for anchor in others:
            anchor_phrases = _attribute_phrases(scene, anchor)
            if not anchor_phrases:
                continue
            for relation in RELATIONS:
                clear = related(seen[object_id], seen[anchor.id], relation)
                rival_fits = any(
                    related(seen[o.id], seen[anchor.id], relation, margin=0)
                    for o in rivals
                    if o.id != anchor.id
                )
                if clear and not rival_fits:
                    expression = f"the {phrase} {relation} the {anchor_phrases[0]}"
                    found.append(Reference(expression, "relation"))
    return found


def refer(scene: Scene, object_id: int, rng: np.random.Generator) -> str | None:
    """One unambiguous expression, each kind equally likely; None if the language has none."""
    found = references(scene, object_id)
    if not found:
        return None
    kinds = sorted({r.kind for r in found})
    kind = kinds[rng.integers(len(kinds))]
    return choose(rng, [r.expression for r in found if r.kind == kind])


def choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    """One of the options."""
    return options[int(rng.integers(len(options)))]


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _counted(count: int, noun: str) -> str:
    return f"a {noun}" if count == 1 else f"{NUMBERS[count]} {noun}s"


def _list_caption(scene: Scene, rng: np.random.Generator) -> str:
    """From left to right, as a reader would: the order tells equal shapes apart."""
    seen = view(scene)
    order = sorted(scene.objects, key=lambda o: seen[o.id].x)
    parts = _join([f"a {describe(o)}" for o in order])
    return choose(rng, (f"{parts} on a {scene.floor} floor", f"a {scene.floor} floor with {parts}"))


def _count_caption(scene: Scene, rng: np.random.Generator) -> str:
    with_color = rng.uniform() < 0.5
    phrases = [Phrase(color=o.color if with_color else None, shape=o.shape) for o in scene.objects]
    nouns = sorted({str(p) for p in phrases})
    parts = _join([_counted(sum(str(p) == n for p in phrases), n) for n in nouns])
    verb = "are" if parts.split()[0] in NUMBERS.values() else "is"
    options = (f"{parts} on a {scene.floor} floor", f"there {verb} {parts}")
    return choose(rng, options)


def _number_caption(scene: Scene, rng: np.random.Generator) -> str:
    count = len(scene.objects)
    number = f"{NUMBERS[count]} object{'s' if count > 1 else ''}"
    verb = "are" if count > 1 else "is"
    return choose(
        rng,
        (f"{number} on a {scene.floor} floor", f"there {verb} {number} on the {scene.floor} floor"),
    )


def _relation_caption(scene: Scene, rng: np.random.Generator) -> str:
    seen = view(scene)
    pairs = [
        (first, relation, second)
        for first, second in itertools.permutations(scene.objects, 2)
        for relation in RELATIONS
        if related(seen[first.id], seen[second.id], relation)
    ]
    if not pairs:
        return _list_caption(scene, rng)
    first, relation, second = pairs[rng.integers(len(pairs))]
    wording = choose(rng, _RELATION_WORDS[relation])
    caption = f"a {describe(first)} {wording} a {describe(second)}"
    return caption + choose(rng, ("", f" on a {scene.floor} floor"))


def captions(scene: Scene, rng: np.random.Generator, *, num_captions: int = 2) -> list[str]:
    """Captions: the first names every object from left to right, the others draw a template."""
    result = [_list_caption(scene, rng)]
    templates = [_list_caption, _count_caption, _number_caption]
    if len(scene.objects) > 1:
        templates += [_relation_caption, _relation_caption]
    while len(result) < num_captions:
        result.append(templates[rng.integers(len(templates))](scene, rng))
    return result


def recolor_instruction(rng: np.random.Generator, target: str, color: str) -> str:
    """`target` is a referring expression such as "the red cube"."""
    return choose(
        rng,
        (
            f"make {target} {color}",
            f"paint {target} {color}",
            f"change the colour of {target} to {color}",
        ),
    )


def remove_instruction(rng: np.random.Generator, target: str) -> str:
    """`target` is a referring expression."""
    return choose(rng, (f"remove {target}", f"delete {target}", f"take {target} away"))


def add_instruction(rng: np.random.Generator, added: Phrase, relation: str, anchor: str) -> str:
    """`relation` is one of `RELATIONS`, `anchor` a referring expression."""
    wording = choose(rng, _RELATION_WORDS[relation])
    return f"{choose(rng, ('add', 'put'))} a {added} {wording} {anchor}"


def move_instruction(rng: np.random.Generator, target: str, direction: str) -> str:
    """`target` is a referring expression, `direction` one of `DIRECTIONS`."""
    return f"{choose(rng, ('move', 'slide'))} {target} to the {direction}"


def background_instruction(rng: np.random.Generator, floor: str) -> str:
    """`floor` is one of `FLOORS`."""
    return choose(
        rng,
        (f"change the floor to {floor}", f"make the floor {floor}", f"paint the floor {floor}"),
    )


def as_instruction(rng: np.random.Generator, description: str) -> str:
    """What would bring about the change that a clip's description tells; as UniReal (section 3.2)
    lets a language model write instructions for a part of its video pairs.

    Camera moves and lights keep their description.
    """
    if found := re.fullmatch(r"(.+) disappears", description):
        return remove_instruction(rng, found[1])
    if found := re.fullmatch(r"a (.+) appears (.+)", description):
        return f"{choose(rng, ('add', 'put'))} a {found[1]} {found[2]}"
    found = re.fullmatch(r"(.+) (?:moves|slides) to the (.+)", description)
    if found and found[1] != "the camera":
        return move_instruction(rng, found[1], found[2])
    return description
