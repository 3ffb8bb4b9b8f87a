"""Distances between pictures: L1, L2, PSNR and SSIM; of whole pictures or inside masks.

Pictures are as in `metrics`: (b, h, w, 3), uint8 or floating point in [0, 1]; masks bool (b, h, w).
All return one number an item. LPIPS is the extractor `lpips-alex` or `lpips-vgg`.

Masked benchmarks mean one of two things, which differ by the mask's size:

    mask=m                                the mean over the mask's pixels
    zero_outside(a, mask=m), ...          whole pictures, black outside the mask: PIE-Bench's code

PSNR is `metrics.psnr`, with its cap of 60 dB for equal pictures; `cap=np.inf` leaves it out.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float
from PIL import Image
from scipy import ndimage

from unidiff_jax.evals.metrics import Images, Masks, PerItem, as_float, masked_mean, psnr

__all__ = ["l1", "l2", "match_size", "psnr", "ssim", "zero_outside"]

UNIFORM, GAUSSIAN, TRUNCATE = 7, 1.5, 3.5
"""Windows of `ssim`: pixels a side of the uniform one, standard deviation of the Gaussian, and
where it ends, in standard deviations (11 pixels a side)."""


def match_size(output: Image.Image, *, reference: Image.Image) -> Image.Image:
    """The output at the reference's size, by PIL's default filter (bicubic), as MagicBrush's code.

    Example:
      >>> output = match_size(output, reference=target)
    """
    return output if output.size == reference.size else output.resize(reference.size)


def l1(output: Images, *, target: Images, mask: Masks | None = None) -> PerItem:
    """Mean |output - target| over pixels and channels, in [0, 1]."""
    return _mean(np.abs(as_float(output) - as_float(target)), mask)


def l2(output: Images, *, target: Images, mask: Masks | None = None) -> PerItem:
    """Mean (output - target)^2 over pixels and channels, in [0, 1]; also called MSE."""
    return _mean(np.square(as_float(output) - as_float(target)), mask)


def ssim(
    output: Images,
    *,
    target: Images,
    mask: Masks | None = None,
    window: Literal["uniform", "gaussian", "torchmetrics"] = "uniform",
) -> PerItem:
    """Structural similarity (Wang et al. 2004), in [-1, 1]: 1 for equal pictures.

    Args:
      output: pictures.
      target: pictures.
      mask: the mean is over its places whose whole window lies in the picture; NaN if there is
        none. Windows see what is outside the mask.
      window: `uniform` has 7 x 7 equal weights and sample covariances, as scikit-image does
        without arguments (EscherNet); `gaussian` has 11 x 11 weights and covariances of the
        population, as in the paper; `torchmetrics` (PIE-Bench) is the same over all places, with
        the picture mirrored at its border, as its version 1.9 does.

    Raises:
      ValueError: pictures that are smaller than the window.
    """
    x, y = as_float(output), as_float(target)
    gaussian = window != "uniform"
    pad = int(TRUNCATE * GAUSSIAN + 0.5) if gaussian else UNIFORM // 2
    size = 2 * pad + 1
    if min(x.shape[1:3]) < size:
        raise ValueError(f"pictures of {x.shape[1:3]} pixels are smaller than the {size} x {size}")

    def blur(values: np.ndarray) -> np.ndarray:
        if gaussian:
            settings = {"truncate": TRUNCATE, "mode": "mirror"}
            return ndimage.gaussian_filter(values, GAUSSIAN, axes=(1, 2), **settings)
        return ndimage.uniform_filter(values, UNIFORM, axes=(1, 2))

    unbiased = 1.0 if gaussian else UNIFORM**2 / (UNIFORM**2 - 1)
    mean_x, mean_y = blur(x), blur(y)
    var_x = unbiased * (blur(x * x) - mean_x**2)
    var_y = unbiased * (blur(y * y) - mean_y**2)
    covariance = unbiased * (blur(x * y) - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    values /= (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    if window == "torchmetrics":
        return _mean(values, mask)
    inside = slice(pad, -pad)
    mask = None if mask is None else np.asarray(mask, bool)[:, inside, inside]
    return _mean(values[:, inside, inside], mask)


def zero_outside(images: Images, *, mask: Masks) -> Float[np.ndarray, "b h w 3"]:
    """Pictures in [0, 1] that are black where the mask is not."""
    return as_float(images) * np.asarray(mask, bool)[..., None]


def _mean(values: Float[np.ndarray, "b h w c"], mask: Masks | None) -> PerItem:
    mask = np.ones(values.shape[:3], bool) if mask is None else mask
    return masked_mean(values.mean(axis=-1), mask=mask)
