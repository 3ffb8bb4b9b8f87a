"""L1, L2, PSNR and SSIM against plain formulae, and scikit-image where it is installed."""

import numpy as np
import pytest
from PIL import Image

from unidiff_jax.evals import image_distance
from unidiff_jax.evals.image_distance import l1, l2, match_size, psnr, ssim, zero_outside


def images(count=2, height=17, width=15, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (count, height, width, 3))
    return [
        np.clip(base + rng.integers(-k, k + 1, base.shape), 0, 255).astype("u1") for k in (1, 60)
    ]


def test_pixel_distances_are_means():
    a, b = images()
    x, y = a / 255, b / 255
    mask = np.random.default_rng(1).random(a.shape[:3]) < 0.3
    for i in range(2):
        assert l1(a, target=b)[i] == pytest.approx(np.abs(x - y)[i].mean())
        assert l2(a, target=b)[i] == pytest.approx(((x - y) ** 2)[i].mean())
        assert l1(a, target=b, mask=mask)[i] == pytest.approx(np.abs(x - y)[i][mask[i]].mean())
        assert l2(a, target=b, mask=mask)[i] == pytest.approx(((x - y) ** 2)[i][mask[i]].mean())
        assert psnr(a, target=b)[i] == pytest.approx(-10 * np.log10(((x - y) ** 2)[i].mean()))
    nothing = np.zeros_like(mask)
    assert np.isnan(l1(a, target=b, mask=nothing)).all()


def test_black_outside_counts_every_pixel():
    """PIE-Bench's masked MSE is smaller than the mean over the mask by the mask's share."""
    a, b = images()
    mask = np.zeros(a.shape[:3], bool)
    mask[:, :5] = True
    found = l2(zero_outside(a, mask=mask), target=zero_outside(b, mask=mask))
    np.testing.assert_allclose(found, l2(a, target=b, mask=mask) * 5 / 17)


def plain_ssim(x, y, *, weights, unbiased):
    """Windows one by one, of one channel."""
    size = len(weights)
    found = np.zeros((len(x) - size + 1, x.shape[1] - size + 1))
    for r, c in np.ndindex(*found.shape):
        a, b = (v[r : r + size, c : c + size] for v in (x, y))
        ma, mb = (weights * a).sum(), (weights * b).sum()
        va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
        cov = (weights * (a - ma) * (b - mb)).sum()
        va, vb, cov = (v * unbiased for v in (va, vb, cov))
        found[r, c] = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
        found[r, c] /= (ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)
    return found


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_ssim_is_its_definition(window):
    a, b = images(1)
    if window == "uniform":
        weights, unbiased, pad = np.full((7, 7), 1 / 49), 49 / 48, 3
    else:
        line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
        weights, unbiased, pad = np.outer(line, line) / line.sum() ** 2, 1.0, 5
    maps = np.stack(
        [
            plain_ssim(a[0, ..., c] / 255, b[0, ..., c] / 255, weights=weights, unbiased=unbiased)
            for c in range(3)
        ],
        axis=-1,
    )
    assert ssim(a, target=b, window=window)[0] == pytest.approx(maps.mean(), rel=1e-9)
    mask = np.random.default_rng(1).random(a.shape[:3]) < 0.3
    inside = mask[0, pad:-pad, pad:-pad]
    masked = ssim(a, target=b, mask=mask, window=window)[0]
    assert masked == pytest.approx(maps[inside].mean(), rel=1e-9)
    assert ssim(a, target=a, window=window)[0] == pytest.approx(1)
    if window == "gaussian":
        wide = [np.pad(x, ((0, 0), (5, 5), (5, 5), (0, 0)), mode="reflect") for x in (a, b)]
        mirrored = ssim(wide[0], target=wide[1], window="gaussian")
        np.testing.assert_allclose(ssim(a, target=b, window="torchmetrics"), mirrored)


def test_ssim_is_scikit_images():
    metrics = pytest.importorskip("skimage.metrics")
    a, b = images(2, 40, 32)
    for i in range(2):
        expected = metrics.structural_similarity(a[i], b[i], channel_axis=2)
        assert ssim(a, target=b)[i] == pytest.approx(expected, abs=1e-9)
        expected = metrics.structural_similarity(
            a[i], b[i], channel_axis=2, gaussian_weights=True, use_sample_covariance=False
        )
        assert ssim(a, target=b, window="gaussian")[i] == pytest.approx(expected, abs=1e-9)
        expected = metrics.peak_signal_noise_ratio(a[i], b[i])
        assert psnr(a, target=b)[i] == pytest.approx(expected, abs=1e-9)


def test_small_pictures_have_no_window():
    a, b = images(1, 6, 20)
    with pytest.raises(ValueError, match="7 x 7"):
        ssim(a, target=b)


def test_sizes_match_by_pils_default():
    big, small = (Image.fromarray(images(1, *size)[0][0]) for size in ((20, 30), (10, 12)))
    assert match_size(big, reference=big) is big
    expected = big.resize(small.size, Image.Resampling.BICUBIC)
    assert match_size(big, reference=small).tobytes() == expected.tobytes()


def test_psnr_is_one_function():
    from unidiff_jax.evals import metrics

    assert image_distance.psnr is metrics.psnr
