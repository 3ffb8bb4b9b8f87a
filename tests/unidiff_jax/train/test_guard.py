"""Bad steps: the bound, its lag, policies, the end after a row of them, and what a replay says."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from PIL import Image

from data_pipelines import loader as loaders
from launch import command
from launch.replay import report
from unidiff_jax.config import ConfigError
from unidiff_jax.models.dit import FeedForward
from unidiff_jax.sample.previews import Previews
from unidiff_jax.train import guard as guards
from unidiff_jax.train import incidents, loop
from unidiff_jax.train import replay as replays
from unidiff_jax.train.guard import LAG, Guard, GuardConfig, TrainingStoppedError
from unidiff_jax.train.incidents import IncidentError, list_incidents, read_incident
from unidiff_jax.train.metrics import read_metrics
from unidiff_jax.train.program import make_program
from unidiff_jax.train.replay import replay


def verdict(norm, skipped=0):
    return jnp.asarray([1.0, norm, skipped], jnp.float32)


def feed(guard, steps, norms, *, bad=()):
    found = []
    for step in steps:
        is_bad = step in bad
        norm = np.nan if is_bad else norms(step)
        found += guard.judge(step, verdict(norm, is_bad), None, limit=guard.limit(step))
    return found


# -------------------------------------------------------------------------------------------- bound


def test_the_bound_is_a_function_of_steps_up_to_the_lag(monkeypatch):
    monkeypatch.setattr(guards, "ENOUGH", 3)
    guard = Guard(GuardConfig(max_norm_ratio=10.0))
    limits = []
    for step in range(12):
        limits.append(float(guard.limit(step)))
        guard.judge(step, verdict(step + 1.0), None)
        if step in (4, 7):
            guard.drain()  # seeing more at a checkpoint changes nothing
    # at step n the norms 1 ... n - LAG are known
    known = [range(1, step - LAG + 1) for step in range(12)]
    expected = [10 * np.median(norms) if len(norms) >= 3 else np.inf for norms in known]
    np.testing.assert_allclose(limits, expected)


def test_a_state_goes_on_with_the_same_bounds(monkeypatch):
    monkeypatch.setattr(guards, "ENOUGH", 2)
    rng = np.random.default_rng(0)
    norms = rng.lognormal(size=400)
    whole = Guard(GuardConfig())
    feed(whole, range(300), norms.__getitem__, bad=(50, 299))
    whole.drain()
    again = Guard(GuardConfig(), json.loads(json.dumps(whole.state())))
    for step in range(300, 400):
        assert whole.limit(step) == again.limit(step) < np.inf
        for guard in (whole, again):
            guard.judge(step, verdict(norms[step]), None)


def test_verdicts_come_late_and_in_order():
    guard = Guard(GuardConfig())
    assert not feed(guard, range(4 + LAG), float, bad=(4, 5))
    for step, in_a_row in ((4, 1), (5, 2)):
        found = feed(guard, [step + LAG], float)
        assert [(bad.step, bad.in_a_row) for bad in found] == [(step, in_a_row)]
    assert not guard.drain()


def test_in_a_row():
    guard = Guard(GuardConfig(max_in_a_row=2))
    found = feed(guard, range(10), float, bad=(1, 3, 4)) + guard.drain()
    assert [(bad.step, guard.is_enough(bad)) for bad in found] == [
        (1, False),
        (3, False),
        (4, True),
    ]
    back = Guard(GuardConfig(policy="rollback", max_in_a_row=2))
    found = feed(back, range(10), float, bad=(1, 5)) + back.drain()
    assert [back.is_enough(bad) for bad in found] == [False, True]  # no checkpoint between them
    back.saved()
    assert not back.is_enough(feed(back, range(10, 20), float, bad=(12,))[0])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"policy": "stop"}, "train.guard.policy='stop' is unknown; one of skip, rollback"),
        ({"max_norm_ratio": 0.5}, "train.guard.max_norm_ratio=0.5 would call ordinary steps bad"),
        ({"max_in_a_row": 0}, "train.guard.max_in_a_row=0 must be at least 1, say 10"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(ConfigError, match=words):
        GuardConfig(**settings)


# --------------------------------------------------------------------------------------------- runs

SETTINGS = ("train.log_every=1", "train.save_every=6", "train.eval_every=100", "train.keep=1")
SETTINGS += ("train.sample_every=100", "train.num_steps=14", "train.eval_items=1")
SETTINGS += ("train.guard.max_norm_ratio=20",)


@pytest.fixture(scope="module")
def program(miniworld):
    """Compiled once for all runs, which differ in data and policies."""
    return make_program(tiny_run.config(miniworld, *SETTINGS))


@pytest.fixture
def run(miniworld, program, monkeypatch, tmp_path):
    """run(spoil, *overrides): trains with `spoil(number of the batch, batch)` in place of batches,
    None for no batch; a fault as of bad memory, since records with such values are skipped.
    """
    monkeypatch.setattr(guards, "ENOUGH", 3)
    monkeypatch.setattr(loop, "make_program", lambda config: program)
    monkeypatch.setattr(replays, "make_program", lambda config: program)
    monkeypatch.setattr(Previews, "draw", lambda self, params, step: Image.new("RGB", (8, 8)))

    def run(spoil, *overrides, name="run"):
        count = 0
        following = loaders.Loader.__next__

        def spoilt(self):
            nonlocal count
            batch = None
            while batch is None:
                batch = spoil(count, following(self))
                count += 1
            return batch

        with monkeypatch.context() as patch:
            patch.setattr(loaders.Loader, "__next__", spoilt)
            config = tiny_run.config(miniworld, *SETTINGS, *overrides)
            return loop.train(config, tmp_path / name)

    run.workdir = tmp_path / "run"
    return run


def without_number(*numbers, row=2):
    """A NaN in a scored token of a row, in these batches."""

    def spoil(number, batch):
        if number not in numbers:
            return batch
        tokens = batch.tokens.copy()
        tokens[row, np.argmax(batch.loss_mask[row]), 0] = np.nan
        return dataclasses.replace(batch, tokens=tokens)

    return spoil


def rows(workdir):
    log = read_metrics(workdir / "metrics.jsonl")
    return {row["step"]: row for row in log if "grad_norm" in row}


def test_a_step_that_is_not_finite_is_skipped_kept_and_replayed(run):
    state = run(without_number(8))
    assert int(state.step) == 14 and all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.ema))
    )
    assert [step for step, row in rows(run.workdir).items() if row["skipped_steps"]] == [9]
    assert all(row["skipped_records"] == 0 for row in rows(run.workdir).values())
    assert list_incidents(run.workdir) == ["step_00000008"]
    incident = read_incident(run.workdir)
    assert incident.step == 8 and incident.origin.step == 6 and np.isnan(incident.loss)
    # checkpoint 6 is replaced by now; the incident has its own
    assert not (run.workdir / "checkpoints" / "6").exists()
    found = replay(run.workdir, incident)
    assert np.isnan(found.loss) and not found.same_batch  # the stream itself is sound
    assert found.batch_faults == ["tokens of row 2"]
    bad = [example for example in found.examples if not np.isfinite(example.loss)]
    assert {example.row for example in bad} == {2} and found.examples[: len(bad)] == bad
    assert not found.modules[-1].is_finite and found.modules[0].is_finite  # the text is sound
    text = report(found, most=5)
    assert "arises in the batch: tokens of row 2" in text and "ANOTHER batch" in text


def test_a_replay_is_the_run_to_the_bit(run, monkeypatch):
    """An exploding step: everything is finite, so that the numbers can be compared."""
    run(louder(9))
    (name,) = list_incidents(run.workdir)
    incident = read_incident(run.workdir, name)
    assert incident.step == 9 and incident.limit < incident.grad_norm < np.inf
    found = replay(run.workdir, incident)
    assert np.float32(found.loss) == np.float32(incident.loss)
    np.testing.assert_allclose(found.grad_norm, incident.grad_norm, rtol=1e-5)
    assert not found.batch_faults and not found.parameter_faults
    assert found.first_fault.startswith("nowhere; the largest gradient is that of ")
    paths = [module.path for module in found.modules]
    assert len(paths) == len(set(paths)) and "UnifiedModel/dit" in paths
    assert any("text_encoder" in path for path in paths) and paths[-1] == "UnifiedModel"
    assert all(module.is_finite for module in found.modules)
    # a fault in a module is found there, and not in what reads it
    call = FeedForward.__call__
    monkeypatch.setattr(FeedForward, "__call__", lambda self, x: call(self, x) * jnp.inf)
    found = replay(run.workdir, incident)
    assert not np.isfinite(found.loss)
    assert found.first_fault == "in the output of UnifiedModel/dit/Block[0]/ffn"


def louder(*numbers):
    def spoil(number, batch):
        return dataclasses.replace(batch, tokens=batch.tokens * (300 if number in numbers else 1))

    return spoil


def test_rollback_is_a_gap_in_the_data(run):
    state = run(without_number(8), "train.guard.policy=rollback")
    log = read_metrics(run.workdir / "metrics.jsonl")
    # each step once, though some were done twice
    assert [row["step"] for row in log if "grad_norm" in row] == list(range(1, 15))
    assert not any(row["skipped_steps"] for row in rows(run.workdir).values())
    assert list_incidents(run.workdir) == ["step_00000008"]
    # back to step 6, and on behind the batches up to the one in whose step the fault was seen
    expected = run(lambda n, batch: None if 6 <= n <= 8 + LAG else batch, name="gap")
    assert int(state.step) == int(expected.step) == 14
    for tree in ("params", "ema", "opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, tree), getattr(expected, tree))


@pytest.mark.parametrize("policy", ["skip", pytest.param("rollback", marks=pytest.mark.slow)])
def test_training_stops_after_a_row_and_goes_on(run, policy):
    settings = (f"train.guard.policy={policy}", "train.guard.max_in_a_row=3")
    with pytest.raises(TrainingStoppedError) as caught:
        run(without_number(*range(8, 100)), *settings)
    message = command.describe(caught.value)
    assert message.startswith("3 steps in a row went wrong, train.guard.max_in_a_row; the last is")
    assert f"python -m launch.replay --workdir {run.workdir} --incident step_0000000" in message
    assert [path.name for path in (run.workdir / "checkpoints").glob("[0-9]*")] == ["6"]
    # the same command goes on once the cause is gone, here to the bits of a run without it
    state, whole = run(lambda _, batch: batch, *settings), run(lambda _, b: b, name="whole")
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)


def test_incidents_that_are_not_there(run, tmp_path):
    with pytest.raises(IncidentError, match="has no incident '': it has no incidents"):
        read_incident(tmp_path)
    run(without_number(1))
    with pytest.raises(
        IncidentError, match="no incident 'step_3': its incidents are: step_00000001"
    ):
        read_incident(run.workdir, "step_3")
    incident = read_incident(run.workdir)
    assert incident.origin.step == 0  # begins with the seed; there is no checkpoint to copy
    assert np.isnan(replay(run.workdir, incident).loss)
    next((run.workdir / incidents.FOLDER).rglob("*.safetensors")).unlink()
    with pytest.raises(IncidentError, match=r"batch-00000.safetensors is missing"):
        read_incident(run.workdir)
