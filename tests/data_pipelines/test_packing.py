"""Rows of the training stream: full, complete, and one error for what does not fit."""

import grain
import numpy as np
import pytest
import tiny
import tiny_run

from data_pipelines.build import heldout_batches, make_loader
from data_pipelines.packing import batch_rows, pack, utilisation
from unidiff_jax.config import ConfigError
from unidiff_jax.frames import RowSize


def test_rows_of_the_quick_start_are_full(miniworld, tokenizer):
    config = tiny_run.config(miniworld, "data.batch_rows=16", "data.num_bins=32")
    loader = make_loader(config, tokenizer)
    shares = [utilisation(next(loader)) for _ in range(20)]
    assert np.mean([s["tokens"] for s in shares]) >= 0.95
    for share in shares:
        assert all(0 < value <= 1 for value in share.values())


def test_packing_loses_and_repeats_nothing():
    examples = tiny.mixed_examples(40)
    size = RowSize(24, 8, 5, 12)
    stream = grain.MapDataset.source(examples).to_iter_dataset()
    rows = list(pack(stream, size=size, num_bins=4))
    ids = sorted(int(i) for row in rows for i in row.example_id if i)
    assert ids == list(range(1, 41))
    batches = list(batch_rows(iter_dataset(rows), num_rows=4))
    assert len(batches) == len(rows) // 4
    assert batches[0].tokens.shape == (4, 24, tiny.TOKEN_DIM)


def iter_dataset(rows):
    return grain.MapDataset.source(rows).to_iter_dataset()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "data.row.tokens=31",
            r"needs 32 tokens and a row holds 31: raise data.row \(now tokens=31",
        ),
        ("data.row.frames=2", r"needs 2 frame_table and a row holds 1: raise data.row"),
        ("data.row.text=2", r"needs \d+ text_ids and a row holds 2: raise data.row"),
    ],
)
def test_an_example_that_is_too_large(miniworld, tokenizer, row, message):
    with pytest.raises(ConfigError, match=message):
        next(make_loader(tiny_run.config(miniworld, row), tokenizer))


def test_heldout_batches_have_one_shape_and_each_item_once(miniworld, tokenizer):
    config = tiny_run.config(miniworld, "data.batch_rows=3")
    batches = heldout_batches(config, tokenizer, num_items=5)
    assert {batch.tokens.shape for batch in batches} == {(3, 128, 192)}
    ids = [int(i) for batch in batches for row in batch.example_id for i in row if i]
    assert len(set(ids)) == len(ids)
    tasks = np.concatenate([b.task[b.task > 0] for b in batches])
    counts = np.bincount(tasks, minlength=6)[[2, 3, 4, 5]]
    assert (counts <= 5).all() and counts[0] == counts[2] == 5
    again = heldout_batches(config, tokenizer, num_items=5)
    np.testing.assert_array_equal(batches[0].tokens, again[0].tokens)
