"""Layers: gradients, norms, and that every way through a stack gives the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx

from unidiff_jax.models import layers
from unidiff_jax.train.step import loss_and_gradient


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3), (2, 3, 2)])
def test_matmul_has_the_value_and_gradient_of_jax(lead):
    x, weight, target = normal(0, *lead, 4), normal(1, 4, 6), normal(2, *lead, 6)

    def loss(product):
        return lambda x, weight: jnp.sum(jnp.sin(product(x, weight)) * target)

    got = jax.value_and_grad(loss(layers.matmul), (0, 1))(x, weight)
    expected = jax.value_and_grad(loss(jnp.matmul), (0, 1))(x, weight)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)
    vmapped = jax.vmap(jax.grad(loss(layers.matmul)), (None, 0))(x, jnp.stack([weight, 2 * weight]))
    again = jax.vmap(jax.grad(loss(jnp.matmul)), (None, 0))(x, jnp.stack([weight, 2 * weight]))
    np.testing.assert_allclose(vmapped, again, rtol=1e-5, atol=1e-5)


def test_matmul_keeps_the_dtype_of_its_operands():
    x, weight = normal(0, 3, 4).astype(jnp.bfloat16), normal(1, 4, 6).astype(jnp.bfloat16)
    value, pullback = jax.vjp(layers.matmul, x, weight)
    assert value.dtype == jnp.bfloat16
    assert [g.dtype for g in pullback(value)] == [jnp.bfloat16] * 2


def test_linear_is_torch_uniform():
    layer = layers.Linear(64, 256, axes=("a", "b"), bias=True, rngs=nnx.Rngs(0))
    for value in (layer.weight[...], layer.bias[...]):
        assert np.abs(value).max() <= 1 / 8
        np.testing.assert_allclose(np.std(value), 1 / 8 / np.sqrt(3), rtol=0.15)
    x = normal(0, 3, 64)
    np.testing.assert_allclose(
        layer(x), x @ layer.weight[...] + layer.bias[...], rtol=1e-5, atol=1e-6
    )


def test_norms_against_numpy():
    x = np.asarray(normal(0, 3, 8), np.float64) * 5 + 2
    weight, bias = np.asarray(normal(1, 8), np.float64), np.asarray(normal(2, 8), np.float64)
    rms = layers.RMSNorm(8, eps=1e-5, axis="a")
    rms.weight[...] = jnp.asarray(weight, jnp.float32)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(rms(jnp.asarray(x, jnp.float32)), expected, rtol=1e-5, atol=1e-5)
    layer = layers.LayerNorm(8, eps=1e-6, axis="a")
    layer.weight[...], layer.bias[...] = (jnp.asarray(v, jnp.float32) for v in (weight, bias))
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    got = layer(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected * weight + bias, rtol=1e-4, atol=1e-5)
    assert layer(jnp.ones((1, 8), jnp.bfloat16)).dtype == jnp.bfloat16


class Toy(nnx.Module):
    """Two matmuls with a nonlinearity; takes a second argument as the blocks do."""

    def __init__(self, rngs):
        self.first = layers.Linear(6, 12, axes=("embed", "ffn"), bias=True, rngs=rngs)
        self.second = layers.Linear(12, 6, axes=("ffn", "embed"), bias=False, rngs=rngs)

    def __call__(self, x, shift):
        return x + self.second(jnp.tanh(self.first(x) + shift))


@pytest.fixture(scope="module")
def stack():
    return layers.stack_layers(Toy, num=3, rngs=nnx.Rngs(0))


def test_stacked_layers_differ_and_carry_their_axes(stack):
    weight = stack.first.weight[...]
    assert weight.shape == (3, 6, 12)
    assert len(np.unique(weight)) == weight.size
    assert stack.first.weight.get_metadata("axes") == ("layers", "embed", "ffn")
    assert stack.first.bias.get_metadata("axes") == ("layers", "ffn")


def run_stack(stack, *, scan, remat):
    graphdef, state = nnx.split(stack)

    def loss(state, x, shift):
        y = layers.apply_layers(nnx.merge(graphdef, state), x, shift, scan=scan, remat=remat)
        return jnp.sum(jnp.square(y)), y

    values, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
        nnx.to_pure_dict(state), normal(5, 2, 4, 6), normal(6, 4, 12)
    )
    return values, grads


def test_apply_layers_against_a_plain_loop(stack):
    x, shift = normal(5, 2, 4, 6), normal(6, 4, 12)
    (_, got), _ = run_stack(stack, scan=True, remat="full")
    for i in range(3):
        hidden = np.tanh(x @ stack.first.weight[...][i] + stack.first.bias[...][i] + shift)
        x = x + hidden @ stack.second.weight[...][i]
    np.testing.assert_allclose(got, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("remat", list(layers.REMAT_POLICIES))
def test_scan_and_remat_change_nothing(stack, scan, remat):
    reference = run_stack(stack, scan=False, remat="none")
    got = run_stack(stack, scan=scan, remat=remat)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, reference
    )


def transformer_gradient(*, scan, remat):
    config = dataclasses.replace(tiny.DIT, scan_layers=scan, remat=remat)
    model, _, state, _ = tiny.make_state(config)
    batch = tiny.on_device(tiny.packed(tiny.mixed_examples(3)))
    gradient = functools.partial(
        loss_and_gradient, graphdef=model.graphdef, config=tiny.FLOW, num_microbatches=1
    )
    return jax.jit(gradient)(state.params, batch, jax.random.key(0))


@pytest.fixture(scope="module")
def unrolled():
    return transformer_gradient(scan=False, remat="none")


@pytest.mark.parametrize(("scan", "remat"), [(True, "dots"), (False, "full")])
def test_scan_and_remat_change_nothing_in_the_transformer(unrolled, scan, remat):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        transformer_gradient(scan=scan, remat=remat),
        unrolled,
    )
