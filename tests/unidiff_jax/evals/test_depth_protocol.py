"""Marigold's depth protocol against a restatement, a picture at a time."""

import dataclasses

import numpy as np
import pytest

from unidiff_jax.evals.depth_protocol import (
    SETS,
    DepthSet,
    evaluate,
    fit,
    kitti_benchmark_crop,
    valid_pixels,
)

PLAIN = DepthSet(min_depth=0.5, max_depth=20.0)


def scene(seed=0, shape=(20, 26)):
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.3, 22, shape)  # some of it outside the set's range
    depth[rng.random(shape) < 0.1] = 0
    return depth, depth * rng.uniform(0.8, 1.25, shape)


def restated(prediction, target, *, disparity):
    """Normal equations, and sums over a list of pixels."""
    valid = (target > 0.5) & (target < 20)
    seen = valid & (prediction > 0) if disparity else valid
    x, y = prediction[seen], 1 / target[seen] if disparity else target[seen]
    scale = np.cov(x, y, bias=True)[0, 1] / x.var()
    shift = y.mean() - scale * x.mean()
    depth = prediction * scale + shift
    depth = 1 / np.maximum(depth, 1e-3) if disparity else depth
    pairs = list(zip(np.clip(depth, 0.5, 20)[valid], target[valid], strict=True))
    absrel = sum(abs(p - g) / g for p, g in pairs) / len(pairs)
    delta = sum(max(p / g, g / p) < 1.25 for p, g in pairs) / len(pairs)
    return absrel, delta, scale, shift, len(pairs)


def test_affine_is_the_restatement():
    target, prediction = scene()
    found = evaluate(prediction * 0.1 - 3, target=target, depth_set=PLAIN)
    assert found == pytest.approx(restated(prediction * 0.1 - 3, target, disparity=False))
    again = evaluate(prediction, target=target, depth_set=PLAIN)
    assert again[:2] == pytest.approx(found[:2])  # scale and shift of the output do not matter


def test_disparity_is_the_restatement():
    target, prediction = scene()
    nearness = 1 / np.maximum(prediction, 0.2)
    nearness[:2] = -1  # not seen by the fit
    found = evaluate(nearness, target=target, depth_set=PLAIN, alignment="disparity")
    assert found == pytest.approx(restated(nearness, target, disparity=True))
    exact = np.divide(1, target, out=np.ones_like(target), where=target > 0) * 7 + 0.1
    found = evaluate(exact, target=target, depth_set=PLAIN, alignment="disparity")
    assert found[:2] == pytest.approx((0, 1)) and found.scale == pytest.approx(1 / 7)
    wrong = evaluate(exact, target=target, depth_set=PLAIN)
    assert wrong.absrel > 0.1 and wrong.scale < 0  # the other alignment turns it over


def test_an_inverted_map_passes_and_its_sign_tells():
    target, _ = scene()
    found = evaluate(-target, target=target, depth_set=PLAIN)
    assert found.absrel == pytest.approx(0, abs=1e-9)
    assert found.scale == pytest.approx(-1)


def test_predictions_are_clipped_to_the_range():
    target = np.array([[1.0, 2.0, 3.0, 4.0, 30.0]])
    found = evaluate(
        np.array([[-100.0, 2.0, 3.0, 4.0, 0.0]]),
        target=target,
        depth_set=dataclasses.replace(PLAIN, max_depth=10.0),
    )
    assert found.num_pixels == 4
    assert np.isfinite(found.absrel)


def test_nyus_crop_and_range():
    target = np.full((480, 640), 5.0)
    valid = valid_pixels(target, depth_set=SETS["nyuv2"])
    rows, columns = np.nonzero(valid)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (45, 470, 41, 600)
    target[100, 100], target[101, 100] = 10.0, 1e-3
    assert valid_pixels(target, depth_set=SETS["nyuv2"]).sum() == valid.sum() - 2


def test_kittis_crops():
    target = np.arange(375 * 1242, dtype=float).reshape(375, 1242)
    crop = kitti_benchmark_crop(target)
    assert crop.shape == (352, 1216) and crop[0, 0] == target[23, 13] and crop[-1, 0] // 1242 == 374
    valid = valid_pixels(np.full((352, 1216), 5.0), depth_set=SETS["kitti"])
    rows, columns = np.nonzero(valid)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (117, 320, 43, 1171)
    with pytest.raises(ValueError, match="352 x 1216"):
        kitti_benchmark_crop(target[:300])


def test_diode_has_its_own_masks():
    target, mask = np.full((3, 4), 500.0), np.eye(3, 4, dtype=bool)
    np.testing.assert_array_equal(
        valid_pixels(target, depth_set=SETS["diode"], mask=mask), mask
    )  # outside its range, too
    with pytest.raises(ValueError, match="needs the set's own mask"):
        valid_pixels(target, depth_set=SETS["diode"])
    with pytest.raises(ValueError, match="takes no mask"):
        valid_pixels(target, depth_set=SETS["scannet"], mask=mask)


def test_infinite_ranges():
    target, prediction = scene()
    found = evaluate(prediction, target=target, depth_set=SETS["eth3d"])
    assert found.num_pixels == (target > 0).sum()


@pytest.mark.torch
@pytest.mark.parametrize("longest", [9, 13, 25])
def test_the_fit_thins_columns_as_torch(longest):
    torch = pytest.importorskip("torch")
    target, prediction = scene()
    valid = target > 1
    thin = torch.nn.Upsample(scale_factor=np.min(longest / np.array(target.shape)), mode="nearest")
    x, y, seen = (
        thin(torch.as_tensor(v).float()[None])[0].numpy() for v in (prediction, target, valid)
    )
    assert x.shape[0] == 20  # rows stay, as channels
    line = np.polyfit(x[seen > 0], y[seen > 0], 1)
    found = fit(prediction, target=target, valid=valid, max_resolution=longest)
    assert (found.scale, found.shift) == pytest.approx(tuple(line), rel=1e-4)


def test_what_cannot_be_scored():
    target, prediction = scene()
    with pytest.raises(ValueError, match="one of affine, disparity"):
        evaluate(prediction, target=target, depth_set=PLAIN, alignment="metric")
    with pytest.raises(ValueError, match="not finite"):
        evaluate(prediction * np.nan, target=target, depth_set=PLAIN)
    with pytest.raises(ValueError, match="must pair"):
        evaluate(prediction[:5], target=target, depth_set=PLAIN)
    with pytest.raises(ValueError, match="at least 2"):
        evaluate(prediction, target=np.zeros_like(target), depth_set=PLAIN)
