"""Short clips: one thing changes over a few frames of a MiniWorld scene.

An object moves, appears or vanishes, the camera turns or rises, or the light turns. Every frame
is a valid scene, and a clip shows no held-out factor that its first frame does not show.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from data_pipelines.miniworld import edits, language
from data_pipelines.miniworld.scene import Camera, Scene, heldout_factors

MOVE_RANGE = (0.6, 1.8)  # scene units over the whole clip
TURN_RANGE = (10, 120)  # degrees of the camera over the whole clip
LIGHT_RANGE = (30, 150)  # degrees of the light over the whole clip
ELEVATIONS = (20.0, 40.0)
_ATTEMPTS = 12


@dataclasses.dataclass(frozen=True)
class Clip:
    """Scenes in time order, the first one the base scene, and what happens in plain words."""

    kind: str
    scenes: tuple[Scene, ...]
    description: str


def _progress(num_frames: int) -> np.ndarray:
    return np.arange(num_frames) / (num_frames - 1)


def _move(scene: Scene, rng: np.random.Generator, num_frames: int, next_id: int) -> Clip | None:
    target = scene.objects[rng.integers(len(scene.objects))]
    expression = language.refer(scene, target.id, rng)
    direction = language.DIRECTIONS[rng.integers(len(language.DIRECTIONS))]
    distance = rng.uniform(*MOVE_RANGE)
    if expression is None:
        return None
    scenes = [
        scene.with_object(edits.shifted(target, scene.camera, direction, float(distance * part)))
        for part in _progress(num_frames)[1:]
    ]
    verb = language.choose(rng, ("moves", "slides"))
    return Clip("move", (scene, *scenes), f"{expression} {verb} to the {direction}")


def _appear(scene: Scene, rng: np.random.Generator, num_frames: int, next_id: int) -> Clip | None:
    addition = edits.random_addition(scene, rng, next_id)
    start = int(rng.integers(1, num_frames))
    if addition is None:
        return None
    added, relation, expression = addition
    after = scene.with_object(added)
    scenes = [after if i >= start else scene for i in range(num_frames)]
    phrase = language.describe(added)
    return Clip("appear", tuple(scenes), f"a {phrase} appears {relation} {expression}")


def _vanish(scene: Scene, rng: np.random.Generator, num_frames: int, next_id: int) -> Clip | None:
    target = scene.objects[rng.integers(len(scene.objects))]
    expression = language.refer(scene, target.id, rng)
    start = int(rng.integers(1, num_frames))
    if expression is None or len(scene.objects) == 1:
        return None
    after = scene.without_object(target.id)
    scenes = [after if i >= start else scene for i in range(num_frames)]
    return Clip("vanish", tuple(scenes), f"{expression} disappears")


def _turn(scene: Scene, rng: np.random.Generator, num_frames: int, next_id: int) -> Clip | None:
    side, sign = (("right", 1), ("left", -1))[rng.integers(2)]
    angle = sign * rng.uniform(*TURN_RANGE)
    azimuths = [(scene.camera.azimuth + float(angle * p)) % 360 for p in _progress(num_frames)]
    cameras = [Camera(round(a, 1) % 360, scene.camera.elevation) for a in azimuths[1:]]
    scenes = [dataclasses.replace(scene, camera=c) for c in cameras]
    return Clip("turn", (scene, *scenes), f"the camera moves to the {side}")


def _rise(scene: Scene, rng: np.random.Generator, num_frames: int, next_id: int) -> Clip | None:
    start, end = scene.camera.elevation, rng.uniform(*ELEVATIONS)
    if abs(end - start) < 5:
        return None
    heights = [round(float(start + (end - start) * p), 1) for p in _progress(num_frames)[1:]]
    cameras = [Camera(scene.camera.azimuth, h) for h in heights]
    scenes = [dataclasses.replace(scene, camera=c) for c in cameras]
    verb = "rises" if end > start else "sinks"
    return Clip("rise", (scene, *scenes), f"the camera {verb}")


# "Right" turns the light as a camera that moves to the right turns: counterclockwise from above.
def _light(scene: Scene, rng: np.random.Generator, num_frames: int, next_id: int) -> Clip | None:
    side, sign = (("right", 1), ("left", -1))[rng.integers(2)]
    angle = sign * rng.uniform(*LIGHT_RANGE)
    azimuths = [(scene.light.azimuth + float(angle * p)) % 360 for p in _progress(num_frames)]
    lights = [dataclasses.replace(scene.light, azimuth=round(a, 1) % 360) for a in azimuths[1:]]
    scenes = [dataclasses.replace(scene, light=light) for light in lights]
    return Clip("light", (scene, *scenes), f"the light turns to the {side}")


_MAKERS: dict[str, Callable[[Scene, np.random.Generator, int, int], Clip | None]] = {
    "move": _move,
    "appear": _appear,
    "vanish": _vanish,
    "turn": _turn,
    "rise": _rise,
    "light": _light,
}
KINDS = tuple(_MAKERS)
# Camera turns are drawn more often: novel views and poses are learned from them alone.
_WEIGHTS = np.array([3, 2, 2, 5, 2, 2]) / 16


def frames(
    scene: Scene,
    rng: np.random.Generator,
    num_frames: int,
    *,
    kinds: tuple[str, ...] = KINDS,
    next_id: int | None = None,
) -> Clip:
    """A clip of `num_frames` scenes that starts with `scene`.

    Args:
      scene: the first frame.
      rng: draws the change and its size.
      num_frames: 2 or more, the first frame included.
      kinds: which of `KINDS` may happen; the light turns if none of them is possible.
      next_id: the id of an object that appears; by default one more than the scene's largest.

    Raises:
      ValueError: fewer than two frames.
    """
    if num_frames < 2:
        raise ValueError(f"num_frames={num_frames} makes no clip; use 2 or more")
    factors = heldout_factors(scene)
    if next_id is None:
        next_id = 1 + max(o.id for o in scene.objects)
    weights = np.array([_WEIGHTS[KINDS.index(kind)] for kind in kinds])
    order = rng.choice(len(kinds), len(kinds), replace=False, p=weights / weights.sum())
    for kind in [*(kinds[i] for i in order), "light"]:
        for _ in range(_ATTEMPTS):
            clip = _MAKERS[kind](scene, rng, num_frames, next_id)
            if clip is not None and all(edits.is_allowed(s, factors) for s in clip.scenes[1:]):
                return clip
    raise AssertionError("unreachable: turning the light keeps a valid scene valid")
