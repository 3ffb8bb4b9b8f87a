"""Referring segmentation against a loop over sentences."""

import numpy as np
import pytest
from PIL import Image

from unidiff_jax.evals import segmentation
from unidiff_jax.evals.metrics import mask_overlap


def masks(count=40):
    rng = np.random.default_rng(0)
    true = rng.random((count, 9, 8)) < rng.uniform(0.05, 0.9, (count, 1, 1))
    flip = rng.random(true.shape) < rng.uniform(0, 0.6, (count, 1, 1))
    true[0] = False
    predicted = true ^ flip
    predicted[0] = False  # both empty
    predicted[1] = False
    return predicted, true


def test_scores_equal_a_loop():
    predicted, true = masks()
    shared = total = 0
    ious, correct = [], dict.fromkeys(segmentation.THRESHOLDS, 0)
    for p, t in zip(predicted, true, strict=True):
        i, u = int((p & t).sum()), int((p | t).sum())
        shared, total = shared + i, total + u
        ious.append(i / u if u else 0.0)
        for threshold in correct:
            correct[threshold] += ious[-1] >= threshold
    found = segmentation.scores(
        *mask_overlap(predicted, target=true)[:1], union=mask_overlap(predicted, target=true).union
    )
    assert found.ciou == pytest.approx(shared / total)
    assert found.miou == pytest.approx(np.mean(ious))
    assert found.precision == pytest.approx({k: v / 40 for k, v in correct.items()})
    assert 0 < found.precision[0.9] < found.precision[0.5] < 1
    np.testing.assert_allclose(found.iou, ious)


def test_a_threshold_that_is_reached_counts():
    found = segmentation.scores(np.array([1.0]), union=np.array([2.0]))
    assert found.precision[0.5] == 1 and found.precision[0.6] == 0


def test_what_does_not_pair():
    with pytest.raises(ValueError, match="must pair"):
        segmentation.scores(np.zeros(2), union=np.zeros(3))
    with pytest.raises(ValueError, match="must pair"):
        segmentation.scores(np.zeros(0), union=np.zeros(0))


def test_painted_masks_come_to_the_original_size():
    painted = np.zeros((4, 4, 3), np.uint8)
    painted[:, 2:] = (255, 255, 10)  # not quite white
    found = segmentation.read_mask(Image.fromarray(painted), size=(16, 8))
    assert found.shape == (8, 16) and found.dtype == bool
    assert found[:, 10:].all() and not found[:, :7].any()
    same = segmentation.read_mask(Image.fromarray(painted), size=(4, 4))
    np.testing.assert_array_equal(same, painted[..., 0] > 0)
