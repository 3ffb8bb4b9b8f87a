"""MOVi: masks, depth and cameras against a restatement of what Kubric says of its numbers."""

import json
import pickle
import shutil

import numpy as np
import prepared_data
import pytest
from prepared_data import DEPTH_RANGE, FOCAL, FRAMES, SENSOR, SIZE, movi_example, prepare
from raw_data import same_sample

from data_pipelines.curate.clips import ClipError
from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.depths import draw_nearness
from data_pipelines.sources.make import make_source
from data_pipelines.sources.movi import movi_cameras, movi_names, movi_shot
from data_pipelines.sources.prepared import PreparedTable, find_prepared
from data_pipelines.sources.structures import open_structure
from unidiff_jax.cameras import normalize, relative_to_first
from unidiff_jax.config import ConfigError


def words(size, color, material, shape):
    return {
        **{"size_label": size, "color_label": color, "material_label": material},
        **{"shape_label": shape, "color": np.zeros(3, np.float32)},
    }


def category(name):
    return {"category": name, "asset_id": "x", "scale": 1.0, "is_dynamic": False}


CUBE, TWIN = words("small", "blue", "metal", "cube"), words("small", "blue", "metal", "cube")
BALL = words("large", "red", "rubber", "sphere")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A source of one video and its truth, by name."""
    folder = tmp_path_factory.mktemp("movi")
    cases = {
        "movi_a": ([CUBE, BALL, TWIN], "a", True),
        "movi_c": ([category("None"), category("Action Figures")], "c", False),
        "movi_d": ([category("Shoe"), category("Shoe")], "c", True),
    }
    found = {}
    for seed, (name, (labels, variant, moves)) in enumerate(cases.items()):
        example, truth = movi_example(labels, seed=seed, moves=moves)
        features = prepared_data.movi_features(variant)
        prepare(folder, name, features=features, examples=[example], config="16x16")
        table = PreparedTable(find_prepared(str(folder), name), split="train")
        found[name] = (open_structure(table), truth)
    found["folder"] = folder
    return found


def ray_lengths():
    """By plain trigonometry, a pixel at a time."""
    height, width = SIZE
    lengths = np.zeros(SIZE)
    for row in range(height):
        for column in range(width):
            # on the sensor, in its units; pixels are square
            x = (column + 0.5) / width * SENSOR - SENSOR / 2
            y = (row + 0.5) / width * SENSOR - SENSOR / 2
            lengths[row, column] = np.sqrt(x**2 + y**2 + FOCAL**2) / FOCAL
    return lengths


def test_shot(videos):
    source, truth = videos["movi_a"]
    shot = source.shot(0)
    assert shot.frames.dtype == np.uint8 and shot.frames.shape == (FRAMES, *SIZE, 3)
    assert shot.frames[:, 0, 0].tolist() == [[10 * t, 1, 2] for t in range(FRAMES)]
    np.testing.assert_allclose(shot.times, np.arange(FRAMES) / 12)
    np.testing.assert_array_equal(shot.masks, truth.ids)
    assert shot.masks.dtype == np.uint8 and shot.depth.dtype == np.float32
    least, largest = DEPTH_RANGE
    distance = least + truth.stored / 65535 * (largest - least)
    np.testing.assert_allclose(shot.depth, distance / ray_lengths(), rtol=1e-6)
    name = "small blue metal cube"
    assert shot.names == {1: name, 2: "large red rubber sphere", 3: name}


def test_names_by_category(videos):
    assert videos["movi_c"][0].shot(0).names == {2: "action figures"}
    assert movi_names({}) == {}


def test_points_are_seen_where_kubric_projects_them(videos):
    """As Kubric's cameras do: the inverse pose, then f, the centre and a division by -z."""
    source, truth = videos["movi_a"]
    found = movi_cameras(source._table.values(0, source._columns))
    points = np.random.default_rng(0).uniform(-1, 1, (6, 3))
    share = FOCAL / SENSOR
    intrinsics = np.array([[share, 0, -0.5], [0, -share, -0.5], [0, 0, -1.0]])
    for t, (turn, place) in enumerate(truth.poses):
        w, x, y, z = turn
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
        seen = (intrinsics @ rotation.T @ (points - place).T).T
        shares = seen[:, :2] / seen[:, 2:]  # of the picture, from the left and top
        # cameras are in a world that is turned: its axes are y, x and -z
        ours = points[:, [1, 0, 2]] * [1, 1, -1] @ found.rotation[t] + found.translation[t]
        assert (ours[:, 2] > 0).all()
        places = found.focal[t] * ours[:, :2] / ours[:, 2:] + found.principal[t]
        np.testing.assert_allclose((1 - places) / 2, shares, atol=1e-5)


def test_samples(videos):
    source, truth = videos["movi_a"]
    assert source.fields[0] == "views" and len(source) == 1
    all_cameras = movi_cameras(source._table.values(0, source._columns))
    shot = source.shot(0)
    seen = set()
    for seed in range(30):
        sample = source.sample(0, np.random.default_rng(seed))
        assert tuple(sample) == source.fields
        places = [np.asarray(view)[0, 0, 0] // 10 for view in sample["views"]]
        assert 2 <= len(set(places)) == len(places) <= 5
        t = places[0]
        np.testing.assert_array_equal(np.asarray(sample["image"]), shot.frames[t])
        depth = np.asarray(draw_nearness(shot.depth[t], name=""))
        np.testing.assert_array_equal(np.asarray(sample["depth"]), depth)
        mask = np.asarray(sample["mask"])[..., 0] == 255
        twins_are_seen = t < FRAMES - 1
        allowed = {2} if twins_are_seen else {1, 2}  # the twin is hidden in the last frame
        thing = {"the large red rubber sphere": 2, "the small blue metal cube": 1}[
            sample["expression"]
        ]
        assert thing in allowed
        np.testing.assert_array_equal(mask, truth.ids[t] == thing)
        seen.add((twins_are_seen, thing))
        assert sample["caption"] == "small blue metal cube, large red rubber sphere"
        posed = all_cameras._replace(
            **{key: value[places] for key, value in all_cameras._asdict().items()}
        )
        expected = relative_to_first(normalize(posed, scale=1.7))
        for part, other in zip(sample["cameras"], expected, strict=True):
            np.testing.assert_allclose(part, other, atol=1e-9)
        np.testing.assert_allclose(sample["cameras"].rotation[0], np.eye(3), atol=1e-9)
    assert seen == {(True, 2), (False, 1), (False, 2)}
    other = pickle.loads(pickle.dumps(source))
    assert same_sample(*(s.sample(0, np.random.default_rng(5)) for s in (source, other)))


def test_a_camera_that_stands_still(videos):
    source, _ = videos["movi_c"]
    found = source.sample(0, np.random.default_rng(0))
    assert np.abs(found["cameras"].translation).max() < 1e-6
    assert found["caption"] == "action figures" and found["expression"] == "the action figures"


def test_fields_that_a_task_does_not_need_are_not_made(videos):
    source, _ = videos["movi_d"]
    with pytest.raises(SampleError, match="no thing can be told from the others by its name"):
        source.sample(0, np.random.default_rng(0))
    settings = {"format": "tfds", "path": str(videos["folder"]), "name": "movi_d"}
    some = make_source(settings | {"fields": ("image", "depth"), "num_views": 1})
    assert tuple(some.sample(0, np.random.default_rng(0))) == ("image", "depth")
    views = make_source(settings | {"fields": ("views", "cameras", "caption"), "num_views": 3})
    found = views.sample(0, np.random.default_rng(0))
    assert len(found["views"]) == len(found["cameras"].focal) == 3 and found["caption"] == "shoe"
    with pytest.raises(ConfigError, match=r"source.fields: no field 'edited' in MOVi, it has: vi"):
        make_source(settings | {"fields": ("edited",)})
    with pytest.raises(SampleError, match=r"frames: 5 usable, 6 needed"):
        make_source(settings | {"fields": ("views",), "num_views": 6}).sample(
            0, np.random.default_rng(0)
        )
    columns = make_source(settings | {"fields": {"views": "video"}})
    assert len(columns.sample(0, np.random.default_rng(0))["views"]) == FRAMES
    with pytest.raises(SourceError, match="num_views is for MOVi"):
        open_structure(source._table, fields={"views": "video"}, num_views=(1, 2))


@pytest.mark.parametrize("packed", [False, True])
def test_features_as_they_were_written_before(videos, tmp_path, packed):
    """By `type` and `content`, with the content as it is or as a text."""
    source, _ = videos["movi_a"]
    folder = find_prepared(str(videos["folder"]), "movi_a")
    shutil.copytree(folder, tmp_path / "movi_a" / "1.0.0")
    path = tmp_path / "movi_a" / "1.0.0" / "features.json"
    features = json.loads(path.read_text())["featuresDict"]["features"]
    if packed:
        content = {"content": json.dumps({"features": features})}
        content |= {"proto_cls": "tensorflow_datasets.FeaturesDict"}
    else:
        kind = features["video"]["pythonClassName"]
        shape = [FRAMES, *SIZE, 3]
        video = {"shape": shape, "encoding_format": "png", "ffmpeg_extra_args": []}
        content = {"content": features | {"video": {"type": kind, "content": video}}}
    kind = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
    path.write_text(json.dumps({"type": kind, **content}))
    table = PreparedTable(find_prepared(str(tmp_path), "movi_a"), split="train")
    assert table.features == source._table.features
    np.testing.assert_array_equal(open_structure(table).shot(0).frames, source.shot(0).frames)


def test_damaged_pictures(videos):
    source, _ = videos["movi_a"]
    example = source._table.values(0, source._columns)
    assert len(movi_shot(example, places=[3, 1]).frames) == 2
    for changes, reason in (
        ({"depth": [b"none"] * FRAMES}, "corrupt"),
        ({"metadata.height": 8}, "frame size"),
    ):
        with pytest.raises(ClipError) as caught:
            movi_shot(example | changes)
        assert caught.value.reason == reason
