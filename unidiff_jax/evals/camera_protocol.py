"""Camera poses by the protocol of RayDiffusion (Zhang et al. 2024, section 4.1).

Rotations are compared in pairs of views, so that no world frame matters: R@15 is the share of
ordered pairs whose relative rotation is within 15 degrees. Centres are compared after the best
similarity transform (Umeyama 1991) onto the true ones: CC@k is the share of cameras within k times
the scene's scale.

The alignment takes away seven numbers, so few views pass by chance: two views always, three
mostly (`chance`). Print chance beside every number.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from unidiff_jax.cameras import look_at_origin, rotation_error

Rotations = Float[np.ndarray, "n 3 3"]
Centers = Float[np.ndarray, "n 3"]

ROTATION_THRESHOLDS = (15.0, 30.0)
"""In degrees."""

CENTER_THRESHOLDS = (0.1, 0.2, 0.3)
"""In scales of the scene. The paper has 0.1, OneDiffusion's table 0.3."""


class CameraScores(NamedTuple):
    """Scores of one scene.

    Attributes:
      rotation_errors: in degrees, of all ordered pairs of different views.
      center_errors: of the aligned centres, in scales of the scene.
      rotation_accuracy: degrees -> share of the pairs below.
      center_accuracy: scales -> share of the cameras below.
    """

    rotation_errors: Float[np.ndarray, "k"]
    center_errors: Float[np.ndarray, "n"]
    rotation_accuracy: dict[float, float]
    center_accuracy: dict[float, float]


class Similarity(NamedTuple):
    """x -> scale * rotation x + translation."""

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]

    def __call__(self, points: Centers) -> Centers:
        return self.scale * points @ self.rotation.T + self.translation


def scene_scale(centers: Centers) -> float:
    """Largest distance of a camera from the centroid of all; give all cameras of the sequence, not
    the chosen views alone.

    Raises:
      ValueError: all stand in one place.
    """
    centers = np.asarray(centers, np.float64)
    scale = float(np.linalg.norm(centers - centers.mean(axis=0), axis=1).max())
    if scale <= 0:
        raise ValueError("all cameras stand in one place: the scene has no scale")
    return scale


def rotation_errors(predicted: Rotations, *, target: Rotations) -> Float[np.ndarray, "k"]:
    """Angles in degrees between predicted and true relative rotations R_i^T R_j, of all ordered
    pairs i != j.

    Args:
      predicted: as `cameras.Cameras.rotation`, x_camera = x_world R; the upper left 3 x 3 of a
        camera to world matrix is the same.
      target: likewise.
    """
    different: Bool[np.ndarray, "n n"] = ~np.eye(len(target), dtype=bool)
    first, second = np.nonzero(different)
    relative = [r[first].swapaxes(1, 2) @ r[second] for r in (predicted, target)]
    return rotation_error(*relative)


def align(points: Centers, *, target: Centers) -> Similarity:
    """The similarity transform of the points with the least sum of squared distances to the target
    (Umeyama 1991, equations 40 to 42); mirrors are not allowed.

    Points that all coincide are moved onto the target's centroid.
    """
    points, target = np.asarray(points, np.float64), np.asarray(target, np.float64)
    center, target_center = points.mean(axis=0), target.mean(axis=0)
    moved, goal = points - center, target - target_center
    variance = np.square(moved).sum()
    u, singular, vt = np.linalg.svd(goal.T @ moved)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * signs) @ vt
    scale = float((singular * signs).sum() / variance) if variance > 0 else 0.0
    return Similarity(scale, rotation, target_center - scale * rotation @ center)


def center_errors(predicted: Centers, *, target: Centers, scale: float) -> Float[np.ndarray, "n"]:
    """Distances of the aligned centres from the true ones, in scales of the scene.

    Args:
      predicted: places of the cameras, in any world.
      target: likewise, in the true one.
      scale: of `scene_scale`.
    """
    aligned = align(predicted, target=target)(np.asarray(predicted, np.float64))
    return np.linalg.norm(aligned - target, axis=1) / scale


def evaluate(
    rotations: Rotations,
    *,
    centers: Centers,
    target_rotations: Rotations,
    target_centers: Centers,
    scale: float,
) -> CameraScores:
    """Scores of one scene.

    Args:
      rotations: predicted, see `rotation_errors`.
      centers: predicted places (`cameras.Cameras.centers`).
      target_rotations: true.
      target_centers: true.
      scale: of `scene_scale` of all cameras of the sequence.

    Raises:
      ValueError: numbers of views that differ, or fewer than two.
    """
    counts = {len(x) for x in (rotations, centers, target_rotations, target_centers)}
    if len(counts) > 1 or min(counts) < 2:
        raise ValueError(f"give two or more views, as many predicted as true; got {counts}")
    angles = rotation_errors(rotations, target=target_rotations)
    distances = center_errors(centers, target=target_centers, scale=scale)
    return CameraScores(
        angles,
        distances,
        {limit: float((angles < limit).mean()) for limit in ROTATION_THRESHOLDS},
        {limit: float((distances < limit).mean()) for limit in CENTER_THRESHOLDS},
    )


class Chance(NamedTuple):
    """Mean accuracies of random cameras, by threshold."""

    rotation_accuracy: dict[float, float]
    center_accuracy: dict[float, float]


def chance(
    num_views: int, *, num_scenes: int = 400, num_cameras: int = 25, seed: int = 0
) -> Chance:
    """What random cameras score against random cameras, all on the upper hemisphere and looking at
    its centre: the row that belongs beside a benchmark's number.

    Args:
      num_views: of a scene.
      num_scenes: that are drawn.
      num_cameras: of a sequence, from which the views are and the scale comes.
      seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_scenes):
        true = _hemisphere(num_cameras, rng)
        drawn = _hemisphere(num_views, rng)
        found.append(
            evaluate(
                drawn[:, :3, :3],
                centers=drawn[:, :3, 3],
                target_rotations=true[:num_views, :3, :3],
                target_centers=true[:num_views, :3, 3],
                scale=scene_scale(true[:, :3, 3]),
            )
        )
    return Chance(
        *(
            {limit: float(np.mean([getattr(s, name)[limit] for s in found])) for limit in limits}
            for name, limits in (
                ("rotation_accuracy", ROTATION_THRESHOLDS),
                ("center_accuracy", CENTER_THRESHOLDS),
            )
        )
    )


def _hemisphere(count: int, rng: np.random.Generator) -> Float[np.ndarray, "count 4 4"]:
    """Camera to world, uniform on the upper half of the unit sphere."""
    azimuth = rng.uniform(0, 360, count)
    elevation = np.rad2deg(np.arcsin(rng.uniform(0, 1, count)))
    return np.stack([look_at_origin(a, e, 1.0) for a, e in zip(azimuth, elevation, strict=True)])
