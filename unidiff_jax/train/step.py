"""One training step: draw noise, predict, score, update.

The loss is sum(w * error) / sum(w) over the whole global batch, so that accumulated, sharded and
packed batches give the same gradient as one big unpacked batch. Where a config gives attention maps
a weight, their error (`dit.Prediction`) is one more term of every token's error.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from unidiff_jax import flow
from unidiff_jax.tasks import TASKS
from unidiff_jax.train.optim import OptimConfig, ema_decay
from unidiff_jax.train.state import TrainState, join
from unidiff_jax.types import Batch, Params, take_rows

NUM_BINS = 10
"""Noise levels are logged in this many equal bins of [0, 1]."""

NO_LIMIT = np.float32(np.inf)
"""A bound of the gradient's norm that no finite one is above."""

NUM_TASKS = 1 + max(task.id for task in TASKS.values())


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class LossTable:
    """Weighted error and weight by task and noise-level bin; tables of batches add up.

    Attributes:
      error: of the prediction.
      weight: of the tokens.
      map_error: of the attention maps; None where they have no weight in the loss.
    """

    error: Float[Array, "n bins"]
    weight: Float[Array, "n bins"]
    map_error: Float[Array, "n bins"] | None = None

    def total(self, config: flow.FlowConfig) -> Float[Array, ""]:
        """Sum of all errors, those of the maps times their weight."""
        total = jnp.sum(self.error)
        if self.map_error is None:
            return total
        return total + config.map_weight * jnp.sum(self.map_error)


class Scored(NamedTuple):
    """Squared error of each token, what it was scored at, and the error of the attention maps there
    (None without them).
    """

    error: Float[Array, "b t"]
    sigma: Float[Array, "b t"]
    map_error: Float[Array, "b t"] | None


def score_tokens(
    params: Params,
    batch: Batch,
    key: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    config: flow.FlowConfig,
) -> Scored:
    """Each token's loss at noise levels and noise drawn from `key`, before its weight."""
    model = nnx.merge(graphdef, params)
    batch = flow.draw_latents(key, model.encode_pixels(batch))
    noise = flow.draw_noise(key, batch)
    sigma = flow.draw_sigma(key, batch, config)
    noised = flow.add_noise(batch, noise=noise, sigma=sigma, config=config)
    map_error = None
    if config.map_weight:
        output, map_error = model.with_maps(batch, noised)
    else:
        output = model(batch, noised)
    error = flow.token_loss(output, batch=batch, noised=noised, noise=noise, config=config)
    return Scored(error, noised.token_sigma, map_error)


def loss_table(
    params: Params,
    batch: Batch,
    key: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    config: flow.FlowConfig,
) -> LossTable:
    """Scores a batch at noise levels and noise drawn from `key`."""
    error, sigma, map_error = score_tokens(params, batch, key, graphdef=graphdef, config=config)
    weight = batch.loss_mask
    task = take_rows(batch.task, batch.token_segment)
    bins = jnp.clip((sigma * NUM_BINS).astype(jnp.int32), 0, NUM_BINS - 1)
    cell = jax.nn.one_hot(task * NUM_BINS + bins, NUM_TASKS * NUM_BINS)

    def table(values):
        return jnp.einsum("bt,btn->n", values, cell).reshape(NUM_TASKS, NUM_BINS)

    def errors(values):  # a token without weight contributes exactly nothing
        return table(jnp.where(weight > 0, values * weight, 0.0))

    return LossTable(
        error=errors(error),
        weight=table(weight),
        map_error=None if map_error is None else errors(map_error),
    )


def loss_and_gradient(
    params: Params,
    batch: Batch,
    key: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    config: flow.FlowConfig,
    frozen: Params | None = None,
    num_microbatches: int = 1,
) -> tuple[LossTable, Params]:
    """Loss table and gradient of the batch's loss, in `num_microbatches` passes.

    Every pass divides by the weight of the whole batch, so that the sum of the passes' gradients is
    the gradient of the whole.
    """
    total = jnp.maximum(jnp.sum(batch.loss_mask), 1e-8)

    def loss(params, batch):
        params = join(frozen or {}, params)
        table = loss_table(params, batch, key, graphdef=graphdef, config=config)
        return table.total(config) / total, table

    gradient = jax.grad(loss, has_aux=True)
    if num_microbatches == 1:
        grads, table = gradient(params, batch)
        return table, grads

    def split(leaf):  # every device keeps its own rows: row r goes to pass r % num_microbatches
        rows = leaf.reshape(-1, num_microbatches, *leaf.shape[1:])
        return jnp.swapaxes(rows, 0, 1)

    def add(carry, batch):
        grads, table = gradient(params, batch)
        return jax.tree.map(jnp.add, carry, (grads, table)), None

    passes = jax.tree.map(split, batch)
    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda leaf: leaf[0], passes))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    (grads, table), _ = jax.lax.scan(add, zeros, passes)
    return table, grads


def make_train_step(
    *,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    flow_config: flow.FlowConfig,
    optim_config: OptimConfig,
    num_microbatches: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """Makes `(state, batch, limit) -> (state, metrics)`, to be jitted with the state donated.

    A step whose loss or gradient is not finite, or whose gradient's norm is above `limit`, changes
    nothing but the step count, and says so in `metrics["skipped"]`. `metrics["verdict"]` is loss,
    norm and skipped in one array, for the host to look at (`guard`).
    """

    def train_step(state: TrainState, batch: Batch, limit: Any = NO_LIMIT):
        key = jax.random.fold_in(state.key, state.step)
        table, grads = loss_and_gradient(
            state.params,
            batch,
            key,
            graphdef=graphdef,
            config=flow_config,
            frozen=state.frozen,
            num_microbatches=num_microbatches,
        )
        loss = table.total(flow_config) / jnp.maximum(jnp.sum(table.weight), 1e-8)
        grad_norm = optax.global_norm(grads)
        good = jnp.isfinite(loss) & jnp.isfinite(grad_norm) & (grad_norm <= limit)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay(state.step, optim_config)
        ema = jax.tree.map(lambda a, p: a + (1.0 - decay) * (p - a), state.ema, params)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

        new_state = TrainState(
            step=state.step + 1,
            params=keep(params, state.params),
            opt_state=keep(opt_state, state.opt_state),
            ema=keep(ema, state.ema),
            key=state.key,
            frozen=state.frozen,
        )
        # a skipped batch leaves no trace in the sums that the log is made of
        table = keep(table, jax.tree.map(jnp.zeros_like, table))
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "skipped": 1 - good.astype(jnp.int32),
            "verdict": jnp.stack([loss, grad_norm, 1.0 - good]).astype(jnp.float32),
            "table": table,
        }
        return new_state, metrics

    return train_step
