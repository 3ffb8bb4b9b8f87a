"""Data with faults: what is skipped, counted and told, where it ends, and that a run goes on."""

import json
import logging
import pathlib
import re
import shutil
import threading
import time

import damaged_data
import jax
import numpy as np
import pytest
import tiny_run
from jobs import start, wait_for

from data_pipelines import loader as loaders
from data_pipelines import patience, skips
from data_pipelines.build import check_data, make_loader
from data_pipelines.miniworld.items import MiniWorldSource
from data_pipelines.miniworld.manifest import RecordsError
from data_pipelines.patience import Patience, StalledError
from data_pipelines.skips import TooManySkippedError
from unidiff_jax.processes import DataShare
from unidiff_jax.train.metrics import read_metrics


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(skips, "PAUSE", 0.0)


@pytest.fixture(scope="module")
def damaged(miniworld, tmp_path_factory):
    return damaged_data.damaged(miniworld, tmp_path_factory.mktemp("faults") / "data")


def loader(folder, tokenizer, *overrides, share=None):
    config = tiny_run.config(folder, "data.max_skipped=0.2", "data.num_shards=2", *overrides)
    return make_loader(config, tokenizer, **({"share": share} if share else {}))


def ids(batches):
    return [int(i) for batch in batches for i in batch.example_id.ravel() if i]


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_bad_records_are_skipped_counted_and_named(damaged, miniworld, tokenizer, caplog):
    stream = loader(damaged, tokenizer)
    with caplog.at_level(logging.WARNING):
        batches = [next(stream) for _ in range(12)]
    told = {re.search(r"(\S+) record (\d+): (.*)", text).groups() for text in messages(caplog)}
    by_record = {int(number): reason for _, number, reason in told}
    assert {name for name, *_ in told} == {str(next(damaged.glob("train-00000*.array_record")))}
    assert len(told) == len(by_record) == 3  # each is told once, and read in every epoch
    assert "not a MiniWorld record" in by_record.pop(2)
    assert "tokens are not finite" in by_record.pop(5)
    assert "data hash mismatch" in next(iter(by_record.values()))
    assert stream.skipped > 3
    # the others come as from sound data
    sound = loader(miniworld, tokenizer)
    expected, found = ids(next(sound) for _ in range(16)), ids(batches)
    assert set(found) < set(expected) and len(set(found)) == len(found)
    assert sound.skipped == 0


def messages(caplog):
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith("skipped ")]


@pytest.mark.parametrize("threads", [0, 3])
def test_a_stream_with_bad_records_goes_on_batch_for_batch(damaged, tokenizer, threads):
    def make(**more):
        return loader(damaged, tokenizer, f"data.read_threads={threads}", **more)

    whole, batches, states, counts = make(), [], [], []
    for _ in range(12):
        states.append(json.loads(json.dumps(whole.get_state())))
        counts.append(whole.skipped)
        batches.append(next(whole))
    assert counts[0] == 0 and counts[-1] > 3 and counts == sorted(counts)
    for place in (9, 4):
        fresh = make()
        fresh.set_state(states[place])
        assert fresh.skipped == counts[place]
        for batch, count in zip(
            batches[place:], [*counts[place + 1 :], whole.skipped], strict=True
        ):
            same(next(fresh), batch)
            assert fresh.skipped == count
    parts = [make(share=DataShare(index, 2)) for index in range(2)]
    for part in parts:
        part.set_state(states[4])
    assert sum(part.skipped for part in parts) == counts[4]


def test_a_state_from_before_records_were_counted(miniworld, tokenizer):
    stream = loader(miniworld, tokenizer)
    next(stream)
    state = stream.get_state()
    expected = next(stream)

    def plain(part):
        if "skipped" in part:
            return part["parent"]
        return {**part, "parent": plain(part["parent"])}

    old = {shard: plain(part) for shard, part in state.items()}
    assert old != state
    stream.set_state(old)
    same(next(stream), expected)
    assert stream.skipped == 0


def test_too_many_bad_records_end_the_stream(damaged, tokenizer, monkeypatch):
    monkeypatch.setattr(skips, "AT_LEAST", 2)
    stream = loader(damaged, tokenizer, "data.max_skipped=0.01")
    words = r"3 of the last \d+ records cannot be used, more than data.max_skipped=0.01.*record \d+"
    with pytest.raises(TooManySkippedError, match=words):
        for _ in range(12):
            next(stream)


def test_few_bad_records_never_end_a_long_stream(monkeypatch):
    monkeypatch.setattr(skips, "WINDOW", 100)
    import grain

    def stream(bad):
        numbers = grain.MapDataset.range(2_000).map(
            lambda n: skips.Skipped(f"{n}", "bad") if bad(n) else n
        )
        return iter(skips.count_skips(numbers.to_iter_dataset(), most=0.25))

    assert len(list(stream(lambda n: n % 5 == 0))) == 1600
    late = stream(lambda n: n > 1500)  # a share of all records would take 500 more to see it
    with pytest.raises(TooManySkippedError, match="the last is 15"):
        list(late)


def test_a_program_fault_is_no_fault_of_data():
    def broken():
        raise TypeError("no")

    with pytest.raises(TypeError):
        skips.usable_or_skipped(lambda: 1, lambda _: broken(), name=lambda: "record")


def test_a_read_that_fails_once_is_tried_again():
    answers = iter([OSError("timed out"), "record"])

    def read():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    made = skips.usable_or_skipped(read, lambda record: record + " used", name=lambda: "it")
    assert made == "record used"


# ------------------------------------------------------------------------------------- lost files


@pytest.mark.parametrize("fault", ["gone", "empty", "cut"])
def test_a_lost_file_is_skipped_up_to_the_share(miniworld, tmp_path, tokenizer, fault, caplog):
    folder = shutil.copytree(miniworld, tmp_path / "data")
    path = next(folder.glob("train-00001*.array_record"))
    whole = MiniWorldSource(folder, split="train")
    if fault == "gone":
        path.unlink()
    else:
        path.write_bytes(b"" if fault == "empty" else path.read_bytes()[:-50])
    with pytest.raises(RecordsError, match=f"{path.name}.*render it again"):
        check_data(tiny_run.config(folder, "data.max_skipped=0.4"))
    with caplog.at_level(logging.WARNING):
        source = MiniWorldSource(folder, split="train", spare=0.5)
    assert f"{path.name}" in caplog.text and "its 20 records will be skipped" in caplog.text
    assert len(source) == len(whole) == 40 and source.name(20) == f"{path} record 0"
    assert source[19].id == whole[19].id
    stream = loader(folder, tokenizer, "data.max_skipped=0.9")
    while not stream.skipped:
        next(stream)


def test_a_file_that_vanishes_under_way(miniworld, tmp_path, tokenizer):
    """Unlinked after it was found and before it was read; files that are open stay readable."""
    folder = shutil.copytree(miniworld, tmp_path / "data")
    stream = loader(folder, tokenizer, "data.max_skipped=0.9")
    for path in folder.glob("train-00001*"):
        path.unlink()
    while stream.skipped < 30:
        next(stream)
    for path in folder.glob("train-*"):
        path.unlink()
    assert all(np.isfinite(next(stream).tokens).all() for _ in range(2))


# ------------------------------------------------------------------------------------------- stalls


def test_a_stall_is_reported_and_then_an_error(miniworld, tokenizer, monkeypatch, caplog):
    stuck, getitem = threading.Event(), MiniWorldSource.__getitem__

    def slow(self, index):
        if index == 7:
            stuck.wait()
        return getitem(self, index)

    monkeypatch.setattr(MiniWorldSource, "__getitem__", slow)
    stream = loader(miniworld, tokenizer, "data.stall_seconds=1", "data.prefetch=1")
    try:
        with caplog.at_level(logging.WARNING), pytest.raises(StalledError) as caught:
            for _ in range(20):
                next(stream)
        words = (
            r"data shard \d/2 has given no batch for 1 s; longest under way: "
            r"\S+train-00000-of-00002.array_record record 7 \(for \d s\); data.stall_seconds=1 is"
        )
        assert re.match(words, str(caught.value)), caught.value
        reports = [text for text in caplog.messages if "given up after 1 s" in text]
        assert len(reports) >= patience.REPORTS - 1 and "no batch for 0.1 s" in reports[0]
        monkeypatch.setattr(loaders, "CLOSE_SECONDS", 0.1)
        stream.close()  # does not wait for what hangs
    finally:
        stuck.set()


def test_slow_is_not_stalled_and_errors_pass():
    wait = Patience(5.0)
    assert wait.call(lambda: time.sleep(0.7) or 3, what="it") == 3
    with pytest.raises(StopIteration):
        wait.call(lambda: next(iter(())), what="it")
    assert wait.call(lambda: 4, what="it") == 4


def test_named_faults_are_files(damaged):
    source = MiniWorldSource(pathlib.Path(damaged), split="train")
    assert source.name(0).endswith("train-00000-of-00002.array_record record 0")
    assert source.name(39).endswith("train-00001-of-00002.array_record record 19")


@pytest.mark.slow
def test_a_killed_run_over_bad_records_goes_on_exactly(damaged, tmp_path):
    settings = ("data.max_skipped=0.2", "train.log_every=1", "train.sample_every=99")

    def begin(workdir):
        values = [f"--set={item}" for item in tiny_run.overrides(damaged, *settings)]
        return start("train", f"--workdir={workdir}", *values, compiled=tmp_path / "compiled")

    def log(workdir):
        path = workdir / "metrics.jsonl"
        found = read_metrics(path) if path.exists() else []
        return {
            row["step"]: (row["train/loss"], row["skipped_records"])
            for row in found
            if "train/loss" in row
        }

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert begin(whole).wait() == 0
    process = begin(killed)
    wait_for(lambda: 18 in log(killed), process)  # behind the checkpoint of step 15
    process.kill()
    process.wait()
    assert max(log(killed)) < 30
    assert begin(killed).wait() == 0
    assert log(killed) == log(whole) and log(whole)[30][1] > 3
