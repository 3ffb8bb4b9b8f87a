"""LPIPS 0.1 (Zhang et al. 2018): distance of pictures by the activations of a classifier.

d(a, b) = sum over layers of the mean over places of w_l . (a_l - b_l)^2, where a_l are a layer's
activations normalised along the channels (equation 1), of AlexNet, SqueezeNet 1.1 or VGG-16.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unidiff_jax.models.convnet import Conv, Keep, Layers, MaxPool, Split, run, shapes
from unidiff_jax.types import Params

MEAN = (-0.030, -0.088, -0.188)
STD = (0.458, 0.448, 0.450)
"""Of ImageNet's RGB values in [-1, 1]."""

NORM_EPS = 1e-10


def _vgg() -> Layers:
    layers: list = []
    index = 0
    for count, channels in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
        if index:
            layers.append(MaxPool(2, 2))
            index += 1
        for _ in range(count):
            layers.append(Conv(f"features.{index}", channels, padding=(1, 1)))
            index += 2  # a ReLU has a number too
        layers.append(Keep())
    return tuple(layers)


def _fire(number: int, squeezed: int, each: int) -> Layers:
    """A module of SqueezeNet (Iandola et al. 2016, section 3.2)."""
    name = f"features.{number}"
    wide = (Conv(f"{name}.expand3x3", each, padding=(1, 1)),)
    branches = ((Conv(f"{name}.expand1x1", each, (1, 1)),), wide)
    return Conv(f"{name}.squeeze", squeezed, (1, 1)), Split(branches)


LAYERS: dict[str, Layers] = {
    "alex": (
        Conv("features.0", 64, (11, 11), stride=4, padding=(2, 2)),
        Keep(),
        MaxPool(3, 2),
        Conv("features.3", 192, (5, 5), padding=(2, 2)),
        Keep(),
        MaxPool(3, 2),
        Conv("features.6", 384, padding=(1, 1)),
        Keep(),
        Conv("features.8", 256, padding=(1, 1)),
        Keep(),
        Conv("features.10", 256, padding=(1, 1)),
        Keep(),
    ),
    "squeeze": (
        Conv("features.0", 64, stride=2),
        Keep(),
        MaxPool(3, 2, ceil=True),
        *_fire(3, 16, 64),
        *_fire(4, 16, 64),
        Keep(),
        MaxPool(3, 2, ceil=True),
        *_fire(6, 32, 128),
        *_fire(7, 32, 128),
        Keep(),
        MaxPool(3, 2, ceil=True),
        *_fire(9, 48, 192),
        Keep(),
        *_fire(10, 48, 192),
        Keep(),
        *_fire(11, 64, 256),
        Keep(),
        *_fire(12, 64, 256),
        Keep(),
    ),
    "vgg": _vgg(),
}
"""The parts of torchvision's AlexNet, SqueezeNet 1.1 and VGG-16 that are read, with its names."""

WIDTHS = {
    "alex": (64, 192, 384, 256, 256),
    "squeeze": (64, 128, 256, 384, 384, 512, 512),
    "vgg": (64, 128, 256, 512, 512),
}
"""Channels of the layers that are compared."""

MIN_SIZE = {"alex": 31, "squeeze": 17, "vgg": 16}
"""Pixels of the smallest side that every layer still has a place of."""


def distance(
    params: Params, a: Float[Array, "n h w 3"], b: Float[Array, "n h w 3"], *, net: str
) -> Float[Array, "n"]:
    """Distances of pairs of pictures with RGB values in [-1, 1].

    Args:
      params: as `lpips_shapes` says: convolutions, and `lin0`, `lin1`, ..., the weights w_l.
      a: pictures.
      b: likewise.
      net: key of `LAYERS`.
    """
    both = (jnp.concatenate([a, b]) - jnp.asarray(MEAN)) / jnp.asarray(STD)
    total = jnp.zeros(len(a))
    for number, maps in enumerate(run(LAYERS[net], both, params=params).kept):
        length = jnp.sqrt(jnp.sum(jnp.square(maps), axis=-1, keepdims=True))
        first, second = jnp.split(maps / (length + NORM_EPS), 2)
        weight = params[f"lin{number}"]["weight"].reshape(-1)
        total += jnp.mean(jnp.square(first - second) @ weight, axis=(1, 2))
    return total


def lpips_shapes(net: str) -> Params:
    """Shapes of the parameters of `distance`."""
    heads = {
        f"lin{number}": {"weight": jax.ShapeDtypeStruct((1, 1, width, 1), "float32")}
        for number, width in enumerate(WIDTHS[net])
    }
    return shapes(LAYERS[net], channels=3) | heads
