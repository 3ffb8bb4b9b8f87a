"""Runs steps on several meshes of simulated devices and prints what differs, as JSON.

A script, because the number of devices is fixed when JAX starts: see test_sharded.py.
"""

import dataclasses
import json
import sys

import jax
import numpy as np
import optax
import tiny

from configs.meshes import RULES
from unidiff_jax.mesh import batch_sharding, make_mesh, on_mesh, replicated
from unidiff_jax.models.dit import FUSIONS
from unidiff_jax.train.optim import make_optimizer
from unidiff_jax.train.state import abstract_model, create_state, state_shardings
from unidiff_jax.train.step import make_train_step

EXAMPLES = tiny.mixed_examples(16)
# Adam divides by the gradient's size: a large eps keeps rounding from deciding its sign.
OPTIM = dataclasses.replace(tiny.OPTIM, eps=1e-2, clip_norm=1e9)
DIT = dataclasses.replace(tiny.DIT, depth=1)
BATCHES = [tiny.alone(EXAMPLES[:8]), tiny.alone(EXAMPLES[8:])]


def run(axes, devices, **settings):
    """Loss and gradient of the first batch, the parameters after two steps, and counts."""
    mesh = make_mesh(axes, devices=devices)
    model = abstract_model(dataclasses.replace(DIT, **settings), tiny.TEXT)
    optimizer = make_optimizer(OPTIM, num_steps=10, axes=model.axes)
    shardings = state_shardings(model, optimizer, mesh=mesh, rules=RULES)
    state = create_state(model, optimizer, seed=0, shardings=shardings)
    rows = batch_sharding(mesh)
    step = jax.jit(
        on_mesh(
            make_train_step(
                graphdef=model.graphdef,
                optimizer=optimizer,
                flow_config=tiny.FLOW,
                optim_config=OPTIM,
            ),
            mesh,
            rules=RULES,
        ),
        in_shardings=(shardings, rows),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
    state, metrics = step(state, jax.device_put(BATCHES[0], rows))
    # Adam's first moment is now the gradient times 1 - b1
    first = jax.tree.map(np.asarray, (metrics["table"], optax.tree.get(state.opt_state, "mu")))
    state, _ = step(state, jax.device_put(BATCHES[1], rows))
    values = (*first, *jax.tree.map(np.asarray, (state.params, state.ema)))
    trees = {"params": state.params, "ema": state.ema, "opt_state": state.opt_state}
    shares = {}  # the part of a tree that one device holds
    for name, tree in trees.items():
        leaves = jax.tree.leaves(tree)
        here = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
        shares[name] = here / sum(leaf.size for leaf in leaves)
    return values, {"shares": shares, "compiled": step._cache_size()}


def largest_difference(first, second):
    """Over all arrays, relative to the largest value of each."""

    def difference(a, b):
        return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3))

    return max(jax.tree.leaves(jax.tree.map(difference, first, second)))


def main():
    references, reports = {}, {}
    for fusion in FUSIONS:
        references[fusion], reports[fusion] = run({"data": 1}, jax.devices()[:1], fusion=fusion)
    for name, settings in json.loads(sys.argv[1]).items():
        values, report = run(settings.pop("axes"), jax.devices(), **settings)
        reference = references[settings.get("fusion", "cross")]
        kinds = zip(("loss", "gradient", "params", "ema"), values, reference, strict=True)
        report |= {kind: largest_difference(got, expected) for kind, got, expected in kinds}
        reports[name] = report
    print(json.dumps(reports))


if __name__ == "__main__":
    main()
