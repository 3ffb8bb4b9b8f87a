"""Pictures of a MiniWorld scene with exact depth, instances, shadows and camera.

One pass at size * samples rays a side is shaded and box-filtered to the picture; one at pixel
centres gives the maps. Light is ambient + diffuse in display values, so that shading scales an
object's colour and leaves its hue and saturation alone:

    rgb = albedo * (0.40 + 0.10 n_y + 0.55 max(n . l, 0) * lit)

Work is done in numpy float32 on the screen rectangle of one body or of one body's floor shadow at
a time; a full-image evaluation of every body would cost several times as much.
"""

import colorsys
import math
from typing import NamedTuple

import numpy as np

from data_pipelines.miniworld import geometry
from data_pipelines.miniworld.scene import HUES, TEXTURES, Camera, Light, Object, Scene

SIZES = (32, 64, 128)
SATURATION, VALUE = 0.85, 0.90
PALETTE = {
    name: np.array(colorsys.hsv_to_rgb(hue / 360, SATURATION, VALUE), np.float32)
    for name, hue in HUES.items()
}
FLOOR_COLORS = {
    "grey": np.array((0.55, 0.55, 0.55), np.float32),
    "tan": np.array((0.78, 0.66, 0.48), np.float32),
    "white": np.array((0.94, 0.94, 0.94), np.float32),
}
SKY_COLOR = np.array((0.66, 0.71, 0.78), np.float32)
AMBIENT, AMBIENT_UP, DIFFUSE = 0.40, 0.10, 0.55
DARK_BAND = 0.5  # a texture's dark parts keep the hue at this fraction of the brightness


class Rendering(NamedTuple):
    """A picture and its exact maps; pixel (0, 0) is at the top left.

    Attributes:
      rgb: uint8 (H, W, 3), the mean of samples x samples rays a pixel.
      depth: float32 (H, W), z-depth at the pixel centre, scene units along the optical axis.
      instance: uint8 (H, W), object id at the pixel centre; 0 is the floor or the backdrop.
      shadow: bool (H, W), True where the light does not reach the surface at the pixel centre:
        cast shadows and sides turned away. The backdrop is never in shadow.
      camera_to_world: float32 (4, 4), OpenGL: the camera looks along -z, y is up.
      intrinsics: float32 (3, 3), in units of the image size (cx = cy = 0.5, y down).
    """

    rgb: np.ndarray
    depth: np.ndarray
    instance: np.ndarray
    shadow: np.ndarray
    camera_to_world: np.ndarray
    intrinsics: np.ndarray


class Rays(NamedTuple):
    """Rays through pixel centres: float32 (H, W, 3) origins and unit directions in the world."""

    origins: np.ndarray
    directions: np.ndarray


class _Surface(NamedTuple):
    """What the samples of one pass see; every array is (n, n)."""

    depth: np.ndarray  # float32
    instance: np.ndarray  # uint8
    is_floor: np.ndarray  # bool
    shadow: np.ndarray  # bool
    shading: dict[int, tuple[np.ndarray, np.ndarray]]  # object id -> flat indices, brightness


def light_direction(light: Light) -> tuple[float, float, float]:
    """The unit vector from any surface towards the light."""
    a, e = math.radians(light.azimuth), math.radians(light.elevation)
    return math.sin(a) * math.cos(e), math.sin(e), math.cos(a) * math.cos(e)


def camera_to_world(camera: Camera) -> np.ndarray:
    """The camera's pose, float32 (4, 4), OpenGL axes."""
    pose = np.eye(4, dtype=np.float32)
    pose[:3, 0], pose[:3, 1] = camera.frame.right, camera.frame.up
    pose[:3, 2] = [-c for c in camera.frame.forward]
    pose[:3, 3] = camera.frame.position
    return pose


def intrinsics() -> np.ndarray:
    """The pinhole matrix, float32 (3, 3), in units of the image size."""
    focal = 0.5 / geometry.HALF_TANGENT
    return np.array([(focal, 0, 0.5), (0, focal, 0.5), (0, 0, 1)], np.float32)


def rays(camera: Camera, size: int) -> Rays:
    """Rays through the pixel centres of a size x size image.

    A pixel of z-depth `depth` lies at origin + direction * depth / (direction . forward).
    """
    along = np.stack(geometry.directions(camera.frame, size), axis=-1)
    along /= np.linalg.norm(along, axis=-1, keepdims=True)
    origins = np.broadcast_to(np.array(camera.frame.position, np.float32), along.shape).copy()
    return Rays(origins, along)


def _floor_and_dome(scene: Scene, hits: geometry.Hits, along: geometry.Vector):
    """Depth (n, n) of everything, and which samples see the floor."""
    x0, y0, z0 = scene.camera.frame.position
    dx, dy, dz = along
    depth = -y0 / np.minimum(dy, -1e-6)
    x, z = x0 + depth * dx, z0 + depth * dz
    on_floor = x * x + z * z < geometry.DOME_RADIUS**2
    is_floor = on_floor & (hits.instance == 0)
    sky = np.nonzero(~on_floor)
    if sky[0].size:  # the far side of the dome, seen from inside
        dx, dy, dz = dx[sky], dy[sky], dz[sky]
        a = dx * dx + dy * dy + dz * dz
        b = x0 * dx + y0 * dy + z0 * dz
        c = x0 * x0 + y0 * y0 + z0 * z0 - geometry.DOME_RADIUS**2
        depth[sky] = (np.sqrt(b * b - a * c) - b) / a
    return np.minimum(depth, hits.depth), is_floor


def _normal(body: Object, local: geometry.Vector) -> geometry.Vector:
    """Unit normals, in the body's axes, at surface points (k,) given in the body's axes."""
    x, y, z = local
    half_x, half_y, _ = (h * body.radius for h in geometry.HALF_EXTENTS[body.shape])
    if body.shape == "sphere":
        return x / half_x, y / half_x, z / half_x
    if body.shape == "cylinder":
        radius = np.sqrt(x * x + z * z)
        cap = np.abs(y) * half_x >= radius * half_y
        side = np.where(cap, 0, 1 / np.maximum(radius, 1e-6))
        return x * side, np.where(cap, np.sign(y), 0), z * side
    ax, ay, az = np.abs(x), np.abs(y), np.abs(z)
    on_y = (ay >= ax) & (ay >= az)
    on_x = ~on_y & (ax >= az)
    zero = np.float32(0)
    return (
        np.where(on_x, np.sign(x), zero),
        np.where(on_y, np.sign(y), zero),
        np.where(on_x | on_y, zero, np.sign(z)),
    )


def _texture(body: Object, local: geometry.Vector) -> np.ndarray | float:
    """The texture's factor on the brightness at local surface points (k,)."""
    name = TEXTURES[body.texture]
    if name == "plain":
        return 1.0
    # Bands are a fraction of the body, so both sizes show the same number of them.
    x, y, z = (np.floor(c * (1.6 / body.radius) + 0.5) for c in local)
    band = y if name == "striped" else x + y + z
    return np.where(band % 2 == 0, np.float32(1), np.float32(DARK_BAND))


def _may_shade(blocker: Object, body: Object, light: geometry.Vector) -> bool:
    """Whether the blocker's bounding sphere reaches into the light that falls on the body's."""
    offset = [b - c for b, c in zip(blocker.center, body.center, strict=True)]
    reach = 1.5 * (blocker.radius + body.radius)  # 1.5 > sqrt(3) * 0.85, a cube's bounding radius
    along = sum(o * ray for o, ray in zip(offset, light, strict=True))
    across = sum(o * o for o in offset) - along * along
    return bool(along > -reach and across < reach * reach)


def _trace(scene: Scene, num_samples: int) -> _Surface:
    frame = scene.camera.frame
    light = light_direction(scene.light)
    hits = geometry.trace(scene.objects, frame, num_samples)
    along = geometry.directions(frame, num_samples)
    depth, is_floor = _floor_and_dome(scene, hits, along)
    shadow = np.zeros(depth.shape, bool)
    shading = {}
    for body in scene.objects:
        # Cast by the body on the floor: the shadow lies in the hull of its projected corners.
        points = geometry.corners(body, frame)
        points = points - points[:, 1:2] / light[1] * np.asarray(light)
        box = geometry.screen_box(frame, points, num_samples)
        if box is not None:
            inside = box.slices
            t = depth[inside]
            floor = (
                frame.position[0] + t * along[0][inside],
                0.0,
                frame.position[2] + t * along[2][inside],
            )
            shadow[inside] |= is_floor[inside] & (geometry.hit(body, floor, light) < np.inf)
        if body.id not in hits.boxes:
            continue
        # On the body: sides turned away, and what the other bodies cast.
        box = hits.boxes[body.id]
        rows, columns = np.nonzero(hits.instance[box.slices] == body.id)
        index = (rows + box.top) * num_samples + (columns + box.left)
        t = hits.depth.ravel()[index]
        points = tuple(p + t * d.ravel()[index] for p, d in zip(frame.position, along, strict=True))
        local = geometry.to_local(
            tuple(p - c for p, c in zip(points, body.center, strict=True)), body.yaw
        )
        normal = geometry.to_world(_normal(body, local), body.yaw)
        facing = sum(n * ray for n, ray in zip(normal, light, strict=True))
        dark = facing <= 0
        for blocker in scene.objects:
            if blocker.id != body.id and _may_shade(blocker, body, light):
                dark |= geometry.hit(blocker, points, light) < np.inf
        brightness = AMBIENT + AMBIENT_UP * normal[1] + np.where(dark, 0, DIFFUSE * facing)
        shading[body.id] = index, brightness * _texture(body, local)
        shadow.ravel()[index] = dark
    return _Surface(depth, hits.instance, is_floor, shadow, shading)


def _shade(scene: Scene, surface: _Surface) -> np.ndarray:
    """Colours (n, n, 3) float32 in [0, 1] of one pass."""
    floor = FLOOR_COLORS[scene.floor]
    dark = AMBIENT + AMBIENT_UP
    lit = dark + DIFFUSE * light_direction(scene.light)[1]
    colors = np.stack([SKY_COLOR, floor * np.float32(lit), floor * np.float32(dark)])
    region = surface.is_floor.astype(np.uint8) + (surface.is_floor & surface.shadow)
    rgb = colors.take(region.ravel(), axis=0)
    for body in scene.objects:
        if body.id in surface.shading:
            index, brightness = surface.shading[body.id]
            rgb[index] = PALETTE[body.color] * brightness[:, None]
    return rgb.reshape(*region.shape, 3)


def render(scene: Scene, size: int, *, samples: int = 2) -> Rendering:
    """Renders a scene to a size x size picture and its exact maps.

    Args:
      scene: the scene; valid or not, it is drawn as it is.
      size: pixels a side.
      samples: rays a side of each pixel in the picture; the maps are taken at pixel centres.

    Example:
      picture = render(sample_scene(np.random.default_rng(0)), 64)
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        fine = _shade(scene, _trace(scene, size * samples))
        centers = _trace(scene, size)
    total = sum(fine[i::samples, j::samples] for i in range(samples) for j in range(samples))
    rgb = np.clip(total * np.float32(255 / samples**2) + np.float32(0.5), 0, 255)
    return Rendering(
        rgb=rgb.astype(np.uint8),
        depth=centers.depth,
        instance=centers.instance,
        shadow=centers.shadow,
        camera_to_world=camera_to_world(scene.camera),
        intrinsics=intrinsics(),
    )
