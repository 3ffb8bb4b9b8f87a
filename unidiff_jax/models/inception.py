"""The Inception network that FID is defined by (Szegedy et al. 2015, as TensorFlow released it).

It differs from torchvision's Inception v3 in three ways: the weights are others; averages at the
border leave the padding out; and the last block pools by the maximum, not the mean. Its batch norms
are part of the convolutions here.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from unidiff_jax.models.convnet import Conv, Layer, Layers, MaxPool, MeanPool, Split, run, shapes
from unidiff_jax.types import Params

SIZE = 299
"""Pixels a side of a picture."""

NUM_FEATURES = 2048


def _same(name: str, channels: int, height: int, width: int) -> Conv:
    """A convolution that keeps the size."""
    return Conv(name, channels, (height, width), padding=(height // 2, width // 2))


def _block_a(name: str, pooled: int) -> Split:
    """35 x 35 places."""
    return Split(
        (
            (_same(f"{name}.branch1x1", 64, 1, 1),),
            (_same(f"{name}.branch5x5_1", 48, 1, 1), _same(f"{name}.branch5x5_2", 64, 5, 5)),
            (
                _same(f"{name}.branch3x3dbl_1", 64, 1, 1),
                _same(f"{name}.branch3x3dbl_2", 96, 3, 3),
                _same(f"{name}.branch3x3dbl_3", 96, 3, 3),
            ),
            (MeanPool(3), _same(f"{name}.branch_pool", pooled, 1, 1)),
        )
    )


def _block_b(name: str) -> Split:
    """35 x 35 to 17 x 17 places."""
    return Split(
        (
            (Conv(f"{name}.branch3x3", 384, stride=2),),
            (
                _same(f"{name}.branch3x3dbl_1", 64, 1, 1),
                _same(f"{name}.branch3x3dbl_2", 96, 3, 3),
                Conv(f"{name}.branch3x3dbl_3", 96, stride=2),
            ),
            (MaxPool(3, 2),),
        )
    )


def _block_c(name: str, narrow: int) -> Split:
    """17 x 17 places; the 7 x 7 windows are a column and a row."""
    return Split(
        (
            (_same(f"{name}.branch1x1", 192, 1, 1),),
            (
                _same(f"{name}.branch7x7_1", narrow, 1, 1),
                _same(f"{name}.branch7x7_2", narrow, 1, 7),
                _same(f"{name}.branch7x7_3", 192, 7, 1),
            ),
            (
                _same(f"{name}.branch7x7dbl_1", narrow, 1, 1),
                _same(f"{name}.branch7x7dbl_2", narrow, 7, 1),
                _same(f"{name}.branch7x7dbl_3", narrow, 1, 7),
                _same(f"{name}.branch7x7dbl_4", narrow, 7, 1),
                _same(f"{name}.branch7x7dbl_5", 192, 1, 7),
            ),
            (MeanPool(3), _same(f"{name}.branch_pool", 192, 1, 1)),
        )
    )


def _block_d(name: str) -> Split:
    """17 x 17 to 8 x 8 places."""
    return Split(
        (
            (_same(f"{name}.branch3x3_1", 192, 1, 1), Conv(f"{name}.branch3x3_2", 320, stride=2)),
            (
                _same(f"{name}.branch7x7x3_1", 192, 1, 1),
                _same(f"{name}.branch7x7x3_2", 192, 1, 7),
                _same(f"{name}.branch7x7x3_3", 192, 7, 1),
                Conv(f"{name}.branch7x7x3_4", 192, stride=2),
            ),
            (MaxPool(3, 2),),
        )
    )


def _block_e(name: str, pool: Layer) -> Split:
    """8 x 8 places; two branches end in a row beside a column."""

    def cross(stem: str) -> Split:
        return Split(((_same(f"{stem}a", 384, 1, 3),), (_same(f"{stem}b", 384, 3, 1),)))

    return Split(
        (
            (_same(f"{name}.branch1x1", 320, 1, 1),),
            (_same(f"{name}.branch3x3_1", 384, 1, 1), cross(f"{name}.branch3x3_2")),
            (
                _same(f"{name}.branch3x3dbl_1", 448, 1, 1),
                _same(f"{name}.branch3x3dbl_2", 384, 3, 3),
                cross(f"{name}.branch3x3dbl_3"),
            ),
            (pool, _same(f"{name}.branch_pool", 192, 1, 1)),
        )
    )


LAYERS: Layers = (
    Conv("Conv2d_1a_3x3", 32, stride=2),
    Conv("Conv2d_2a_3x3", 32),
    _same("Conv2d_2b_3x3", 64, 3, 3),
    MaxPool(3, 2),
    Conv("Conv2d_3b_1x1", 80, (1, 1)),
    Conv("Conv2d_4a_3x3", 192),
    MaxPool(3, 2),
    _block_a("Mixed_5b", 32),
    _block_a("Mixed_5c", 64),
    _block_a("Mixed_5d", 64),
    _block_b("Mixed_6a"),
    _block_c("Mixed_6b", 128),
    _block_c("Mixed_6c", 160),
    _block_c("Mixed_6d", 160),
    _block_c("Mixed_6e", 192),
    _block_d("Mixed_7a"),
    _block_e("Mixed_7b", MeanPool(3)),
    _block_e("Mixed_7c", MaxPool(3, 1, padding=1)),
)

SHAPES = shapes(LAYERS, channels=3)


def features(params: Params, pictures: Float[Array, "b 299 299 3"]) -> Float[Array, "b 2048"]:
    """The mean over the places of the last block: `pool3`.

    Args:
      params: of the shapes `SHAPES`, batch norms folded in.
      pictures: about in [-1, 1].
    """
    return jnp.mean(run(LAYERS, pictures, params=params).last, axis=(1, 2))
