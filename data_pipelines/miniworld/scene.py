"""MiniWorld's scene graph: what a scene holds, how one is drawn, which split it belongs to.

A scene is a floor, a distant light, one to four objects and a camera. Numbers are rounded when
they are drawn, so a scene survives JSON exactly and its split is a function of its content:

    split = bucket[crc32(json(scene)) mod 8]        6 train, 1 validation, 1 test

Two runs with any seeds therefore cannot put one scene into two splits. Scenes with a held-out
factor (a colour-shape pair, an azimuth band, four objects) are in `heldout` alone, one factor a
scene.
"""

import dataclasses
import functools
import json
import zlib
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.miniworld import geometry

SHAPES = ("sphere", "cube", "cylinder")
# Hue in degrees; neighbours are at least 40 apart, so that the nearest hue names a pixel.
HUES = {"red": 0, "yellow": 55, "green": 115, "cyan": 175, "blue": 225, "purple": 270, "pink": 320}
COLORS = tuple(HUES)
RADII = {"small": 0.55, "large": 0.8}
SIZES = tuple(RADII)
FLOORS = ("grey", "tan", "white")
TEXTURES = ("plain", "striped", "checked")

SPLITS = ("train", "validation", "test", "heldout")
FACTORS = ("pair", "azimuth", "count")
HELDOUT_PAIRS = frozenset({("green", "sphere"), ("blue", "cube"), ("red", "cylinder")})
HELDOUT_AZIMUTH = (120.0, 160.0)
MAX_OBJECTS = 4
MAX_TRAIN_OBJECTS = 3
_BUCKETS = ("validation", "test") + 6 * ("train",)

PLACE_RADIUS = 1.8  # object centres lie on a disc of this radius
MIN_GAP = 0.15  # between the footprints of two objects
MIN_VISIBLE_PIXELS = 60  # of an object in a 64-pixel image: 15 at 32 pixels, enough to learn from
_CHECK_SIZE = 64


@dataclasses.dataclass(frozen=True)
class Object:
    """A body on the floor. `id` (1 or more) stays with it across edits and frames.

    `x` and `z` are scene units, `yaw` is degrees about the vertical, `texture` indexes `TEXTURES`.
    """

    id: int
    shape: str
    color: str
    size: str
    x: float
    z: float
    yaw: float = 0.0
    texture: int = 0

    @property
    def radius(self) -> float:
        return RADII[self.size]

    @property
    def center(self) -> tuple[float, float, float]:
        return self.x, geometry.HALF_EXTENTS[self.shape][1] * self.radius, self.z

    @property
    def footprint(self) -> float:
        """Radius of the smallest floor disc that holds the object."""
        half = geometry.HALF_EXTENTS[self.shape][0] * self.radius
        return half * 2**0.5 if self.shape == "cube" else half


@dataclasses.dataclass(frozen=True)
class Camera:
    """A camera that looks at the scene centre; `azimuth` in [0, 360), `elevation` in [20, 40]."""

    azimuth: float
    elevation: float

    @functools.cached_property
    def frame(self) -> geometry.Frame:
        return geometry.camera_frame(self.azimuth, self.elevation)


@dataclasses.dataclass(frozen=True)
class Light:
    """A light at infinity, seen from the floor at `azimuth` and `elevation` degrees."""

    azimuth: float
    elevation: float


@dataclasses.dataclass(frozen=True)
class Scene:
    """Everything a picture depends on."""

    floor: str
    light: Light
    camera: Camera
    objects: tuple[Object, ...]

    def object(self, object_id: int) -> Object:
        """The object with this id; KeyError if it is not in the scene."""
        for candidate in self.objects:
            if candidate.id == object_id:
                return candidate
        raise KeyError(f"no object {object_id} in the scene; it has {[o.id for o in self.objects]}")

    def with_object(self, changed: Object) -> "Scene":
        """A scene in which `changed` replaces the object of the same id, or joins the others."""
        kept = [changed if o.id == changed.id else o for o in self.objects]
        if all(o.id != changed.id for o in self.objects):
            kept.append(changed)
        return dataclasses.replace(self, objects=tuple(kept))

    def without_object(self, object_id: int) -> "Scene":
        """A scene in which no object has this id."""
        return dataclasses.replace(
            self, objects=tuple(o for o in self.objects if o.id != object_id)
        )


def to_dict(scene: Scene) -> dict[str, Any]:
    """A scene as plain dicts, lists, strings and numbers, ready for JSON."""
    return {
        "floor": scene.floor,
        "light": dict(vars(scene.light)),
        "camera": {"azimuth": scene.camera.azimuth, "elevation": scene.camera.elevation},
        "objects": [dict(vars(o)) for o in scene.objects],
    }


def from_dict(tree: dict[str, Any]) -> Scene:
    """The inverse of `to_dict`; KeyError or TypeError for a dict of another form."""
    return Scene(
        floor=tree["floor"],
        light=Light(**tree["light"]),
        camera=Camera(**tree["camera"]),
        objects=tuple(Object(**o) for o in tree["objects"]),
    )


def in_heldout_band(azimuth: float) -> bool:
    """Whether a camera azimuth in degrees lies in the band that training never shows."""
    return HELDOUT_AZIMUTH[0] <= azimuth % 360 < HELDOUT_AZIMUTH[1]


def heldout_factors(scene: Scene) -> frozenset[str]:
    """Which of `FACTORS` the scene shows; empty for a scene that training may show."""
    found = set()
    if any((o.color, o.shape) in HELDOUT_PAIRS for o in scene.objects):
        found.add("pair")
    if in_heldout_band(scene.camera.azimuth):
        found.add("azimuth")
    if len(scene.objects) > MAX_TRAIN_OBJECTS:
        found.add("count")
    return frozenset(found)


def split_of(scene: Scene) -> str:
    """The one split that may hold this scene as a base scene."""
    if heldout_factors(scene):
        return "heldout"
    digest = zlib.crc32(json.dumps(to_dict(scene), sort_keys=True).encode())
    return _BUCKETS[digest % len(_BUCKETS)]


def overlaps(first: Object, second: Object) -> bool:
    """Whether two objects stand closer than `MIN_GAP`."""
    distance = ((first.x - second.x) ** 2 + (first.z - second.z) ** 2) ** 0.5
    return distance < first.footprint + second.footprint + MIN_GAP


def is_truncated(candidate: Object, camera: Camera) -> bool:
    """Whether the image border may cut the object (judged by its bounding box)."""
    points = geometry.project(camera.frame, geometry.corners(candidate, camera.frame))[:, :2]
    return bool(points.min() < 0.01 or points.max() > 0.99)


def visible_pixels(scene: Scene) -> dict[int, int]:
    """Object id -> number of visible pixels in a 64 x 64 image."""
    instance = geometry.trace(scene.objects, scene.camera.frame, _CHECK_SIZE).instance
    counts = np.bincount(instance.ravel(), minlength=256)
    return {o.id: int(counts[o.id]) for o in scene.objects}


def is_valid(scene: Scene) -> bool:
    """No overlap, nothing cut by the border, every object seen with `MIN_VISIBLE_PIXELS`."""
    objects = scene.objects
    if not 1 <= len(objects) <= MAX_OBJECTS:
        return False
    if any(overlaps(a, b) for i, a in enumerate(objects) for b in objects[:i]):
        return False
    if any(o.x**2 + o.z**2 > PLACE_RADIUS**2 or is_truncated(o, scene.camera) for o in objects):
        return False
    return min(visible_pixels(scene).values()) >= MIN_VISIBLE_PIXELS


def sample_azimuth(rng: np.random.Generator) -> float:
    """An azimuth or yaw in [0, 360) degrees, to a tenth."""
    return int(rng.integers(3600)) / 10


def sample_light(rng: np.random.Generator) -> Light:
    """A light between 40 and 65 degrees above the floor."""
    return Light(azimuth=sample_azimuth(rng), elevation=int(rng.integers(400, 651)) / 10)


def sample_place(rng: np.random.Generator) -> tuple[float, float]:
    """(x, z), uniform on the disc of `PLACE_RADIUS`, to a thousandth of a unit."""
    radius = PLACE_RADIUS * rng.uniform() ** 0.5 * 0.999
    angle = rng.uniform(0, 2 * np.pi)
    return round(float(radius * np.cos(angle)), 3), round(float(radius * np.sin(angle)), 3)


def sample_object(rng: np.random.Generator, *, object_id: int) -> Object:
    """Any object of the grammar; one in four has a texture."""
    x, z = sample_place(rng)
    return Object(
        id=object_id,
        shape=SHAPES[rng.integers(len(SHAPES))],
        color=COLORS[rng.integers(len(COLORS))],
        size=SIZES[rng.integers(len(SIZES))],
        x=x,
        z=z,
        yaw=sample_azimuth(rng),
        texture=int(rng.integers(1, len(TEXTURES))) if rng.uniform() < 0.25 else 0,
    )


class _Proposal(NamedTuple):
    camera: Camera
    objects: tuple[Object, ...]


def _propose(rng: np.random.Generator, *, count: int, factor: str | None) -> _Proposal:
    low, high = HELDOUT_AZIMUTH
    azimuth = sample_azimuth(rng)
    if factor == "azimuth":
        azimuth = int(rng.integers(int(low * 10), int(high * 10))) / 10
    objects: list[Object] = []
    while len(objects) < count:
        candidate = sample_object(rng, object_id=len(objects) + 1)
        if not any(overlaps(candidate, o) for o in objects):
            objects.append(candidate)
    if factor == "pair":
        pairs = sorted(HELDOUT_PAIRS)
        color, shape = pairs[rng.integers(len(pairs))]
        chosen = int(rng.integers(count))
        objects[chosen] = dataclasses.replace(objects[chosen], color=color, shape=shape)
    return _Proposal(Camera(azimuth, int(rng.integers(200, 401)) / 10), tuple(objects))


def sample_scene(rng: np.random.Generator, *, split: str = "train") -> Scene:
    """A valid scene that belongs to `split`.

    Example:
      scene = sample_scene(np.random.default_rng(0), split="train")

    Raises:
      ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; use one of {', '.join(SPLITS)}")
    factor = FACTORS[rng.integers(len(FACTORS))] if split == "heldout" else None
    allowed = {factor} if factor else set()
    # Drawn before the loop: rejection is likelier with more objects and would favour few.
    count = MAX_OBJECTS if factor == "count" else int(rng.choice((1, 2, 2, 3, 3)))
    while True:
        camera, objects = _propose(rng, count=count, factor=factor)
        scene = Scene(FLOORS[rng.integers(len(FLOORS))], sample_light(rng), camera, objects)
        if heldout_factors(scene) != allowed or not is_valid(scene):
            continue
        # Neither light nor floor decides validity, so they alone are redrawn to reach the split.
        while split_of(scene) != split:
            floor = FLOORS[rng.integers(len(FLOORS))]
            scene = dataclasses.replace(scene, floor=floor, light=sample_light(rng))
        return scene
