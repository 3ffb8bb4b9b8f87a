"""Convolutional networks written as data: tuples of layers, which `run` applies.

Every convolution has a bias and is followed by a ReLU. Parameters are {name: {weight, bias}} with
the layers' names; weights are (height, width, input, output).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unidiff_jax.types import Params


class Conv(NamedTuple):
    """Convolution and ReLU.

    Attributes:
      name: of its parameters.
      channels: of the output.
      kernel: height and width.
      stride: in pixels, down and across.
      padding: zeros on each side, down and across.
    """

    name: str
    channels: int
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)


class MaxPool(NamedTuple):
    """Maximum of windows; padding never wins.

    Attributes:
      size: pixels a side of a window.
      stride: pixels between windows.
      padding: pixels on each side.
      ceil: whether a last window may end outside, so that no pixel is left over.
    """

    size: int
    stride: int
    padding: int = 0
    ceil: bool = False


class MeanPool(NamedTuple):
    """Mean of windows at stride 1, same size out; padding does not count."""

    size: int


class Keep(NamedTuple):
    """Marks a place whose values `run` returns."""


class Split(NamedTuple):
    """Branches that read the same input; their outputs lie side by side along the channels.

    Attributes:
      branches: each a tuple of layers.
    """

    branches: tuple[tuple, ...]


Layer = Conv | MaxPool | MeanPool | Keep | Split
Layers = tuple[Layer, ...]
Maps = Float[Array, "b _ _ _"]
"""Activations: batch, height, width, channels."""


class Output(NamedTuple):
    """Of the last layer, and at the `Keep`s in order."""

    last: Maps
    kept: tuple[Maps, ...]


def run(layers: Layers, x: Maps, *, params: Params) -> Output:
    """Applies the layers in turn."""
    kept: list[Maps] = []
    for layer in layers:
        if isinstance(layer, Conv):
            x = jax.nn.relu(_convolve(layer, x, params[layer.name]))
        elif isinstance(layer, MaxPool):
            more = [
                -(side - layer.size) % layer.stride if layer.ceil else 0 for side in x.shape[1:3]
            ]
            settings = (layer.size, layer.stride, layer.padding)
            x = _windows(x, jax.lax.max, -jnp.inf, *settings, more=more)
        elif isinstance(layer, MeanPool):
            pad = layer.size // 2
            ones = jnp.ones_like(x[:1, :, :, :1])
            x, count = (_windows(y, jax.lax.add, 0.0, layer.size, 1, pad) for y in (x, ones))
            x = x / count
        elif isinstance(layer, Split):
            outputs = [run(branch, x, params=params) for branch in layer.branches]
            x = jnp.concatenate([output.last for output in outputs], axis=-1)
        else:
            kept.append(x)
    return Output(x, tuple(kept))


def _convolve(layer: Conv, x: Maps, params: Params) -> Maps:
    y = jax.lax.conv_general_dilated(
        x,
        params["weight"],
        window_strides=(layer.stride, layer.stride),
        padding=[(side, side) for side in layer.padding],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y + params["bias"]


def _windows(
    x: Maps, reduce, start: float, size: int, stride: int, padding: int, *, more=(0, 0)
) -> Maps:
    """`more` pads so many pixels more below and to the right."""
    below, right = (padding + side for side in more)
    sides = ((0, 0), (padding, below), (padding, right), (0, 0))
    return jax.lax.reduce_window(
        x, start, reduce, (1, size, size, 1), (1, stride, stride, 1), sides
    )


def shapes(layers: Layers, *, channels: int) -> Params:
    """Shapes of the parameters.

    Args:
      layers: of the network.
      channels: of its input.
    """
    return _shapes(layers, channels)[0]


def _shapes(layers: Layers, channels: int) -> tuple[Params, int]:
    found: Params = {}
    for layer in layers:
        if isinstance(layer, Conv):
            found[layer.name] = {
                "weight": jax.ShapeDtypeStruct(
                    (*layer.kernel, channels, layer.channels), "float32"
                ),
                "bias": jax.ShapeDtypeStruct((layer.channels,), "float32"),
            }
            channels = layer.channels
        elif isinstance(layer, Split):
            parts = [_shapes(branch, channels) for branch in layer.branches]
            found |= {name: shape for part, _ in parts for name, shape in part.items()}
            channels = sum(width for _, width in parts)
    return found, channels
