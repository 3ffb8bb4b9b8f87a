"""Moments in 16 bits and in host memory: how far from, and how equal to, the plain ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from unidiff_jax.config import ConfigError
from unidiff_jax.mesh import make_mesh
from unidiff_jax.train.offload import HOST, moments_on_host, with_moments_on_device
from unidiff_jax.train.optim import OptimConfig, make_optimizer, round_stochastically
from unidiff_jax.train.state import create_state
from unidiff_jax.train.step import make_train_step


def test_rounding_keeps_the_mean():
    value = jnp.full((100_000,), 1.0 + 2**-10)  # an eighth of the way to the next bfloat16
    found = round_stochastically(value, jax.random.key(0))
    assert found.dtype == jnp.bfloat16
    wide = np.asarray(found, np.float32)
    assert set(np.unique(wide)) == {1.0, 1.0 + 2**-7}
    assert wide.mean() == pytest.approx(float(value[0]), abs=5 * 2**-7 * (7 / 64 / 100_000) ** 0.5)
    exact = jnp.asarray([0.0, 1.0, -2.5, jnp.inf])
    np.testing.assert_array_equal(round_stochastically(exact, jax.random.key(1)), exact)


def steps(moments, *, num, b2=0.999):
    """A quadratic's parameters after some steps of AdamW with noisy gradients."""
    config = OptimConfig(learning_rate=1e-2, warmup_steps=0, moments=moments, b2=b2, clip_norm=1e9)
    optimizer = make_optimizer(config, num_steps=num, axes={"w": ("embed", "ffn")})
    params = {"w": jnp.zeros((16, 16))}
    target = jax.random.normal(jax.random.key(0), (16, 16))
    state = optimizer.init(params)

    @jax.jit
    def step(carry, key):
        params, state = carry
        slope = {"w": params["w"] - target + 0.1 * jax.random.normal(key, (16, 16))}
        updates, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(
        step, (params, state), jax.random.split(jax.random.key(1), num)
    )
    return params["w"], target, state


def test_moments_in_sixteen_bits():
    exact, target, _ = steps("float32", num=1000)
    found, _, state = steps("bfloat16", num=1000)
    assert optax.tree.get(state, "nu")["w"].dtype == jnp.bfloat16
    assert optax.tree.get(state, "mu")["w"].dtype == jnp.bfloat16
    far = float(jnp.abs(target).mean())
    assert float(jnp.abs(exact - target).mean()) < 0.1 * far  # it has learned
    assert float(jnp.abs(found - exact).mean()) < 0.02 * far


def test_the_second_moment_decays():
    """By a thousandth of itself a step, which rounding to nearest would undo."""
    state = {"nu": jnp.ones((1000,))}
    for i in range(1000):
        key = jax.random.fold_in(jax.random.key(0), i)
        state["nu"] = round_stochastically(state["nu"].astype(jnp.float32) * 0.999, key)
    mean = np.asarray(state["nu"], np.float32).mean()
    assert mean == pytest.approx(0.999**1000, rel=0.03)


def run(memory):
    optim = dataclasses.replace(tiny.OPTIM, memory=memory)
    model, optimizer, state, shardings = tiny.make_state(optim=optim)
    step = make_train_step(
        graphdef=model.graphdef, optimizer=optimizer, flow_config=tiny.FLOW, optim_config=optim
    )
    used = shardings
    if memory == "host":
        shardings = moments_on_host(shardings, model, optimizer)
        step = with_moments_on_device(step, kept=shardings, used=used)
        made = create_state(model, optimizer, seed=0, shardings=shardings)
        state = dataclasses.replace(state, opt_state=made.opt_state)
    jitted = jax.jit(step, out_shardings=(shardings, None), donate_argnums=0)
    batch = tiny.on_device(tiny.packed(tiny.mixed_examples()))
    for _ in range(3):
        state, _ = jitted(state, batch)
    return state


def test_moments_in_host_memory():
    kinds = {memory.kind for memory in jax.devices()[0].addressable_memories()}
    if HOST not in kinds:
        pytest.skip(f"this device has no {HOST} memory, only {sorted(kinds)}")
    near, far = run("device"), run("host")
    for tree in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(near, tree), getattr(far, tree))
    moments = optax.tree.get(far.opt_state, "mu")
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(moments)} == {HOST}
    assert HOST not in {leaf.sharding.memory_kind for leaf in jax.tree.leaves(far.params)}


@pytest.mark.parametrize(("key", "value"), [("moments", "int8"), ("memory", "disk")])
def test_what_cannot_be(key, value):
    with pytest.raises(ConfigError, match=f"optim.{key}={value!r} is unknown; one of"):
        OptimConfig(learning_rate=1.0, warmup_steps=0, **{key: value})


def test_the_mesh_stays():
    """Host memory changes the kind of memory and not who holds what."""
    model, optimizer, _, shardings = tiny.make_state()
    moved = moments_on_host(shardings, model, optimizer)
    pairs = zip(jax.tree.leaves(shardings.opt_state), jax.tree.leaves(moved.opt_state), strict=True)
    assert all(a.spec == b.spec and a.mesh == b.mesh for a, b in pairs)
    assert make_mesh({"data": -1}) == jax.tree.leaves(moved.params)[0].mesh
