"""The analytic renderer against sphere tracing of signed distances, in float64."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.miniworld import render as rendering
from data_pipelines.miniworld.render import render
from data_pipelines.miniworld.scene import Object, sample_scene

SIZE = 24
SCENES = [
    *(sample_scene(np.random.default_rng(seed)) for seed in range(6)),
    *(sample_scene(np.random.default_rng(seed), split="heldout") for seed in range(6)),
]
# Half extents and dome, written down again so that a change of either is noticed.
EXTENTS = {"sphere": (1, 1, 1), "cube": (0.85, 0.85, 0.85), "cylinder": (0.8, 1, 0.8)}
RADII = {"small": 0.55, "large": 0.8}
DOME = 10.0


def distance(body: Object, points: np.ndarray) -> np.ndarray:
    """Signed distance of world points (..., 3) to a body."""
    radius = RADII[body.size]
    half = radius * np.array(EXTENTS[body.shape])
    local = points - np.array([body.x, half[1], body.z])
    yaw = np.radians(body.yaw)
    turn = np.array([(np.cos(yaw), 0, np.sin(yaw)), (0, 1, 0), (-np.sin(yaw), 0, np.cos(yaw))])
    local = local @ turn  # the inverse rotation, since rows multiply from the left
    if body.shape == "sphere":
        return np.linalg.norm(local, axis=-1) - radius
    if body.shape == "cube":
        over = np.abs(local) - half
    else:
        side = np.linalg.norm(local[..., [0, 2]], axis=-1) - half[0]
        over = np.stack([side, np.abs(local[..., 1]) - half[1]], axis=-1)
    return np.linalg.norm(np.maximum(over, 0), axis=-1) + np.minimum(over.max(axis=-1), 0)


def march(scene, origins, directions, *, with_ground):
    """Sphere tracing: (distance travelled, id of what is met: 0 ground, object id, 255 none)."""
    travelled = np.zeros(origins.shape[:-1])
    for _ in range(300):
        points = origins + travelled[..., None] * directions
        distances = [distance(o, points) for o in scene.objects]
        if with_ground:
            distances.append(points[..., 1])
            distances.append(DOME - np.linalg.norm(points, axis=-1))
        travelled = np.minimum(travelled + np.maximum(np.min(distances, axis=0), 0), 1e3)
    ids = np.array([o.id for o in scene.objects] + ([0, 0] if with_ground else []))
    met = np.where(np.min(distances, axis=0) < 1e-5, ids[np.argmin(distances, axis=0)], 255)
    return travelled, met


def light_vector(scene):
    a, e = np.radians([scene.light.azimuth, scene.light.elevation])
    return np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])


@pytest.mark.parametrize("scene", SCENES)
def test_maps_match_sphere_tracing(scene):
    picture = render(scene, SIZE)
    rays = rendering.rays(scene.camera, SIZE)
    origins, directions = rays.origins.astype(np.float64), rays.directions.astype(np.float64)
    travelled, met = march(scene, origins, directions, with_ground=True)
    same = picture.instance == met
    assert same.mean() > 0.99  # a grazing ray may go either way
    optical_axis = -picture.camera_to_world[:3, 2].astype(np.float64)
    depth = travelled * (directions @ optical_axis)
    np.testing.assert_allclose(picture.depth[same], depth[same], atol=2e-3)

    points = origins + travelled[..., None] * directions
    light = light_vector(scene)
    # Along the normal first, so that the march can leave the surface that it starts on.
    normals = np.stack([_gradient(scene, points, np.eye(3)[axis]) for axis in range(3)], axis=-1)
    _, blocked = march(
        scene, points + 2e-3 * normals, np.broadcast_to(light, points.shape), with_ground=False
    )
    on_dome = np.abs(np.linalg.norm(points, axis=-1) - DOME) < 1e-3
    expected = ((blocked != 255) | (normals @ light <= 0)) & ~on_dome
    assert (picture.shadow == expected)[same].mean() > 0.99


def _gradient(scene, points, axis):
    def nearest(p):
        return np.min([*(distance(o, p) for o in scene.objects), p[..., 1]], axis=0)

    return (nearest(points + 1e-4 * axis) - nearest(points - 1e-4 * axis)) / 2e-4


@pytest.mark.parametrize("scene", SCENES)
def test_depth_and_rays_give_points_on_the_surfaces(scene):
    picture = render(scene, SIZE)
    rays = rendering.rays(scene.camera, SIZE)
    np.testing.assert_allclose(np.linalg.norm(rays.directions, axis=-1), 1, atol=1e-6)
    forward = -picture.camera_to_world[:3, 2]
    points = (
        rays.origins + rays.directions * (picture.depth / (rays.directions @ forward))[..., None]
    )
    for body in scene.objects:
        on_body = points[picture.instance == body.id]
        assert np.abs(distance(body, on_body.astype(np.float64))).max() < 1e-3
    rest = points[picture.instance == 0]
    off_dome = np.abs(np.linalg.norm(rest, axis=-1) - DOME)
    assert np.minimum(np.abs(rest[:, 1]), off_dome).max() < 1e-3

    # Back through the camera matrices: every point lands on its pixel's centre.
    to_camera = np.linalg.inv(picture.camera_to_world)
    local = points @ to_camera[:3, :3].T + to_camera[:3, 3]
    np.testing.assert_allclose(-local[..., 2], picture.depth, rtol=1e-4)
    image = (local * [1, -1, -1]) @ picture.intrinsics.T
    centers = (np.arange(SIZE) + 0.5) / SIZE
    np.testing.assert_allclose(
        image[..., :2] / image[..., 2:],
        np.stack(np.meshgrid(centers, centers), axis=-1),
        atol=1e-4,
    )


@pytest.mark.parametrize("shape", ["sphere", "cube", "cylinder"])
def test_an_object_is_seen_where_it_projects(shape):
    scene = sample_scene(np.random.default_rng(3))
    body = dataclasses.replace(scene.objects[0], id=7, shape=shape)
    scene = dataclasses.replace(scene, objects=(body,))
    picture = render(scene, 64)
    to_camera = np.linalg.inv(picture.camera_to_world)
    center = to_camera[:3, :3] @ np.array(body.center) + to_camera[:3, 3]
    x, y, w = picture.intrinsics @ (center * [1, -1, -1])
    assert picture.instance[int(64 * y / w), int(64 * x / w)] == 7
    rows, columns = np.nonzero(picture.instance == 7)
    assert abs((rows.mean() + 0.5) / 64 - y / w) < 0.03
    assert abs((columns.mean() + 0.5) / 64 - x / w) < 0.03


def test_a_picture_is_the_mean_of_its_samples():
    scene = SCENES[2]
    fine = render(scene, 96, samples=1).rgb.astype(np.float64)
    mean = fine.reshape(32, 3, 32, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(render(scene, 32, samples=3).rgb, mean, atol=1.0)


def test_shading_keeps_the_hue():
    for scene in SCENES:
        scene = dataclasses.replace(
            scene, objects=tuple(dataclasses.replace(o, texture=0) for o in scene.objects)
        )
        picture = render(scene, 64, samples=1)
        for body in scene.objects:
            pixels = picture.rgb[picture.instance == body.id].astype(np.float64)
            pure = rendering.PALETTE[body.color]
            ratio = pixels / pixels.max(axis=1, keepdims=True)
            assert np.abs(ratio - pure / pure.max()).max() < 0.02


def test_ray_along_a_side_of_a_box_hits_or_misses():
    from data_pipelines.miniworld import geometry

    x = np.array([0.0, 2.0], np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        t = geometry.hit_box((x, np.float32(5.0), np.float32(0.0)), (0.0, -1.0, 0.0), (1, 1, 1))
    np.testing.assert_allclose(t, [4.0, np.inf])
