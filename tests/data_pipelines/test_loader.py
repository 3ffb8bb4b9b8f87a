"""The loader: exact state, and one stream for any number of processes."""

import json

import jax
import numpy as np
import pytest
import tiny_run

from data_pipelines.build import make_loader
from data_pipelines.loader import to_devices
from unidiff_jax.config import ConfigError
from unidiff_jax.mesh import make_mesh
from unidiff_jax.processes import DataShare

NUM_SHARDS = 4


@pytest.fixture(scope="module")
def make(miniworld, tokenizer):
    """make(index, count): the loader of one share of the rows."""
    config = tiny_run.config(miniworld, f"data.num_shards={NUM_SHARDS}", "data.prefetch=2")

    def make(index=0, count=1, **overrides):
        return make_loader(config, tokenizer, share=DataShare(index, count), **overrides)

    return make


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_state_is_that_of_the_last_batch_returned(make):
    loader = make()
    batches, states = [], []
    for _ in range(12):  # several epochs of 40 records
        states.append(json.loads(json.dumps(loader.get_state())))
        batches.append(next(loader))
    for start in (11, 0, 5):
        fresh = make()
        fresh.set_state(states[start])
        for batch in batches[start : start + 3]:
            assert_same(next(fresh), batch)
    loader.set_state(states[3])  # also backwards, in a loader that has run
    assert_same(next(loader), batches[3])


def test_no_example_comes_twice(make):
    loader = make()
    ids = [int(i) for _ in range(12) for i in next(loader).example_id.ravel() if i]
    assert len(ids) > 5 * 40 and len(set(ids)) == len(ids)


@pytest.mark.parametrize("count", [2, 4])
def test_processes_read_parts_of_one_stream(make, count):
    whole = make()
    parts = [make(index, count) for index in range(count)]
    for _ in range(3):
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *(next(p) for p in parts))
        assert_same(joined, next(whole))
    # the states of all processes together are the state of one, and the other way round
    merged = {}
    for part in parts:
        merged |= part.get_state()
    assert merged.keys() == whole.get_state().keys()
    fresh = make()
    fresh.set_state(merged)
    expected = next(whole)
    assert_same(next(fresh), expected)
    for index in range(count):
        other = make(index, count)
        other.set_state(merged)
        rows = slice(index * 8 // count, (index + 1) * 8 // count)
        assert_same(next(other), jax.tree.map(lambda leaf, rows=rows: leaf[rows], expected))


def test_prefetching_changes_nothing(miniworld, tokenizer):
    loaders = [
        make_loader(tiny_run.config(miniworld, f"data.prefetch={n}"), tokenizer) for n in (0, 5)
    ]
    for _ in range(3):
        assert_same(*(next(loader) for loader in loaders))


def test_shards_and_processes_that_do_not_fit(make, miniworld, tokenizer):
    with pytest.raises(ConfigError, match=r"data.num_shards=4 must be a multiple of the 3 groups"):
        make(0, 3)
    with pytest.raises(ConfigError, match=r"holds data shards \['0'\], not 1: set data.num_shards"):
        make().set_state({"0": make().get_state()["0"]})
    config = tiny_run.config(miniworld, "data.num_shards=3")
    with pytest.raises(ConfigError, match=r"data.batch_rows=8 must be a multiple of data.num_sh"):
        make_loader(config, tokenizer)


def test_batches_reach_the_devices_whole(make):
    batch = next(make())
    assert_same(to_devices(batch, mesh=make_mesh({"data": -1})), batch)
