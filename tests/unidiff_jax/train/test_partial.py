"""Weights of another run for a model with more in it."""

import json

import jax
import numpy as np
import pytest
import tiny_run

from unidiff_jax.config import ConfigError
from unidiff_jax.export.mapping import flatten
from unidiff_jax.train.checkpoint import Checkpoints, abstract_state
from unidiff_jax.train.initial import check_released, load_released
from unidiff_jax.train.program import make_program
from unidiff_jax.train.state import create_state, join
from unidiff_jax.train.workdir import claim_workdir, model_parts


def initial(config):
    program = make_program(config)
    state = create_state(
        program.model, program.optimizer, seed=config.seed, shardings=program.shardings
    )
    return program, state


@pytest.fixture(scope="module")
def run(tmp_path_factory, miniworld):
    """A run of depth 1 with its checkpoint."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_run.config(miniworld, "seed=3", "model.scan_layers=True")
    claim_workdir(config, workdir)
    _, state = initial(config)
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(state, step=1, loader={}, clock={})
    checkpoints.close()
    return workdir, {path: np.asarray(leaf) for path, leaf in flatten(state.ema).items()}


def wanted(miniworld, run, new, *overrides):
    config = tiny_run.config(miniworld, *overrides)
    with config.unlocked():
        config.init.update({"run": str(run[0]), "new": new})
    return config


def load(config, tmp_path):
    """The start's parameters, and what is said of them."""
    check_released(config)
    program = make_program(config)
    places = join(program.shardings.params, program.shardings.frozen)
    report = tmp_path / "init.json"
    loaded = load_released(config, program.model, shardings=places, report=report)
    state = create_state(
        program.model,
        program.optimizer,
        seed=config.seed,
        shardings=program.shardings,
        released=loaded,
    )
    return flatten(state.params), json.loads(report.read_text())


def test_more_layers(run, miniworld, tmp_path):
    config = wanted(miniworld, run, "dit/blocks/.*", "model.depth=3")
    params, said = load(config, tmp_path)
    fresh = flatten(initial(config)[1].params)
    assert set(said["deepened"]) == {path for path in params if path.startswith("dit/blocks/")}
    assert set(map(tuple, said["deepened"].values())) == {(1, 3)}
    assert sorted(said["restored"]) == sorted(params.keys() - said["deepened"].keys())
    assert said["new"] == said["unused"] == [] and said["run"] == str(run[0])
    for path, leaf in params.items():
        old = run[1][path]
        if path in said["deepened"]:
            np.testing.assert_array_equal(leaf[:1], old, err_msg=path)
            np.testing.assert_array_equal(leaf[1:], fresh[path][1:], err_msg=path)
        else:
            np.testing.assert_array_equal(leaf, old, err_msg=path)


def test_new_adapters_and_what_is_not_used(run, miniworld, tmp_path):
    settings = ("lora.rank=2", "train.trainable=dit/.*")
    config = wanted(miniworld, run, r".*/lora_[ab]", *settings)
    params, said = load(config, tmp_path)
    assert said["new"] and all(path.endswith(("/lora_a", "/lora_b")) for path in said["new"])
    assert said["unused"] and all(path.startswith("text_encoder/") for path in said["unused"])
    for path in said["restored"]:
        np.testing.assert_array_equal(params[path], run[1][path], err_msg=path)
    assert params.keys() == {*said["restored"], *said["new"]}


def test_what_may_not_be_missing(run, miniworld, tmp_path):
    config = wanted(miniworld, run, "dit/blocks/ffn/.*", "model.depth=2")
    with pytest.raises(ConfigError, match=r"dit/blocks/attention/.* is \(1, .* there, not \(2, "):
        load(config, tmp_path)
    with pytest.raises(ConfigError, match=r"init\.new='\(' is no pattern"):
        load(wanted(miniworld, run, "(", "model.depth=2"), tmp_path)
    # settings that change what the same shapes mean are never passed over
    with pytest.raises(ConfigError, match=r"model\.num_heads is 1, the folder's 2"):
        load(wanted(miniworld, run, ".*", "model.num_heads=1", "model.depth=2"), tmp_path)
    with pytest.raises(ConfigError, match=r"model\.depth is 2, the folder's 1"):
        load(wanted(miniworld, run, "", "model.depth=2"), tmp_path)


def test_layers_scanned_and_unrolled_are_stored_alike(run, miniworld):
    """A run goes on under the other layout: `model.scan_layers` may change in a workdir."""
    config = tiny_run.config(miniworld, "seed=3", "model.scan_layers=False")
    claim_workdir(config, run[0])
    _, state = initial(config)
    checkpoints = Checkpoints(run[0] / "checkpoints")
    found = checkpoints.restore(abstract_state(state), step=1)
    checkpoints.close()
    jax.tree.map(np.testing.assert_array_equal, found.state.params, state.params)
    shapes = [model_parts(c).shapes for c in (config, tiny_run.config(miniworld))]
    assert jax.tree.map(lambda leaf: leaf.shape, shapes[0]) == jax.tree.map(
        lambda leaf: leaf.shape, shapes[1]
    )
