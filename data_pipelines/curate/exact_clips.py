"""Drawn clips whose masks are exact, to measure trackers on: MiniWorld scenes and textured shapes.

MiniWorld's surfaces have few colours and little texture: colour tells things apart and optical flow
is weak. Textured shapes are the opposite: things and background draw their colours and patterns
from one distribution, so that motion tells more than colour, and things hide each other.
"""

import dataclasses
from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines.curate.clips import Shot
from data_pipelines.miniworld.render import render
from data_pipelines.miniworld.scene import Camera, Scene, overlaps, sample_scene, visible_pixels

TURN_RANGE = (20.0, 60.0)  # degrees of MiniWorld's camera over a clip
WAY_RANGE = (0.6, 1.6)  # scene units that an object of MiniWorld goes over a clip
_MIN_VISIBLE_PIXELS = 20  # in a 64-pixel picture
_FRAMES_A_SECOND = 8.0
_TEXTURE_SIZE = 256
_PALETTE_SIZE = 6  # colours of a clip: two textures, of three each, share one or two of them


def rendered_clip(
    *, seed: int, num_frames: int = 12, size: int = 128, num_objects: int = 3
) -> Shot:
    """A MiniWorld scene in which every object slides while the camera turns.

    Args:
      seed: of everything drawn.
      num_frames: 2 or more.
      size: pixels a side.
      num_objects: 1 to 3; none leaves the picture, and none is ever hidden altogether.
    """
    rng = np.random.default_rng([seed, 1])
    while True:
        scene = sample_scene(rng)
        scenes = _sliding(scene, rng, num_frames) if len(scene.objects) == num_objects else ()
        if scenes and all(map(_is_clear, scenes)):
            break
    pictures = [render(scene, size) for scene in scenes]
    return Shot(
        frames=np.stack([picture.rgb for picture in pictures]),
        times=np.arange(num_frames) / _FRAMES_A_SECOND,
        masks=np.stack([picture.instance for picture in pictures]),
        names={o.id: f"a {o.color} {o.shape}" for o in scene.objects},
    )


def _sliding(scene: Scene, rng: np.random.Generator, num_frames: int) -> list[Scene]:
    turn = rng.uniform(*TURN_RANGE) * rng.choice((-1, 1))
    ways = []
    for _ in scene.objects:
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(*WAY_RANGE)
        ways.append((length * np.cos(angle), length * np.sin(angle)))
    scenes = []
    for part in np.linspace(0, 1, num_frames).tolist():
        objects = tuple(
            dataclasses.replace(o, x=o.x + part * dx, z=o.z + part * dz)
            for o, (dx, dz) in zip(scene.objects, ways, strict=True)
        )
        camera = Camera((scene.camera.azimuth + part * turn) % 360, scene.camera.elevation)
        scenes.append(dataclasses.replace(scene, camera=camera, objects=objects))
    return scenes


def _is_clear(scene: Scene) -> bool:
    objects = scene.objects
    if any(overlaps(a, b) for i, a in enumerate(objects) for b in objects[:i]):
        return False
    return min(visible_pixels(scene).values()) >= _MIN_VISIBLE_PIXELS


class _Motion(NamedTuple):
    """Place of a layer in frame t: centre + t velocity, turned by t spin, enlarged by growth^t."""

    center: np.ndarray  # pixels x, y
    velocity: np.ndarray  # pixels a frame
    spin: float  # radians a frame
    growth: float  # factor a frame


def textured_clip(
    *, seed: int, num_frames: int = 12, size: int = 128, num_objects: int = 3, speed: float = 0.02
) -> Shot:
    """Textured shapes that slide, turn and grow over a textured background that drifts slowly.

    The shapes' ways cross near the middle of picture and clip, where later ids hide earlier ones.

    Args:
      seed: of everything drawn.
      num_frames: 2 or more.
      size: pixels a side.
      num_objects: 1 to 255.
      speed: mean way of a shape in a frame, as a share of the picture's side.
    """
    rng = np.random.default_rng([seed, 2])
    back = _Motion(np.full(2, size / 2), rng.normal(0, 0.002 * size, 2), rng.normal(0, 0.003), 1.0)
    palette = rng.uniform(20, 235, (_PALETTE_SIZE, 3))
    ground = _texture(rng, palette)
    layers = [
        (_shape(rng, size), _crossing(rng, size, num_frames, speed), _texture(rng, palette))
        for _ in range(num_objects)
    ]
    frames, masks = [], []
    for t in range(num_frames):
        frame = _sample(ground, *_inside(back, t, size), size)
        mask = np.zeros((size, size), np.uint8)
        for n, (radii, motion, texture) in enumerate(layers):
            u, v = _inside(motion, t, size)
            angle = np.arctan2(v, u) % (2 * np.pi)
            edge = np.interp(angle, np.linspace(0, 2 * np.pi, len(radii) + 1), [*radii, radii[0]])
            # One pixel of the picture is growth^-t pixels of the shape's own.
            cover = np.clip((edge - np.hypot(u, v)) * motion.growth**t + 0.5, 0, 1)
            frame += cover[..., None] * (_sample(texture, u, v, size) - frame)
            mask[cover >= 0.5] = n + 1
        noise = rng.normal(0, 2, frame.shape)
        frames.append(np.clip(frame + noise + 0.5, 0, 255).astype(np.uint8))
        masks.append(mask)
    return Shot(
        frames=np.stack(frames),
        times=np.arange(num_frames) / _FRAMES_A_SECOND,
        masks=np.stack(masks),
        names={n + 1: f"shape {n + 1}" for n in range(num_objects)},
    )


def _crossing(rng: np.random.Generator, size: int, num_frames: int, speed: float) -> _Motion:
    angle = rng.uniform(0, 2 * np.pi)
    velocity = rng.uniform(0.6, 1.4) * speed * size * np.array((np.cos(angle), np.sin(angle)))
    middle = size * (0.5 + rng.uniform(-0.3, 0.3, 2))
    center = middle - velocity * (num_frames - 1) / 2
    return _Motion(center, velocity, rng.uniform(-0.06, 0.06), rng.uniform(0.985, 1.015))


def _inside(motion: _Motion, t: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates (size, size), in pixels of the layer itself, that the picture's pixels show."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    x, y = (axis - at for axis, at in zip((x, y), motion.center + t * motion.velocity, strict=True))
    cos, sin = np.cos(t * motion.spin), np.sin(t * motion.spin)
    scale = motion.growth**-t
    return scale * (cos * x + sin * y), scale * (cos * y - sin * x)


def _shape(rng: np.random.Generator, size: int) -> np.ndarray:
    """Distance (360,), in pixels, from the centre to the edge in every direction."""
    angle = np.radians(np.arange(360))
    kind = rng.integers(4)
    if kind == 0:  # an ellipse
        radii = 1 / np.hypot(np.cos(angle), np.sin(angle) / rng.uniform(0.5, 0.9))
    elif kind == 1:  # a polygon of three to six corners
        corners = rng.integers(3, 7)
        radii = 1 / np.cos((angle + 0.3) % (2 * np.pi / corners) - np.pi / corners)
    elif kind == 2:  # a star with round points
        radii = 1 + 0.3 * np.cos(rng.integers(3, 7) * angle)
    else:  # a blob
        radii = 1 + sum(
            rng.normal(0, 0.12) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5)
        )
    area = np.mean(radii**2)
    return radii / np.sqrt(area) * size * rng.uniform(0.12, 0.18)


def _texture(rng: np.random.Generator, palette: np.ndarray) -> np.ndarray:
    """float32 (n, n, 3) in [0, 255] that tiles: smooth noise mixes three of the colours."""
    n = _TEXTURE_SIZE
    noise = rng.normal(size=(n, n, 3))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(n), np.fft.fftfreq(n)))[..., None]
    cut = rng.uniform(0.03, 0.12)
    spectrum = np.fft.fft2(noise, axes=(0, 1)) * np.exp(-((frequency / cut) ** 2))
    weights = np.real(np.fft.ifft2(spectrum, axes=(0, 1)))
    weights = np.exp(2 * weights / weights.std())
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ rng.permutation(palette)[:3]).astype(np.float32)


def _sample(texture: np.ndarray, u: np.ndarray, v: np.ndarray, size: int) -> np.ndarray:
    # A texture pixel is a pixel of a 128-pixel picture, so that every size shows one pattern.
    u, v = (axis.astype(np.float32) * np.float32(128 / size) for axis in (u, v))
    return cv2.remap(texture, u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
