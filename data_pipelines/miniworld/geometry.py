"""Analytic ray geometry of MiniWorld: the camera, and where a ray enters a body.

World axes are x and z on the floor and y up; lengths are scene units, angles are degrees. The
camera sits on a sphere around `TARGET` and looks at it:

    position = TARGET + DISTANCE * (sin a cos e, sin e, cos a cos e)     a azimuth, e elevation

A sample at tangent coordinates (u, v), both in [-tan(fov/2), tan(fov/2)] with v upwards, has the
direction d = forward + u * right + v * up. Its component along the optical axis is 1, so the ray
parameter t of a hit *is* its z-depth; nothing is normalised.

Every intersection is of the form o + t d with o, d given as three broadcastable coordinates, so
one function serves camera rays (one origin, many directions) and shadow rays (many origins, one
direction).
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

FIELD_OF_VIEW = 40.0
DISTANCE = 6.2
TARGET = (0.0, 0.4, 0.0)
# The floor ends at a dome, so that depth is finite in every pixel.
DOME_RADIUS = 10.0
HALF_TANGENT = math.tan(math.radians(FIELD_OF_VIEW / 2))

# Three coordinates, each a float or an array; they broadcast against each other.
Vector = tuple[Any, ...]
# Half extents (x, y, z) of a body of radius 1: the three shapes cover about the same image area.
HALF_EXTENTS = {"sphere": (1.0, 1.0, 1.0), "cube": (0.85, 0.85, 0.85), "cylinder": (0.8, 1.0, 0.8)}


class Body(Protocol):
    """What the geometry needs to know of an object."""

    @property
    def id(self) -> int: ...
    @property
    def shape(self) -> str: ...
    @property
    def radius(self) -> float: ...
    @property
    def center(self) -> tuple[float, float, float]: ...
    @property
    def yaw(self) -> float: ...


class Frame(NamedTuple):
    """A camera's axes and position in the world, each three floats."""

    right: tuple[float, float, float]
    up: tuple[float, float, float]
    forward: tuple[float, float, float]
    position: tuple[float, float, float]


class Box(NamedTuple):
    """A half-open rectangle of samples, rows then columns."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


def camera_frame(azimuth: float, elevation: float) -> Frame:
    """The axes of a camera at `azimuth` and `elevation` degrees that looks at `TARGET`."""
    sin_a, cos_a = math.sin(math.radians(azimuth)), math.cos(math.radians(azimuth))
    sin_e, cos_e = math.sin(math.radians(elevation)), math.cos(math.radians(elevation))
    outward = (sin_a * cos_e, sin_e, cos_a * cos_e)
    return Frame(
        right=(cos_a, 0.0, -sin_a),
        up=(-sin_a * sin_e, cos_e, -cos_a * sin_e),
        forward=(-outward[0], -outward[1], -outward[2]),
        position=(
            TARGET[0] + DISTANCE * outward[0],
            TARGET[1] + DISTANCE * outward[1],
            TARGET[2] + DISTANCE * outward[2],
        ),
    )


def directions(frame: Frame, num_samples: int) -> Vector:
    """Ray directions of `num_samples` x `num_samples` samples: three (n, n) float32 arrays."""
    step = (np.arange(num_samples, dtype=np.float32) + 0.5) * (2 / num_samples) - 1
    u = (step * HALF_TANGENT)[None, :]
    v = (-step * HALF_TANGENT)[:, None]
    return tuple(
        r * u + (a * v + f) for r, a, f in zip(frame.right, frame.up, frame.forward, strict=True)
    )


def project(frame: Frame, points: np.ndarray) -> np.ndarray:
    """World points (n, 3) -> (n, 3): x and y in the image ([0, 1], y down) and z-depth."""
    camera = (points - np.asarray(frame.position)) @ np.array(
        [frame.right, frame.up, frame.forward]
    ).T
    depth = camera[:, 2]
    scale = 0.5 / (HALF_TANGENT * depth)
    return np.stack([0.5 + camera[:, 0] * scale, 0.5 - camera[:, 1] * scale, depth], axis=1)


_SIGNS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)


def corners(body: Body, frame: Frame) -> np.ndarray:
    """Eight world points (8, 3) whose convex hull contains the body."""
    offsets = _SIGNS * (np.array(HALF_EXTENTS[body.shape]) * body.radius)
    if body.shape == "sphere":  # a sphere's box may face the camera, which fits it tightest
        offsets = offsets @ np.array([frame.right, frame.up, frame.forward])
    elif body.shape == "cube":
        c, s = math.cos(math.radians(body.yaw)), math.sin(math.radians(body.yaw))
        offsets = offsets @ np.array([(c, 0, -s), (0, 1, 0), (s, 0, c)])
    return offsets + np.asarray(body.center)


def screen_box(frame: Frame, points: np.ndarray, num_samples: int) -> Box | None:
    """The samples that the convex hull of `points` (n, 3) may cover; None if it is out of view."""
    projected = project(frame, points)
    if projected[:, 2].min() < 0.1:
        return Box(0, num_samples, 0, num_samples)
    low = np.floor(projected[:, :2].min(axis=0) * num_samples - 0.5).astype(int).clip(min=0)
    high = np.ceil(projected[:, :2].max(axis=0) * num_samples + 0.5).astype(int)
    high = high.clip(max=num_samples)
    if (low >= high).any():
        return None
    return Box(int(low[1]), int(high[1]), int(low[0]), int(high[0]))


def to_local(vector: Vector, yaw: float) -> Vector:
    """A world vector in the axes of a body that is turned by `yaw` degrees about y."""
    c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    x, y, z = vector
    return c * x - s * z, y, s * x + c * z


def to_world(vector: Vector, yaw: float) -> Vector:
    """The inverse of `to_local`."""
    return to_local(vector, -yaw)


def hit_sphere(origin: Vector, direction: Vector, radius: float) -> np.ndarray:
    """Ray parameter of the entry into a sphere around 0; inf for a miss. Origins lie outside."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    a = dx * dx + dy * dy + dz * dz
    b = ox * dx + oy * dy + oz * dz
    c = ox * ox + oy * oy + oz * oz - radius * radius
    discriminant = b * b - a * c
    t = (-b - np.sqrt(discriminant)) / a
    return np.where((discriminant > 0) & (b < 0), t, np.inf)


def hit_box(origin: Vector, direction: Vector, half: Sequence[float]) -> np.ndarray:
    """Ray parameter of the entry into the box |axis| <= half; inf for a miss."""
    near, far = -np.inf, np.inf
    for o, d, h in zip(origin, direction, half, strict=True):
        inverse = np.divide(np.float32(1), d)  # a ray along the slab: infinite, not an error
        first, second = (-h - o) * inverse, (h - o) * inverse
        near = np.maximum(near, np.minimum(first, second))
        far = np.minimum(far, np.maximum(first, second))
    return np.where((near < far) & (near > 0), near, np.inf)


def hit_cylinder(
    origin: Vector, direction: Vector, radius: float, half_height: float
) -> np.ndarray:
    """Ray parameter of the entry into an upright capped cylinder; inf for a miss."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    a = dx * dx + dz * dz
    b = ox * dx + oz * dz
    c = ox * ox + oz * oz - radius * radius
    discriminant = b * b - a * c
    root = np.sqrt(discriminant)
    inverse = 1 / dy
    first, second = (-half_height - oy) * inverse, (half_height - oy) * inverse
    near = np.maximum((-b - root) / a, np.minimum(first, second))
    far = np.minimum((-b + root) / a, np.maximum(first, second))
    return np.where((discriminant > 0) & (near < far) & (near > 0), near, np.inf)


def hit(body: Body, origin: Vector, direction: Vector) -> np.ndarray:
    """Ray parameter of the entry into `body` (world coordinates); inf where the ray misses.

    Call it under `np.errstate(invalid="ignore", divide="ignore")`: a miss goes through NaN.
    """
    origin = tuple(o - c for o, c in zip(origin, body.center, strict=True))
    half = [h * body.radius for h in HALF_EXTENTS[body.shape]]
    if body.shape == "sphere":
        return hit_sphere(origin, direction, half[0])
    if body.shape == "cylinder":
        return hit_cylinder(origin, direction, half[0], half[1])
    return hit_box(to_local(origin, body.yaw), to_local(direction, body.yaw), half)


class Hits(NamedTuple):
    """The nearest body at each sample."""

    depth: np.ndarray  # (n, n) float32 z-depth, inf where no body is hit
    instance: np.ndarray  # (n, n) uint8 body id, 0 where no body is hit
    boxes: dict[int, Box]  # body id -> the samples it may cover


def trace(bodies: Sequence[Body], frame: Frame, num_samples: int) -> Hits:
    """The nearest body along each of `num_samples` x `num_samples` camera rays."""
    rays = directions(frame, num_samples)
    depth = np.full((num_samples, num_samples), np.inf, np.float32)
    instance = np.zeros((num_samples, num_samples), np.uint8)
    boxes = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for body in bodies:
            box = screen_box(frame, corners(body, frame), num_samples)
            if box is None:
                continue
            boxes[body.id] = box
            inside = box.slices
            t = hit(body, frame.position, tuple(d[inside] for d in rays))
            nearer = t < depth[inside]
            np.copyto(depth[inside], t, where=nearer)
            np.copyto(instance[inside], np.uint8(body.id), where=nearer)
    return Hits(depth, instance, boxes)
