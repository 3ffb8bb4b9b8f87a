"""Encoded data sets: records, folders, resuming, and what makes them refuse."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from PIL import Image

from data_pipelines import encoded, shards
from data_pipelines.encoded import EncodedError, EncodedExample, EncodedSource
from data_pipelines.encoder import (
    EncodeSettings,
    Guides,
    TooManySkippedError,
    encode_dataset,
    split_plan,
)
from data_pipelines.sources.base import SampleError
from data_pipelines.sources.tags import AddedTags
from unidiff_jax import cameras
from unidiff_jax.config import ConfigError
from unidiff_jax.paths import as_path
from unidiff_jax.tasks import get_task

SETTINGS = EncodeSettings(size=32, buckets=False, validation=4, shards=2)
EDIT, VIEWS = get_task("edit"), get_task("multiview")


class Means:
    """An autoencoder whose latents are the means of 8 x 8 blocks, four channels, std 0.25."""

    latent_channels, downscale, identity = 4, 8, {"sha256": "means", "dtype": "float32"}

    def __init__(self):
        self.shapes = []

    def posterior(self, rgb):
        self.shapes.append(rgb.shape)
        b, h, w, _ = rgb.shape
        mean = rgb.reshape(b, h // 8, 8, w // 8, 8, 3).mean((2, 4))
        mean = np.concatenate([mean, mean[..., :1]], axis=-1)
        return mean, np.full(mean.shape, 0.25, np.float32)


class Edits:
    """Raw sample i has pictures of value i and 200; some are no use."""

    def __init__(self, count=20, *, bad=(), size=(40, 48)):
        self.count, self.bad, self.size, self.read = count, set(bad), size, []

    def __len__(self):
        return self.count

    def sample(self, index, rng):
        self.read.append(index)
        if index in self.bad:
            raise SampleError(f"sample {index} is damaged")
        source, edited = (Image.new("RGB", self.size, (v, v, v)) for v in (index, 200))
        choice = int(rng.integers(1000))
        return {"source": source, "edited": edited, "instruction": f"make {index} {choice}"}


def encode(folder, source=None, *, settings=SETTINGS, task=EDIT, **kwargs):
    return encode_dataset(
        source or Edits(),
        task=task,
        autoencoder=kwargs.pop("autoencoder", Means()),
        folder=folder,
        settings=settings,
        origin={"format": "test"},
        batch=4,
        **kwargs,
    )


def values(folder, split):
    source = EncodedSource([folder], task=EDIT, split=split)
    items = [source.item(source[i], EDIT, np.random.default_rng(0)) for i in range(len(source))]
    return {item["instruction"].split()[1]: item for item in items}


def test_a_record_survives():
    rng = np.random.default_rng(0)
    means = [rng.standard_normal((2, n, 4)).astype(np.float16) for n in (2, 3)]
    stds = [np.full(means[0].shape, 0.5, np.float16), np.zeros(means[1].shape)]
    example = EncodedExample(means, stds, {"caption": ["a", "b"], "name": "ü"}, ("real",))
    found = encoded.decode_record(encoded.encode_record(example))
    for got, expected in zip([*found.means, *found.stds], [*means, *stds], strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == np.float32
    assert found.texts == example.texts and found.tags == example.tags


class Inserts:
    """Raw samples of an insertion whose hole is the upper half."""

    def __len__(self):
        return 6

    def sample(self, index, rng):
        picture = Image.new("RGB", (64, 64), (index, 0, 0))
        hole = Image.new("RGB", (64, 64))
        hole.paste((255, 255, 255), (0, 0, 64, 32))
        asset = Image.new("RGB", (20, 10), (10 * index, 1, 2))
        return {"later": picture, "canvas": picture, "hole": hole, "assets": [asset]} | {
            "references": "the thing of IMG2"
        }


class Colour:
    """An identity encoder: the mean colour."""

    dim = 3

    def __call__(self, pictures):
        return pictures.mean(axis=(1, 2), dtype=np.float32)


def test_what_guides_on_channels_is_encoded_too(tmp_path):
    task, settings = get_task("insert"), dataclasses.replace(SETTINGS, validation=1)
    guides = Guides(regions=True, identity=Colour(), origin={"encoder": "colour"})
    encode(tmp_path, Inserts(), task=task, settings=settings, guides=guides)
    source = EncodedSource([tmp_path], task=task, split="train")
    for index in range(len(source)):
        item = source.item(source[index], task, np.random.default_rng(0))
        np.testing.assert_array_equal(item["hole"], np.repeat([1, 1, 0, 0], 4).reshape(4, 4))
        number = round((float(item["latents"][0][0, 0, 0]) + 1) * 127.5)
        np.testing.assert_allclose(item["features"], [[10 * number, 1, 2]])
    with pytest.raises(ConfigError, match=r"guides was .*colour.*, now None"):
        encode(tmp_path, Inserts(), task=task, settings=settings)


@pytest.mark.parametrize("blob", [b"", b"1234567", b"\xff" * 64, (5).to_bytes(8, "little") + b"{}"])
def test_damaged_records(blob):
    with pytest.raises(EncodedError, match="not an encoded example"):
        encoded.decode_record(blob)


def test_every_sample_is_encoded_once_in_one_split(tmp_path):
    assert encode(tmp_path) == (20, 0, {})
    train, validation = values(tmp_path, "train"), values(tmp_path, "validation")
    assert len(validation) == 4 and train.keys().isdisjoint(validation)
    assert train.keys() | validation.keys() == {str(i) for i in range(20)}
    for number, item in (train | validation).items():
        edited, source = item["latents"]  # the order of the task's frames
        assert edited.shape == (4, 4, 4)
        np.testing.assert_allclose(source, int(number) / 127.5 - 1, atol=1e-3)
        np.testing.assert_allclose(edited, 200 / 127.5 - 1, atol=1e-3)
        np.testing.assert_allclose(item["stds"][0], 0.25)


def test_processes_share_the_shards(tmp_path, monkeypatch):
    settings = dataclasses.replace(SETTINGS, shards=5)
    alone, together, sources = tmp_path / "alone", tmp_path / "together", [Edits() for _ in "123"]
    expected = encode(alone, settings=settings)
    files = {path.name: path.read_bytes() for path in alone.iterdir()}
    turn = iter(range(3))

    def meet_next(what):
        """Where a process waits for the others at the end, the next one does its work."""
        number = next(turn, None) if what.startswith("encoded") else None
        if number is not None:
            monkeypatch.setattr(jax, "process_index", lambda: number)
            assert encode(together, sources[number], settings=settings) == expected

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(multihost_utils, "sync_global_devices", meet_next)
    meet_next("encoded")
    assert {path.name: path.read_bytes() for path in together.iterdir()} == files
    read = [index for source in sources for index in source.read]
    assert sorted(read) == list(range(20)) and all(len(source.read) < 20 for source in sources)

    monkeypatch.setattr(jax, "process_count", lambda: 1)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    (together / "train-00003-of-00005.json").unlink()  # as if it had been stopped there
    again = Edits()
    assert encode(together, again, settings=settings) == expected
    assert sorted(again.read) == sorted(split_plan(20, settings)["train"][3])
    assert {path.name: path.read_bytes() for path in together.iterdir()} == files


def test_tags_of_samples_reach_the_items(tmp_path):
    class Tagged(Edits):
        def sample(self, index, rng):
            return super().sample(index, rng) | {"tags": ("dynamic scenario",) * (index % 2)}

    encode(tmp_path, AddedTags(Tagged(), ("realistic style",)))
    for number, item in values(tmp_path, "train").items():
        moves = ("dynamic scenario",) * (int(number) % 2)
        assert item["tags"] == (*moves, "realistic style")


def test_encoding_into_a_bucket_and_reading_from_it(tmp_path, bucket):
    remote = as_path(bucket) / "encoded" / "edits"
    source = Edits(bad=(3,))
    assert encode(tmp_path, source) == encode(remote, source) == (19, 1, {})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert sorted(path.name for path in remote.iterdir()) == names
    for name in names:
        assert (remote / name).read_bytes() == (tmp_path / name).read_bytes(), name
    assert values(remote, "train").keys() == values(tmp_path, "train").keys()
    source.read.clear()
    encode(remote, source)
    assert not source.read  # finished shards stay
    (remote / "train-00001-of-00002.array_record").unlink()
    with pytest.raises(EncodedError, match=r"train-00001-of-00002.* is missing"):
        EncodedSource([remote], task=EDIT, split="train")


def test_several_examples_a_sample_differ_in_their_choices(tmp_path):
    encode(tmp_path, settings=dataclasses.replace(SETTINGS, samples=3))
    source = EncodedSource([tmp_path], task=EDIT, split="train")
    texts = [source[i].texts["instruction"] for i in range(len(source))]
    assert len(texts) == 48 == len(set(texts))


def test_a_stopped_job_continues_and_gives_the_same_records(tmp_path):
    encode(tmp_path / "whole")
    raw = Edits()

    def stop(count):
        if len(raw.read) > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path / "stopped", raw, on_samples=stop)
    with pytest.raises(EncodedError, match="is not finished; encode it with"):
        EncodedSource([tmp_path / "stopped"], task=EDIT, split="train")
    again = Edits()
    assert encode(tmp_path / "stopped", again) == (20, 0, {})
    assert len(again.read) < 20  # a finished shard was kept
    for name in shards.shard_names("train", 2):
        first, second = ((tmp_path / f / name).read_bytes() for f in ("whole", "stopped"))
        assert first == second


def test_samples_of_no_use_are_counted_and_named(tmp_path):
    assert encode(tmp_path, Edits(bad={3, 7})) == (18, 2, {})
    entries = [json.loads(p.read_text()) for p in tmp_path.glob("*of*.json")]
    assert sorted(s for e in entries for s in e["skipped"]) == [
        "sample 3 is damaged",
        "sample 7 is damaged",
    ]


def test_too_many_samples_of_no_use_stop_the_job(tmp_path):
    with pytest.raises(TooManySkippedError, match="samples cannot be used; the last: sample"):
        encode(tmp_path, Edits(60, bad=set(range(60))))
    assert not list(tmp_path.glob("*.array_record*"))


def test_pictures_keep_their_shape_in_buckets_and_fill_whole_batches(tmp_path):
    autoencoder = Means()
    settings = dataclasses.replace(SETTINGS, size=256, buckets=True)
    encode(tmp_path, Edits(6, size=(300, 150)), settings=settings, autoencoder=autoencoder)
    assert {shape[1:3] for shape in autoencoder.shapes} == {(176, 352)}
    assert {shape[0] for shape in autoencoder.shapes} == {4}
    largest = EncodedSource([tmp_path], task=EDIT, split="train").largest
    assert (largest.places, largest.frames, largest.channels) == (2 * 22 * 44, 2, 4)


class Views:
    """Three views of a scene from cameras on a circle."""

    def __len__(self):
        return 8

    def sample(self, index, rng):
        c2w = np.stack([cameras.look_at_origin(a, 20, 2) for a in (0, 30, 60)])
        two = np.ones((3, 2))
        found = cameras.from_opengl(c2w, focal=1.4 * two, principal=0.5 * two)
        pictures = [Image.new("RGB", (60, 40), (v, v, v)) for v in (0, 100, 200)]
        return {
            "views": pictures,
            "cameras": cameras.relative_to_first(found),
            "caption": "",
        }


def test_cameras_become_exact_ray_frames_between_the_views(tmp_path):
    encode(
        tmp_path,
        Views(),
        task=VIEWS,
        settings=dataclasses.replace(SETTINGS, buckets=True, size=256),
    )
    source = EncodedSource([tmp_path], task=VIEWS, split="train")
    record = source[0]
    assert len(record.means) == 6
    expected = cameras.ray_frame(
        cameras.to_rays(Views().sample(0, None)["cameras"], size=32), channels=4
    )
    for view in range(3):
        np.testing.assert_allclose(record.means[2 * view + 1], expected[view], atol=2e-3)
        assert not record.stds[2 * view + 1].any() and record.stds[2 * view].all()
        assert record.means[2 * view].shape == (32, 32, 4)  # square, whatever the picture


def test_other_settings_are_refused(tmp_path):
    encode(tmp_path)
    with pytest.raises(ConfigError, match=r"was encoded with other settings \(settings was"):
        encode(tmp_path, settings=dataclasses.replace(SETTINGS, size=64))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing; encode it with"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_text('{"schema": 2}'), "has schema 2, not"),
        (
            lambda f: (f / shards.shard_names("train", 2)[1]).write_bytes(b"cut"),
            r"has 3 bytes instead of \d+; encode it with",
        ),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, damage, message):
    encode(tmp_path)
    damage(tmp_path)
    with pytest.raises(EncodedError, match=message):
        EncodedSource([tmp_path], task=EDIT, split="train")


def test_a_folder_of_another_task(tmp_path):
    encode(tmp_path)
    with pytest.raises(EncodedError, match="holds task 'edit', not 'depth'"):
        EncodedSource([tmp_path], task=get_task("depth"), split="train")


def test_sizes_without_buckets():
    with pytest.raises(ConfigError, match=r"256, 512 and 1024, not 384; .*buckets=false"):
        EncodeSettings(size=384)
    assert EncodeSettings(size=384, buckets=False).size == 384


def test_split_plan_is_a_partition():
    plan = split_plan(11, dataclasses.replace(SETTINGS, validation=3, shards=4))
    parts = [*plan["train"], *plan["validation"]]
    assert sorted(np.concatenate(parts)) == list(range(11))
    assert [len(part) for part in plan["train"]] == [2, 2, 2, 2]
    with pytest.raises(ConfigError, match="leaves nothing of 11 samples"):
        split_plan(11, dataclasses.replace(SETTINGS, validation=11))
