"""Folders of masks: ids stay with their frames, and every damage has its reason."""

import json

import numpy as np
import pytest
from coco_runs import pack, run_lengths
from PIL import Image
from raw_data import encode, value_of

from data_pipelines.curate.clips import ClipError
from data_pipelines.curate.mask_folders import (
    davis_frames,
    davis_shot,
    list_davis,
    list_youtube_vis,
    read_davis_names,
    youtube_vis_shot,
)
from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.davis import DavisSource
from data_pipelines.sources.make import make_source
from unidiff_jax.config import ConfigError

HEIGHT, WIDTH = 20, 30


def ids_of(number):
    """Two things beside each other; the second one grows by the frame."""
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[4:12, :10] = 1
    ids[8:, 10 : 12 + 4 * number] = 2
    return ids


def palette_png(ids):
    picture = Image.fromarray(ids.astype(np.uint8)).convert("P")
    picture.putpalette([channel for i in range(256) for channel in (i, 255 - i, 128)])
    picture.putdata(ids.ravel().tolist())
    return encode(picture)


def jpg(value, *, size=(WIDTH, HEIGHT)):
    return encode(Image.new("RGB", size, (value,) * 3), format="JPEG", quality=95)


def write_davis(root, name="bear", *, count=3, marked=(0, 1, 2)):
    for kind in ("JPEGImages", "Annotations"):
        (root / kind / "480p" / name).mkdir(parents=True)
    for i in range(count):
        (root / "JPEGImages" / "480p" / name / f"{i:05}.jpg").write_bytes(jpg(10 * i))
    for i in marked:
        path = root / "Annotations" / "480p" / name / f"{i:05}.png"
        path.write_bytes(palette_png(ids_of(i)))
    return root


def refused(reason, call):
    with pytest.raises(ClipError) as caught:
        call()
    assert caught.value.reason == reason, str(caught.value)
    return str(caught.value)


def test_davis(tmp_path):
    write_davis(tmp_path)
    write_davis(tmp_path, "car")
    assert list_davis(tmp_path) == ["bear", "car"]
    shot = davis_shot(tmp_path, "bear", size=HEIGHT, names={1: "a bear"})
    assert shot.frames.dtype == shot.masks.dtype == np.uint8
    assert shot.frames[:, 0, 0, 0].tolist() == [0, 10, 20]
    np.testing.assert_array_equal(shot.masks, [ids_of(i) for i in range(3)])
    np.testing.assert_allclose(shot.times, [0, 1 / 24, 2 / 24])
    assert shot.names == {1: "a bear"} and shot.depth is None
    times = davis_shot(tmp_path, "bear", size=HEIGHT, rate=10.0).times
    np.testing.assert_allclose(times, [0, 0.1, 0.2])


def test_sets_of_videos(tmp_path):
    write_davis(tmp_path)
    write_davis(tmp_path, "car")
    (tmp_path / "ImageSets" / "2017").mkdir(parents=True)
    (tmp_path / "ImageSets" / "2017" / "train.txt").write_text("car\n")
    (tmp_path / "ImageSets" / "2017" / "val.txt").write_text("car\nboat\n")
    assert list_davis(tmp_path, image_set="2017/train") == ["car"]
    for changes, message in (
        ({"image_set": "2017/val"}, r"480p lacks 1 videos of .*val.txt, first boat"),
        ({"image_set": "2017/test"}, r"test.txt cannot be read"),
        ({"image_set": "../secret"}, "leaves the folder"),
        ({"resolution": "1080p"}, "1080p cannot be listed"),
    ):
        with pytest.raises(SourceError, match=message):
            list_davis(tmp_path, **changes)
    (tmp_path / "JPEGImages" / "4k").mkdir()
    with pytest.raises(SourceError, match="4k holds no folders: one folder a video"):
        list_davis(tmp_path, resolution="4k")


def test_frames_that_are_not_marked_are_left_out(tmp_path):
    write_davis(tmp_path, count=4, marked=(0, 2))
    shot = davis_shot(tmp_path, "bear", size=HEIGHT)
    assert shot.frames[:, 0, 0, 0].tolist() == [0, 20] and len(shot.masks) == 2
    np.testing.assert_allclose(shot.times, [0, 2 / 24])
    write_davis(tmp_path, "plain", marked=())
    shot = davis_shot(tmp_path, "plain", size=HEIGHT)
    assert len(shot.frames) == 3 and shot.masks is None


@pytest.mark.parametrize("size", [10, 7, 33])
def test_pictures_and_masks_keep_one_geometry(tmp_path, size):
    """A box of one value has the same edges in both."""
    root = write_davis(tmp_path, count=1, marked=(0,))
    ids = ids_of(0)
    picture = np.repeat(np.where(ids == 1, 255, 0).astype(np.uint8)[..., None], 3, axis=-1)
    path = root / "JPEGImages" / "480p" / "bear" / "00000.jpg"
    path.write_bytes(encode(Image.fromarray(picture), format="JPEG", quality=100))
    shot = davis_shot(root, "bear", size=size)
    assert shot.frames.shape[1:3] == shot.masks.shape[1:] == (size, round(size * WIDTH / HEIGHT))
    bright, marked = shot.frames[0, ..., 0] > 127, shot.masks[0] == 1
    assert marked.any() and set(np.unique(shot.masks)) <= {0, 1, 2}
    # they may differ where an edge cuts a pixel, which is one at most on each side
    assert (bright != marked).sum() <= size + shot.masks.shape[2]
    if size == 10:
        np.testing.assert_array_equal(bright, marked)
        np.testing.assert_allclose(
            shot.frames[0, ..., 0], picture[..., 0].reshape(10, 2, 15, 2).mean((1, 3)), atol=6
        )


def test_davis_that_cannot_be_used(tmp_path):
    def case(name, **settings):
        root = write_davis(tmp_path / name, **settings)
        return root, root / "JPEGImages" / "480p" / "bear", root / "Annotations" / "480p" / "bear"

    root, _, masks = case("size")
    (masks / "00001.png").write_bytes(palette_png(ids_of(1)[:, 1:]))
    message = refused("mask size", lambda: davis_shot(root, "bear", size=10))
    assert "00001.jpg" in message and "(20, 29)" in message
    root, frames, _ = case("missing")
    (frames / "00001.jpg").unlink()
    message = refused("missing frame", lambda: davis_shot(root, "bear", size=10))
    assert "no picture 00001.jpg" in message
    root, frames, _ = case("frame")
    (frames / "00001.jpg").write_bytes(jpg(1, size=(20, 20)))
    refused("frame size", lambda: davis_shot(root, "bear", size=10))
    for content in (b"", b"no picture", jpg(3)[:40]):
        root, frames, _ = case(f"corrupt{len(content)}")
        (frames / "00001.jpg").write_bytes(content)
        refused("corrupt", lambda root=root: davis_shot(root, "bear", size=10))
    for content in (b"", jpg(3), palette_png(ids_of(0))[:60], encode(Image.new("RGB", (30, 20)))):
        root, _, masks = case(f"mask{len(content)}")
        (masks / "00001.png").write_bytes(content)
        refused("corrupt", lambda root=root: davis_shot(root, "bear", size=10))
    root, _, masks = case("ids")
    wide = Image.fromarray(np.full((HEIGHT, WIDTH), 256, np.uint16))
    (masks / "00001.png").write_bytes(encode(wide))
    refused("too many ids", lambda: davis_shot(root, "bear", size=10))
    refused("empty", lambda: davis_frames(root, "none"))


def test_named_things_are_samples(tmp_path):
    write_davis(tmp_path, count=3, marked=(0, 2))
    write_davis(tmp_path, "nameless")
    settings = {"format": "davis", "path": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"source.path: .*no frames of the 2 videos.*semantics"):
        make_source(settings)
    names = {"bear": {"1": "bear", "2": "the tree"}}
    (tmp_path / "davis_semantics.json").write_text(json.dumps(names))
    assert read_davis_names(tmp_path) == {"bear": {1: "bear", 2: "the tree"}}
    source = make_source(settings)
    assert source.fields == ("image", "mask", "expression") and len(source) == 2
    seen = set()
    for seed in range(20):
        sample = source.sample(1, np.random.default_rng(seed))
        assert tuple(sample) == source.fields and value_of(sample["image"]) == 20
        number = {"bear": 1, "the tree": 2}[sample["expression"]]
        mask = np.asarray(sample["mask"])[..., 0] == 255
        np.testing.assert_array_equal(mask, ids_of(2) == number)
        seen.add(number)
    assert seen == {1, 2}
    with pytest.raises(IndexError):
        source.sample(2, np.random.default_rng(0))
    (tmp_path / "Annotations" / "480p" / "bear" / "00002.png").write_bytes(b"")
    with pytest.raises(SampleError, match=r"no picture of ids: .*00002.png is no PNG"):
        source.sample(1, np.random.default_rng(0))
    (tmp_path / "davis_semantics.json").write_text(json.dumps({"bear": {"1": "b", "2": "b"}}))
    with pytest.raises(SampleError, match="no thing can be told from the others"):
        DavisSource(str(tmp_path)).sample(0, np.random.default_rng(0))
    for content in ('{"bear": ["a"]}', '{"bear": {"one": "a"}}', "["):
        (tmp_path / "davis_semantics.json").write_text(content)
        with pytest.raises(SourceError, match=r"davis_semantics.json: not names by video and id"):
            DavisSource(str(tmp_path))


def write_youtube_vis(root, **changes):
    masks = [ids_of(i) for i in range(3)]
    first = [run_lengths(ids == 1) for ids in masks]
    second = [None, *(pack(run_lengths(ids == 2)) for ids in masks[1:])]
    record = {
        "videos": [
            {
                **{"id": 7, "height": HEIGHT, "width": WIDTH, "length": 3},
                "file_names": [f"0043f083b5/{5 * i:05}.jpg" for i in range(3)],
            }
        ],
        "categories": [{"id": 3, "name": "dog"}, {"id": 4, "name": "giant_panda"}],
        "annotations": [
            {"id": 1, "video_id": 7, "category_id": 4, "iscrowd": 0, "segmentations": first},
            {"id": 2, "video_id": 7, "category_id": 3, "iscrowd": 0, "segmentations": second},
        ],
    }
    folder = root / "JPEGImages" / "0043f083b5"
    folder.mkdir(parents=True)
    for i in range(3):
        (folder / f"{5 * i:05}.jpg").write_bytes(jpg(10 * i))
    (root / "instances.json").write_text(json.dumps(record | changes))
    return root


def test_youtube_vis(tmp_path):
    (clip,) = list_youtube_vis(write_youtube_vis(tmp_path))
    assert clip.name == "0043f083b5" and len(clip.frames) == 3
    shot = youtube_vis_shot(tmp_path, clip, size=HEIGHT)
    expected = [ids_of(i) for i in range(3)]
    expected[0][expected[0] == 2] = 0  # the second is not seen there
    np.testing.assert_array_equal(shot.masks, expected)
    assert shot.frames[:, 0, 0, 0].tolist() == [0, 10, 20]
    np.testing.assert_allclose(shot.times, [0, 1 / 6, 2 / 6])
    assert shot.names == {1: "giant_panda", 2: "dog"}
    small = youtube_vis_shot(tmp_path, clip, size=10, rate=30.0)
    assert small.masks.shape == (3, 10, 15) and small.times[1] == 1 / 30


def test_youtube_vis_without_masks(tmp_path):
    (clip,) = list_youtube_vis(write_youtube_vis(tmp_path, annotations=None))
    shot = youtube_vis_shot(tmp_path, clip, size=HEIGHT)
    assert shot.masks is None and len(shot.frames) == 3 and not shot.names


def test_youtube_vis_that_cannot_be_used(tmp_path):
    good = run_lengths(ids_of(0) == 1)

    def annotations(*masks, count=1):
        entry = {"video_id": 7, "category_id": 3, "segmentations": [*masks]}
        return {"annotations": [entry] * count}

    def shot(name, changes, **files):
        root = write_youtube_vis(tmp_path / name, **changes)
        for file, content in files.items():
            path = root / "JPEGImages" / "0043f083b5" / f"{file[1:]}.jpg"
            path.unlink() if content is None else path.write_bytes(content)
        (clip,) = list_youtube_vis(root)
        return lambda: youtube_vis_shot(root, clip, size=10)

    none = [None] * 3
    refused("too many ids", shot("ids", annotations(*none, count=256)))
    refused("corrupt", shot("short", annotations(None, None)))
    refused("missing frame", shot("missing", annotations(*none), f00005=None))
    refused("corrupt", shot("damaged", annotations(*none), f00005=b"no"))
    videos = {"videos": [{"id": 7, "file_names": ["../x.jpg"]}]}
    refused("missing frame", shot("outside", annotations(None) | videos))
    refused("mask size", shot("size", annotations(good | {"size": [30, 20]}, None, None)))
    refused("corrupt", shot("polygon", annotations([[0, 0, 5, 0, 5, 5]], None, None)))
    refused("corrupt", shot("sum", annotations(good | {"counts": [5, 6]}, None, None)))
    refused("corrupt", shot("kind", annotations(good | {"counts": 5}, None, None)))
    refused("corrupt", shot("text", annotations(good | {"counts": "132"}, None, None)))


@pytest.mark.parametrize(
    "changes",
    [
        {"videos": None},
        {"videos": [{"id": 1}]},
        {"videos": [{"id": 7, "file_names": []}]},
        {"categories": []},
        {"annotations": [{"video_id": 8, "category_id": 3, "segmentations": []}]},
        {"annotations": 3},
    ],
)
def test_instances_of_something_else(tmp_path, changes):
    write_youtube_vis(tmp_path, **changes)
    with pytest.raises(SourceError, match=r"instances.json: not the instances of YouTube-VIS"):
        list_youtube_vis(tmp_path)
    (tmp_path / "instances.json").unlink()
    with pytest.raises(SourceError, match=r"instances.json cannot be read"):
        list_youtube_vis(tmp_path)
