"""Products in 8 bits: close to exact ones, in value and gradient, and trainable."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from unidiff_jax.ops.quantized import quantized_matmul
from unidiff_jax.train.state import abstract_model
from unidiff_jax.train.step import loss_and_gradient

# of a sum of many products; a rounding is up to 1/254 of the largest for int8, 1/16 of itself for
# fp8, whose gradients have two bits
BOUNDS = {"int8": (0.01, 0.01), "fp8": (0.04, 0.07)}


@pytest.mark.parametrize("kind", list(BOUNDS))
def test_close_to_the_exact_product(kind):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (4, 50, 64))
    weight = jax.random.normal(keys[1], (64, 96)) / 8
    target = jax.random.normal(keys[2], (4, 50, 96))

    def loss(x, weight, product):
        y = product(x, weight)
        return jnp.sum(y * target), y

    def run(product):
        (_, y), slopes = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, weight, product)
        return y, *slopes

    exact = run(jnp.matmul)
    found = run(lambda x, weight: quantized_matmul(x, weight, kind))
    value, slope = BOUNDS[kind]
    for one, other, bound in zip(found, exact, (value, slope, slope), strict=True):
        error = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert 1e-4 < error < bound  # and it is really rounded


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.05), ("fp8", 0.2)])
def test_gradient_of_the_model(kind, bound):
    """Direction and size of the whole gradient."""
    gradients = {}
    batch = tiny.on_device(tiny.packed(tiny.mixed_examples()))
    for quantized in ("none", kind):
        dit = dataclasses.replace(tiny.DIT, quantized=quantized)
        model = abstract_model(dit, tiny.TEXT)
        *_, state, _ = tiny.make_state(dit)
        _, slopes = loss_and_gradient(
            state.params, batch, jax.random.key(0), graphdef=model.graphdef, config=tiny.FLOW
        )
        gradients[quantized] = np.concatenate([np.ravel(x) for x in jax.tree.leaves(slopes["dit"])])
    exact, found = gradients["none"], gradients[kind]
    assert np.linalg.norm(found - exact) / np.linalg.norm(exact) < bound
