"""One step: packing and accumulation change nothing, bad batches are skipped, one compilation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from unidiff_jax.tasks import TASKS
from unidiff_jax.train.metrics import summarize
from unidiff_jax.train.optim import (
    OPTIMIZERS,
    OptimConfig,
    ema_decay,
    make_optimizer,
    make_schedule,
)
from unidiff_jax.train.step import (
    NUM_BINS,
    NUM_TASKS,
    LossTable,
    loss_and_gradient,
    make_train_step,
)

KEY = jax.random.key(3)
EXAMPLES = tiny.mixed_examples(8)


@pytest.fixture(scope="module")
def parts():
    return tiny.make_state()


@pytest.fixture(scope="module")
def gradient(parts):
    model, _, state, _ = parts

    @functools.cache
    def compiled(num_microbatches):
        return jax.jit(
            functools.partial(
                loss_and_gradient,
                graphdef=model.graphdef,
                config=tiny.FLOW,
                num_microbatches=num_microbatches,
            )
        )

    def run(batch, num_microbatches=1):
        return compiled(num_microbatches)(state.params, tiny.on_device(batch), KEY)

    return run


def assert_close(first, second):
    """To 1e-5 of the largest value of each array."""

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(b).max(), 1e-3))

    jax.tree.map(check, first, second)


@pytest.fixture(scope="module")
def one_a_row(gradient):
    return gradient(tiny.alone(EXAMPLES))


def test_gradients_reach_every_parameter(one_a_row):
    table, grads = one_a_row
    silent = [
        jax.tree_util.keystr(path)
        for path, grad in jax.tree_util.tree_leaves_with_path(grads)
        if not np.abs(grad).max() > 0
    ]
    assert not silent
    # the weight is the number of generated tokens, by task
    for task in TASKS.values():
        tokens = sum(e["loss_mask"].sum() for e in EXAMPLES if e["segment_table"][0, 1] == task.id)
        assert table.weight[task.id].sum() == tokens


def test_packed_equals_one_example_a_row(gradient, one_a_row):
    packed = tiny.packed(EXAMPLES)
    assert len(packed.tokens) < len(EXAMPLES)
    assert_close(gradient(packed), one_a_row)


@pytest.mark.parametrize("num_microbatches", [2, 4])
def test_accumulated_equals_one_pass(gradient, one_a_row, num_microbatches):
    assert_close(gradient(tiny.alone(EXAMPLES), num_microbatches), one_a_row)


@pytest.fixture(scope="module")
def step(parts):
    model, optimizer, _, _ = parts
    return jax.jit(
        make_train_step(
            graphdef=model.graphdef,
            optimizer=optimizer,
            flow_config=tiny.FLOW,
            optim_config=tiny.OPTIM,
        )
    )


def test_maps_are_one_more_term_of_the_loss():
    dit = dataclasses.replace(tiny.DIT, depth=1, map_layers=(0,))
    model, _, state, _ = tiny.make_state(dit)
    examples = [tiny.entity_example(n, entities=n % 3) for n in range(1, 5)]

    def run(weight, batch, num_microbatches=1):
        config = dataclasses.replace(tiny.FLOW, map_weight=weight)
        settings = {"graphdef": model.graphdef, "config": config}
        settings["num_microbatches"] = num_microbatches
        return jax.jit(functools.partial(loss_and_gradient, **settings))(
            state.params, tiny.on_device(batch), KEY
        )

    alone, packed = tiny.alone(examples), tiny.packed(examples)
    (off, plain), (on, mapped) = run(0.0, packed), run(0.5, alone, 2)
    assert off.map_error is None and np.asarray(on.map_error).sum() > 0
    np.testing.assert_allclose(on.error, off.error, rtol=1e-5)
    config = dataclasses.replace(tiny.FLOW, map_weight=0.5)
    np.testing.assert_allclose(on.total(config), on.error.sum() + 0.5 * on.map_error.sum())
    keys, others = (g["dit"]["blocks"]["attention"]["text_k"]["weight"] for g in (mapped, plain))
    assert np.abs(keys - others).max() > 1e-4
    assert_close(run(0.5, packed), (on, mapped))
    assert summarize(on, prefix="train")["train/map_error"] > 0


def batches():
    """Batches of one shape and different contents, tasks and padding."""
    examples = tiny.mixed_examples(12)
    return [tiny.packed(e) for e in (examples[:3], examples[3:5], examples[5:8], examples[9:10])]


def placed(parts, **changes):
    """The state with other fields, on the devices where the step expects them."""
    _, _, state, shardings = parts
    return jax.device_put(dataclasses.replace(state, **changes), shardings)


def same(first, second):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, first, second)))


def test_a_step_updates_everything_and_compiles_once(parts, step):
    state = parts[2]
    for number, batch in enumerate(batches()):
        new, metrics = step(state, tiny.on_device(batch))
        assert new.step == number + 1 and metrics["skipped"] == 0
        assert np.isfinite(metrics["loss"]) and metrics["grad_norm"] > 0
        if number:  # the first step of the warm-up has rate 0
            assert not same(new.params, state.params) and not same(new.ema, state.ema)
        assert not same(new.opt_state, state.opt_state)
        np.testing.assert_array_equal(jax.random.key_data(new.key), jax.random.key_data(state.key))
        state = new
    assert step._cache_size() == 1


def test_moving_average(parts, step):
    ema = jax.tree.map(lambda p: np.asarray(p) + 1.0, parts[2].params)
    far = placed(parts, step=np.int32(4), ema=ema)
    new, _ = step(far, tiny.on_device(batches()[0]))
    decay = min(tiny.OPTIM.ema_decay, (1 + 4) / (10 + 4))
    jax.tree.map(
        lambda ema, old, params: np.testing.assert_allclose(
            ema, decay * old + (1 - decay) * params, atol=1e-5
        ),
        new.ema,
        far.ema,
        new.params,
    )
    long = OptimConfig(learning_rate=1.0, warmup_steps=1, ema_decay=0.999)
    for number in (0, 9, 10**6):
        expected = min(0.999, (1 + number) / (10 + number))
        np.testing.assert_allclose(ema_decay(jnp.asarray(number), long), expected, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_changes_only_the_step_count(parts, step, value):
    state = parts[2]
    batch = batches()[0]
    tokens = batch.tokens.copy()
    tokens[0, np.argmax(batch.loss_mask[0]), 0] = value
    new, metrics = step(state, tiny.on_device(dataclasses.replace(batch, tokens=tokens)))
    assert metrics["skipped"] == 1 and new.step == state.step + 1
    assert same((new.params, new.ema, new.opt_state), (state.params, state.ema, state.opt_state))
    # and the log's sums stay what the good batches gave
    assert not metrics["table"].error.any() and not metrics["table"].weight.any()
    after, metrics = step(new, tiny.on_device(batch))
    assert metrics["skipped"] == 0 and np.isfinite(metrics["loss"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


def test_randomness_of_a_step_is_its_number(parts, step):
    state = parts[2]
    batch = tiny.on_device(batches()[0])
    _, first = step(state, batch)
    _, again = step(state, batch)
    _, later = step(placed(parts, step=np.int32(1)), batch)
    assert first["loss"] == again["loss"] != later["loss"]


def test_summary_of_tables():
    error, weight = np.zeros((2, NUM_TASKS, NUM_BINS))
    error[2, 3], weight[2, 3], error[4, 9], weight[4, 9] = 6.0, 3.0, 4.0, 1.0
    values = summarize(LossTable(error=error, weight=weight), prefix="train")
    assert values == {
        "train/loss": 2.5,
        "train/loss/depth": 2.0,
        "train/loss/segment": 4.0,
        "train/loss_by_sigma/0.3": 2.0,
        "train/loss_by_sigma/0.9": 4.0,
    }
    nothing = summarize(LossTable(error=error * 0, weight=weight * 0), prefix="train")
    assert list(nothing) == ["train/loss"] and np.isnan(nothing["train/loss"])


# --------------------------------------------------------------------------------------- optimizer


@pytest.mark.parametrize(
    ("schedule", "at_end"), [("constant", 1.0), ("cosine", 0.1), ("linear", 0.1)]
)
def test_schedules(schedule, at_end):
    config = OptimConfig(learning_rate=2.0, warmup_steps=10, schedule=schedule, final_fraction=0.1)
    rate = make_schedule(config, num_steps=110)
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0, 1, 2], rtol=1e-6)
    np.testing.assert_allclose(rate(110), 2 * at_end, rtol=1e-5)
    if schedule != "constant":
        np.testing.assert_allclose(rate(60), (2 + 0.2) / 2, rtol=1e-5)  # half way


def is_matrix(names):
    return len([n for n in names if n != "layers"]) >= 2


def is_turned(names):
    """By Muon: matrices between hidden states."""
    return is_matrix(names) and not {"vocab", "buckets", "patch"} & set(names)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_matrices_decay(parts, name):
    model, _, state, _ = parts
    config = OptimConfig(name=name, learning_rate=1.0, warmup_steps=0, weight_decay=0.1)
    optimizer = make_optimizer(config, num_steps=10, axes=model.axes)

    @jax.jit
    def update(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optimizer.update(zeros, optimizer.init(params), params)[0]

    updates = update(state.params)

    def check(update, param, names):
        decays = is_turned(names) if name == "muon" else is_matrix(names)
        np.testing.assert_allclose(update, -0.1 * param if decays else 0 * param, rtol=1e-5)

    jax.tree.map(check, updates, state.params, model.axes)


def test_muon_turns_inner_matrices_alone(parts):
    model, _, state, _ = parts
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: rng.standard_normal(p.shape).astype(np.float32), state.params)

    def updates(optimizer):
        return jax.jit(lambda p: optimizer.update(grads, optimizer.init(p), p)[0])(state.params)

    config = OptimConfig(name="muon", learning_rate=1.0, warmup_steps=0, clip_norm=1e9)
    muon = updates(make_optimizer(config, num_steps=10, axes=model.axes))
    adamw = updates(optax.adamw(1.0, b2=config.b2, weight_decay=0.0, nesterov=True))

    turned = []

    def check(path, muon, adamw, names):
        if not is_turned(names):
            np.testing.assert_allclose(muon, adamw, rtol=1e-4, atol=1e-6)
            return
        turned.append(jax.tree_util.keystr(path))
        # five Newton-Schulz steps bring every singular value near 1, times 0.2 sqrt(longer side)
        values = np.linalg.svd(muon, compute_uv=False) / (0.2 * max(muon.shape[-2:]) ** 0.5)
        assert 0.3 < values.min() and values.max() < 1.4

    jax.tree.map_with_path(check, muon, adamw, model.axes)
    assert any("ffn" in path for path in turned) and not any("patch" in path for path in turned)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_lie_as_their_parameters(name):
    optim = OptimConfig(name=name, learning_rate=1.0, warmup_steps=1)
    *_, state, shardings = tiny.make_state(optim=optim, rules={"embed": "data"})
    where = dict(jax.tree.leaves_with_path(shardings.params))
    found = 0
    for path, leaf in jax.tree.leaves_with_path(state.opt_state):
        ends = [path[i:] for i in range(len(path)) if path[i:] in where]
        for end in ends:
            assert leaf.sharding == where[end]
        found += bool(ends)
    count = len(where)
    assert count < found <= 2 * count if name == "muon" else found == 2 * count


@pytest.mark.parametrize(
    ("key", "value", "choices"), [("schedule", "exp", "constant"), ("name", "sgd", "adamw")]
)
def test_an_unknown_choice(key, value, choices):
    with pytest.raises(ValueError, match=rf"optim.{key}='{value}' is unknown; one of {choices}"):
        OptimConfig(learning_rate=1.0, warmup_steps=1, **{key: value})
