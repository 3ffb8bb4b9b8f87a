"""Solvers: order of convergence, and exact fields end at the data."""

import jax.numpy as jnp
import numpy as np
import pytest

from unidiff_jax.flow import FlowConfig, to_velocity
from unidiff_jax.sample.solvers import SOLVERS, integrate, sigma_schedule

START = jnp.asarray([[[1.0, -2.0]]])


def error(solver, num_steps):
    """Against the solution of dx / dsigma = x cos(3 sigma), from sigma = 1 to 0."""
    sigmas = sigma_schedule(num_steps)
    got = integrate(lambda x, sigma: x * jnp.cos(3 * sigma), START, sigmas=sigmas, solver=solver)
    exact = np.asarray(START) * np.exp(-np.sin(3.0) / 3)
    return np.abs(np.asarray(got) - exact).max()


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(solver, order):
    errors = [error(solver, n) for n in (32, 64, 128)]
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, order, atol=0.25)


def test_heun_is_better_than_euler():
    assert error("heun", 16) < error("euler", 16) / 5


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 2, 7])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_an_exact_velocity_reaches_the_data(solver, num_steps, shift):
    data = jnp.asarray([[[0.3, 0.7]]])
    sigmas = sigma_schedule(num_steps, shift=shift)
    constant = integrate(lambda x, sigma: START - data, START, sigmas=sigmas, solver=solver)
    np.testing.assert_allclose(constant, data, atol=1e-5)
    # the same field as a data prediction gives it, which has no value at sigma = 0
    predicted = integrate(lambda x, sigma: (x - data) / sigma, START, sigmas=sigmas, solver=solver)
    np.testing.assert_allclose(predicted, data, atol=1e-5)


def test_schedule():
    np.testing.assert_allclose(sigma_schedule(4), [1, 0.75, 0.5, 0.25, 0])
    shifted = np.asarray(sigma_schedule(4, shift=3.0))
    np.testing.assert_allclose(shifted, [1, 0.9, 0.75, 0.5, 0], rtol=1e-6)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="at least one step, got 0; for example 10"):
        sigma_schedule(0)
    with pytest.raises(ValueError, match=r"sample.solver='rk4' is unknown; one of euler, heun"):
        integrate(lambda x, sigma: x, START, sigmas=sigma_schedule(2), solver="rk4")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 8, 50])
def test_the_last_step_of_data_prediction_lands_on_the_prediction(solver, num_steps):
    # the bound of the loss weight must not reach the sampler: it would leave noise in the result
    config = FlowConfig(prediction="x", loss="v", min_sigma=0.2)
    data = jnp.asarray([[[0.3, 0.7]]])
    got = integrate(
        lambda x, sigma: to_velocity(data, x, sigma, config),
        START,
        sigmas=sigma_schedule(num_steps),
        solver=solver,
    )
    np.testing.assert_allclose(got, data, atol=1e-5)
