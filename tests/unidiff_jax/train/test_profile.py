"""Traces asked for by the config and by a file, beside a run that computes the same."""

import jax
import numpy as np
import pytest
import tiny_run

from unidiff_jax.config import ConfigError
from unidiff_jax.train import profile
from unidiff_jax.train.loop import train

STEPS = ("train.num_steps=4", "train.log_every=2", "train.eval_every=4", "train.save_every=4")
STEPS += ("train.sample_every=4", "train.profile_steps=2")


def run(miniworld, workdir, *more):
    state = train(tiny_run.config(miniworld, *STEPS, *more), workdir)
    return jax.tree.map(np.asarray, (state.params, state.ema, state.opt_state))


def test_traced_runs_compute_the_same(miniworld, tmp_path):
    plain, traced = tmp_path / "plain", tmp_path / "traced"
    expected = run(miniworld, plain)
    traced.mkdir()
    (traced / profile.REQUEST).touch()
    found = run(miniworld, traced, "train.profile_start=3")
    jax.tree.map(np.testing.assert_array_equal, expected, found)
    assert not (plain / "profile").exists()
    assert not (traced / profile.REQUEST).exists()
    folders = sorted((traced / "profile" / "plugins" / "profile").iterdir())
    # the file asks before the first step, the config after the third; there the run ends
    assert [folder.name for folder in folders] == ["step_00000000", "step_00000003"]
    for folder in folders:
        (file,) = folder.glob("*.xplane.pb")
        assert b"jit_train_step" in file.read_bytes()


def test_another_trace_leaves_the_run_alone(miniworld, tmp_path):
    with jax.profiler.trace(str(tmp_path / "own")):
        run(miniworld, tmp_path / "run", "train.profile_start=1")
    assert not (tmp_path / "run" / "profile").exists()


def test_a_file_is_looked_for_now_and_then(tmp_path, monkeypatch):
    found = profile.Profile(tmp_path, start=0, num_steps=1)
    found.before(0, None)
    (tmp_path / profile.REQUEST).touch()
    found.before(1, None)
    assert (tmp_path / profile.REQUEST).exists()
    monkeypatch.setattr(profile, "LOOK_SECONDS", 0.0)
    found.before(2, None)
    found.after(3, None)
    assert (tmp_path / "profile" / "plugins" / "profile" / "step_00000002").exists()


@pytest.mark.parametrize(("start", "num_steps"), [(-1, 5), (0, 0)])
def test_numbers_that_cannot_be(tmp_path, start, num_steps):
    with pytest.raises(ConfigError, match=r"train\.profile_steps=5"):
        profile.Profile(tmp_path, start=start, num_steps=num_steps)
