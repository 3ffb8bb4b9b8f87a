"""Prepared TFDS data sets: what is read, without TensorFlow, and what is refused."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import prepared_data
import pytest
import tensorflow_datasets.public_api as tfds
from prepared_data import (
    captions_example,
    depth_example,
    movi_example,
    prepare,
    referring_example,
)
from raw_data import same_sample, value_of

from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.depths import draw_nearness
from data_pipelines.sources.make import make_source
from data_pipelines.sources.prepared import PreparedTable, find_prepared
from data_pipelines.sources.structures import open_structure
from unidiff_jax.config import ConfigError

DEPTH = np.linspace(1.0, 10.0, 48 * 64).reshape(48, 64)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare(
        folder,
        "coco_captions",
        features=prepared_data.captions_features(),
        examples=[captions_example(value, [f"{value} a", f" {value} b "]) for value in (10, 21)],
        split="restval",
        config="2014",
    )
    prepare(
        folder,
        "ref_coco",
        features=prepared_data.referring_features(),
        examples=[
            referring_example(10, [["left one", "the first"], [""], ["right"]]),
            referring_example(20, [[]]),
        ],
        config="refcoco_unc",
    )
    shutil.copytree(folder / "ref_coco" / "refcoco_unc", folder / "ref_coco" / "refcocog_umd")
    prepare(
        folder,
        "nyu_depth_v2",
        features=prepared_data.depth_features(),
        examples=[depth_example(30, DEPTH), depth_example(40, np.zeros((48, 64)))],
    )
    words = {"shape_label": "cube", "size_label": "small", "color_label": "red"}
    words |= {"material_label": "metal", "color": np.zeros(3, np.float32)}
    example, _ = movi_example([words])
    prepare(folder, "movi_a", features=prepared_data.movi_features(), examples=[example])
    return folder


def table(data, name, split="train"):
    return PreparedTable(find_prepared(str(data), name), split=split)


def by_value(source):
    """Samples by the value of their pictures: preparing shuffles."""
    found = {}
    for index in range(len(source)):
        sample = source.sample(index, np.random.default_rng(0))
        found[value_of(sample["image"])] = index
    return found


def test_captions(data):
    settings = {"format": "tfds", "path": str(data), "name": "coco_captions", "split": "restval"}
    source = make_source(settings)
    assert source.fields == ("image", "caption") and len(source) == 2
    places = by_value(source)
    assert set(places) == {10, 21}  # the grey picture is RGB as the other
    texts = {source.sample(places[21], np.random.default_rng(i))["caption"] for i in range(20)}
    assert texts == {"21 a", "21 b"}
    named = make_source(settings | {"fields": {"source": "image", "instruction": "image.filename"}})
    assert named.sample(places[10], np.random.default_rng(0))["instruction"] == "10.jpg"
    labels = make_source(settings | {"fields": {"caption": "objects.label", "n": "image.id"}})
    assert labels.sample(places[10], np.random.default_rng(0)) == {"caption": "3", "n": "10"}


def test_objects_with_expressions(data):
    source = open_structure(table(data, "ref_coco/refcoco_unc"))
    assert source.fields == ("image", "mask", "expression")
    good = next(i for i in (0, 1) if source._table.values(i, ("image.id",))["image.id"] == 10)
    columns = {"left one": 1, "the first": 1, "right": 3}
    seen = set()
    for seed in range(40):
        sample = source.sample(good, np.random.default_rng(seed))
        assert tuple(sample) == source.fields and value_of(sample["image"]) == 10
        mask = np.asarray(sample["mask"])
        assert mask.shape == (16, 24, 3) and set(np.unique(mask)) == {0, 255}
        assert (mask[..., 0] == 255).sum() == 16 * columns[sample["expression"]]
        seen.add(sample["expression"])
    assert seen == set(columns)
    with pytest.raises(SampleError, match=r"train example \d: no object has an expression"):
        source.sample(1 - good, np.random.default_rng(0))
    with pytest.raises(IndexError):
        source.sample(2, np.random.default_rng(0))


def test_pictures_with_depth(data):
    source = open_structure(table(data, "nyu_depth_v2"))
    assert source.fields == ("image", "depth")
    samples, messages = [], []
    for index in range(2):
        try:
            samples.append(source.sample(index, np.random.default_rng(0)))
        except SampleError as error:
            messages.append(str(error))
    assert "no pixel has a depth" in messages[0]
    assert value_of(samples[0]["image"]) == 30
    expected = np.asarray(draw_nearness(DEPTH.astype(np.float16), name=""))
    np.testing.assert_array_equal(np.asarray(samples[0]["depth"]), expected)


def test_nearness_is_inverse_depth_between_two_planes():
    near = np.asarray(draw_nearness(DEPTH, name=""), np.float64)[..., 0] / 255
    first, last = np.percentile(DEPTH, (2, 98))
    expected = (1 / DEPTH - 1 / last) / (1 / first - 1 / last)
    np.testing.assert_allclose(near, np.clip(expected, 0, 1), atol=0.5 / 255 + 1e-9)
    np.testing.assert_array_equal(near, np.asarray(draw_nearness(7 * DEPTH, name=""))[..., 0] / 255)
    holes = DEPTH.copy()
    holes[0, :3] = (0.0, np.nan, np.inf)
    assert (np.asarray(draw_nearness(holes, name=""))[0, :3] == 0).all()
    with pytest.raises(SampleError, match="all pixels have the depth 2"):
        draw_nearness(np.full((4, 4), 2.0), name="x")


def test_sources_are_pickled_and_repeat(data):
    for name, split in (("coco_captions/2014:1.0.0", "restval[:50%]"), ("nyu_depth_v2", "train")):
        source = open_structure(table(data, name, split))
        other = pickle.loads(pickle.dumps(source))
        index = next(i for i in range(len(source)) if "nyu" not in name or is_usable(source, i))
        first, second = (s.sample(index, np.random.default_rng(3)) for s in (source, other))
        assert same_sample(first, second)
    assert len(open_structure(table(data, "coco_captions", "restval[:50%]"))) == 1


def is_usable(source, index):
    try:
        source.sample(index, np.random.default_rng(0))
    except SampleError:
        return False
    return True


def test_tensorflow_is_not_imported(data, tmp_path):
    """Nor where it is installed: a stand-in lies where Python looks first."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise SystemExit('it was imported')")
    program = """
        import sys
        import numpy as np
        from data_pipelines.sources.make import make_source
        for name in ("coco_captions", "ref_coco/refcoco_unc", "nyu_depth_v2", "movi_a"):
            split = "restval" if name == "coco_captions" else "train"
            settings = {"format": "tfds", "path": sys.argv[1], "name": name, "split": split}
            source = make_source(settings)
            for index in range(len(source)):
                try:
                    source.sample(index, np.random.default_rng(0))
                except ValueError as error:
                    print(error)
        assert not [name for name in sys.modules if name.partition(".")[0] == "tensorflow"]
        print("done")
    """
    program = "\n".join(line[8:] for line in program.splitlines())
    path = ":".join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", program, str(data)],
        env={"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reasons = [line.rpartition(": ")[2] for line in done.stdout.splitlines()]
    assert reasons == ["no object has an expression", "no pixel has a depth", "done"]


def test_columns(data):
    found = table(data, "coco_captions", "restval")
    usable = ("captions.text", "image", "image.filename", "image.id", "objects.label")
    assert found.columns == usable
    assert set(found.features) - set(usable) == {
        *("captions.id", "objects.area", "objects.bbox", "objects.id", "objects.is_crowd")
    }
    values = found.values(0, ("objects.bbox", "captions.text", "objects.is_crowd"))
    np.testing.assert_allclose(values["objects.bbox"], [[0.1, 0.2, 0.5, 0.75]])
    assert len(values["captions.text"]) == 2 and values["objects.is_crowd"].tolist() == [False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "coco"}, r"name: .*no data set 'coco', it has: coco_captions.*tfds build coco "),
        ({"name": "../x"}, r"name: .*leaves the folder"),
        ({"name": "ref_coco"}, r"name: 'ref_coco' has the configs refcoco_unc, refcocog_umd: "),
        ({"name": "nyu_depth_v2:2.0.0"}, r"name: .*no version 2.0.0, it has: 1.0.0; .*tfds build"),
        ({"name": "ref_coco/unc"}, r"name: .*no data set 'ref_coco/unc'.*--file_format=array_reco"),
        ({"path": "nowhere"}, r"name: no such folder: nowhere; .*--data_dir=nowhere"),
        ({"split": "test"}, r"split: .*'test'.*splits are: train"),
        ({"split": "train[:"}, r"split: .*splits are: train"),
        ({"fields": {"image": "picture"}}, r"fields: no column 'picture'.*fields="),
        ({"fields": {"image": "depth"}}, r"fields: no column 'depth'"),
        ({"fields": ("image", "mask")}, r"fields: no field 'mask', the data set fills: image, dep"),
        ({"num_views": 2}, r"num_views: num_views is for MOVi"),
        ({"num_views": 0}, r"num_views: takes a count"),
        ({"name": ""}, r"name: takes the name of a data set, got ''"),
        ({"fields": 3}, r"fields: takes the column of each field"),
    ],
)
def test_settings_that_are_wrong(data, changes, message):
    settings = {"format": "tfds", "path": str(data), "name": "nyu_depth_v2", "split": "train"}
    with pytest.raises(ConfigError, match=rf"config\.source\.{message}"):
        make_source(settings | changes)


def test_a_name_is_needed(data):
    with pytest.raises(ConfigError, match=r"source.name: is missing.*ref_coco/refcoco_unc"):
        make_source({"format": "tfds", "path": str(data)})


def test_folders_that_were_not_prepared_for_this(data, tmp_path):
    folder = tmp_path / "nyu_depth_v2" / "1.0.0"
    shutil.copytree(data / "nyu_depth_v2" / "1.0.0", folder)
    info = json.loads((folder / "dataset_info.json").read_text())

    def refused(message, split="train", error=SourceError):
        with pytest.raises(error, match=message):
            table(tmp_path, "nyu_depth_v2", split)

    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    refused(r"prepared as tfrecord, .*tfds convert_format --dataset_version_dir=.*1\.0\.0 --out_fi")
    both = info | {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    (folder / "dataset_info.json").write_text(json.dumps(both))
    assert len(table(tmp_path, "nyu_depth_v2")) == 2
    empty = {"name": "test", "filepathTemplate": info["splits"][0]["filepathTemplate"]}
    (folder / "dataset_info.json").write_text(json.dumps(info | {"splits": [empty]}))
    refused("split 'test' has no examples", "test")
    for part in ({"splits": [{}]}, {"splits": [3]}):
        (folder / "dataset_info.json").write_text(json.dumps(info | part))
        refused("dataset_info.json cannot be understood")
    (folder / "dataset_info.json").write_text("{")
    refused("dataset_info.json is not JSON")
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features = (folder / "features.json").read_text()
    (folder / "features.json").write_text(features.replace("Tensor", "Unheard"))
    refused("features.json cannot be understood")
    (folder / "features.json").unlink()
    refused("its preparation did not end; prepare it: tfds build nyu_depth_v2")
    (folder / "features.json").write_text(features)
    for file in folder.glob("*.array_record*"):
        file.rename(file.with_suffix(".away"))
    refused(r"1 files of the split 'train' are missing, first .*array_record-00000-of-00001")
    folder.rename(folder.with_name("incomplete.XYZ_1.0.0"))
    refused(r"has no version 1.0.0, it has: none; prepare it: tfds build nyu_depth_v2 --file")


def test_unknown_structures_need_columns(tmp_path):
    label = tfds.features.ClassLabel(names=["cat", "dog"])
    prepare(
        tmp_path,
        "pets",
        features={
            "photo": tfds.features.Image(),
            "views": tfds.features.Sequence(tfds.features.Image()),
            "label": label,
            "map": tfds.features.Tensor(shape=(None, None), dtype=np.float32, encoding="zlib"),
            "packed": tfds.features.Tensor(shape=(2,), dtype=np.float32, encoding="bytes"),
            "boxes": tfds.features.Sequence(tfds.features.Sequence(np.int64)),
        },
        examples=[
            {
                "photo": captions_example(10, [])["image"],
                "views": [captions_example(value, [])["image"] for value in (20, 30)],
                "label": "dog",
                "map": np.zeros((2, 3), np.float32),
                "packed": np.zeros(2, np.float32),
                "boxes": [[1], [2, 3]],
            }
        ],
    )
    with pytest.raises(SourceError, match=r"name the column.*label, photo, views.*fields="):
        open_structure(table(tmp_path, "pets"))
    assert table(tmp_path, "pets").features == ("boxes", "label", "photo", "views")
    fields = {"image": "photo", "caption": "label", "views": "views"}
    sample = open_structure(table(tmp_path, "pets"), fields=fields).sample(
        0, np.random.default_rng(0)
    )
    assert sample["caption"] == "dog" and value_of(sample["image"]) == 10
    assert [value_of(view) for view in sample["views"]] == [20, 30]


def test_examples_that_are_damaged(data, tmp_path):
    shutil.copytree(data / "nyu_depth_v2", tmp_path / "nyu_depth_v2")
    (file,) = (tmp_path / "nyu_depth_v2").rglob("*.array_record*")
    found = table(tmp_path, "nyu_depth_v2")
    content = bytearray(file.read_bytes())
    content[200:400] = bytes(200)
    file.write_bytes(content)
    with pytest.raises(SampleError, match=r"train example \d cannot be read"):
        for index in range(2):
            found.values(index, ("image",))
