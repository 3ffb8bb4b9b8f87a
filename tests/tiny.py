"""Small examples, batches and models that the tests share."""

import dataclasses

import jax
import numpy as np

from unidiff_jax import flow
from unidiff_jax.frames import Example, Guide, RowSize, make_example, pack_rows
from unidiff_jax.mesh import make_mesh
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.models.t5 import T5Config
from unidiff_jax.tasks import get_task
from unidiff_jax.train.optim import OptimConfig, make_optimizer
from unidiff_jax.train.state import ModelParts, TrainState, abstract_model, state_shardings
from unidiff_jax.train.state import create_state as create
from unidiff_jax.types import Batch

PATCH, CHANNELS = 2, 3
TOKEN_DIM = PATCH * PATCH * CHANNELS

DIT = DiTConfig(
    patch_dim=TOKEN_DIM,
    hidden_dim=24,
    depth=2,
    num_heads=2,
    num_kv_heads=1,
    text_dim=8,
    ffn_multiple_of=8,
    text_gate_init=1.0,
    scan_layers=False,
    remat="none",
)
TEXT = T5Config(
    vocab_size=16,
    d_model=8,
    d_ff=16,
    d_kv=4,
    num_layers=1,
    num_heads=2,
    scan_layers=False,
    remat="none",
)
OPTIM = OptimConfig(learning_rate=1e-2, warmup_steps=1, ema_decay=0.5)
FLOW = flow.FlowConfig()


def example(
    number: int,
    task: str = "depth",
    *,
    sides: tuple[int, int] = (2, 2),
    plan: str = "clean",
    shift: float = 1.0,
    text: int = 3,
    std: float | None = None,
) -> Example:
    """Example `number` of a task: contents are a function of the number; sides in patches. With
    `std` its latents are the means of posteriors.
    """
    rng = np.random.default_rng(number)
    spec = get_task(task)
    shape = (sides[0] * PATCH, sides[1] * PATCH, CHANNELS)
    return make_example(
        spec,
        latents=[rng.uniform(-1, 1, shape).astype(np.float32) for _ in spec.frames],
        stds=None if std is None else [np.full(shape, std, np.float32) for _ in spec.frames],
        text_ids=[*rng.integers(2, TEXT.vocab_size, text - 1).tolist(), 1],
        example_id=number,
        patch=PATCH,
        plan=plan,
        shift=shift,
    )


def guided_example(number: int, *, sides: tuple[int, int] = (2, 2), width: int = 5) -> Example:
    """A picture with a guide on its channels and one asset of `width` features, which replaces the
    first word.
    """
    rng = np.random.default_rng([number, 7])
    shape = (sides[0] * PATCH, sides[1] * PATCH, CHANNELS)
    return make_example(
        get_task("text_to_image"),
        latents=[rng.uniform(-1, 1, shape).astype(np.float32)],
        text_ids=[*rng.integers(2, TEXT.vocab_size, 2).tolist(), 1],
        text_assets=[1, 0, 0],
        assets=rng.standard_normal((1, width)).astype(np.float32),
        guide=Guide(rng.uniform(-1, 1, shape), rng.uniform(0, 1, shape[:2])),
        example_id=number,
        patch=PATCH,
    )


def entity_example(
    number: int, *, entities: int = 2, sides: tuple[int, int] = (2, 2), columns: int = 3
) -> Example:
    """A picture whose first words show entities, one a word, whose masks have `columns` columns."""
    rng = np.random.default_rng([number, 8])
    shape = (sides[0] * PATCH, sides[1] * PATCH, CHANNELS)
    masks = np.zeros((columns, *shape[:2]), np.float32)
    masks[:entities] = rng.integers(0, 2, (entities, *shape[:2]))
    return make_example(
        get_task("text_to_image"),
        latents=[rng.uniform(-1, 1, shape).astype(np.float32)],
        text_ids=[*rng.integers(2, TEXT.vocab_size, 3).tolist(), 1],
        entity_masks=masks,
        text_entities=[*range(1, entities + 1), *[0] * (4 - entities)],
        example_id=number,
        patch=PATCH,
    )


def mixed_examples(count: int = 6) -> list[Example]:
    """Examples of several tasks, sizes and text lengths."""
    tasks = ("depth", "text_to_image", "segment", "edit", "depth_to_image", "inpaint")
    sides = ((2, 2), (2, 3), (1, 2))
    return [
        example(i + 1, tasks[i % len(tasks)], sides=sides[i % 3], text=2 + i % 3)
        for i in range(count)
    ]


def packed(examples: list[Example], size: RowSize | None = None) -> Batch:
    """Several examples a row."""
    return pack_rows(examples, size=size or RowSize(24, 8, 5, 12, 5))[0]


def alone(examples: list[Example], size: RowSize | None = None) -> Batch:
    """One example a row."""
    rows = [packed([e], size) for e in examples]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *rows)


def on_device(batch: Batch) -> Batch:
    return jax.tree.map(jax.numpy.asarray, batch)


def token_key(batch: Batch) -> list[list[tuple[int, ...]]]:
    """(example, frame, y, x) of every token; all zeros for padding."""
    segment = np.take_along_axis(np.asarray(batch.segment), np.asarray(batch.frame), 1)
    example_id = np.take_along_axis(np.asarray(batch.example_id), segment, 1)
    position = np.asarray(batch.position)
    return [
        [(int(e), *map(int, p)) for e, p in zip(row, places, strict=True)]
        for row, places in zip(example_id, position, strict=True)
    ]


def by_token(batch: Batch, values) -> dict[tuple[int, ...], np.ndarray]:
    """Values of every token that is not padding, by its identity."""
    values = np.asarray(values)
    return {
        key: values[b, t]
        for b, row in enumerate(token_key(batch))
        for t, key in enumerate(row)
        if key[0]
    }


def assert_same_tokens(first: dict, second: dict, *, atol: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_allclose(first[key], second[key], atol=atol, rtol=0, err_msg=str(key))


def scaled(params, *, seed: int = 0, scale: float = 0.3):
    """Parameters moved away from their start, where whole branches are switched off by zeros."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    moved = []
    for leaf in leaves:
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        moved.append(jax.numpy.asarray(leaf + scale * leaf.shape[-1] ** -0.5 * noise, np.float32))
    return jax.tree.unflatten(tree, moved)


def make_state(
    dit: DiTConfig = DIT, *, optim: OptimConfig = OPTIM, axes=None, rules=None, num_steps: int = 10
) -> tuple[ModelParts, object, TrainState, TrainState]:
    """Model, optimizer, a state on a mesh of `axes`, and the state's shardings."""
    model = abstract_model(dit, TEXT)
    optimizer = make_optimizer(optim, num_steps=num_steps, axes=model.axes)
    shardings = state_shardings(
        model, optimizer, mesh=make_mesh(axes or {"data": -1}), rules=rules or {}
    )
    state = create(model, optimizer, seed=0, shardings=shardings)
    params = jax.device_put(scaled(jax.tree.map(np.asarray, state.params)), shardings.params)
    state = dataclasses.replace(state, params=params, ema=jax.tree.map(jax.numpy.copy, params))
    return model, optimizer, state, shardings
