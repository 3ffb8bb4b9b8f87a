"""Sources from config values: every format opens, and every wrong value is named."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict
from pair_data import make_pair, write_pairs
from raw_data import png, same_sample, write_scene, write_tar

from data_pipelines.miniworld.generate import generate
from data_pipelines.miniworld.manifest import Settings
from data_pipelines.sources.make import make_source
from unidiff_jax.config import ConfigError
from unidiff_jax.tasks import get_task


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A source of each format."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("pictures", "people/anna"):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            (folder / name / f"{i}.png").write_bytes(png(i))
            (folder / name / f"{i}.txt").write_text(f"caption {i}")
    members = [((f"{i}.jpg", png(i)), (f"{i}.txt", b"a")) for i in range(3)]
    write_tar(folder / "a.tar", [member for pair in members for member in pair])
    rows = [{"image": {"bytes": png(i), "path": None}, "caption": "a"} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    write_scene(folder / "scenes" / "one")
    write_pairs(folder / "pairs", [[make_pair()]])
    settings = Settings(size=32, counts={"train": 4}, shards=1, samples=1)
    generate(folder / "miniworld", settings, progress="none")
    return folder


CASES = [
    {"format": "folder", "path": "pictures", "fields": ("image",), "layout": "side_files"},
    {"format": "tar", "path": "a.tar", "fields": {"image": "jpg", "caption": "txt"}},
    {"format": "parquet", "path": "a.parquet", "optional_texts": ["caption"], "num_kept": 2},
    {"format": "parquet", "path": "*.parquet", "halves": {"image": ("source", "edited")}},
    {"format": "subjects", "path": "people", "num_views": (2, 3)},
    {"format": "subjects", "path": "people", "num_views": 3},
    {
        **{"format": "scenes", "path": "scenes", "num_views": [2, 4], "window": 5},
        **{"downscale": 1, "caption_keys": ("caption",), "swap_xz": True, "scale": 2},
    },
]


@pytest.mark.parametrize("settings", CASES, ids=lambda s: s["format"])
def test_every_format(data, settings):
    settings = settings | {"path": f"{data}/{settings['path']}"}
    source = make_source(settings)
    found = source.sample(0, np.random.default_rng(0))
    assert tuple(found) == source.fields
    other = pickle.loads(pickle.dumps(make_source(ConfigDict(settings).lock())))
    assert same_sample(found, other.sample(0, np.random.default_rng(0)))


@pytest.mark.parametrize(("format", "task"), [("pairs", "customize"), ("miniworld", "insert")])
def test_formats_that_build_samples_for_a_task(data, format, task):
    settings, task = {"format": format, "path": str(data / format)}, get_task(task)
    source = make_source(settings, task=task)
    region = (task.region,) if task.region else ()
    frames = (frame.field for frame in task.frames)
    assert source.fields == (*frames, *task.prompt_fields, *region)
    found = source.sample(0, np.random.default_rng(0))
    assert found.keys() == {*source.fields, "tags"} and found["tags"]
    other = pickle.loads(pickle.dumps(make_source(ConfigDict(settings).lock(), task=task)))
    assert same_sample(found, other.sample(0, np.random.default_rng(0)))
    with pytest.raises(ConfigError, match=rf"config.source.task: is missing: the format '{format}"):
        make_source(settings)


def test_pairs_without_a_builder_or_a_folder(data):
    settings = {"format": "pairs", "path": str(data / "pairs")}
    with pytest.raises(ConfigError, match=r"a.b.task: no sample of 'identity' .*a.b.task=next_fr"):
        make_source(settings, key="a.b", task=get_task("identity"))
    with pytest.raises(ConfigError, match=r"source.path: .*python -m launch.curate"):
        make_source(settings | {"path": str(data)}, task=get_task("depth"))


def test_drawn_scenes_give_what_a_task_asks_for(data):
    settings = {"format": "miniworld", "path": str(data / "miniworld")}
    rng = np.random.default_rng(0)
    assert make_source(settings, task=get_task("multiview")).fields == (
        "views",
        "cameras",
        "caption",
    )
    for name in ("text_to_image", "depth", "edit", "segment", "customize", "next_frame"):
        task = get_task(name)
        source = make_source(settings, task=task)
        sample = source.sample(0, rng)
        assert task.write(sample, style="context")
    blurred = make_source(settings | {"add": ("blurred",)}, task=get_task("deblur"))
    assert blurred.fields == ("image", "caption", "blurred")
    assert make_source(settings, task=get_task("pose_to_image")).fields == ("image", "caption")


def test_added_conditions(data):
    settings = {"format": "folder", "path": str(data / "pictures"), "add": ("holed", "small")}
    source = make_source(settings)
    assert source.fields == ("image", "caption", "holed", "hole", "small")
    other = make_source(settings | {"fields": {"source": "image"}, "add_of": "source"})
    assert other.fields == ("source", "holed", "hole", "small")
    with pytest.raises(ConfigError, match=r"config.source.add_of: .*'edited'.*add_of=image"):
        make_source(settings | {"add_of": "edited"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "zip"}, r"source.format: is 'zip', must be one of folder, tar"),
        ({"format": None}, r"source.format: is None.*source.format=folder"),
        ({"path": ""}, r"source.path: takes a folder, file or pattern, got ''"),
        ({"feilds": {}}, r"source.feilds: no such key .*'folder', the nearest is fields"),
        ({"swap_xz": True}, r"source.swap_xz: no such key of the format 'folder'"),
        ({"fields": {}}, r"source.fields: takes the column of each field"),
        ({"fields": {"image": 1}}, r"source.fields: takes .*example source.fields="),
        ({"fields": "image"}, r"source.fields: takes"),
        ({"fields": ("text",)}, r"source.fields: no column 'text'.*fields=\{'text': "),
        ({"optional_texts": ("text",)}, r"source.fields: optional_texts: no field 'text'"),
        ({"optional_texts": "caption"}, r"source.optional_texts: takes a tuple of fields"),
        ({"halves": {"image": ("a",)}}, r"source.halves: takes two fields"),
        ({"border": -1}, r"source.border: takes a whole number of pixels"),
        ({"layout": "flat"}, r"source.layout: takes None or one of metadata"),
        ({"layout": "metadata"}, r"source.path: .*has no metadata.jsonl"),
        ({"add": ("grey",)}, r"source.add: takes a tuple of blurred, .*source.add=\(.blurred"),
        ({"add": "blurred"}, r"source.add: takes a tuple"),
        ({"format": "tar"}, r"source.path: no .tar file matches"),
        ({"format": "parquet", "num_kept": 0}, r"source.num_kept: takes a count"),
        ({"format": "subjects", "num_views": (3, 2)}, r"source.num_views: takes a count or"),
        ({"format": "subjects", "num_views": True}, r"source.num_views: takes a count or"),
        ({"format": "subjects"}, r"source.path: .*holds no folders"),
        ({"format": "scenes"}, r"source.path: no folder with a transforms.json"),
        (
            {"format": "scenes", "window": 3},
            r"source.window: is 3, must hold the largest num_views=6",
        ),
        ({"format": "scenes", "window": 0}, r"source.window: takes a count of frames"),
        ({"format": "scenes", "downscale": 2}, r"source.downscale: takes None or one of 1, 4, 8"),
        ({"format": "scenes", "scale": -1.0}, r"source.scale: takes a length above 0"),
        ({"format": "scenes", "swap_xz": 1}, r"source.swap_xz: takes true or false"),
        ({"format": "scenes", "caption_keys": [1]}, r"source.caption_keys: takes a tuple of keys"),
    ],
)
def test_wrong_values(data, changes, message):
    settings = {"format": "folder", "path": str(data / "pictures")}
    with pytest.raises(ConfigError, match=rf"config\.{message}") as caught:
        make_source(settings | changes)
    assert "\n" not in str(caught.value)


def test_the_key_of_the_config():
    with pytest.raises(ConfigError, match=r"config.data.sources.edits.path: is missing"):
        make_source({"format": "tar"}, key="data.sources.edits")
