"""Cameras as ray frames: poses to Plücker rays, and rays back to poses.

A ray frame holds six numbers a place, the direction d of the ray and its moment o x d, seen from
the first camera (Zhang et al. 2024, "Cameras as Rays"; OneDiffusion section 3.3, which writes the
moment first). Everything follows the released code, whose conventions are these:

- camera to world (c2w) matrices are OpenGL's: the camera looks along -z, y is up; the world's z is
  up;
- inside, vectors are rows: x_camera = x_world R + T, with x to the left, y up and z forward;
- image coordinates run from +1 at the left and top to -1, the shorter side of the picture.

All arrays are float64; n is the number of cameras.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RAY_SCALE = 1.658
"""Brings rays to about unit variance, like latents (released code)."""

DEFAULT_FOCAL = 1.3887
"""Focal length in picture widths of cameras without intrinsics (released code)."""


class Cameras(NamedTuple):
    """Pinhole cameras, x_camera = x_world R + T.

    Attributes:
      rotation: R.
      translation: T.
      focal: in half widths of the shorter side, (x, y).
      principal: centre of the picture, (x, y).
    """

    rotation: Float[np.ndarray, "n 3 3"]
    translation: Float[np.ndarray, "n 3"]
    focal: Float[np.ndarray, "n 2"]
    principal: Float[np.ndarray, "n 2"]

    @property
    def centers(self) -> Float[np.ndarray, "n 3"]:
        """Places of the cameras in the world."""
        return -np.einsum("nj,nij->ni", self.translation, self.rotation)


def look_at_origin(azimuth: float, elevation: float, distance: float) -> Float[np.ndarray, "4 4"]:
    """c2w of a camera on a sphere that looks at its centre; angles in degrees."""
    turn, rise = np.deg2rad([azimuth, elevation])
    away = np.array([np.cos(rise) * np.cos(turn), np.cos(rise) * np.sin(turn), np.sin(rise)])
    right = np.cross([0.0, 0.0, 1.0], away)
    if np.linalg.norm(right) < 1e-8:  # straight above or below: another axis is up
        right = np.cross([0.0, 1.0, 0.0], away)
    right /= np.linalg.norm(right)
    c2w = np.eye(4)
    c2w[:3, :3] = np.stack([right, np.cross(away, right), away], axis=1)
    c2w[:3, 3] = distance * away
    return c2w


def from_opengl(
    c2w: Float[np.ndarray, "n 4 4"],
    *,
    focal: Float[np.ndarray, "n 2"],
    principal: Float[np.ndarray, "n 2"],
    size: tuple[float, float] = (1.0, 1.0),
) -> Cameras:
    """Cameras of OpenGL c2w matrices.

    Args:
      c2w: poses.
      focal: in the units of `size`, (x, y).
      principal: in the units of `size` from the left and top, (x, y).
      size: width and height of the picture; 1 and 1 for intrinsics in picture widths.
    """
    c2w = np.array(c2w, np.float64)
    c2w[:, :3, 1:3] *= -1.0  # to OpenCV's axes: y down, looking along +z
    c2w = c2w[:, [1, 0, 2, 3]]
    c2w[:, 2] *= -1.0
    w2c = np.linalg.inv(c2w)
    flip = np.array([-1.0, -1.0, 1.0])  # x to the left, y up
    half = min(size) / 2
    return Cameras(
        rotation=w2c[:, :3, :3].swapaxes(1, 2) * flip,
        translation=w2c[:, :3, 3] * flip,
        focal=np.asarray(focal, np.float64) / half,
        principal=-(np.asarray(principal, np.float64) - np.asarray(size) / 2) / half,
    )


def normalize(cameras: Cameras, *, scale: float) -> Cameras:
    """Puts the point that all cameras look at at `scale` from the first one.

    Raises:
      ValueError: the first camera stands on that point.
    """
    centers, axes = cameras.centers, cameras.rotation[:, :, 2]
    target = _nearest_point(centers, axes)
    distance = np.linalg.norm(target - centers[0])
    if distance < 1e-8:
        raise ValueError("the cameras look at the place of the first one: no scale can be chosen")
    rotation = cameras.rotation[0].T @ cameras.rotation
    moved = np.einsum("j,njk->nk", target, cameras.rotation) + cameras.translation
    return cameras._replace(rotation=rotation, translation=moved / distance * scale)


def relative_to_first(cameras: Cameras) -> Cameras:
    """The world as the first camera sees it: there R is the identity and T is 0."""
    first = cameras.rotation[0]
    origin = cameras.translation[0] @ first.T
    return cameras._replace(
        rotation=first.T @ cameras.rotation,
        translation=cameras.translation - np.einsum("j,njk->nk", origin, cameras.rotation),
    )


def to_rays(cameras: Cameras, *, size: int) -> Float[np.ndarray, "n y x 6"]:
    """Direction and moment of the ray through each place of a size x size grid."""
    directions = _grid_directions(size, focal=cameras.focal, principal=cameras.principal)
    directions = np.einsum("nyxj,nij->nyxi", directions, cameras.rotation)
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    moments = np.cross(cameras.centers[:, None, None], directions)
    return np.concatenate([directions, moments], axis=-1)


def from_rays(
    rays: Float[np.ndarray, "n y x 6"],
    *,
    focal: Float[np.ndarray, "n 2"] | None = None,
    principal: Float[np.ndarray, "n 2"] | None = None,
) -> Cameras:
    """Least-squares cameras of known intrinsics for rays, which need not be exact.

    The centre is the point nearest to all rays; the rotation turns the directions that the camera
    would see unturned onto those of the rays (Kabsch 1976).

    Args:
      rays: as of `to_rays`.
      focal: as of `Cameras`; None is `DEFAULT_FOCAL`.
      principal: as of `Cameras`; None is the middle.
    """
    count, size = rays.shape[:2]
    focal = np.full((count, 2), 2 * DEFAULT_FOCAL) if focal is None else focal
    principal = np.zeros((count, 2)) if principal is None else principal
    directions = rays[..., :3] / np.linalg.norm(rays[..., :3], axis=-1, keepdims=True)
    origins = np.cross(directions, rays[..., 3:])
    plain = _grid_directions(size, focal=np.asarray(focal), principal=np.asarray(principal))
    plain /= np.linalg.norm(plain, axis=-1, keepdims=True)
    rotation, translation = [], []
    for n in range(count):
        center = _nearest_point(origins[n].reshape(-1, 3), directions[n].reshape(-1, 3))
        seen, turned = plain[n].reshape(-1, 3), directions[n].reshape(-1, 3)
        u, _, vt = np.linalg.svd(turned.T @ seen)
        flip = np.diag([1.0, 1.0, np.linalg.det(u @ vt)])
        rotation.append(u @ flip @ vt)
        translation.append(-center @ rotation[-1])
    return Cameras(
        np.stack(rotation), np.stack(translation), np.asarray(focal), np.asarray(principal)
    )


def ray_frame(rays: Float[np.ndarray, "n y x 6"], *, channels: int) -> Float[np.ndarray, "n y x c"]:
    """Rays repeated to the channels of a latent, at a latent's scale."""
    return RAY_SCALE * rays[..., np.arange(channels) % 6]


def read_ray_frame(frame: Float[np.ndarray, "n y x c"]) -> Float[np.ndarray, "n y x 6"]:
    """Inverse of `ray_frame`: each number is the mean of its copies.

    Raises:
      ValueError: fewer than six channels.
    """
    if frame.shape[-1] < 6:
        raise ValueError(f"a ray frame has at least 6 channels, got {frame.shape[-1]}")
    frame = np.asarray(frame, np.float64)
    return np.stack([frame[..., i::6].mean(axis=-1) for i in range(6)], axis=-1) / RAY_SCALE


def rotation_error(
    first: Float[np.ndarray, "n 3 3"], second: Float[np.ndarray, "n 3 3"]
) -> Float[np.ndarray, "n"]:
    """Angle between two rotations in degrees."""
    trace = np.einsum("nij,nij->n", first, second)
    return np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1.0, 1.0)))


def _grid_directions(
    size: int, *, focal: Float[np.ndarray, "n 2"], principal: Float[np.ndarray, "n 2"]
) -> Float[np.ndarray, "n y x 3"]:
    """Directions at the centres of a grid, in the camera's axes, with z = 1."""
    line = 1.0 - (2.0 * np.arange(size) + 1.0) / size
    place = np.stack(np.meshgrid(line, line), axis=-1)  # (y, x, (x, y))
    flat = (place - principal[:, None, None]) / focal[:, None, None]
    return np.concatenate([flat, np.ones((*flat.shape[:-1], 1))], axis=-1)


def _nearest_point(
    points: Float[np.ndarray, "n 3"], directions: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, "3"]:
    """The point with the least sum of squared distances to lines of unit directions."""
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    return np.linalg.lstsq(across.sum(axis=0), np.einsum("nij,nj->i", across, points), rcond=None)[
        0
    ]
