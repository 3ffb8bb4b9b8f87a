"""Layers that the models share.

Parameters carry logical axis names; `configs/meshes.py` maps them to mesh axes.
Weights keep float32 and are cast to the computing dtype at use. Norms compute in float32.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from unidiff_jax.mesh import gathered, parameter_axes
from unidiff_jax.ops.quantized import quantized_matmul
from unidiff_jax.types import Params

Initializer = Callable[..., jax.Array]


def torch_uniform(fan_in: int) -> Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): PyTorch's default for linear weights and biases."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)


class Linear(nnx.Module):
    """y = x W + b with W of shape (input, output)."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        axes: tuple[str, str],
        bias: bool,
        rngs: nnx.Rngs,
        init: Initializer | None = None,
        quantized: str = "none",
    ):
        """Makes the layer.

        Args:
          in_dim: input width.
          out_dim: output width.
          axes: logical names of the two axes.
          bias: whether it has one.
          rngs: source of keys.
          init: of the weight; None is `torch_uniform`. The bias always starts as PyTorch's.
          quantized: type of the product's operands, one of `ops.quantized.KINDS`.
        """
        init = init or torch_uniform(in_dim)
        self.lora_a = self.lora_b = nnx.data(None)  # set by lora.attach
        self.lora_scale = 0.0
        self.quantized = quantized
        self.axes = axes
        self.weight = nnx.Param(init(rngs.params(), (in_dim, out_dim), jnp.float32), axes=axes)
        if bias:
            value = torch_uniform(in_dim)(rngs.params(), (out_dim,), jnp.float32)
            self.bias = nnx.Param(value, axes=(axes[1],))
        else:
            self.bias = None

    def __call__(self, x: Float[Array, "... i"]) -> Float[Array, "... o"]:
        weight = gathered(self.weight[...].astype(x.dtype), self.axes)
        if self.quantized == "none":
            y = matmul(x, weight)
        else:
            y = quantized_matmul(x, weight, self.quantized)
        if self.lora_a is not None and self.lora_b is not None:
            low = matmul(x, self.lora_a[...].astype(x.dtype))
            y = y + self.lora_scale * matmul(low, self.lora_b[...].astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


@jax.custom_vjp
def matmul(x: Float[Array, "... i"], weight: Float[Array, "i o"]) -> Float[Array, "... o"]:
    """x W, with the weight's gradient written as x^T dy.

    JAX's own rule computes (dy^T x)^T; on a CPU that copies the wider of the two operands, fused
    with whatever produced it, into transposed layout (measured: a tenth of the train step).
    """
    return x @ weight


def _matmul_forward(x, weight):
    return x @ weight, (x, weight)


def _matmul_backward(saved, dy):
    x, weight = saved
    rows = (tuple(range(x.ndim - 1)),) * 2
    dx = jax.lax.dot_general(dy, weight, (((dy.ndim - 1,), (1,)), ((), ())))
    return dx, jax.lax.dot_general(x, dy, (rows, ((), ())))


matmul.defvjp(_matmul_forward, _matmul_backward)


class RMSNorm(nnx.Module):
    """x / rms(x), cast back, times a weight."""

    def __init__(self, dim: int, *, eps: float, axis: str):
        self.weight = nnx.Param(jnp.ones((dim,), jnp.float32), axes=(axis,))
        self.eps = eps

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.weight[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm with weight and bias."""

    def __init__(self, dim: int, *, eps: float, axis: str):
        self.weight = nnx.Param(jnp.ones((dim,), jnp.float32), axes=(axis,))
        self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32), axes=(axis,))
        self.eps = eps

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        y = standardize(x, eps=self.eps) * self.weight[...] + self.bias[...]
        return y.astype(x.dtype)


def standardize(x: Float[Array, "... d"], *, eps: float) -> Float[Array, "... d"]:
    """Layer norm without weights, in float32."""
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    return y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)


def stack_layers(make: Callable[[nnx.Rngs], nnx.Module], *, num: int, rngs: nnx.Rngs) -> nnx.Module:
    """Makes `num` equal layers as one module whose parameters have a leading layer axis.

    Scanned and unrolled application share this storage, so that checkpoints do not depend on it.
    """
    graph: list[nnx.GraphDef] = []

    def make_state(key: jax.Array):
        graphdef, state = nnx.split(make(nnx.Rngs(params=key)))
        graph.append(graphdef)
        return nnx.to_pure_dict(state)

    state = jax.vmap(make_state)(jax.random.split(rngs.params(), num))
    module = nnx.merge(graph[0], state)
    for _, variable in nnx.iter_graph(module):
        if isinstance(variable, nnx.Variable):
            variable.set_metadata("axes", ("layers", *variable.get_metadata("axes")))
    return module


class Abstract(NamedTuple):
    """A module without its weights: structure, and shapes and logical axes of its parameters."""

    graphdef: nnx.GraphDef
    shapes: Params
    axes: Params


def abstract(make: Callable[[nnx.Rngs], nnx.Module]) -> Abstract:
    """Describes a module without allocating anything."""
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graphdef, state = nnx.split(module)
    return Abstract(graphdef, nnx.to_pure_dict(state), parameter_axes(module))


REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What the backward pass keeps of a layer: everything, nothing but its input, matmul outputs."""


def apply_layers(
    layers: nnx.Module,
    x: Any,
    *args,
    scan: bool,
    remat: str,
    span: tuple[int, int] | None = None,
) -> Any:
    """Applies stacked layers in turn, `x = layer(x, *args)`.

    Args:
      layers: from `stack_layers`.
      x: what goes through: an array or a tuple of arrays.
      *args: given to every layer.
      scan: one `lax.scan` (compile time independent of depth) or an unrolled loop (on a CPU the
        backward pass is faster without the scan's residual copies).
      remat: key of `REMAT_POLICIES`.
      span: the first of the layers and the one behind the last; None is all.
    """
    graphdef, stacked = nnx.split(layers)
    stacked = nnx.to_pure_dict(stacked)
    if span not in (None, (0, jax.tree.leaves(stacked)[0].shape[0])):
        stacked = jax.tree.map(lambda leaf: leaf[slice(*span)], stacked)

    def apply(x, state):
        return nnx.merge(graphdef, state)(x, *args)

    if remat != "none":
        apply = jax.checkpoint(apply, policy=REMAT_POLICIES[remat], prevent_cse=not scan)
    if scan:
        x, _ = jax.lax.scan(lambda x, state: (apply(x, state), None), x, stacked)
        return x
    for i in range(jax.tree.leaves(stacked)[0].shape[0]):
        x = apply(x, jax.tree.map(lambda leaf, i=i: leaf[i], stacked))
    return x
