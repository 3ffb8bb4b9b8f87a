"""What every metric must say of answers that need no model.

Each domain has a truth and five answers: the truth itself (oracle), the given input (copy), noise
(random), one answer for all items (constant), and the truth with some noise (near). A metric has
known scores for some of them, prefers the oracle, and sees when answers and items are exchanged.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from unidiff_jax.cameras import look_at_origin
from unidiff_jax.evals import camera_protocol, depth_protocol, metrics, segmentation, similarity
from unidiff_jax.evals import image_distance as pixels
from unidiff_jax.evals.distribution import Moments, fid, kid
from unidiff_jax.evals.extractors.lpips import LPIPSExtractor
from unidiff_jax.models import lpips

N, SIDE = 10, 32
DEPTHS = depth_protocol.DepthSet(min_depth=0.1, max_depth=50.0)


@dataclasses.dataclass(frozen=True)
class Domain:
    """Answers by name and the truth, lists of N items; `given` is what else a metric reads."""

    answers: dict[str, list]
    truth: list
    given: list


@functools.cache
def domain(name: str) -> Domain:
    return {
        "picture": picture_domain,
        "feature": feature_domain,
        "depth": depth_domain,
        "mask": mask_domain,
        "camera": camera_domain,
    }[name](np.random.default_rng(0))


def picture_domain(rng):
    """An edit repaints the upper half of a picture; below, nothing changes."""
    coarse = rng.random((N, 4, 4, 3)).repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    source = np.clip(coarse + 0.05 * rng.standard_normal(coarse.shape), 0, 1)
    target = source.copy()
    target[:, : SIDE // 2] = 1 - target[:, : SIDE // 2]
    near = np.clip(target + 0.05 * rng.standard_normal(target.shape), 0, 1)
    answers = {
        "oracle": target,
        "copy": source,
        "random": rng.random(target.shape),
        "constant": np.full(target.shape, 0.5),
        "near": near,
    }
    mask = np.zeros((SIDE, SIDE), bool)
    mask[: SIDE // 2] = True
    return Domain({k: list(v) for k, v in answers.items()}, list(target), [mask] * N)


def feature_domain(rng):
    """Features of outputs; truth is (source, target, source text, target text)."""
    source, target, source_text = rng.standard_normal((3, N, 64))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (source, target, source_text)]
    source, target, source_text = unit
    # a caption that changes as the picture does, from one side of the unit sphere to the other
    change = target - source
    along = np.sum(source_text * change, axis=1, keepdims=True)
    source_text, along = -np.sign(along) * source_text, -np.abs(along)
    output_text = source_text - 2 * along / np.square(change).sum(1)[:, None] * change
    answers = {
        "oracle": target,
        "copy": source,
        "random": rng.standard_normal(target.shape),
        "constant": np.broadcast_to(rng.standard_normal(64), target.shape),
        "near": target + 0.05 * rng.standard_normal(target.shape),
    }
    truth = [
        {"source": a, "target": b, "source_text": c, "output_text": d}
        for a, b, c, d in zip(source, target, source_text, output_text, strict=True)
    ]
    return Domain({k: list(v) for k, v in answers.items()}, truth, [None] * N)


def depth_domain(rng):
    ramp = np.linspace(1, 3, SIDE)[:, None] * np.ones(SIDE)
    blocks = rng.uniform(1, 6, (N, 4, 4)).repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    depth = blocks * ramp
    answers = {
        "oracle": depth,
        "copy": rng.random(depth.shape),  # a picture's brightness, which knows nothing
        "random": rng.random(depth.shape) * 9,
        "constant": np.broadcast_to(ramp, depth.shape),
        "near": depth * rng.uniform(0.95, 1.05, depth.shape),
    }
    return Domain({k: list(v) for k, v in answers.items()}, list(depth), [None] * N)


def mask_domain(rng):
    true = np.zeros((N, SIDE, SIDE), bool)
    for i, mask in enumerate(true):
        y, x = 5 * (i // 5) * 3, 6 * (i % 5)
        mask[y : y + 12, x : x + 6 + i % 3] = True
    answers = {
        "oracle": true,
        "copy": np.ones_like(true),  # the whole picture
        "random": rng.random(true.shape) < 0.5,
        "constant": np.zeros_like(true),
        "near": true ^ (rng.random(true.shape) < 0.003),
    }
    return Domain({k: list(v) for k, v in answers.items()}, list(true), [None] * N)


def camera_domain(rng):
    """A scene an item, of eight cameras on a sphere."""

    def scene():
        angles = zip(rng.uniform(0, 360, 8), np.rad2deg(np.arcsin(rng.random(8))), strict=True)
        return np.stack([look_at_origin(a, e, 1.0) for a, e in angles])

    true = [scene() for _ in range(N)]
    near = [c2w.copy() for c2w in true]
    for c2w in near:
        c2w[:, :3, 3] += 0.02 * rng.standard_normal((8, 3))
    answers = {
        "oracle": true,
        "copy": [np.repeat(c2w[:1], 8, axis=0) for c2w in true],  # the given view again
        "random": [scene() for _ in range(N)],
        "constant": [np.repeat(np.eye(4)[None], 8, axis=0)] * N,
        "near": near,
    }
    return Domain(answers, true, [None] * N)


# ------------------------------------------------------------------------------------- the metrics


def on_pictures(function, **keywords):
    def score(outputs, truth, given):
        masks = {"mask": np.stack(given)} if keywords.get("mask") else {}
        rest = {k: v for k, v in keywords.items() if k != "mask"}
        return function(np.stack(outputs), target=np.stack(truth), **masks, **rest)

    return score


def black_outside(function):
    def score(outputs, truth, given):
        mask = np.stack(given)
        a, b = (pixels.zero_outside(np.stack(x), mask=mask) for x in (outputs, truth))
        return function(a, target=b)

    return score


@functools.cache
def alex():
    """LPIPS with random weights: heads are not negative, as the released ones."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        values = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        return jnp.asarray(np.abs(values) if leaf.shape[-1] == 1 else values, jnp.float32)

    params = jax.tree.map(draw, lpips.lpips_shapes("alex"))
    identity = {"name": "lpips-alex", "sha256": "", "preprocess": "lpips", "substitute": "random"}
    return LPIPSExtractor("alex", params, identity)


def by_lpips(outputs, truth, given):
    to = lambda x: Image.fromarray(np.uint8(np.rint(x * 255)))  # noqa: E731
    return alex().distance([to(x) for x in outputs], [to(x) for x in truth])


def column(truth, name):
    return np.stack([item[name] for item in truth])


def direction(outputs, truth, given):
    names = ("source", "source_text", "output_text")
    return similarity.clip_direction(np.stack(outputs), **{n: column(truth, n) for n in names})


def to_reference(function, name):
    return lambda outputs, truth, given: function(np.stack(outputs), reference=column(truth, name))


def clip_text(outputs, truth, given):
    return similarity.clip_text(np.stack(outputs), text=column(truth, "target"))


def over_references(outputs, truth, given):
    return [
        similarity.mean_over_references(o[None], references=t["target"][None])[0]
        for o, t in zip(outputs, truth, strict=True)
    ]


def on_depth(name, alignment):
    def score(outputs, truth, given):
        found = []
        for output, target in zip(outputs, truth, strict=True):
            output = 1 / np.maximum(output, 0.05) if alignment == "disparity" else output * 3 + 1
            result = depth_protocol.evaluate(
                output, target=target, depth_set=DEPTHS, alignment=alignment
            )
            found.append(getattr(result, name))
        return found

    return score


def on_masks(read):
    def score(outputs, truth, given):
        overlap = metrics.mask_overlap(np.stack(outputs), target=np.stack(truth))
        return read(segmentation.scores(overlap.intersection, union=overlap.union))

    return score


def on_cameras(read):
    def score(outputs, truth, given):
        found = []
        for output, target in zip(outputs, truth, strict=True):
            places = target[:, :3, 3]
            result = camera_protocol.evaluate(
                output[:, :3, :3],
                centers=output[:, :3, 3],
                target_rotations=target[:, :3, :3],
                target_centers=places,
                scale=camera_protocol.scene_scale(places),
            )
            found.append(read(result))
        return found

    return score


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of a domain.

    Attributes:
      domain: name.
      score: (answers, truth, given) to one number an item, or one for all.
      higher: whether more is better.
      known: answer -> its score, or (at least, at most).
    """

    domain: str
    score: Callable
    higher: bool
    known: dict


HALF_CHANGED = (0.05, 0.45)
METRICS = {
    "L1": Metric("picture", on_pictures(pixels.l1), False, {"oracle": 0, "copy": HALF_CHANGED}),
    "L2": Metric("picture", on_pictures(pixels.l2), False, {"oracle": 0, "random": (0.1, 0.25)}),
    "PSNR": Metric("picture", on_pictures(pixels.psnr), True, {"oracle": 60, "random": (5, 10)}),
    "SSIM": Metric("picture", on_pictures(pixels.ssim), True, {"oracle": 1, "random": (-0.1, 0.1)}),
    "SSIM, Gaussian": Metric(
        "picture",
        on_pictures(pixels.ssim, window="gaussian"),
        True,
        {"oracle": 1, "random": (-0.1, 0.1)},
    ),
    "SSIM, torchmetrics": Metric(
        "picture", on_pictures(pixels.ssim, window="torchmetrics"), True, {"oracle": 1}
    ),
    "L1 in the mask": Metric("picture", on_pictures(pixels.l1, mask=True), False, {"oracle": 0}),
    "L2 in the mask": Metric("picture", on_pictures(pixels.l2, mask=True), False, {"oracle": 0}),
    "PSNR in the mask": Metric(
        "picture", on_pictures(pixels.psnr, mask=True), True, {"oracle": 60}
    ),
    "SSIM in the mask": Metric(
        "picture", on_pictures(pixels.ssim, mask=True), True, {"oracle": 1, "copy": (-1, 0.5)}
    ),
    "L2, black outside": Metric("picture", black_outside(pixels.l2), False, {"oracle": 0}),
    "LPIPS": Metric("picture", by_lpips, False, {"oracle": 0, "copy": (1e-3, 10)}),
    "CLIP_dir": Metric("feature", direction, True, {"oracle": 1, "copy": 0}),
    "CLIP-I to the target": Metric(
        "feature",
        to_reference(similarity.clip_image, "target"),
        True,
        {"oracle": 1, "random": (-0.15, 0.15)},
    ),
    "DINO to the target": Metric(
        "feature",
        to_reference(similarity.dino, "target"),
        True,
        {"oracle": 1, "constant": (-0.15, 0.15)},
    ),
    "CLIP-T": Metric("feature", clip_text, True, {"oracle": 1}),
    "CLIP-I of a subject": Metric("feature", over_references, True, {"oracle": 1}),
    "AbsRel": Metric("depth", on_depth("absrel", "affine"), False, {"oracle": 0}),
    "delta1": Metric("depth", on_depth("delta1", "affine"), True, {"oracle": 1}),
    "AbsRel, disparity": Metric("depth", on_depth("absrel", "disparity"), False, {"oracle": 0}),
    "delta1, disparity": Metric("depth", on_depth("delta1", "disparity"), True, {"oracle": 1}),
    "cIoU": Metric("mask", on_masks(lambda s: s.ciou), True, {"oracle": 1, "constant": 0}),
    "mIoU": Metric(
        "mask", on_masks(lambda s: s.iou), True, {"oracle": 1, "constant": 0, "copy": (0.05, 0.1)}
    ),
    "P@0.5": Metric(
        "mask", on_masks(lambda s: s.precision[0.5]), True, {"oracle": 1, "copy": 0, "random": 0}
    ),
    "P@0.9": Metric("mask", on_masks(lambda s: s.precision[0.9]), True, {"oracle": 1, "copy": 0}),
    "R@15": Metric(
        "camera",
        on_cameras(lambda s: s.rotation_accuracy[15.0]),
        True,
        {"oracle": 1, "random": (0, 0.06)},
    ),
    "rotation error": Metric(
        "camera", on_cameras(lambda s: s.rotation_errors.mean()), False, {"oracle": 0}
    ),
    "CC@0.1": Metric(
        "camera",
        on_cameras(lambda s: s.center_accuracy[0.1]),
        True,
        {"oracle": 1, "random": (0, 0.1)},
    ),
    "CC@0.3": Metric("camera", on_cameras(lambda s: s.center_accuracy[0.3]), True, {"oracle": 1}),
}


def scores(name, answer, *, shift=0):
    """A metric's mean for an answer; the truth may be another item's."""
    metric = METRICS[name]
    items = domain(metric.domain)
    truth = items.truth[shift:] + items.truth[:shift]
    found = np.asarray(metric.score(items.answers[answer], truth, items.given), np.float64)
    assert found.shape in ((), (N,)) and np.isfinite(found).all()
    return float(found.mean())


KNOWN = [(name, answer) for name, metric in METRICS.items() for answer in metric.known]


@pytest.mark.parametrize(("name", "answer"), KNOWN)
def test_known_scores(name, answer):
    wanted, found = METRICS[name].known[answer], scores(name, answer)
    if isinstance(wanted, tuple):
        assert wanted[0] <= found <= wanted[1]
    else:
        assert found == pytest.approx(wanted, abs=2e-4)  # of degrees; acos is steep at 0


@pytest.mark.parametrize("name", METRICS)
def test_the_oracle_wins_and_what_is_near_follows(name):
    sign = 1 if METRICS[name].higher else -1
    ranked = {
        answer: sign * scores(name, answer) for answer in domain(METRICS[name].domain).answers
    }
    oracle, near = ranked.pop("oracle"), ranked.pop("near")
    assert oracle >= near > max(ranked.values())


@pytest.mark.parametrize("answer", ["oracle", "near"])
@pytest.mark.parametrize("name", METRICS)
def test_a_shuffled_pairing_drops_the_score(name, answer):
    sign = 1 if METRICS[name].higher else -1
    paired, shuffled = sign * scores(name, answer), sign * scores(name, answer, shift=3)
    assert paired - shuffled > 0.3 * (paired - sign * scores(name, "random")) > 0


def test_preservation_alone_rewards_doing_nothing():
    """Why a copy of the input needs a row of its own: to the source it is perfect."""
    items = domain("feature")
    copy, oracle = (np.stack(items.answers[name]) for name in ("copy", "oracle"))
    source = column(items.truth, "source")
    for function in (similarity.clip_image, similarity.dino):
        np.testing.assert_allclose(function(copy, reference=source), 1)
        assert function(oracle, reference=source).max() < 0.9


# ------------------------------------------------------ sets of pictures, whose order cannot matter


@pytest.mark.parametrize("measure", ["FID", "KID"])
def test_distances_of_sets(measure):
    rng = np.random.default_rng(0)
    real, other = rng.standard_normal((2, 200, 8)) + 1
    answers = {
        "oracle": real,
        "real": other,
        "random": rng.standard_normal((200, 8)) * 2 - 1,
        "constant": np.zeros((200, 8)) + 1,
    }

    def score(features):
        if measure == "FID":
            return fid(Moments.of(features), Moments.of(real))
        return kid(features, real, num_subsets=20, subset_size=100).mean

    found = {name: score(features) for name, features in answers.items()}
    if measure == "FID":
        assert found["oracle"] == pytest.approx(0, abs=1e-9)
        # equal means: what a constant lacks is all of the variance
        shift = np.square(real.mean(axis=0) - 1).sum()
        assert found["constant"] == pytest.approx(np.trace(np.cov(real.T)) + shift, rel=1e-9)
        assert score(real[::-1]) == pytest.approx(found["oracle"], abs=1e-9)
    assert abs(found["oracle"]) < 0.3 and abs(found["real"]) < 0.3
    assert min(found["random"], found["constant"]) > 3 * max(abs(found["real"]), 0.1)
