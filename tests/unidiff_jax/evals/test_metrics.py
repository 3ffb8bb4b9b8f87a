"""Metrics against loops that anyone can check, and against what a metric must give at its ends."""

import colorsys
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unidiff_jax.evals import metrics

# Seven hues at least 40 degrees apart with saturation .85, as in the benchmark's scenes.
HUES = {"red": 0, "yellow": 55, "green": 110, "cyan": 175, "blue": 225, "purple": 270, "pink": 315}
PALETTE = {name: colorsys.hsv_to_rgb(hue / 360, 0.85, 0.9) for name, hue in HUES.items()}
FLOOR = (0.6, 0.6, 0.58)


def draw(*rectangles, size=24, shade=1.0):
    """One image of coloured rectangles (name, y0, x0, y1, x1) on a neutral floor."""
    image = np.full((size, size, 3), FLOOR)
    for name, y0, x0, y1, x1 in rectangles:
        image[y0:y1, x0:x1] = np.asarray(PALETTE[name]) * shade
    return image


def random_images(rng, batch=3, size=6):
    return rng.integers(0, 256, size=(batch, size, size, 3), dtype=np.uint8)


# ---------------------------------------------------------------------------- depth


def test_depth_metrics_equal_a_loop():
    rng = np.random.default_rng(0)
    target = rng.uniform(1, 5, size=(4, 5, 6))
    prediction = target * rng.uniform(0.5, 1.7, size=target.shape)
    prior = rng.uniform(1, 5, size=(5, 6))
    mask = rng.random(target.shape) < 0.4

    for i in range(4):
        errors, prior_errors, close = [], [], []
        for y in range(5):
            for x in range(6):
                if mask[i, y, x]:
                    p, t = prediction[i, y, x], target[i, y, x]
                    errors.append(abs(p - t) / t)
                    prior_errors.append(abs(prior[y, x] - t) / t)
                    close.append(max(p / t, t / p) < 1.25)
        absrel = metrics.depth_absrel(prediction, target=target, mask=mask)[i]
        delta = metrics.depth_delta(prediction, target=target, mask=mask)[i]
        skill = metrics.depth_skill(prediction, target=target, prior=prior, mask=mask)[i]
        assert absrel == pytest.approx(np.mean(errors))
        assert delta == pytest.approx(np.mean(close))
        assert skill == pytest.approx(max(-1, 1 - np.mean(errors) / np.mean(prior_errors)))


def test_depth_skill_has_its_ends_at_the_prior_and_at_the_truth():
    rng = np.random.default_rng(1)
    target = rng.uniform(1, 5, size=(2, 4, 4))
    prior = target.mean(axis=0)
    mask = np.ones(target.shape, dtype=bool)
    skill = lambda p: metrics.depth_skill(p, target=target, prior=prior, mask=mask)  # noqa: E731
    np.testing.assert_allclose(skill(target), 1.0)
    np.testing.assert_allclose(skill(np.broadcast_to(prior, target.shape)), 0.0)
    np.testing.assert_allclose(skill(target * 1e3), -1.0)
    np.testing.assert_allclose(skill(np.full(target.shape, np.nan)), -1.0)


def test_an_item_without_object_pixels_is_undefined():
    target = np.ones((2, 3, 3))
    mask = np.stack([np.zeros((3, 3), bool), np.ones((3, 3), bool)])
    assert np.isnan(metrics.depth_absrel(target, target=target, mask=mask)).tolist() == [
        True,
        False,
    ]
    assert np.isnan(metrics.depth_delta(target, target=target, mask=mask)).tolist() == [True, False]


# ---------------------------------------------------------------------------- masks


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), density=st.floats(0, 1))
def test_mask_metrics_equal_set_arithmetic(seed, density):
    rng = np.random.default_rng(seed)
    prediction, target = rng.random((2, 3, 4, 4)) < density
    overlap = metrics.mask_overlap(prediction, target=target)
    iou = metrics.mask_iou(prediction, target=target)
    hit = metrics.mask_precision(prediction, target=target)
    for i in range(3):
        ours = {tuple(p) for p in np.argwhere(prediction[i])}
        truth = {tuple(p) for p in np.argwhere(target[i])}
        assert overlap.intersection[i] == len(ours & truth)
        assert overlap.union[i] == len(ours | truth)
        expected = len(ours & truth) / len(ours | truth) if ours | truth else 0.0
        assert iou[i] == pytest.approx(expected)
        assert hit[i] == (expected >= 0.5)


def test_mask_from_rgb_reads_painted_masks():
    painted = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    painted[0, 0, 0] = 255
    painted[0, 1, 1] = (255, 0, 0)
    assert metrics.mask_from_rgb(painted)[0].tolist() == [[True, False], [False, False]]


# ---------------------------------------------------------------------------- edits and pixels


def test_edit_metrics_equal_a_loop():
    rng = np.random.default_rng(2)
    source, output = random_images(rng), random_images(rng)
    target = source.copy()
    target[:, 2:4, 1:5] = random_images(rng, size=6)[:, 2:4, 1:5]

    gain = metrics.edit_gain(output, source=source, target=target)
    outside = metrics.edit_l1_outside(output, source=source, target=target)
    for i in range(3):
        inside_error, copy_error, outside_error = 0.0, 0.0, []
        for y in range(6):
            for x in range(6):
                s, t, o = (a[i, y, x].astype(float) / 255 for a in (source, target, output))
                if max(abs(s - t)) > 4 / 255:
                    inside_error += abs(o - t).mean()
                    copy_error += abs(s - t).mean()
                else:
                    outside_error.append(abs(o - t).mean())
        assert gain[i] == pytest.approx(max(-1, 1 - inside_error / copy_error))
        assert outside[i] == pytest.approx(np.mean(outside_error))


def test_edit_gain_of_copy_target_and_nonsense():
    source = np.stack([draw(("red", 4, 4, 12, 12))])
    target = np.stack([draw(("blue", 4, 4, 12, 12))])
    gain = lambda o: metrics.edit_gain(o, source=source, target=target).item()  # noqa: E731
    assert gain(target) == 1.0
    assert gain(source) == 0.0
    faint = np.clip(source + 5 / 255, 0, 1)
    wild = metrics.edit_gain(1 - source, source=source, target=faint)
    assert wild.item() == metrics.LOWEST_RATIO_SCORE
    assert np.isnan(metrics.edit_gain(source, source=source, target=source)).all()


def test_edit_gain_sees_what_should_have_been_left_alone():
    source = np.stack([draw(("red", 2, 2, 10, 10), ("red", 14, 14, 22, 22))])
    target = np.stack([draw(("blue", 2, 2, 10, 10), ("red", 14, 14, 22, 22))])
    everything = np.stack([draw(("blue", 2, 2, 10, 10), ("blue", 14, 14, 22, 22))])
    objects = source.max(-1) > source.min(-1)
    assert metrics.edit_gain(everything, source=source, target=target).item() == 1.0
    for output, gain in ((everything, 0.0), (target, 1.0), (source, 0.0)):
        found = metrics.edit_gain(output, source=source, target=target, also=objects)
        np.testing.assert_allclose(found, [gain], atol=1e-6)


def test_psnr_equals_its_formula_and_is_capped():
    rng = np.random.default_rng(3)
    output, target = random_images(rng), random_images(rng)
    hole = rng.random((3, 6, 6)) < 0.5
    for i in range(3):
        difference = output[i].astype(float) - target[i].astype(float)
        expected = 20 * math.log10(255 / math.sqrt((difference**2).mean()))
        assert metrics.psnr(output, target=target)[i] == pytest.approx(expected)
        expected = 20 * math.log10(255 / math.sqrt((difference[hole[i]] ** 2).mean()))
        assert metrics.hole_psnr(output, target=target, hole=hole)[i] == pytest.approx(expected)
    assert metrics.psnr(target, target=target).tolist() == [metrics.PSNR_CAP] * 3
    one_level = np.zeros((1, 4, 4, 3), dtype=np.uint8)
    assert metrics.psnr(one_level + np.uint8(1), target=one_level).item() < metrics.PSNR_CAP


def test_bytes_and_floats_score_alike_and_bad_images_raise():
    rng = np.random.default_rng(4)
    output, target = random_images(rng), random_images(rng)
    as_float = metrics.psnr(output / 255.0, target=(target / 255.0).astype(np.float32))
    np.testing.assert_allclose(as_float, metrics.psnr(output, target=target), rtol=1e-5)
    with pytest.raises(ValueError, match="finite and in"):
        metrics.psnr(output / 1.0, target=target)
    with pytest.raises(ValueError, match="finite and in"):
        metrics.psnr(np.full(output.shape, np.nan), target=target)
    with pytest.raises(ValueError, match="uint8 or floating"):
        metrics.psnr(output.astype(np.int64), target=target)


# ---------------------------------------------------------------------------- colour verifier


@settings(max_examples=50, deadline=None)
@given(st.tuples(*[st.floats(0, 1)] * 3))
def test_hsv_equals_colorsys(rgb):
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    ours = metrics.rgb_to_hsv(np.array(rgb))
    assert ours.saturation == pytest.approx(saturation, abs=1e-9)
    assert ours.value == pytest.approx(value)
    turn = abs(ours.hue - 360 * hue) % 360
    assert min(turn, 360 - turn) < 1e-6


def test_color_labels_survive_shading_and_ignore_the_floor():
    palette_bytes = {name: tuple(round(255 * c) for c in rgb) for name, rgb in PALETTE.items()}
    for k, name in enumerate(PALETTE, start=1):
        for shade in (1.0, 0.6, 0.3):
            image = draw((name, 2, 3, 9, 11), shade=shade)[None]
            expected = np.zeros((1, 24, 24), int)
            expected[0, 2:9, 3:11] = k
            for palette in (PALETTE, palette_bytes):
                assert (metrics.color_labels(image, palette=palette) == expected).all()
    with pytest.raises(ValueError, match="without a hue cannot be verified: grey"):
        metrics.color_labels(image, palette={**PALETTE, "grey": (0.5, 0.5, 0.5)})


def test_color_agreement_counts_wrong_hue_and_background_as_wrong():
    instances = np.zeros((1, 24, 24), dtype=np.uint8)
    instances[0, :4, :4] = 1
    instances[0, 8:12, :4] = 2
    expected = metrics.instance_colors(instances, colors=[["red", "blue"]], palette=PALETTE)
    agreement = lambda image: metrics.color_agreement(  # noqa: E731
        image[None], expected=expected, palette=PALETTE
    ).item()
    assert agreement(draw(("red", 0, 0, 4, 4), ("blue", 8, 0, 12, 4))) == 1.0
    assert agreement(draw(("blue", 0, 0, 4, 4), ("blue", 8, 0, 12, 4))) == 0.5
    assert agreement(draw(("red", 0, 0, 2, 4))) == 0.25
    assert agreement(draw()) == 0.0
    with pytest.raises(ValueError, match="item 0 has instance id 2 but 1 colours"):
        metrics.instance_colors(instances, colors=[["red"]], palette=PALETTE)


def test_multiset_agreement():
    found = [["a", "a", "b"], ["a"], [], ["a", "b", "c", "d"]]
    expected = [["a", "b", "b"], ["a"], ["a"], ["a", "b"]]
    np.testing.assert_allclose(
        metrics.multiset_agreement(found, expected=expected), [2 / 3, 1, 0, 0.5]
    )
    assert np.isnan(metrics.multiset_agreement([["a"]], expected=[[]])).all()


def test_detected_objects_score_against_the_caption():
    images = np.stack(
        [
            draw(("red", 0, 0, 6, 8), ("red", 10, 10, 15, 15), ("blue", 18, 2, 23, 7)),
            draw(("green", 3, 3, 10, 10), ("pink", 20, 20, 22, 22)),  # the pink speck is dropped
            draw(),
        ]
    )
    detections = metrics.detect_objects(images, palette=PALETTE)
    assert [item.color for item in detections[0]] == ["red", "blue", "red"]
    assert detections[0][0] == metrics.DetectedObject("red", (0, 0, 6, 8), 48)
    assert [item.color for item in detections[1]] == ["green"]
    scores = metrics.object_list_scores(
        detections, colors=[["blue", "red", "red"], ["blue"], ["red", "blue"]]
    )
    assert scores.count_exact.tolist() == [1, 1, 0]
    assert scores.list_exact.tolist() == [1, 0, 0]
    assert scores.color_recall.tolist() == [1, 0, 0]


def box_pixels(box):
    y0, x0, y1, x1 = box
    return {(y, x) for y in range(y0, y1) for x in range(x0, x1)}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_box_iou_equals_pixel_sets(seed):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, 9, size=(5, 2, 2)), axis=1)
    boxes = corners.reshape(5, 4)
    ours = metrics.box_iou(boxes[:2], others=boxes[2:])
    for i, a in enumerate(boxes[:2]):
        for j, b in enumerate(boxes[2:]):
            union = box_pixels(a) | box_pixels(b)
            expected = len(box_pixels(a) & box_pixels(b)) / len(union) if union else 0.0
            assert ours[i, j] == pytest.approx(expected)


def test_layout_scores_match_colours_one_to_one():
    image = draw(("red", 0, 0, 6, 6), ("red", 10, 0, 16, 6), ("blue", 10, 10, 20, 20))[None]
    detections = metrics.detect_objects(image, palette=PALETTE)
    right = [(10, 0, 16, 6), (0, 0, 6, 6), (10, 10, 20, 20)]

    def score(boxes, colors):
        return metrics.layout_scores(detections, boxes=[np.array(boxes)], colors=[colors])

    assert score(right, ["red", "red", "blue"]).iou.item() == 1.0
    assert score(right, ["blue", "blue", "red"]).iou.item() == 0.0
    half = score([(0, 0, 6, 3), (0, 0, 6, 6), (10, 10, 20, 20)], ["red", "red", "blue"])
    assert half.iou.item() == pytest.approx(2 / 3)  # two boxes cannot claim one object
    assert half.recall.item() == pytest.approx(2 / 3)
    assert score(right, ["green"] * 3).recall.item() == 0.0
    assert np.isnan(score(np.zeros((0, 4)), []).iou.item())


def test_instance_boxes_bound_their_objects():
    instances = np.zeros((8, 8), dtype=np.uint8)
    instances[2:5, 1:7] = 1
    instances[6, 6] = 3
    boxes = metrics.instance_boxes(instances, num_objects=3)
    assert boxes.tolist() == [[2, 1, 5, 7], [0, 0, 0, 0], [6, 6, 7, 7]]
