"""Camera scores against RayDiffusion's formulae restated, invariances, and chance."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from unidiff_jax import cameras
from unidiff_jax.evals import camera_protocol as protocol


def rotations(count, seed=0):
    return Rotation.random(count, rng=np.random.default_rng(seed)).as_matrix()


def centers(count, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3))


def test_rotation_errors_equal_a_loop():
    predicted, true = rotations(4), rotations(4, seed=1)
    expected = []
    for i in range(4):
        for j in range(4):
            if i != j:
                apart = Rotation.from_matrix(
                    (predicted[i].T @ predicted[j]).T @ (true[i].T @ true[j])
                )
                expected.append(np.rad2deg(apart.magnitude()))
    found = protocol.rotation_errors(predicted, target=true)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_no_world_matters():
    """Neither a turned world, nor for centres a moved, scaled one."""
    world, noise = rotations(1, seed=5)[0], rotations(6, seed=6)
    true = rotations(6)
    near = true @ noise
    angles = protocol.rotation_errors(near, target=true)
    np.testing.assert_allclose(protocol.rotation_errors(world @ near, target=true), angles)
    places = centers(6)
    wrong = places + 0.3 * centers(6, seed=1)
    before = protocol.center_errors(wrong, target=places, scale=1.0)
    after = protocol.center_errors(3 * wrong @ world.T + 7, target=places, scale=1.0)
    np.testing.assert_allclose(after, before)
    mirrored = protocol.center_errors(places * [1, 1, -1], target=places, scale=1.0)
    assert mirrored.max() > 0.1


def test_alignment_is_the_least_squares_one():
    points, target = centers(5), centers(5, seed=1)

    def distance(values):
        turn = Rotation.from_rotvec(values[:3]).as_matrix()
        return np.square(np.exp(values[3]) * points @ turn.T + values[4:] - target).sum()

    found = protocol.align(points, target=target)
    best = min(minimize(distance, np.r_[start, 0, 0, 0, 0]).fun for start in centers(8, seed=2))
    assert np.square(found(points) - target).sum() == pytest.approx(best, rel=1e-5)
    assert np.linalg.det(found.rotation) == pytest.approx(1)


def test_coinciding_predictions_go_to_the_centroid():
    target = centers(4)
    found = protocol.center_errors(np.ones((4, 3)), target=target, scale=2.0)
    expected = np.linalg.norm(target - target.mean(axis=0), axis=1) / 2
    np.testing.assert_allclose(found, expected)


def test_scale_is_of_the_farthest_camera():
    places = centers(9)
    expected = max(np.linalg.norm(p - places.mean(axis=0)) for p in places)
    assert protocol.scene_scale(places) == pytest.approx(expected)
    with pytest.raises(ValueError, match="one place"):
        protocol.scene_scale(np.ones((3, 3)))


def test_cameras_that_were_read_from_rays_score_fully():
    """The rotations that `cameras` gives are of the convention that the protocol wants."""
    c2w = np.stack([cameras.look_at_origin(a, 20 + a / 9, 2.0) for a in (0, 80, 150, 260)])
    focal, principal = np.full((4, 2), 1.4), np.full((4, 2), 0.5)
    given = cameras.from_opengl(c2w, focal=focal, principal=principal)
    read = cameras.relative_to_first(given)
    found = protocol.evaluate(
        read.rotation,
        centers=read.centers,
        target_rotations=given.rotation,
        target_centers=given.centers,
        scale=protocol.scene_scale(given.centers),
    )
    assert found.rotation_errors.max() < 1e-4 and found.center_errors.max() < 1e-9
    assert found.rotation_accuracy[15.0] == found.center_accuracy[0.1] == 1


def test_counts_must_agree():
    with pytest.raises(ValueError, match="two or more views"):
        protocol.evaluate(
            rotations(3),
            centers=centers(3),
            target_rotations=rotations(2),
            target_centers=centers(2),
            scale=1.0,
        )


@pytest.mark.parametrize(
    ("views", "accuracy"), [(2, (1, 1, 1)), (3, (0.15, 0.42, 0.64)), (6, (0.01, 0.08, 0.18))]
)
def test_chance_is_what_was_measured_elsewhere(views, accuracy):
    found = protocol.chance(views, num_scenes=150)
    assert tuple(found.center_accuracy.values()) == pytest.approx(accuracy, abs=0.07)
    assert found.rotation_accuracy[15.0] < 0.04
