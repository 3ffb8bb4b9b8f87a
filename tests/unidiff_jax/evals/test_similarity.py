"""Cosines against loops, and what copies and empty changes score."""

import numpy as np
import pytest

from unidiff_jax.evals import similarity


def unit(x):
    return x / np.linalg.norm(x)


def features(count=5, width=7, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32) * 3


def test_cosines_equal_a_loop():
    a, b = features(), features(seed=1)
    expected = [unit(x.astype(float)) @ unit(y.astype(float)) for x, y in zip(a, b, strict=True)]
    for found in (
        similarity.clip_image(a, reference=b),
        similarity.clip_text(a, text=b),
        similarity.dino(a, reference=b),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    floored = similarity.clip_text(a, text=b, floor=0.0)
    np.testing.assert_allclose(floored, np.maximum(expected, 0), rtol=1e-12)
    assert min(expected) < 0


def test_direction_equals_a_loop():
    out, source, text, old = (features(seed=s) for s in range(4))
    found = similarity.clip_direction(out, source=source, source_text=old, output_text=text)
    for i in range(5):
        a, b, c, d = (unit(x[i].astype(float)) for x in (out, source, text, old))
        assert found[i] == pytest.approx(unit(a - b) @ unit(c - d), rel=1e-9)


def test_a_direction_needs_both_changes():
    out, source, text, old = (features(3, 512, seed=s) for s in range(4))
    out[0] = source[0] * 1.7  # a copy
    text[1] = old[1] * (1 + 1e-7)  # equal captions, rounded otherwise
    text[1, 0] += 1e-7
    found = similarity.clip_direction(out, source=source, source_text=old, output_text=text)
    assert found[0] == found[1] == 0 and found[2] != 0
    out[2] = 0
    found = similarity.clip_direction(out, source=source, source_text=old, output_text=text)
    assert np.isnan(found[2]) and found[0] == 0


def test_captions_differ():
    pairs = [("a cat", "A  cat "), ("a cat", "a dog"), ("a cat", "a cat."), ("", "")]
    found = similarity.captions_differ([a for a, _ in pairs], output=[b for _, b in pairs])
    assert found.tolist() == [False, True, True, False]


def test_mean_over_references_equals_a_loop():
    samples, references = features(4), features(3, seed=1)
    found = similarity.mean_over_references(samples, references=references)
    for row, sample in zip(found, samples, strict=True):
        expected = np.mean([unit(sample.astype(float)) @ unit(r.astype(float)) for r in references])
        assert row == pytest.approx(expected, rel=1e-12)
    with pytest.raises(ValueError, match="at least one"):
        similarity.mean_over_references(samples, references=references[:0])


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="must pair"):
        similarity.dino(features(2), reference=features(3))
    assert np.isnan(similarity.dino(np.zeros((1, 3)), reference=np.ones((1, 3))))[0]
