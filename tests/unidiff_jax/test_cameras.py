"""Cameras: conventions by hand, and rays there and back."""

import numpy as np
import pytest

from unidiff_jax import cameras


def ring(count=5, *, seed=0):
    """Cameras around a point, with turned tops and different focal lengths."""
    rng = np.random.default_rng(seed)
    poses = []
    for i in range(count):
        pose = cameras.look_at_origin(70.0 * i, rng.uniform(-30, 60), rng.uniform(1, 3))
        angle = rng.uniform(-0.5, 0.5)
        roll = np.eye(4)
        roll[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        poses.append(pose @ roll)
    focal = rng.uniform(0.8, 1.6, (count, 2))
    return cameras.from_opengl(
        np.stack(poses), focal=focal, principal=np.full((count, 2), 0.5) + 0.02 * focal
    )


def test_a_camera_on_the_x_axis():
    pose = cameras.look_at_origin(0.0, 0.0, 2.0)
    np.testing.assert_allclose(pose[:3, 3], [2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(pose[:3, 2], [1, 0, 0], atol=1e-12)  # looks along -z: to the origin
    np.testing.assert_allclose(pose[:3, 1], [0, 0, 1], atol=1e-12)  # up is the world's z
    np.testing.assert_allclose(np.linalg.det(pose[:3, :3]), 1.0)
    above = cameras.look_at_origin(0.0, 90.0, 1.0)
    np.testing.assert_allclose(above[:3, :3] @ above[:3, :3].T, np.eye(3), atol=1e-9)


def test_the_middle_ray_of_the_first_camera_looks_forward():
    found = cameras.relative_to_first(ring()._replace(principal=np.zeros((5, 2))))
    rays = cameras.to_rays(found, size=3)
    np.testing.assert_allclose(rays[0, 1, 1], [0, 0, 1, 0, 0, 0], atol=1e-12)
    assert rays[0, 1, 0, 0] > 0 > rays[0, 1, 2, 0]  # x is to the left
    assert rays[0, 0, 1, 1] > 0 > rays[0, 2, 1, 1]  # y is up
    np.testing.assert_allclose(np.abs(rays[0, ..., 3:]).max(), 0.0, atol=1e-12)


def test_rays_pass_through_their_camera_and_are_unit():
    found = ring()
    rays = cameras.to_rays(found, size=6)
    directions, moments = rays[..., :3], rays[..., 3:]
    np.testing.assert_allclose(np.linalg.norm(directions, axis=-1), 1.0)
    center = np.broadcast_to(found.centers[:, None, None], directions.shape)
    np.testing.assert_allclose(np.cross(center, directions), moments, atol=1e-12)


def test_there_and_back():
    found = ring()
    rays = cameras.to_rays(found, size=8)
    again = cameras.from_rays(rays, focal=found.focal, principal=found.principal)
    np.testing.assert_allclose(again.rotation, found.rotation, atol=1e-9)
    np.testing.assert_allclose(again.translation, found.translation, atol=1e-9)


def test_noise_in_the_rays_moves_the_cameras_a_little():
    found = ring()
    rays = cameras.to_rays(found, size=16)
    noisy = rays + 0.02 * np.random.default_rng(0).standard_normal(rays.shape)
    again = cameras.from_rays(noisy, focal=found.focal, principal=found.principal)
    error = cameras.rotation_error(again.rotation, found.rotation)
    assert 0 < error.max() < 1.0
    assert np.abs(again.centers - found.centers).max() < 0.1


def test_a_ray_frame_repeats_and_scales():
    rays = np.random.default_rng(0).standard_normal((2, 4, 4, 6))
    frame = cameras.ray_frame(rays, channels=16)
    assert frame.shape == (2, 4, 4, 16)
    np.testing.assert_allclose(frame[..., :6], 1.658 * rays)
    np.testing.assert_allclose(frame[..., 12:], frame[..., :4])
    np.testing.assert_allclose(cameras.read_ray_frame(frame), rays)
    with pytest.raises(ValueError, match="at least 6 channels"):
        cameras.read_ray_frame(frame[..., :4])


def test_normalised_cameras_look_at_one_point_at_the_scale():
    found = cameras.normalize(ring(), scale=1.7)
    np.testing.assert_allclose(found.rotation[0], np.eye(3), atol=1e-12)
    # all optical axes still meet: in front of the first camera, at the scale
    np.testing.assert_allclose(np.linalg.norm(found.translation[0]), 1.7, atol=1e-9)
    turned = cameras.relative_to_first(found)
    np.testing.assert_allclose(turned.translation[0], 0, atol=1e-12)
    with pytest.raises(ValueError, match="no scale can be chosen"):
        same = ring()._replace(
            rotation=np.stack([np.eye(3), np.roll(np.eye(3), 1, axis=1)]),
            translation=np.zeros((2, 3)),
        )
        cameras.normalize(same, scale=1.0)


@pytest.mark.parametrize("angle", [0.0, 30.0, 179.0])
def test_rotation_error(angle):
    turn = np.deg2rad(angle)
    matrix = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1.0]]
    )
    np.testing.assert_allclose(
        cameras.rotation_error(matrix[None], np.eye(3)[None]), angle, atol=1e-5
    )
