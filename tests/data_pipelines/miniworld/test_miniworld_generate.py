"""Generation: the same bytes whatever the workers and interruptions, and clear refusals."""

import dataclasses
import signal
import subprocess
import sys
import time

import pytest
from array_record.python import array_record_module

from data_pipelines.miniworld import generate, manifest, records
from data_pipelines.miniworld.generate import GenerateError
from data_pipelines.miniworld.manifest import Settings

SETTINGS = Settings(size=16, counts={"train": 9, "test": 4, "heldout": 2}, shards=3)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    generate.generate(folder, SETTINGS, progress="none")
    return contents(folder)


def test_files_are_named_by_split_and_shard(reference):
    assert list(reference) == [
        *(f"heldout-{i:05d}-of-00002.array_record" for i in range(2)),
        "manifest.json",
        *(f"test-{i:05d}-of-00003.array_record" for i in range(3)),
        *(f"train-{i:05d}-of-00003.array_record" for i in range(3)),
    ]


def test_worker_count_does_not_matter(reference, tmp_path):
    generate.generate(tmp_path, SETTINGS, num_workers=2, progress="none")
    assert contents(tmp_path) == reference


def test_another_seed_gives_other_scenes(tmp_path, reference):
    first = generate.make_record(SETTINGS, "train", 0)
    second = generate.make_record(dataclasses.replace(SETTINGS, seed=1), "train", 0)
    assert first.scenes != second.scenes


@pytest.mark.parametrize("stop_after", [1, 4, 10])
def test_resumed_equals_uninterrupted(reference, tmp_path, monkeypatch, stop_after):
    whole = generate.make_record
    calls = []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > stop_after:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(generate, "make_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate.generate(tmp_path, SETTINGS, progress="none")
    assert not list(tmp_path.glob("*.partial"))
    kept = sum(entry["records"] for entry in manifest.read(tmp_path).files.values())
    assert stop_after - 3 < kept <= stop_after  # no shard has more than three records

    rendered = []
    monkeypatch.setattr(
        generate, "make_record", lambda *args: rendered.append(args) or whole(*args)
    )
    generate.generate(tmp_path, SETTINGS, progress="none")
    assert contents(tmp_path) == reference
    assert len(rendered) == 15 - kept


def test_damaged_files_are_rendered_again(reference, tmp_path):
    for name, data in reference.items():
        (tmp_path / name).write_bytes(data)
    first, second, third = (f"train-{i:05d}-of-00003.array_record" for i in range(3))
    (tmp_path / first).write_bytes(reference[first][:-5])
    (tmp_path / second).write_bytes(reference[second][:-5] + b"12345")
    (tmp_path / third).unlink()
    generate.generate(tmp_path, SETTINGS, progress="none")
    assert contents(tmp_path) == reference


def test_a_folder_of_other_settings_is_refused(reference, tmp_path):
    for name, data in reference.items():
        (tmp_path / name).write_bytes(data)
    other = dataclasses.replace(SETTINGS, seed=3)
    with pytest.raises(GenerateError, match="seed 0 instead of 3; use another --out"):
        generate.generate(tmp_path, other, progress="none")
    assert contents(tmp_path) == reference


def test_record_files_without_a_manifest_are_refused(tmp_path):
    (tmp_path / "train-00000-of-00001.array_record").write_bytes(b"mine")
    with pytest.raises(GenerateError, match="without a manifest"):
        generate.generate(tmp_path, SETTINGS, progress="none")


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    class FullDisk:
        def __init__(self, path, options):
            pass

        def write(self, blob):
            pass

        def close(self):
            raise RuntimeError("write() failed: No space left on device; at byte 0")

    monkeypatch.setattr(array_record_module, "ArrayRecordWriter", FullDisk)
    with pytest.raises(GenerateError, match=r"^the disk is full at .*run the same command again"):
        generate.generate(tmp_path, SETTINGS, progress="none")
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    "change", [{"size": 4}, {"samples": 0}, {"counts": {"dev": 3}}, {"edits": -1}]
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(ValueError, match=r"use|must"):
        dataclasses.replace(SETTINGS, **change)


def test_record_ids_are_unique_over_splits(tmp_path, reference):
    for name, data in reference.items():
        (tmp_path / name).write_bytes(data)
    ids = [
        records.decode(blob).id
        for split in ("train", "test", "heldout")
        for blob in records.open_records(tmp_path, split)
    ]
    assert len(set(ids)) == 15
    assert max(ids) < 2**30


def test_the_command_line_stops_on_ctrl_c_and_refuses_other_settings(tmp_path):
    command = [sys.executable, "-m", "launch.miniworld", "--out", str(tmp_path), "--size", "16"]
    command += ["--train", "4000", "--shards", "400", "--workers", "2"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A test run in the background of a shell would hand its ignored Ctrl-C down.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and not list(tmp_path.glob("train-*.array_record")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "miniworld: stopped; the same command continues"
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("*.partial"))

    other = subprocess.run([*command, "--seed", "1"], capture_output=True, text=True, check=False)
    assert other.returncode == 1
    assert other.stderr.splitlines()[-1].startswith("miniworld: ")
    assert "use another --out" in other.stderr
