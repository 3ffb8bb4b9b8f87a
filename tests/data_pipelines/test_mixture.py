"""The mixture: weights, epochs, choices that are a function of seed and place, and items."""

import collections
import dataclasses
import itertools
import re

import numpy as np
import pytest

from data_pipelines import objects
from data_pipelines.miniworld import items, language
from data_pipelines.miniworld.items import MiniWorldSource, nearness, to_depth
from data_pipelines.mixture import ExampleMaker, mix_examples, parse_mixture, stable_id
from unidiff_jax.config import ConfigError
from unidiff_jax.frames import CODECS, patchify, unpatchify
from unidiff_jax.identity import PatchPictures
from unidiff_jax.models.autoencoder import SpaceToDepth
from unidiff_jax.tasks import TASKS, get_task
from unidiff_jax.text import END, MAX_NAMES


class Numbers:
    """A source whose record i is a picture of value i."""

    def __init__(self, count, *, without=()):
        self._count, self._without = count, without

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return index

    def name(self, index):
        return f"number {index}"

    def item(self, record, task, rng):
        if (record, task.name) in self._without:
            return None
        picture = np.full((4, 4, 3), record, np.uint8)
        return {"image": picture, "depth": np.full((4, 4), rng.random()), "caption": "a red cube"}


@pytest.fixture(scope="module")
def make(tokenizer):
    def make(**settings):
        defaults = {"autoencoder": SpaceToDepth(), "patch": 1, "max_text": 40}
        return ExampleMaker(tokenizer=tokenizer, **(defaults | settings))

    return make


def stream(maker, *, count=10, seed=0, shard=0, num_shards=1, tasks=None, without=()):
    mixes = parse_mixture(tasks or {"text_to_image": {"weight": 1.0}})
    source = Numbers(count, without=without)
    sources = dict.fromkeys((mix.task.name for mix in mixes), source)
    return mix_examples(sources, mixes, maker, seed=seed, shard=shard, num_shards=num_shards)


def record_of(example):
    return int(np.round((example["tokens"][0, 0] + 1) * 127.5))


def take(dataset, count):
    return [dataset[i] for i in range(count)]


def test_weights(make):
    tasks = {"text_to_image": {"weight": 3.0}, "depth": {"weight": 1.0}, "edit": {"weight": 0}}
    examples = take(stream(make(), tasks=tasks), 400)
    counts = collections.Counter(int(e["segment_table"][0, 1]) for e in examples)
    assert counts == {TASKS["text_to_image"].id: 300, TASKS["depth"].id: 100}


def test_an_epoch_shows_every_record_once_and_the_next_in_another_order(make):
    examples = take(stream(make()), 30)
    epochs = [[record_of(e) for e in examples[i : i + 10]] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    # an example of the second epoch is another example, with noise of its own
    ids = [int(e["segment_table"][0, 0]) for e in examples]
    assert len(set(ids)) == 30 and min(ids) >= 1


def test_the_stream_is_a_function_of_seed_and_place(make):
    tasks = {"depth": {"weight": 1.0}}
    first = take(stream(make(), tasks=tasks), 20)
    again = stream(make(), tasks=tasks)
    for place in (19, 3, 0):  # in any order
        for key, value in first[place].items():
            np.testing.assert_array_equal(again[place][key], value)
    other = take(stream(make(), tasks=tasks, seed=1), 20)
    assert [record_of(e) for e in first] != [record_of(e) for e in other]
    depths = {float(e["tokens"][-1, 0]) for e in first}
    assert len(depths) == 20  # random choices of an item differ between places and epochs


def test_shards_share_the_records_out(make):
    shards = [take(stream(make(), shard=s, num_shards=3), 10) for s in range(3)]
    epochs = [{record_of(e) for e in s[: len(range(i, 10, 3))]} for i, s in enumerate(shards)]
    assert epochs == [{0, 3, 6, 9}, {1, 4, 7}, {2, 5, 8}]
    ids = [int(e["segment_table"][0, 0]) for s in shards for e in s]
    assert len(set(ids)) == len(ids)


def test_records_without_an_item_are_left_out(make):
    examples = take(stream(make(), without={(4, "text_to_image")}), 10)
    assert sum(e is None for e in examples) == 1
    assert 4 not in {record_of(e) for e in examples if e is not None}


@pytest.mark.parametrize(("rate", "low", "high"), [(0.0, 0, 0), (0.3, 0.25, 0.35), (1.0, 1, 1)])
def test_caption_dropout(make, rate, low, high):
    examples = take(stream(make(caption_dropout=rate)), 1000)
    dropped = np.mean([list(e["text_ids"]) == [END] for e in examples])
    assert low <= dropped <= high


def test_loss_weight(make):
    tasks = {"depth": {"weight": 1.0, "loss_weight": 3.0}}
    mask = stream(make(), tasks=tasks)[0]["loss_mask"]
    assert sorted(set(mask.tolist())) == [0.0, 3.0]  # the given frame still has none


def test_prompts(make):
    maker = make()
    task = get_task("depth_to_image")
    item = Numbers(1).item(0, task, np.random.default_rng(0))
    ids = maker.example(task, item, example_id=1)["text_ids"]
    assert list(ids) == maker.tokenizer.encode("[[depth2image]] a red cube") and ids[-1] == END
    other = maker.example(task, item, example_id=1, prompt="a blue cube")["text_ids"]
    assert list(other) == maker.tokenizer.encode("a blue cube")
    with pytest.raises(ValueError, match=r"the prompt has \d+ tokens and the model reads 3"):
        make(max_text=3).example(task, item, example_id=1)


def test_ids_are_positive_and_apart():
    ids = {stable_id(task, index) for task in TASKS.values() for index in range(1000)}
    assert len(ids) == 1000 * len(TASKS)
    assert 1 <= stable_id(TASKS["depth"], 10**12) < 2**31


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"dept": {"weight": 1.0}}, r"data.tasks.dept is no task; tasks are: text_to_image, depth"),
        ({"depth": {"weight": 0.0}}, r"data.tasks names no task with a positive weight"),
        ({"depth": {"weight": 1, "plan": "no"}}, r"data.tasks.depth.plan='no' is unknown; one of"),
    ],
)
def test_mixtures_that_cannot_be(tasks, message):
    with pytest.raises(ConfigError, match=message):
        parse_mixture(tasks)


# ------------------------------------------------------------------------------------------- items


@pytest.fixture(scope="module")
def source(miniworld):
    return MiniWorldSource(
        miniworld, split="train", edit_kinds=("recolor",), min_reference_objects=2
    )


def found(source, task):
    """(record, item) of every record that has one, with two draws each."""
    for index in range(len(source)):
        record = source[index]
        for draw in range(2):
            item = source.item(record, get_task(task), np.random.default_rng([index, draw]))
            if item is not None:
                yield record, item


def test_a_mask_is_the_object_that_the_expression_means(source):
    pairs = list(found(source, "segment"))
    assert 20 < len(pairs) < 80
    for record, item in pairs:
        assert len(record.scenes[0]["objects"]) >= 2
        match = {"expression": item["expression"], "object": item["object"], "image": 0}
        assert match in record.references
        np.testing.assert_array_equal(item["mask"], record.instance[0] == item["object"])
        assert item["mask"].any()
        np.testing.assert_array_equal(item["image"], record.rgb[0])


def test_an_edit_turns_the_source_into_the_edited_picture(source):
    pairs = list(found(source, "edit"))
    assert pairs
    for record, item in pairs:
        edit = item["edit"]
        assert edit in record.edits and edit["kind"] == "recolor"
        assert item["instruction"] == edit["instruction"]
        np.testing.assert_array_equal(item["source"], record.rgb[edit["before"]])
        np.testing.assert_array_equal(item["edited"], record.rgb[edit["after"]])
        changed = (item["source"] != item["edited"]).any(-1)
        own = record.instance[0] == edit["object"]
        assert changed[own].mean() > 0.5 > changed[~own].mean()


def test_an_edit_and_its_mask_are_made_together(source, make):
    maker = make(patch=4, style="context", max_text=120)
    pairs = list(found(source, "edit_with_mask"))
    assert pairs
    for _, item in pairs:
        difference = np.abs(item["source"].astype(int) - item["edited"]).max(-1)
        assert item["changed"][difference > 4].all() and not item["changed"][difference < 4].any()
        assert item["changed"].any()
        example = maker.example(get_task("edit_with_mask"), item, example_id=1)
        _, role, name, is_given, group = example["frame_table"].T
        assert list(is_given) == [0, 0, 1] and group[0] == group[1] != group[2]  # one noise level
        assert list(role) == [0, 3, 1]
        assert list(name) == [MAX_NAMES + 1, MAX_NAMES + 2, 1]
        assert {1, MAX_NAMES + 2} == set(example["text_name"].tolist()) - {0}
        white = example["tokens"][example["token_index"][:, 0] == 1].reshape(-1, 3) > 0
        assert white.all(-1).sum() == item["changed"].sum()


def test_depth_is_near_bright_and_reads_back(source):
    for record, item in found(source, "depth"):
        depth = record.depth[0].astype(np.float32)
        assert depth.min() >= items.NEAR and depth.max() <= items.FAR
        np.testing.assert_allclose(to_depth(item["depth"]), depth, rtol=1e-3)
        nearest = np.unravel_index(depth.argmin(), depth.shape)
        assert item["depth"][nearest] == item["depth"].max()
    z = np.linspace(items.NEAR, items.FAR, 50)
    np.testing.assert_allclose(to_depth(nearness(z)), z, rtol=1e-4)
    np.testing.assert_allclose(nearness(np.asarray([items.NEAR, items.FAR])), [1, 0], atol=1e-6)


def test_frames_of_a_clip_are_in_order(source):
    told = set()
    for record, item in found(source, "next_frame"):
        images = record.clip["images"]
        np.testing.assert_array_equal(item["earlier"], record.rgb[images[0]])
        np.testing.assert_array_equal(item["later"], record.rgb[images[-1]])
        what = record.clip["description"]
        rngs = map(np.random.default_rng, range(30))
        instructions = {language.as_instruction(rng, what) for rng in rngs}
        assert item["change"] in {what, *instructions}
        told.add(item["change"] == what)
    assert told == {True, False}


def test_a_hole_hides_one_object_and_nothing_else(source):
    for record, item in found(source, "inpaint"):
        hole = item["hole"]
        assert (item["holed"][hole] == objects.HOLE_GREY).all()
        np.testing.assert_array_equal(item["holed"][~hole], record.rgb[0][~hole])
        hidden = [
            b for b in record.scenes[0]["objects"] if hole[record.instance[0] == b["id"]].all()
        ]
        assert hidden


def test_a_layout_boxes_every_visible_object(source):
    for record, item in found(source, "layout_to_image"):
        visible = np.isin(record.instance[0], [b["id"] for b in record.scenes[0]["objects"]])
        assert (item["layout"][visible] > 0).any(-1).all()
        assert item["caption"] in record.captions[0]


def test_every_task_makes_an_example(source, make):
    maker = make(patch=4)
    for name in items.TASK_NAMES:
        task = TASKS[name]
        _, item = next(found(source, task.name))
        example = maker.example(task, item, example_id=1)
        assert len(example["tokens"]) == 16 * len(task.frames)
        assert np.abs(example["tokens"]).max() <= 1


# --------------------------------------------------------------------------------- references


def test_references_are_objects_of_both_frames_cut_out_on_white(source):
    for record, item in found(source, "customize"):
        first, last = record.clip["images"][0], record.clip["images"][-1]
        np.testing.assert_array_equal(item["later"], record.rgb[last])
        words = item["references"].split(" and ")
        assert len(words) == len(item["assets"]) <= objects.MAX_ASSETS
        for number, (word, asset) in enumerate(zip(words, item["assets"], strict=True), start=1):
            color, shape, name = re.fullmatch(r"the (\w+) (\w+) of (IMG\d)", word).groups()
            assert name == f"IMG{number}"
            match = [
                body["id"]
                for body in record.scenes[0]["objects"]
                if (body["color"], body["shape"]) == (color, shape)
            ]
            cut = [items.cut_out(record, first, body) for body in match]
            assert any((asset == one).all() for one in cut)
            assert asset.shape == record.rgb[0].shape


def test_a_cut_out_holds_every_pixel_of_its_object_and_no_other(source):
    record = source[0]
    body = record.scenes[0]["objects"][0]["id"]
    mask = record.instance[0] == body
    asset = items.cut_out(record, 0, body)
    own = set(map(tuple, record.rgb[0][mask].tolist()))
    shown = set(map(tuple, asset.reshape(-1, 3).tolist())) - {(255, 255, 255)}
    assert shown <= own
    assert own - {(255, 255, 255)} <= shown  # enlarged, so that nothing is left out


def test_an_insertion_changes_nothing_outside_its_hole(source):
    for _, item in found(source, "insert"):
        hole = (item["canvas"] != item["later"]).any(-1)
        assert len(item["assets"]) == 1 and item["references"].endswith("of IMG2")
        box = objects.box_of(hole)
        assert (item["canvas"][box] == objects.HOLE_GREY).all()
        outside = np.ones(hole.shape, bool)
        outside[box] = False
        np.testing.assert_array_equal(item["canvas"][outside], item["later"][outside])


def test_tags_say_whether_the_camera_moves(source):
    tags = {record.clip["kind"]: item["tags"] for record, item in found(source, "next_frame")}
    assert len(tags) > 2
    for kind, tag in tags.items():
        wanted = "dynamic scenario" if kind in ("turn", "rise") else "static scenario"
        assert tag == (wanted,)


def test_prompts_in_context_style():
    item = {"change": "the camera turns", "tags": ("dynamic scenario",)}
    assert get_task("next_frame").write(item, style="context") == (
        "dynamic scenario: the camera turns in IMG1"
    )
    assert get_task("depth").write({}, style="context") == "perception task: the depth map of IMG1"
    assert get_task("text_to_image").write({"caption": "a cube"}, style="context") == "a cube"
    assert get_task("depth").write({}) == "[[depth2image]]"
    assert get_task("depth").write({}, style="base") == "the depth map of IMG1"
    with pytest.raises(ValueError, match="style 'long' is unknown; one of token, context, base"):
        get_task("depth").write({}, style="long")


def test_parts_of_a_prompt_can_be_given():
    edit = get_task("edit")
    item = {"instruction": "make it {red}", "tags": ("synthetic style",)}
    assert edit.write(item, style="context") == (
        "static scenario, synthetic style: make it {red} in IMG1"
    )
    assert edit.write(item, style="context", tags=("a", "b")) == "a, b: make it {red} in IMG1"
    assert edit.write(item, style="context", tags=()) == "make it {red} in IMG1"
    assert edit.write(item, style="context", base="all {red}").endswith("style: all {red}")
    assert edit.write(item, style="base", base="all red") == "all red"
    with pytest.raises(ValueError, match="of the style 'base' have no tags"):
        edit.write(item, style="base", tags=())
    with pytest.raises(ValueError, match="of the style 'token' have no base prompt"):
        edit.write(item, base="all red")


def test_repeated_fields_are_filled_in_turn():
    item = {"views": ["v0", "v1"], "cameras": ["c0", "c1"]}
    values = [value for _, value in get_task("multiview").fill(item)]
    assert values == ["v0", "c0", "v1", "c1"]
    inserted = {"later": "l", "canvas": "k", "assets": ["a", "b"]}
    assert [v for _, v in get_task("insert").fill(inserted)] == ["l", "k", "a", "b"]
    with pytest.raises(ValueError, match="needs fields of one length, got"):
        get_task("multiview").fill({"views": ["v0"], "cameras": []})


def test_references_become_frames_of_an_example(source, make):
    maker = make(patch=4, style="context", max_text=120)
    for _, item in found(source, "customize"):
        example = maker.example(get_task("customize"), item, example_id=1)
        count = len(item["assets"])
        _, role, name, is_given, _ = example["frame_table"].T
        assert list(role) == [0] + [2] * count
        assert list(is_given) == [0] + [1] * count
        assert list(name) == [MAX_NAMES + 1, *range(1, count + 1)]
        plain = make(patch=4, roles=False, max_text=120)
        table = plain.example(get_task("customize"), item, example_id=1)["frame_table"]
        assert not table[:, 1].any()


# ---------------------------------------------------------------------------- guidance on channels


class Means:
    """An identity encoder: the mean colour of a picture."""

    dim = 3

    def __call__(self, pictures):
        return pictures.mean(axis=(1, 2), dtype=np.float32)


@pytest.fixture(scope="module")
def guided(make):
    settings = {"guidance": "channels", "style": "short", "identity": Means()}
    return make(autoencoder=SpaceToDepth(downscale=2), patch=2, max_text=99, **settings)


def first(source, task):
    return next(item for _, item in found(source, task))


def channels(maker, task, item, **settings):
    example = maker.example(get_task(task), item, example_id=1, **settings)
    return example, example["visual"], example["mask"]


def test_channels_hold_the_given_picture_and_only_made_frames_have_tokens(source, guided):
    item = first(source, "edit")
    example, visual, mask = channels(guided, "edit", item)
    encoded = SpaceToDepth(downscale=2).encode(CODECS["rgb"].draw(item["source"]))
    np.testing.assert_array_equal(visual, patchify(encoded, patch=2))
    target = SpaceToDepth(downscale=2).encode(CODECS["rgb"].draw(item["edited"]))
    np.testing.assert_array_equal(example["tokens"], patchify(target, patch=2))
    assert example["frame_table"].shape == (1, 5) and example["frame_table"][0, 3] == 0
    assert (mask == 1).all() and mask.shape == (64, 4)


def test_without_a_given_picture_the_channels_say_make_everything(source, guided):
    _, visual, mask = channels(guided, "text_to_image", first(source, "text_to_image"))
    assert not visual.any() and (mask == 1).all()
    item = first(source, "edit")
    _, visual, mask = channels(guided, "edit", item, guided=False)
    assert not visual.any() and not mask.any()


def test_a_mask_is_one_where_the_picture_is_to_be_made(source, guided):
    for task in ("inpaint", "insert"):
        item = first(source, task)
        _, visual, mask = channels(guided, task, item)
        places = unpatchify(mask, patch=2, grid=(8, 8))[..., 0]
        hole = item["hole"].reshape(16, 2, 16, 2).mean(axis=(1, 3))
        np.testing.assert_allclose(places, hole, atol=1e-6)
        assert 0 < places.mean() < 1
        canvas = item["holed" if task == "inpaint" else "canvas"]
        shown = SpaceToDepth(downscale=2).decode(unpatchify(visual, patch=2, grid=(8, 8)))
        np.testing.assert_allclose(shown, CODECS["rgb"].draw(canvas), atol=1e-6)


def test_features_of_references_take_the_place_of_their_names(source, guided):
    item = next(i for _, i in found(source, "customize") if len(i["assets"]) == 2)
    example, _, _ = channels(guided, "customize", item)
    np.testing.assert_allclose(example["asset_table"], Means()(np.stack(item["assets"])))
    # every piece of a name, where the vocabulary cuts it
    np.testing.assert_array_equal(example["text_asset"], example["text_name"])
    assert set(example["text_name"].tolist()) == {0, 1, 2}
    # an insertion's first given frame is its canvas, on the channels
    item = first(source, "insert")
    example, _, _ = channels(guided, "insert", item, prompt="put <p> there")
    np.testing.assert_array_equal(example["text_asset"], example["text_name"] == 2)
    assert example["text_asset"].any()
    dropped, _, _ = channels(guided, "insert", item, prompt="")
    assert not dropped["text_asset"].any() and len(dropped["asset_table"]) == 1


def test_what_channels_cannot_hold(source, guided, make):
    item = first(source, "customize")
    with pytest.raises(ValueError, match="the prompt names no IMG1, nor <p>"):
        channels(guided, "customize", item, prompt="two things")
    with pytest.raises(ValueError, match="'multiview' cannot be guided on channels"):
        guided.in_rows(get_task("multiview"))
    alone = make(autoencoder=SpaceToDepth(downscale=2), patch=2, max_text=99, guidance="channels")
    with pytest.raises(ConfigError, match=r"data\.identity\.encoder=pixels"):
        channels(alone, "customize", item)
    with pytest.raises(ConfigError, match="'rows' is unknown; one of frames, channels, prompt"):
        make(guidance="rows")


def test_some_dropped_prompts_drop_their_channels_too(make):
    settings = {"guidance": "channels", "caption_dropout": 0.5, "visual_dropout": 0.5}
    tasks = {"depth": {"weight": 1.0}}
    examples = take(stream(make(**settings), tasks=tasks), 400)
    dropped = np.asarray([len(e["text_ids"]) == 1 for e in examples])
    empty = np.asarray([not e["mask"].any() for e in examples])
    assert not (empty & ~dropped).any()
    assert 0.4 < empty[dropped].mean() < 0.6


def test_short_prompts_tell_both_directions_of_a_pair_apart():
    words = {"caption": "a red cube", "instruction": "remove it"}
    written = [
        get_task(name).write(words, style="short")
        for name in ("text_to_image", "edit", "depth", "depth_to_image", "layout_to_image")
    ]
    assert written == [
        "<t2i> a red cube",
        "<ie> remove it",
        "<depth>",
        "<depth_to_image> a red cube",
        "<lg> a red cube",
    ]
    tokens = [task.token("short") for task in TASKS.values()]
    assert len(set(tokens)) == len(tokens)


# --------------------------------------------------------------------------- pictures in the prompt


@pytest.fixture(scope="module")
def interleaved(make):
    settings = {"guidance": "prompt", "style": "base", "identity": PatchPictures(), "entities": 3}
    return make(autoencoder=SpaceToDepth(downscale=2), patch=2, max_text=99, **settings)


def drawn(seed, side=32):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)


def two_entities():
    masks = np.zeros((2, 32, 32), bool)
    masks[0, :, :16], masks[1, :, 18:] = True, True
    item = {"later": drawn(0), "slots": "<p> on <p>", "assets": [drawn(1), drawn(2)]}
    return item | {"entity_masks": [*masks]}


def test_a_picture_takes_as_many_places_as_it_has_vectors(interleaved):
    task, item = get_task("interleave"), two_entities()
    example = interleaved.example(task, item, example_id=1)
    assert example["tokens"].shape == (64, 48) and example["frame_table"].shape == (1, 5)
    places = [run for run, _ in itertools.groupby(example["text_entity"].tolist())]
    assert places == [1, 0, 2, 0]
    shown = example["text_asset"]
    np.testing.assert_array_equal(shown[shown > 0], np.arange(1, 11))
    np.testing.assert_array_equal(shown > 0, example["text_entity"] > 0)
    expected = PatchPictures()(np.stack(item["assets"])).reshape(10, -1)
    np.testing.assert_array_equal(example["asset_table"], expected)
    mask = example["entity_mask"].reshape(8, 8, 3)
    np.testing.assert_array_equal(mask[0, :, 0], [1] * 4 + [0] * 4)
    np.testing.assert_array_equal(mask[0, :, 1], [0] * 4 + [0.5] + [1] * 3)
    assert not mask[..., 2].any()


def test_prompts_without_pictures_have_none(interleaved):
    task, item = get_task("interleave"), two_entities()
    plain = interleaved.example(
        task, item | {"slots": "rain", "assets": [], "entity_masks": []}, example_id=1
    )
    assert not plain["text_asset"].any() and plain["asset_table"].shape == (0, PatchPictures.dim)
    dropped = interleaved.example(task, item, example_id=1, prompt="")
    assert not dropped["text_entity"].any() and len(dropped["text_ids"]) == 1


def test_what_prompts_cannot_hold(interleaved, make):
    task, item = get_task("interleave"), two_entities()
    with pytest.raises(ValueError, match="'edit' cannot be guided in the prompt"):
        interleaved.in_rows(get_task("edit"))
    with pytest.raises(ValueError, match="the prompt names no IMG2"):
        interleaved.example(task, item, example_id=1, prompt="<p> alone")
    short = dataclasses.replace(interleaved, max_text=8)
    with pytest.raises(ValueError, match="tokens and the model reads 8"):
        short.example(task, item, example_id=1)
    one = dataclasses.replace(interleaved, entities=1)
    with pytest.raises(ConfigError, match=r"data\.entities=1; for example --set data.entities=2"):
        one.example(task, item, example_id=1)
