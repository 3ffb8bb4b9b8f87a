"""Clips that come with masks become pairs with masks."""

import collections
import io
import json
import pickle

import numpy as np
import prepared_data
import pytest
from PIL import Image

pytest.importorskip("av", reason="needs the extra curate")
pytest.importorskip("apache_beam", reason="needs the extra curate")

from data_pipelines.curate.clips import ReadSettings
from data_pipelines.curate.describe import GivenDescriber
from data_pipelines.curate.formats import FORMATS, open_clips
from data_pipelines.curate.job import Curation, curate_clip
from data_pipelines.curate.motion import PairSettings
from data_pipelines.curate.track import GivenTracker
from data_pipelines.miniworld.generate import generate
from data_pipelines.miniworld.manifest import Settings
from data_pipelines.miniworld.records import decode, open_records
from data_pipelines.sources.base import SourceError

ANYTHING = PairSettings(
    min_gap=0.1, max_gap=9.0, min_difference=0.0, min_sharpness=0.0, min_contrast=0.0
)


def pairs_of(source, name, *, min_area=0.002):
    source = pickle.loads(pickle.dumps(source))  # as it reaches a worker
    curation = Curation(
        source=source,
        describer=GivenDescriber(),
        tracker=GivenTracker(),
        pairs=ANYTHING,
        min_area=min_area,
    )
    dropped = collections.Counter()
    return list(curate_clip(curation, name, source.fingerprint(name), dropped=dropped)), dropped


@pytest.fixture(scope="module")
def miniworld(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniworld")
    settings = Settings(size=32, counts={"train": 8}, shards=1, clip_frames=2)
    generate(folder, settings, progress="none")
    return folder


def test_miniworld(miniworld):
    source = open_clips("miniworld", miniworld, settings=ReadSettings(), split="train")
    assert source.names()[1] == "train-00000001"
    assert len({source.fingerprint(name) for name in source.names()}) == 8
    records = open_records(miniworld, "train")
    seen = 0
    for index, name in enumerate(source.names()):
        record = decode(records[index])
        found, _ = pairs_of(source, name)
        images = record.clip["images"]
        for pair in found:
            seen += 1
            first, last = (images[round(time)] for time in pair.times)
            np.testing.assert_array_equal(pair.frames, record.rgb[[first, last]])
            np.testing.assert_array_equal(pair.depth, record.depth[[first, last]])
            assert pair.caption == record.clip["description"]
            colors = {b["id"]: b["color"] for b in record.scenes[first]["objects"]}
            for number, text in pair.names.items():
                assert colors[number] in text
                for mask, image in zip(pair.masks, (first, last), strict=True):
                    np.testing.assert_array_equal(mask == number, record.instance[image] == number)
    assert seen > 8


def write_davis(root):
    """A square that walks; ids 1 (square) and 2 (floor)."""
    rng = np.random.default_rng(0)
    for t in range(16):
        rgb = np.full((48, 64, 3), 60, np.uint8) + rng.integers(0, 3, (48, 64, 1)).astype(np.uint8)
        ids = np.zeros((48, 64), np.uint8)
        ids[40:] = 2
        ids[10:30, 2 * t : 2 * t + 20] = 1
        rgb[ids == 1] = (200, 40, 40)
        for kind, name, data in (
            ("JPEGImages", f"{t:05}.jpg", rgb),
            ("Annotations", f"{t:05}.png", ids),
        ):
            path = root / kind / "480p" / "walk" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            file = io.BytesIO()
            Image.fromarray(data).save(file, "JPEG" if name.endswith("jpg") else "PNG")
            path.write_bytes(file.getvalue())
    (root / "davis_semantics.json").write_text(json.dumps({"walk": {"1": "square", "2": "床"}}))
    return root


def test_davis(tmp_path):
    source = open_clips("davis", write_davis(tmp_path), settings=ReadSettings(size=32))
    assert source.names() == ["walk"]
    found, _ = pairs_of(source, "walk")
    assert len(found) == 2
    for pair in found:
        assert pair.frames.shape == (2, 32, 43, 3)
        assert pair.names == {1: "square", 2: "床"}
        assert pair.caption == "a video of square and 床"
        # the square is where the frame is red, in both frames
        red = (pair.frames[..., 0] > 150) & (pair.frames[..., 1] < 90)
        assert ((pair.masks == 1) == red).mean() > 0.97


def test_movi(tmp_path):
    labels = [
        {"size_label": "large", "color_label": color, "material_label": "rubber"}
        | {"shape_label": "cube", "color": np.zeros(3, np.float32)}
        for color in ("red", "blue")
    ]
    prepared_data.prepare(
        tmp_path,
        "movi_a",
        config="16x16",
        features=prepared_data.movi_features("a"),
        examples=[prepared_data.movi_example(labels, seed=seed)[0] for seed in range(2)],
    )
    source = open_clips(
        "movi", tmp_path / "movi_a" / "16x16", settings=ReadSettings(), split="train"
    )
    assert source.names() == ["train-00000000", "train-00000001"]
    (shot,) = source.shots("train-00000001")
    found, _ = pairs_of(source, "train-00000001", min_area=0.0)
    assert found
    for pair in found:
        ends = [int(np.argmin(np.abs(shot.times - time))) for time in pair.times]
        np.testing.assert_array_equal(pair.frames, shot.frames[ends])
        assert pair.depth is not None and (pair.depth > 0).all()
    with pytest.raises(SourceError, match="is no DATA_DIR/movi_X"):
        open_clips("movi", tmp_path, settings=ReadSettings(), split="train").names()


def test_every_format_is_pickled_without_what_it_opened(miniworld):
    source = open_clips("miniworld", miniworld, settings=ReadSettings(), split="train")
    source.names()
    assert len(pickle.dumps(source)) < 2000
    assert set(FORMATS) == {"video", "davis", "youtube_vis", "movi", "miniworld"}
