"""FID and KID against the published formulae as they are usually written."""

import numpy as np
import pytest
from scipy import linalg

from unidiff_jax.evals.distribution import Moments, fid, kid, merge, squared_mmd


def features(count, width=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, width)) @ rng.standard_normal((width, width)) + seed


def by_square_root(a, b):
    """The formula with a matrix's square root."""
    (m1, c1), (m2, c2) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b))
    root = linalg.sqrtm(c1 @ c2)
    return ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root.real)


def test_fid_is_the_formula():
    a, b = features(50), features(40, seed=1)
    found = fid(Moments.of(a), Moments.of(b))
    assert found == pytest.approx(by_square_root(a, b), rel=1e-9)
    assert found == pytest.approx(fid(Moments.of(b), Moments.of(a)), rel=1e-9)


def test_fid_of_known_distributions():
    """Of normal distributions with diagonal covariances it is a sum over the axes."""
    first = Moments(101, np.zeros(3), np.diag([1.0, 4.0, 0.0]) * 100)
    second = Moments(101, np.array([1.0, 2.0, 0.0]), np.diag([9.0, 4.0, 1.0]) * 100)
    assert fid(first, second) == pytest.approx(1 + 4 + (1 - 3) ** 2 + 0 + 1)
    assert fid(first, first) == pytest.approx(0, abs=1e-9)


def test_fid_of_singular_covariances():
    """Fewer samples than features: no small number is added, and the result is exact."""
    a, b = features(5, 12), features(4, 12, seed=1)
    (m1, c1), (m2, c2) = ((x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b))
    centred = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    cross = linalg.svdvals(centred[0] @ centred[1].T).sum()  # Tr (C1 C2)^(1/2) = |X Y^T|_*
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2) - 2 * cross
    assert fid(Moments.of(a), Moments.of(b)) == pytest.approx(expected, rel=1e-6)


def test_parts_merge_to_the_whole():
    x = features(37) + 1e4  # far from zero, where sums of squares would cancel
    parts = [Moments.of(x[a:b]) for a, b in ((0, 1), (1, 20), (20, 36), (36, 37))]
    whole = merge(parts)
    assert whole.count == 37
    np.testing.assert_allclose(whole.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(x, rowvar=False), rtol=1e-8, atol=1e-8)


def test_moments_are_kept(tmp_path):
    found = Moments.of(features(20))
    found.save(tmp_path / "real.npz")
    again = Moments.load(tmp_path / "real.npz")
    assert again.count == 20
    np.testing.assert_allclose(again.covariance, found.covariance)
    np.savez(tmp_path / "published.npz", mu=found.mean, sigma=found.covariance)
    with pytest.raises(ValueError, match="count=30000"):
        Moments.load(tmp_path / "published.npz")
    other = Moments.load(tmp_path / "published.npz", count=30000)
    assert fid(other, found) == pytest.approx(0, abs=1e-9)


def test_what_has_no_moments():
    for wrong in (np.zeros((0, 3)), np.zeros(3), np.full((2, 3), np.nan)):
        with pytest.raises(ValueError, match="finite"):
            Moments.of(wrong)
    with pytest.raises(ValueError, match="at least 2"):
        _ = Moments.of(np.zeros((1, 3))).covariance


def test_mmd_is_its_definition():
    a, b = features(6, 4), features(5, 4, seed=1)

    def kernel(x, y):
        return (x @ y / 4 + 1) ** 3

    within = [
        np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])
        for x in (a, b)
    ]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert squared_mmd(a, b) == pytest.approx(sum(within) - 2 * across, rel=1e-12)
    with pytest.raises(ValueError, match="at least 2"):
        squared_mmd(a, b[:1])


def test_kid_of_one_distribution_is_near_zero_on_both_sides():
    """Unbiased: the mean over many draws is zero, which a biased one would not be."""
    rng = np.random.default_rng(0)
    found = [squared_mmd(*rng.standard_normal((2, 12, 4))) for _ in range(300)]
    assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(300)
    assert min(found) < 0 < max(found)


def test_kid_is_the_mean_over_subsets():
    a, b = features(30, 4), features(20, 4, seed=1)
    assert kid(a, b, num_subsets=3).mean == pytest.approx(
        kid(a, b, num_subsets=3, subset_size=20).mean
    )
    few, many = kid(a, b, num_subsets=400, subset_size=8), squared_mmd(a, b)
    assert few.mean == pytest.approx(many, abs=4 * few.std / np.sqrt(400) + 0.05 * many)
    assert kid(a, b, seed=1) == kid(a, b, seed=1) and few.std > 0
