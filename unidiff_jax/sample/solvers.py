"""Integrates the flow from noise (sigma = 1) to data (sigma = 0)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unidiff_jax.flow import shift_sigma

SOLVERS = ("euler", "heun")

Velocity = Callable[[Float[Array, "b t p"], Float[Array, ""]], Float[Array, "b t p"]]
"""(noisy tokens, shared noise level) to dx / dsigma."""


def sigma_schedule(num_steps: int, *, shift: float = 1.0) -> Float[Array, "n"]:
    """Levels from 1 down to 0: num_steps + 1 values, equally spaced, then shifted (flow.py)."""
    if num_steps < 1:
        raise ValueError(f"sampling needs at least one step, got {num_steps}; for example 10")
    return shift_sigma(jnp.linspace(1.0, 0.0, num_steps + 1), shift)


def integrate(
    velocity: Velocity,
    tokens: Float[Array, "b t p"],
    *,
    sigmas: Float[Array, "n"],
    solver: str,
) -> Float[Array, "b t p"]:
    """Solves dx / dsigma = velocity along `sigmas`.

    Args:
      velocity: the field.
      tokens: at sigmas[0].
      sigmas: decreasing levels.
      solver: `euler`, or `heun` (second order, two evaluations a step, one in the last).
    """
    if solver not in SOLVERS:
        raise ValueError(f"sample.solver={solver!r} is unknown; one of {', '.join(SOLVERS)}")

    def euler(x, pair):
        now, after = pair
        return x + (after - now) * velocity(x, now), None

    def heun(x, pair):
        now, after = pair
        first = velocity(x, now)
        second = velocity(x + (after - now) * first, after)
        return x + (after - now) * (first + second) / 2, None

    pairs = (sigmas[:-1], sigmas[1:])
    if solver == "euler":
        return jax.lax.scan(euler, tokens, pairs)[0]
    # the field is not evaluated at sigma = 0, where data prediction has no velocity
    x, _ = jax.lax.scan(heun, tokens, jax.tree.map(lambda s: s[:-1], pairs))
    return euler(x, (sigmas[-2], sigmas[-1]))[0]
