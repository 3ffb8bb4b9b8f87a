"""Interleaved prompts: which words give way to pictures, how many, and from where."""

import io
import json
import tarfile

import emoji_packages
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pair_data import make_pair
from PIL import Image

from data_pipelines import objects
from data_pipelines.interleaved import (
    MAX_ENTITIES,
    PLAIN,
    RATES,
    Entity,
    Span,
    draw_count,
    find_spans,
    interleave,
)
from data_pipelines.miniworld.generate import generate
from data_pipelines.miniworld.items import MiniWorldSource
from data_pipelines.miniworld.manifest import Settings
from data_pipelines.sources.base import SampleError
from data_pipelines.sources.make import make_source
from data_pipelines.sources.pairs import build
from data_pipelines.subjects import records
from data_pipelines.subjects.items import SubjectScenes
from data_pipelines.subjects.names import phrase
from unidiff_jax.config import ConfigError
from unidiff_jax.tasks import PLACEHOLDER, get_task

TASK = get_task("interleave")


def entity(*names, size=4):
    return Entity(names, np.ones((size, size), bool), np.zeros((size, size, 3), np.uint8))


# ------------------------------------------------------------------------------------------- spans


@pytest.mark.parametrize(
    ("caption", "names", "expected"),
    [
        ("a dog and the ball", [["ball"], ["A dog"]], ["the ball", "a dog"]),
        ("a dog eats a hot dog", [["dog"], ["hot dog"]], ["a dog", "a hot dog"]),
        ("a dog and a dog", [["dog"]], [None]),
        ("a dog runs", [["dog"], ["a dog"]], [None, None]),
        ("two dogs", [["dog"]], [None]),
        ("a red cube", [["small red cube", "red cube"]], ["a red cube"]),
        ("a Dog.", [["dog"], ["cat"]], ["a Dog", None]),
        ("C++ (book) lies", [["c++ (book)"]], ["C++ (book)"]),
    ],
)
def test_spans(caption, names, expected):
    found = find_spans(caption, names)
    assert [span and caption[slice(*span)] for span in found] == expected


def test_words_give_way_in_the_order_of_the_caption():
    things = [entity("ball"), entity("dog"), entity("cat")]
    things[0].picture[:] = 7
    item = interleave("a dog with the ball", things, count=4, rng=np.random.default_rng(0))
    assert item["slots"] == "<p> with <p>" and item["shown"] == [1, 0]
    assert item["assets"][1] is things[0].picture and item["entity_masks"][0] is things[1].mask
    none = interleave("a dog with the ball", things, count=0, rng=np.random.default_rng(0))
    assert none["slots"] == "a dog with the ball" and none["assets"] == []
    assert interleave("rain", [], count=2, rng=np.random.default_rng(0))["slots"] == "rain"


@given(st.integers(0, 99), st.integers(0, 4))
def test_the_rest_of_the_caption_stays(seed, count):
    words = ["fox", "owl", "red ball", "tree"]
    caption = "a fox, the owl, a red ball and a tree in the snow"
    item = interleave(
        caption, [entity(w) for w in words], count=count, rng=np.random.default_rng(seed)
    )
    assert item["slots"].count(PLACEHOLDER) == len(item["shown"]) == count
    spans = find_spans(caption, [[w] for w in words])
    filled = item["slots"]
    for i in item["shown"]:
        filled = filled.replace(PLACEHOLDER, caption[slice(*spans[i])], 1)
    assert filled == caption
    assert spans[0] == Span(0, 5)


def test_rates_are_the_papers():
    assert sum(RATES) == pytest.approx(1) and MAX_ENTITIES == 4 and PLAIN == 0.1
    rng = np.random.default_rng(0)
    counts = np.bincount([draw_count(rng) for _ in range(8000)], minlength=5) / 8000
    np.testing.assert_allclose(counts, RATES, atol=0.015)


# ----------------------------------------------------------------------------------------- sources


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    folder = tmp_path_factory.mktemp("subjects")
    packages = emoji_packages.write_packages(tmp_path_factory.mktemp("packages"))
    settings = records.Settings(size=32, share=0.2, shards=1, seed=7)
    records.render_subjects(folder, **packages, settings=settings, progress="none")
    return SubjectScenes(folder, split="train", size=32)


def test_composed_scenes(subjects):
    counts = np.zeros(4, int)
    for index in range(120):
        item = subjects.item(subjects[index % len(subjects)], TASK, np.random.default_rng(index))
        if item is None:
            continue
        number = len(item["assets"])
        counts[number] += 1
        assert item["slots"].count(PLACEHOLDER) == number == len(item["shown"])
        for asset, mask, thing in zip(
            item["assets"], item["entity_masks"], item["shown"], strict=True
        ):
            np.testing.assert_array_equal(mask, item["instance"] == 1 + thing)
            assert asset.shape == (32, 32, 3)
            assert phrase(item["words"][thing]) in item["caption"]
            assert phrase(item["words"][thing]) not in item["slots"]
    # the published rates, with three for all above
    expected = np.array([*RATES[:3], sum(RATES[3:])])
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=0.13)


def test_clips_show_entities_by_their_other_frame(tmp_path):
    generate(
        tmp_path,
        Settings(size=32, counts={"train": 24}, samples=1, clip_frames=2),
        progress="none",
    )
    source, seen = MiniWorldSource(tmp_path, split="train"), 0
    for index in range(len(source)):
        record = source[index]
        item = source.item(record, TASK, np.random.default_rng(index))
        if item is None:
            continue
        last = record.clip["images"][-1]
        np.testing.assert_array_equal(item["later"], record.rgb[last])
        for mask, asset in zip(item["entity_masks"], item["assets"], strict=True):
            [body] = set(np.unique(record.instance[last][mask]).tolist())
            np.testing.assert_array_equal(mask, record.instance[last] == body)
            assert asset.shape == (32, 32, 3) and body > 0
            seen += 1
        assert item["slots"].count(PLACEHOLDER) == len(item["assets"])
    assert seen > 8


def test_pairs_show_entities_by_the_earlier_frame():
    pair = make_pair()
    found = [build(pair, task=TASK, rng=np.random.default_rng(seed)) for seed in range(20)]
    both = next(sample for sample in found if len(sample["assets"]) == 2)
    assert both["slots"] == "<p> rolls to <p>"
    for number, asset, mask in zip((1, 2), both["assets"], both["entity_masks"], strict=True):
        cut = objects.cut_out(pair.frames[0], pair.masks[0] == number)
        np.testing.assert_array_equal(asset, cut)
        np.testing.assert_array_equal(mask, pair.masks[1] == number)
    plain = build(make_pair(caption="rain"), task=TASK, rng=np.random.default_rng(0))
    assert plain["slots"] == "rain" and plain["assets"] == plain["entity_masks"] == []


def write_tar(path, entities, *, caption="a ball beside the dog", size=(20, 10)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    picture = io.BytesIO()
    Image.fromarray(pixels).save(picture, "PNG")
    files = {"jpg": picture.getvalue(), "txt": caption.encode()}
    files["json"] = json.dumps({"entities": entities}).encode()
    with tarfile.open(path, "w") as tar:
        for suffix, data in files.items():
            info = tarfile.TarInfo(f"a/1.{suffix}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return pixels


def open_tar(path, task=TASK):
    return make_source({"format": "annotated", "path": str(path)}, task=task)


def test_annotated_pictures_show_entities_by_themselves(tmp_path):
    path = tmp_path / "a.tar"
    runs = [5, 3, 192]  # the first column's rows 5 to 7
    entities = [
        {"name": "dog", "box": [0.5, 0.2, 0.8, 0.9]},
        {"name": "a ball", "mask": {"size": [10, 20], "counts": runs}},
        {"name": "speck", "box": [0, 0, 0.01, 0.01]},
    ]
    pixels = write_tar(path, entities)
    source = open_tar(path)
    samples = [source.sample(0, np.random.default_rng(seed)) for seed in range(20)]
    both = next(sample for sample in samples if len(sample["assets"]) == 2)
    assert both["slots"] == "<p> beside <p>"
    np.testing.assert_array_equal(both["later"], pixels)
    ball, dog = (np.asarray(mask)[..., 0] > 0 for mask in both["entity_masks"])
    assert ball[5:8, 0].all() and ball.sum() == 3
    assert dog[2:9, 10:16].all() and dog.sum() == 42
    np.testing.assert_array_equal(both["assets"][1], pixels[2:9, 10:16])


@pytest.mark.parametrize(
    ("entity", "message"),
    [
        ({"name": "dog"}, "entity 0 has neither a mask nor a box"),
        ({"name": "dog", "box": [10, 20, 30, 40]}, "must be shares of the picture"),
        ({"box": [0, 0, 1, 1]}, "entity 0 has no name"),
        ({"name": "dog", "mask": {"size": [4, 4], "counts": [16]}}, "the mask has"),
    ],
)
def test_annotations_that_cannot_be(tmp_path, entity, message):
    write_tar(tmp_path / "a.tar", [entity])
    with pytest.raises(SampleError, match=message):
        open_tar(tmp_path / "a.tar").sample(0, np.random.default_rng(0))


def test_annotated_pictures_are_of_one_task(tmp_path):
    write_tar(tmp_path / "a.tar", [])
    with pytest.raises(ConfigError, match="task=interleave"):
        open_tar(tmp_path / "a.tar", get_task("edit"))
    settings = {"format": "annotated", "path": str(tmp_path / "a.tar"), "fields": {"image": "gif"}}
    with pytest.raises(ConfigError, match="columns are"):
        make_source(settings, task=TASK)
