"""The record: round trip, and one clear error for everything that cannot be read."""

import dataclasses
import json
import re

import grain
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.miniworld import generate, manifest, records
from data_pipelines.miniworld.manifest import RecordsError, Settings
from data_pipelines.miniworld.scene import FACTORS, from_dict

SETTINGS = Settings(size=16, counts={"train": 6, "heldout": 3}, shards=2)


@pytest.fixture(scope="module")
def record():
    return generate.make_record(SETTINGS, "train", 0)


@pytest.fixture
def folder(tmp_path):
    generate.generate(tmp_path, SETTINGS, progress="none")
    return tmp_path


def assert_same(first, second):
    for field in dataclasses.fields(records.Record):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        else:
            assert a == b, field.name


def test_round_trip(record):
    blob = records.encode(record)
    assert blob == records.encode(record)
    assert_same(records.decode(blob), record)


@given(st.text(), st.integers(1, 3), st.integers(1, 5))
def test_round_trip_of_any_text_and_shape(text, num_images, size):
    images = np.arange(num_images * size * size * 3, dtype=np.uint8)
    images = images.reshape(num_images, size, size, 3)
    original = records.Record(
        rgb=images,
        depth=images[..., 0].astype(np.float16),
        instance=images[..., 1],
        shadow=images[..., 2] % 2,
        camera_to_world=np.zeros((num_images, 4, 4), np.float32),
        intrinsics=np.zeros((num_images, 3, 3), np.float32),
        id=5,
        split="train",
        heldout=None,
        scenes=[{"objects": []}] * num_images,
        captions=[[text]] * num_images,
        references=[],
        edits=[],
        clip=None,
    )
    assert_same(records.decode(records.encode(original)), original)


def test_any_safetensors_reader_can_read_a_record(record):
    tensors = safetensors.numpy.load(records.encode(record))
    np.testing.assert_array_equal(tensors["rgb"], record.rgb)
    assert set(tensors) == {
        *("rgb", "depth", "instance", "shadow", "camera_to_world", "intrinsics")
    }


def test_a_record_is_consistent(record):
    count = 1 + SETTINGS.edits + SETTINGS.clip_frames
    assert record.rgb.shape == (count, 16, 16, 3)
    assert record.depth.shape == record.instance.shape == record.shadow.shape == (count, 16, 16)
    assert record.camera_to_world.shape == (count, 4, 4)
    assert record.intrinsics.shape == (count, 3, 3)
    assert len(record.scenes) == len(record.captions) == count
    assert all(len(captions) >= 2 for captions in record.captions)
    assert [(e["before"], e["after"]) for e in record.edits] == [(0, 1), (0, 2), (0, 3)]
    assert record.clip["images"] == [0, 4, 5]
    assert record.heldout is None
    for reference in record.references:
        from_dict(record.scenes[reference["image"]]).object(reference["object"])


def test_a_wrong_dtype_is_refused(record):
    wrong = dataclasses.replace(record, depth=record.depth.astype(np.float32))
    with pytest.raises(ValueError, match="depth is float32; make it float16"):
        records.encode(wrong)


def test_another_schema_is_named(record, monkeypatch):
    monkeypatch.setattr(records, "SCHEMA", "miniworld/0")
    blob = records.encode(record)
    with pytest.raises(ValueError, match=r"'miniworld/0' but 'miniworld/1'.*launch\.miniworld"):
        records.decode(blob)


@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: b"",
        lambda blob: blob[:5],
        lambda blob: blob[:100],
        lambda blob: blob[:-1],
        lambda blob: b"\xff" * len(blob),
        lambda blob: safetensors.numpy.save({"rgb": np.zeros(3)}),
    ],
)
def test_damaged_records_are_refused(record, damage):
    with pytest.raises(RecordsError):
        records.decode(damage(records.encode(record)))


def test_open_gives_every_record_and_feeds_grain(folder):
    source = records.open_records(folder, "train")
    assert len(source) == 6
    dataset = grain.MapDataset.source(source).map(records.decode)
    assert [dataset[i].id for i in range(6)] == list(range(6))
    heldout = [records.decode(blob) for blob in records.open_records(folder, "heldout")]
    assert all(r.heldout in FACTORS and r.split == "heldout" for r in heldout)
    assert {r.id for r in heldout}.isdisjoint(range(6))


def test_an_absent_split_is_named(folder):
    with pytest.raises(RecordsError, match="no split 'test'; it has heldout, train"):
        records.open_records(folder, "test")


def test_a_missing_folder_says_how_to_render_it(tmp_path):
    with pytest.raises(RecordsError, match=r"manifest\.json is missing.*launch\.miniworld --out"):
        records.open_records(tmp_path / "nothing", "train")


def test_a_missing_or_truncated_file_is_named_with_its_command(folder):
    path = folder / "train-00001-of-00002.array_record"
    command = re.escape(f"--out {folder} --size 16 --train 6")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(RecordsError, match=rf"{path.name} has \d+ bytes.*{command}"):
        records.open_records(folder, "train")
    path.unlink()
    with pytest.raises(RecordsError, match=rf"{path.name} is missing.*{command}"):
        records.open_records(folder, "train")
    records.open_records(folder, "heldout")


def test_a_file_of_other_content_is_refused(folder):
    path = folder / "train-00000-of-00002.array_record"
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(RecordsError, match="damaged"):
        records.open_records(folder, "train")


def test_an_unfinished_folder_is_refused(folder):
    current = manifest.read(folder)
    del current.files["train-00001-of-00002.array_record"]
    manifest.write(folder, current)
    with pytest.raises(RecordsError, match="not rendered yet"):
        records.open_records(folder, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "miniworld/0"}, "'miniworld/0' but 'miniworld/1' is needed; remove"),
        ({"settings": {}}, "is damaged"),
    ],
)
def test_other_manifests_are_refused(folder, change, message):
    path = folder / manifest.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordsError, match=message):
        records.open_records(folder, "train")
    path.write_text("{")
    with pytest.raises(RecordsError, match="is damaged"):
        records.open_records(folder, "train")
