"""Damaged checkpoints are found, and the newest whole one is used."""

import pathlib
import shutil

import jax
import numpy as np
import pytest
import tiny

from unidiff_jax.train.checkpoint import Checkpoints, DamagedError, abstract_state, load_average

ITEMS = ("params", "ema", "rest")


@pytest.fixture(scope="module")
def state():
    return tiny.make_state()[2]


def save(folder, state, steps, **settings):
    checkpoints = Checkpoints(folder, **settings)
    for step in steps:
        checkpoints.save(state, step=step, loader={"step": step}, clock={})
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    """Checkpoints of the steps 5, 10 and 15."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(folder, state, (5, 10, 15))
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return pathlib.Path(shutil.copytree(saved, tmp_path / "checkpoints"))


def largest(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )


def flip(path):
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(blob)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir())


@pytest.mark.parametrize(
    ("harm", "name", "words"),
    [
        (flip, None, "holds other bytes"),
        (cut, None, "instead of"),
        (pathlib.Path.unlink, None, "is missing"),
        (flip, "rest/_METADATA", "rest/_METADATA holds other bytes"),
        (cut, "params/ocdbt.process_0/manifest.ocdbt", "has 58 bytes instead of 117"),
        (cut, "_CHECKPOINT_METADATA", "_CHECKPOINT_METADATA has"),
        (shutil.rmtree, "params", "and 5 more"),
        (shutil.rmtree, "rest/d", "rest/d/"),
        (cut, "manifest-0-of-1.json", "it has no manifest"),
        (pathlib.Path.unlink, "manifest-0-of-1.json", "it has no manifest"),
    ],
)
def test_damage_is_told_and_passed_over(folder, state, caplog, harm, name, words):
    harm(folder / "15" / name if name else largest(folder / "15"))
    checkpoints = Checkpoints(folder)
    assert checkpoints.newest_whole() == 10
    assert "checkpoint 15 is passed over for 10: " in caplog.text and words in caplog.text
    found = checkpoints.restore(abstract_state(state), step=10)
    assert found.loader == {"step": 10}
    # the same step is saved again, in place of the damaged one
    checkpoints.save(state, step=15, loader={"step": "again"}, clock={})
    checkpoints.close()
    checkpoints = Checkpoints(folder)
    assert checkpoints.newest_whole() == 15
    assert checkpoints.restore(abstract_state(state), step=15).loader == {"step": "again"}
    checkpoints.close()


def test_what_was_passed_over_does_not_push_out_what_is_whole(folder, state):
    flip(largest(folder / "15"))
    checkpoints = Checkpoints(folder, keep=1)
    assert checkpoints.newest_whole() == 10
    checkpoints.save(state, step=12, loader={}, clock={})  # below the damaged one
    checkpoints.close()
    assert steps_in(folder) == [12]


def test_all_are_damaged(folder):
    for step in (5, 10, 15):
        flip(largest(folder / str(step)))
    with pytest.raises(DamagedError, match=r"15: .* holds other bytes; 10: .*; 5: .* copy, or rem"):
        Checkpoints(folder).newest_whole()
    assert steps_in(folder) == [5, 10, 15]


def test_checkpoints_of_versions_without_manifests(folder, state, caplog):
    for path in folder.glob("*/manifest-*"):
        path.unlink()
    checkpoints = Checkpoints(folder)
    assert checkpoints.newest_whole() == 15
    assert "checkpoint 15 has no manifest and is taken unchecked" in caplog.text
    assert checkpoints.restore(abstract_state(state), step=15).loader == {"step": 15}


def test_without_manifests_the_first_that_can_be_read_is_taken(folder, state, caplog):
    for path in folder.glob("*/manifest-*"):
        path.unlink()
    cut(largest(folder / "15" / "params"))
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore_newest(abstract_state(state))
    assert found.step == 10 and found.loader == {"step": 10}
    assert "checkpoint 15 cannot be read and is passed over" in caplog.text
    for step in ("5", "10"):
        cut(largest(folder / step / "params"))
    with pytest.raises(DamagedError, match="every checkpoint"):
        Checkpoints(folder).restore_newest(abstract_state(state))


def test_samples_read_their_part_alone(folder, state):
    """What is damaged in the optimizer's state does not concern the average."""
    flip(largest(folder / "15" / "rest"))
    assert Checkpoints(folder).newest_whole(items=("ema",)) == 15
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state.ema)
    places = jax.tree.map(lambda leaf: leaf.sharding, state.ema)
    flip(largest(folder / "15" / "ema"))
    flip(largest(folder / "10" / "ema"))
    found = load_average(folder.parent, shapes, shardings=places)  # of step 5
    jax.tree.map(np.testing.assert_array_equal, found, state.ema)
    with pytest.raises(DamagedError, match="every checkpoint"):
        flip(largest(folder / "5" / "ema"))
        load_average(folder.parent, shapes, shardings=places)


def test_retention(state, tmp_path):
    save(tmp_path, state, range(3, 13), keep=2, keep_every=5)
    assert steps_in(tmp_path) == [5, 10, 11, 12]


def test_a_reader_leaves_a_running_save_alone(folder, state):
    running = folder / "20.orbax-checkpoint-tmp"
    shutil.copytree(folder / "15", running)
    (running / "commit_success.txt").unlink()
    checkpoints = Checkpoints(folder, beside_training=True)
    assert checkpoints.newest_whole() == 15
    checkpoints.close()
    assert running.exists()
    save(folder, state, (25,), keep=9)
    assert steps_in(folder) == [5, 10, 15, 25]


def test_parts_of_a_manifest_belong_together(folder, saved):
    """Of two processes one was killed before it wrote its part."""
    (folder / "15" / "manifest-0-of-1.json").rename(folder / "15" / "manifest-0-of-2.json")
    assert Checkpoints(folder).newest_whole() == 10
