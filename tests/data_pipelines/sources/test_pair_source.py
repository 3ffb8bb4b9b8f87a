"""Samples built from curated pairs: what each task gets, and pairs that have nothing for it."""

import dataclasses
import json
import pickle
import re

import numpy as np
import pytest
from pair_data import FIRST, LAST, NAMES, boxes_of_ids, make_pair, write_pairs
from PIL import Image
from raw_data import same_sample

from data_pipelines import objects
from data_pipelines.blobs import pack_blob, unpack_blob
from data_pipelines.curate.pairs import PairError, decode_pair, encode_pair, open_pairs
from data_pipelines.encoder import EncodeSettings, prepare
from data_pipelines.geometry import fit_whole
from data_pipelines.shards import shard_names
from data_pipelines.sources.base import SampleError, SourceError, UnsuitableError
from data_pipelines.sources.pairs import BUILDERS, PairSource, build, relative_nearness
from unidiff_jax.paths import as_path
from unidiff_jax.sample.color_maps import COLORS, read_masks
from unidiff_jax.tasks import TASKS, get_task

TAG = re.compile(r"<#(?P<hex>\w{6}) (?P<color>\w+) (?P<kind>\w+): (?P<name>[^>]+)>")


def built(task, pair=None, *, seed=0):
    return build(pair or make_pair(), task=get_task(task), rng=np.random.default_rng(seed))


def many(task, pair=None, *, count=30):
    return [built(task, pair, seed=seed) for seed in range(count)]


def frame_of(pair, rgb):
    """Which of the pair's frames a picture is."""
    [n] = [n for n in (0, 1) if (pair.frames[n] == rgb).all()]
    return n


def reason(task, pair, *, count=5):
    """Why a pair has nothing for a task, whatever is drawn."""
    found = set()
    for seed in range(count):
        with pytest.raises(UnsuitableError) as caught:
            built(task, pair, seed=seed)
        found.add(str(caught.value))
    [text] = found
    return text


# -------------------------------------------------------------------------------- all builders


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pairs = [make_pair(seed=seed) for seed in range(5)]
    return write_pairs(tmp_path_factory.mktemp("pairs"), [pairs[:2], [], pairs[2:]])


@pytest.mark.parametrize("name", BUILDERS)
def test_a_sample_has_the_fields_of_its_task(folder, name):
    task = TASKS[name]
    source = PairSource(folder, task=task)
    assert len(source) == 5
    sample = source.sample(3, np.random.default_rng(0))
    assert sample.keys() == {*source.fields, "tags"}
    for frame in task.frames:
        value = sample[frame.field]
        for picture in value if isinstance(value, list) else [value]:
            assert isinstance(picture, Image.Image) and picture.mode == "RGB"
    assert "realistic style" in task.write(sample, style="context")
    assert task.write(sample)
    again = pickle.loads(pickle.dumps(source)).sample(3, np.random.default_rng(0))
    assert same_sample(sample, again)
    settings = EncodeSettings(size=32, buckets=False)
    made = prepare(
        sample, task=task, settings=settings, downscale=8, channels=4, rng=np.random.default_rng(0)
    )
    assert {rgb.shape for rgb in made.frames} == {(32, 32, 3)}


@pytest.mark.parametrize("name", BUILDERS)
def test_choices_depend_on_the_generator_alone(name):
    pair = make_pair()
    assert same_sample(built(name, pair, seed=4), built(name, pair, seed=4))
    before = [pair.frames.copy(), pair.masks.copy()]
    many(name, pair, count=3)
    np.testing.assert_array_equal(pair.frames, before[0])
    np.testing.assert_array_equal(pair.masks, before[1])


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("text", ["球滚向箱子", "الكرة تتدحرج", "गेंद\nलुढ़कती", "🙂 {caption} <b>"])
def test_captions_and_names_in_any_script(name, text):
    names = {1: "红色的球", 2: "صندوق", 3: "пёс"}
    sample = built(name, make_pair(caption=text, names=names))
    task = TASKS[name]
    prompt = task.write(sample, style="context")
    if "caption" in task.prompt_fields or "change" in task.prompt_fields:
        assert " ".join(text.split()) in prompt
    assert "\n" not in prompt


def test_scenario_tags_are_for_tasks_of_both_frames():
    for name in BUILDERS:
        expected = ["realistic style"]
        if name in ("next_frame", "customize", "interleave"):
            expected.append("dynamic scenario")
        assert built(name)["tags"] == expected


@pytest.mark.parametrize("name", BUILDERS)
def test_a_text_that_is_needed_is_not_empty(name):
    pair = make_pair(caption=" \n")
    if {"caption", "change", "slots"} & set(TASKS[name].prompt_fields):
        assert reason(name, pair) == "no caption"
    else:
        built(name, pair)


NEED_THINGS = {
    "customize": "no thing in both frames",
    "insert": "no thing in both frames that a hole can cover",
    "inpaint": "no thing that a hole can cover",
    "segment": "no thing whose name means it alone",
    "semantic_to_image": "no thing with a name",
    "layout_to_image": "no thing with a name",
}
NOTHING = np.zeros_like(FIRST)
TINY = boxes_of_ids({1: (4, 4, 8, 8), 2: (20, 20, 21, 21), 3: (0, 0, 2, 2)})
WHOLE = np.ones_like(FIRST)


@pytest.mark.parametrize("name", NEED_THINGS)
@pytest.mark.parametrize(
    "pair",
    [
        make_pair(names={}),
        make_pair(names={1: " ", 9: "a ghost"}),
        make_pair(first=NOTHING, last=NOTHING),
        make_pair(first=TINY, last=TINY),
        make_pair(first=WHOLE, last=WHOLE),
    ],
    ids=["no entities", "no names", "no masks", "tiny masks", "whole-picture masks"],
)
def test_pairs_without_things(name, pair):
    assert reason(name, pair) == NEED_THINGS[name]


@pytest.mark.parametrize("name", sorted(BUILDERS.keys() - NEED_THINGS.keys()))
def test_pairs_without_things_have_other_tasks(name):
    assert built(name, make_pair(names={}, first=NOTHING, last=WHOLE))


# ----------------------------------------------------------------------------------- both frames


def test_frames_are_in_order():
    pair = make_pair()
    sample = built("next_frame", pair)
    np.testing.assert_array_equal(sample["earlier"], pair.frames[0])
    np.testing.assert_array_equal(sample["later"], pair.frames[1])
    assert sample["change"] == pair.caption


def test_references_are_cut_from_the_earlier_frame():
    pair, numbers = make_pair(), set()
    alone = {
        objects.bare_name(name): objects.cut_out(pair.frames[0], FIRST == i)
        for i, name in NAMES.items()
    }
    for sample in many("customize", pair):
        np.testing.assert_array_equal(sample["later"], pair.frames[1])
        words = sample["references"].split(" and ")
        assert len(words) == len(sample["assets"]) <= objects.MAX_ASSETS
        for number, (word, asset) in enumerate(zip(words, sample["assets"], strict=True), 1):
            name, image = re.fullmatch(r"the (.+) of (IMG\d)", word).groups()
            assert image == f"IMG{number}"
            np.testing.assert_array_equal(asset, alone[name])
        numbers.add(len(words))
    assert numbers == {1, 2, 3}


@pytest.mark.parametrize("gone", [0, 1])
def test_things_that_leave_the_picture_are_no_references(gone):
    masks = [FIRST, LAST]
    masks[gone] = np.where(masks[gone] == 2, 0, masks[gone])
    pair = make_pair(first=masks[0], last=masks[1])
    for name in ("customize", "insert"):
        samples = many(name, pair)
        assert not any("box" in sample["references"] for sample in samples)
        assert any("Dog" in sample["references"] for sample in samples)


def test_at_most_three_references_of_many():
    places = {i: (8 * i - 8, 0, 8 * i, 48) for i in range(1, 9)}
    ids = boxes_of_ids(places)
    pair = make_pair(first=ids, last=ids, names={i: f"bar {i}" for i in places})
    assert {len(sample["assets"]) for sample in many("customize", pair)} == {1, 2, 3}


def test_an_insertion_changes_nothing_outside_its_hole():
    pair, seen = make_pair(), set()
    for sample in many("insert", pair):
        name = re.fullmatch(r"the (.+) of IMG2", sample["references"])[1]
        [thing] = [i for i, other in NAMES.items() if objects.bare_name(other) == name]
        box = objects.box_of(LAST == thing)
        assert (sample["canvas"][box] == objects.HOLE_GREY).all()
        outside = np.ones(LAST.shape, bool)
        outside[box] = False
        np.testing.assert_array_equal(sample["canvas"][outside], sample["later"][outside])
        np.testing.assert_array_equal(sample["later"], pair.frames[1])
        [asset] = sample["assets"]
        np.testing.assert_array_equal(asset, objects.cut_out(pair.frames[0], FIRST == thing))
        seen.add(thing)
    assert seen == {1, 2, 3}


def test_a_frame_around_everything_leaves_no_picture():
    ids = np.ones_like(FIRST)
    ids[4:-4, 4:-4] = 0  # the box of the frame is the picture
    pair = make_pair(first=ids, last=ids)
    assert reason("insert", pair) == NEED_THINGS["insert"]
    assert reason("inpaint", pair) == NEED_THINGS["inpaint"]
    assert len(built("customize", pair)["assets"]) == 1


# ------------------------------------------------------------------------------------- one frame


def test_a_hole_hides_one_thing():
    pair, seen = make_pair(), set()
    for sample in many("inpaint", pair):
        n = frame_of(pair, sample["image"])
        hole = (sample["holed"] == objects.HOLE_GREY).all(axis=-1)
        hidden = [i for i in NAMES if hole[pair.masks[n] == i].all()]
        assert len(hidden) == 1
        box = objects.box_of(pair.masks[n] == hidden[0])
        outside = np.ones(hole.shape, bool)
        outside[box] = False
        np.testing.assert_array_equal(sample["holed"][outside], sample["image"][outside])
        assert hole[box].all()
        seen.add((n, hidden[0]))
    assert len(seen) == 6


def test_through_the_encoder_a_hole_still_changes_nothing_else(tmp_path):
    # the frames' own size, so that nothing is scaled and equality is exact
    folder = write_pairs(tmp_path, [[make_pair(seed=s) for s in range(4)]])
    settings = EncodeSettings(size=48, buckets=False, flip=True)
    for name, field in (("inpaint", "holed"), ("insert", "canvas")):
        task = TASKS[name]
        for index in range(4):
            rng = np.random.default_rng(index)
            sample = PairSource(folder, task=task).sample(index, rng)
            made = prepare(sample, task=task, settings=settings, downscale=8, channels=4, rng=rng)
            target, holed = made.frames[:2]
            hole = (holed == objects.HOLE_GREY).all(axis=-1)
            np.testing.assert_array_equal(holed[~hole], target[~hole])
            raw = np.asarray(sample[task.frames[0].field])[:, 8:56]
            assert any((target == raw[:, ::step]).all() for step in (1, -1))
            if name == "insert":
                asset = fit_whole(np.asarray(sample["assets"][0]), size=(48, 48))
                np.testing.assert_array_equal(made.frames[2], asset)
            assert field in sample


def test_a_mask_is_of_the_thing_that_is_named():
    pair, seen = make_pair(), set()
    for sample in many("segment", pair):
        n = frame_of(pair, sample["image"])
        [thing] = [i for i, name in NAMES.items() if name == sample["expression"]]
        np.testing.assert_array_equal(sample["mask"], pair.masks[n] == thing)
        assert sample["mask"].dtype == bool
        seen.add((n, thing))
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("names", "single"),
    [
        ({1: "a dog", 2: "a dog", 3: "a cat"}, {"a cat"}),
        ({1: "a dog", 2: "the Dog", 3: "DOG"}, set()),
        ({1: "dog", 2: "a brown dog", 3: "a cat"}, {"a brown dog", "a cat"}),
        ({1: "a dog", 3: "a dog"}, set()),
        ({1: "狗", 2: "狗", 3: "猫"}, {"猫"}),
    ],
)
def test_a_name_that_means_two_things_is_no_expression(names, single):
    pair = make_pair(names=names)
    if single:
        assert {sample["expression"] for sample in many("segment", pair)} == single
    else:
        assert reason("segment", pair) == NEED_THINGS["segment"]


def test_a_name_means_one_thing_where_the_other_is_not_in_the_frame():
    first = np.where(FIRST == 2, 0, FIRST)
    pair = make_pair(first=first, names={1: "a dog", 2: "a dog"})
    for sample in many("segment", pair):
        assert frame_of(pair, sample["image"]) == 0
    shown = first.copy()
    shown[0, 0] = 2  # one pixel of it is enough
    assert reason("segment", dataclasses.replace(pair, masks=np.stack([shown, LAST])))


def test_depth_is_near_bright_and_fills_the_range():
    pair = make_pair()
    for task in ("depth", "depth_to_image"):
        seen = set()
        for sample in many(task, pair):
            n = frame_of(pair, sample["image"])
            depth, near = pair.depth[n].astype(np.float32), sample["depth"]
            assert near.min() == 0 and near.max() == 1
            assert near[np.unravel_index(depth.argmin(), depth.shape)] == 1
            order = np.argsort(depth.ravel(), kind="stable")
            assert (np.diff(near.ravel()[order]) <= 1e-6).all()
            # affine in inverse depth
            slope, offset = np.polyfit(1 / depth.ravel(), near.ravel(), 1)
            np.testing.assert_allclose(slope / depth + offset, near, atol=1e-4)
            seen.add(n)
        assert seen == {0, 1}


def test_depth_that_is_not_known():
    assert reason("depth", make_pair(depth=None)) == "no depth"
    depth = np.linspace(1, 9, 4800, dtype=np.float32).reshape(48, 100)
    for hole in (0.0, -1.0, np.nan):
        holed = depth.copy()
        holed[20, :40] = hole
        near = relative_nearness(holed)
        assert (near[20, :40] == 0).all() and np.isfinite(near).all() and near.max() == 1
        holed[20, :50] = hole
        with pytest.raises(UnsuitableError, match="depth is missing in parts"):
            relative_nearness(holed)
    sky = depth.copy()
    sky[:10] = np.inf
    near = relative_nearness(sky)
    assert (near[:10] == 0).all() and (near[10:] > 0).all() and near.max() == 1
    for flat in (2.0, np.inf):
        with pytest.raises(UnsuitableError, match="the same everywhere"):
            relative_nearness(np.full((4, 4), flat, np.float16))


@pytest.mark.parametrize(
    ("task", "field"),
    [
        ("edges", "edges"),
        ("edges_to_image", "edges"),
        ("deblur", "blurred"),
        ("upscale", "small"),
    ],
)
def test_conditions_are_made_from_the_frame(task, field):
    pair = make_pair(first=FIRST, last=LAST)
    smooth = np.repeat(60 * pair.masks[..., None], 3, axis=-1) + 20
    pair = dataclasses.replace(pair, frames=smooth.astype(np.uint8))
    for sample in many(task, pair, count=6):
        n = frame_of(pair, sample["image"])
        made = sample[field].astype(int)
        assert made.shape == sample["image"].shape
        if field == "edges":
            assert set(np.unique(made)) == {0, 255}
            rows, columns = np.nonzero(made[..., 0])
            borders = np.zeros(FIRST.shape, bool)  # an edge lies beside a border of the map
            for step, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
                borders |= np.roll(pair.masks[n], step, axis) != pair.masks[n]
            grown = borders | np.roll(borders, 1, 0) | np.roll(borders, 1, 1)
            grown |= np.roll(borders, -1, 0) | np.roll(borders, -1, 1)
            assert grown[rows, columns].all() and len(rows) > 50
        else:
            assert 0 < np.abs(made - sample["image"]).mean() < 60


@pytest.mark.parametrize(
    ("task", "field", "kind"),
    [("semantic_to_image", "semantic", "mask"), ("layout_to_image", "layout", "boundingbox")],
)
def test_colors_are_those_that_the_caption_names(task, field, kind):
    pair, colors_seen = make_pair(), set()
    for sample in many(task, pair):
        n = frame_of(pair, sample["image"])
        tags = list(TAG.finditer(sample["caption"]))
        assert sample["caption"].endswith(f"> {pair.caption}") and len(tags) == 3
        areas = []
        for tag in tags:
            color = tag["color"].lower()
            assert bytes.fromhex(tag["hex"]) == bytes(COLORS[color]) and tag["kind"] == kind
            [thing] = [i for i, name in NAMES.items() if name == tag["name"]]
            mask = pair.masks[n] == thing
            if kind == "mask":
                found = (sample[field] == COLORS[color]).all(axis=-1)
                np.testing.assert_array_equal(found, mask)
            else:
                box = np.zeros(mask.shape, bool)
                box[objects.box_of(mask)] = True
                found = (sample[field] == COLORS[color]).all(axis=-1)
                np.testing.assert_array_equal(found, box)
            colors_seen.add(color)
            areas.append(mask.sum())
        assert areas == sorted(areas, reverse=True)
        read = read_masks(sample[field], colors=[tag["color"].lower() for tag in tags])
        np.testing.assert_array_equal(read.any(axis=0), sample[field].any(axis=-1))
    assert len(colors_seen) > 10


def test_at_most_as_many_colors_as_there_are():
    places = {i: (8 * (i % 8), 8 * (i // 8), 8 * (i % 8) + 8, 8 * (i // 8) + 8) for i in range(48)}
    ids = boxes_of_ids(places)
    pair = make_pair(first=ids, last=ids, names={i: f"tile {i}" for i in range(1, 48)})
    assert len(list(TAG.finditer(built("semantic_to_image", pair)["caption"]))) == len(COLORS)


# ---------------------------------------------------------------------------------------- folders


def test_an_index_or_task_that_is_not_there(folder):
    source = PairSource(folder, task=get_task("depth"))
    with pytest.raises(IndexError, match="no sample 5: there are 5"):
        source.sample(5, np.random.default_rng(0))
    with pytest.raises(SourceError, match=r"'multiview' is built from pairs; tasks are: next_fr"):
        PairSource(folder, task=get_task("multiview"))


def test_a_damaged_record_is_one_sample(tmp_path):
    small = dataclasses.replace(make_pair(), masks=np.zeros((2, 3, 4), np.uint8))
    blobs = [encode_pair(small), encode_pair(make_pair())[:-900], b"", make_pair()]
    source = PairSource(write_pairs(tmp_path, [blobs]), task=get_task("next_frame"))
    messages = []
    for index in range(3):
        with pytest.raises(SampleError) as caught:
            source.sample(index, np.random.default_rng(0))
        assert not isinstance(caught.value, UnsuitableError)
        messages.append(str(caught.value))
    assert "pair 0: pair of clip-0: masks or depth have another size" in messages[0]
    assert "pair 1: not a pair of schema" in messages[1]
    assert "pair 2: not a pair of schema" in messages[2]
    assert source.sample(3, np.random.default_rng(0))["change"]


@pytest.mark.parametrize("name", ["frame.1", "mask.0"])
def test_a_picture_that_is_no_picture(name):
    arrays, values = unpack_blob(encode_pair(make_pair()), key="unidiff_pair")
    arrays[name] = np.zeros(50, np.uint8)
    with pytest.raises(PairError, match=r"not a pair .*: (frame 1|mask 0) is no PNG"):
        decode_pair(pack_blob(arrays, values, key="unidiff_pair"))


def test_a_pair_survives():
    pair = make_pair(names={1: "球"}, depth=None)
    found = decode_pair(encode_pair(pair, lossless=True))
    for name in ("frames", "masks"):
        np.testing.assert_array_equal(getattr(found, name), getattr(pair, name))
    assert (found.names, found.depth, found.times) == (pair.names, None, pair.times)


def rename(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SHARD = shard_names("pairs", 2)[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing: curate the clips"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is not JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json holds a list, not a"),
        (lambda f: rename(f, schema="pair/2"), "has schema 'pair/2', not 'pair/1': curate"),
        (lambda f: rename(f, shards="two"), r"manifest.json is damaged \(ValueError"),
        (lambda f: rename(f, shards=3), "pairs-0000.-of-00003.array_record is not finished"),
        (lambda f: rename(f, shards=0), "holds no pairs"),
        (
            lambda f: (f / SHARD).with_suffix(".json").unlink(),
            "pairs-00000-of-00002.array_record is not finished: curate the clips",
        ),
        (
            lambda f: (f / SHARD).with_suffix(".json").write_text("{}"),
            r"pairs-00000-of-00002.json is damaged \(KeyError",
        ),
        (lambda f: (f / SHARD).unlink(), "pairs-00000-of-00002.array_record is missing"),
        (
            lambda f: (f / SHARD).write_bytes((f / SHARD).read_bytes()[:-100]),
            r"pairs-00000-of-00002.array_record has \d+ bytes instead of \d+",
        ),
        (
            lambda f: (f / SHARD).write_bytes(bytes((f / SHARD).stat().st_size)),
            "(is damaged|records, not 2)",
        ),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, damage, message):
    write_pairs(tmp_path, [[make_pair()], [make_pair()]])
    assert len(open_pairs(tmp_path)) == 2
    damage(tmp_path)
    with pytest.raises(PairError, match=message) as caught:
        open_pairs(tmp_path)
    assert "python -m launch.curate" in str(caught.value)


def test_a_folder_without_pairs(tmp_path):
    with pytest.raises(PairError, match="holds no pairs: no clip gave one"):
        open_pairs(write_pairs(tmp_path, [[], []]))


def test_a_folder_in_a_bucket(bucket, tmp_path):
    local = write_pairs(tmp_path, [[make_pair(seed=s) for s in range(2)], []])
    for path in local.iterdir():
        (as_path(bucket) / "pairs" / path.name).write_bytes(path.read_bytes())
    remote, task = f"{bucket}/pairs", get_task("customize")
    found, expected = (
        PairSource(folder, task=task).sample(1, np.random.default_rng(0))
        for folder in (remote, local)
    )
    assert same_sample(found, expected)
