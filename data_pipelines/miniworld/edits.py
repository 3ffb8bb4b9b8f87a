"""Edit pairs: an instruction, the scene before and the scene after.

The after scene is the before scene with one change, so re-rendering it gives an exact target in
which shadows and occlusions follow by construction. Distances are
fixed (`MOVE_STEP`, `ADD_GAP`), so the instruction and the picture determine the answer.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from data_pipelines.miniworld import language
from data_pipelines.miniworld.scene import (
    COLORS,
    FLOORS,
    HELDOUT_PAIRS,
    MAX_OBJECTS,
    SHAPES,
    SIZES,
    Camera,
    Object,
    Scene,
    heldout_factors,
    is_valid,
)

MOVE_STEP = 1.0  # scene units
ADD_GAP = 0.4  # scene units between the new object's footprint and its anchor's
_ATTEMPTS = 16
# Each relation and direction as a step on the floor: (to the camera's right, away from it).
_STEPS = {
    "left of": (-1, 0),
    "right of": (1, 0),
    "in front of": (0, -1),
    "behind": (0, 1),
    "left": (-1, 0),
    "right": (1, 0),
    "front": (0, -1),
    "back": (0, 1),
}


@dataclasses.dataclass(frozen=True)
class Edit:
    """One edit pair. `object` is the id of the changed object, 0 for the floor."""

    kind: str
    instruction: str
    before: Scene
    after: Scene
    object: int


def floor_step(camera: Camera, direction: str) -> tuple[float, float]:
    """The unit step (x, z) on the floor along a relation or direction, as the camera sees it."""
    a = math.radians(camera.azimuth)
    right, away = _STEPS[direction]
    return (
        right * math.cos(a) - away * math.sin(a),
        -right * math.sin(a) - away * math.cos(a),
    )


def shifted(target: Object, camera: Camera, direction: str, distance: float) -> Object:
    """The object moved by `distance` scene units along a direction of the camera's view."""
    x, z = floor_step(camera, direction)
    return dataclasses.replace(
        target, x=round(target.x + distance * x, 3), z=round(target.z + distance * z, 3)
    )


def placed(
    template: Object, anchor: Object, camera: Camera, relation: str, *, gap: float = ADD_GAP
) -> Object:
    """The template beside the anchor, `gap` units away, its front turned to the camera."""
    beside = dataclasses.replace(template, x=anchor.x, z=anchor.z, yaw=camera.azimuth)
    return shifted(beside, camera, relation, anchor.footprint + template.footprint + gap)


def is_allowed(scene: Scene, factors: frozenset[str]) -> bool:
    """Whether a scene is valid and shows no held-out factor besides `factors`."""
    return heldout_factors(scene) <= factors and is_valid(scene)


def _pick(rng: np.random.Generator, scene: Scene) -> Object:
    return scene.objects[rng.integers(len(scene.objects))]


def _recolor(scene: Scene, rng: np.random.Generator, next_id: int) -> Edit | None:
    target = _pick(rng, scene)
    expression = language.refer(scene, target.id, rng)
    color = COLORS[rng.integers(len(COLORS))]
    if expression is None or color == target.color:
        return None
    after = scene.with_object(dataclasses.replace(target, color=color))
    instruction = language.recolor_instruction(rng, expression, color)
    return Edit("recolor", instruction, scene, after, target.id)


def _remove(scene: Scene, rng: np.random.Generator, next_id: int) -> Edit | None:
    target = _pick(rng, scene)
    expression = language.refer(scene, target.id, rng)
    if expression is None or len(scene.objects) == 1:
        return None
    instruction = language.remove_instruction(rng, expression)
    return Edit("remove", instruction, scene, scene.without_object(target.id), target.id)


def random_addition(scene: Scene, rng: np.random.Generator, next_id: int):
    """A new plain object beside an existing one: (object, relation, anchor's expression) or None.

    The colour-shape pair is held out only if the scene shows a held-out pair already.
    """
    anchor = _pick(rng, scene)
    expression = language.refer(scene, anchor.id, rng)
    shape, color = SHAPES[rng.integers(len(SHAPES))], COLORS[rng.integers(len(COLORS))]
    size = SIZES[rng.integers(len(SIZES))]
    relation = language.RELATIONS[rng.integers(len(language.RELATIONS))]
    if expression is None or len(scene.objects) == MAX_OBJECTS:
        return None
    if (color, shape) in HELDOUT_PAIRS and "pair" not in heldout_factors(scene):
        return None
    added = placed(Object(next_id, shape, color, size, 0.0, 0.0), anchor, scene.camera, relation)
    return added, relation, expression


def _add(scene: Scene, rng: np.random.Generator, next_id: int) -> Edit | None:
    addition = random_addition(scene, rng, next_id)
    if addition is None:
        return None
    added, relation, expression = addition
    phrase = language.describe(added)
    instruction = language.add_instruction(rng, phrase, relation, expression)
    return Edit("add", instruction, scene, scene.with_object(added), next_id)


def _move(scene: Scene, rng: np.random.Generator, next_id: int) -> Edit | None:
    target = _pick(rng, scene)
    expression = language.refer(scene, target.id, rng)
    direction = language.DIRECTIONS[rng.integers(len(language.DIRECTIONS))]
    if expression is None:
        return None
    after = scene.with_object(shifted(target, scene.camera, direction, MOVE_STEP))
    instruction = language.move_instruction(rng, expression, direction)
    return Edit("move", instruction, scene, after, target.id)


def _background(scene: Scene, rng: np.random.Generator, next_id: int) -> Edit | None:
    floor = FLOORS[rng.integers(len(FLOORS))]
    if floor == scene.floor:
        return None
    instruction = language.background_instruction(rng, floor)
    return Edit("background", instruction, scene, dataclasses.replace(scene, floor=floor), 0)


_EDITORS: dict[str, Callable[[Scene, np.random.Generator, int], Edit | None]] = {
    "recolor": _recolor,
    "remove": _remove,
    "add": _add,
    "move": _move,
    "background": _background,
}
KINDS = tuple(_EDITORS)
# An addition finds room in a third of the scenes only, so it is tried first more often.
_WEIGHTS = {"recolor": 1, "remove": 1, "add": 4, "move": 1, "background": 0.7}


def sample_edit(
    scene: Scene, rng: np.random.Generator, *, kind: str, next_id: int | None = None
) -> Edit | None:
    """A valid edit of one kind, or None if `_ATTEMPTS` draws find none.

    The after scene is valid and shows no held-out factor that `scene` does not show, so edits of
    a train scene stay train scenes.

    Args:
      scene: the scene before.
      rng: draws the object, the change and the wording.
      kind: one of `KINDS`.
      next_id: the id of an added object; by default one more than the largest in the scene.

    Raises:
      KeyError: an unknown kind.
    """
    editor = _EDITORS[kind]
    factors = heldout_factors(scene)
    if next_id is None:
        next_id = 1 + max(o.id for o in scene.objects)
    for _ in range(_ATTEMPTS):
        edit = editor(scene, rng, next_id)
        if edit is not None and is_allowed(edit.after, factors):
            return edit
    return None


def sample_edits(
    scene: Scene, rng: np.random.Generator, *, num_edits: int = 3, next_id: int | None = None
) -> list[Edit]:
    """Edits of one scene, each of another kind until the kinds that are possible run out.

    Floor and colours can always change, so the list has `num_edits` entries. At most one edit
    adds an object.
    """
    result: list[Edit] = []
    while len(result) < num_edits:
        # After a full round through the kinds only those that cannot fail and add nothing repeat.
        kinds = KINDS if not result else ("recolor", "background")
        weights = np.array([_WEIGHTS[kind] for kind in kinds])
        order = rng.choice(len(kinds), len(kinds), replace=False, p=weights / weights.sum())
        for index in order:
            if len(result) == num_edits:
                break
            edit = sample_edit(scene, rng, kind=kinds[index], next_id=next_id)
            if edit is not None:
                result.append(edit)
    return result
