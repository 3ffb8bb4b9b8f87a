"""What the encoder is given: frames of an example on one placement, references, flips and tags."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.encoded import EncodedExample, EncodedSource, decode_record, encode_record
from data_pipelines.encoder import EncodeSettings, encode_dataset, prepare
from data_pipelines.sources.base import SampleError, UnsuitableError
from unidiff_jax.tasks import TASKS, get_task

SQUARE = EncodeSettings(size=32, buckets=False, validation=0, shards=1)
BUCKETS = EncodeSettings(size=256)


def photo(size, seed=0):
    width, height = size
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def prepared(sample, task, *, settings=SQUARE, seed=0):
    sample = {
        name: Image.fromarray(value) if isinstance(value, np.ndarray) else value
        for name, value in sample.items()
    }
    return prepare(
        sample,
        task=get_task(task),
        settings=settings,
        downscale=8,
        channels=4,
        rng=np.random.default_rng(seed),
    )


def edit(source, edited, **more):
    return {"source": source, "edited": edited, "instruction": "more light"} | more


@given(st.integers(8, 80), st.integers(8, 80), st.booleans(), st.integers(0, 3))
def test_an_edit_that_changes_nothing_has_equal_frames(width, height, flip, seed):
    settings = dataclasses.replace(SQUARE, flip=flip)
    rgb = photo((width, height))
    edited, source = prepared(edit(rgb, rgb), "edit", settings=settings, seed=seed).frames
    np.testing.assert_array_equal(edited, source)


@given(st.integers(24, 90), st.integers(24, 90), st.integers(0, 2**32 - 1))
def test_an_edit_changes_nothing_away_from_its_mask(width, height, seed):
    rng = np.random.default_rng(seed)
    rgb, mask = photo((width, height)), np.zeros((height, width), bool)
    top, left = rng.integers(height - 4), rng.integers(width - 4)
    mask[top : top + rng.integers(1, 5), left : left + rng.integers(1, 5)] = True
    holed = np.where(mask[..., None], np.uint8(128), rgb)
    sample = {"image": rgb, "holed": holed, "caption": "a"}
    image, given_frame = prepared(sample, "inpaint").frames
    # the filter's reach: two pixels of the coarser of source and sample
    reach = 2 * max(1, -(-min(width, height) // 32)) + 1
    grown = np.zeros((height, width, 3), np.uint8)
    rows, columns = np.nonzero(mask)
    grown[
        max(rows.min() - reach, 0) : rows.max() + 1 + reach,
        max(columns.min() - reach, 0) : columns.max() + 1 + reach,
    ] = 255
    # a segmentation sample has its mask placed as the inpainting sample has its frames
    _, near = prepared({"image": rgb, "mask": grown, "expression": "a"}, "segment").frames
    away = near[..., 0] == 0
    np.testing.assert_array_equal(given_frame[away], image[away])


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (32, 47), (61, 32)])
def test_where_nothing_is_scaled_an_edit_changes_nothing_outside_its_mask(size):
    rgb, mask = photo(size), np.zeros(size[::-1], bool)
    mask[10:20, 5:25] = True
    sample = {"image": rgb, "holed": np.where(mask[..., None], np.uint8(128), rgb), "caption": "a"}
    for flip, seed in ((False, 0), (True, 0), (True, 1), (True, 2)):
        settings = dataclasses.replace(SQUARE, flip=flip)
        image, holed = prepared(sample, "inpaint", settings=settings, seed=seed).frames
        drawn = np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 255
        shown = {"image": rgb, "mask": drawn, "expression": "a"}
        _, placed = prepared(shown, "segment", settings=settings, seed=seed).frames
        outside = placed[..., 0] == 0
        np.testing.assert_array_equal(holed[outside], image[outside])
        assert (holed[~outside] == 128).all()


@pytest.mark.parametrize("name", ["depth", "segment", "layout_to_image", "semantic_to_image"])
@pytest.mark.parametrize("settings", [SQUARE, BUCKETS], ids=["square", "buckets"])
def test_maps_have_no_new_values(name, settings):
    task = TASKS[name]
    values = [(0, 0, 0), (255, 0, 0), (0, 128, 128)]
    field = task.frames[1].field
    painted = np.array(values, np.uint8)[np.random.default_rng(0).integers(3, size=(45, 77))]
    texts = dict.fromkeys(task.prompt_fields, "a")
    frames = prepared({"image": photo((77, 45)), field: painted, **texts}, name, settings=settings)
    assert frames.frames[0].shape == frames.frames[1].shape
    assert {tuple(color) for color in frames.frames[1].reshape(-1, 3)} == set(values)


def test_a_map_at_half_the_resolution_lies_on_its_picture():
    ids = np.random.default_rng(0).integers(0, 256, (24, 40, 1), np.uint8).repeat(3, axis=-1)
    large = np.kron(ids, np.ones((2, 2, 1), np.uint8))
    settings = dataclasses.replace(SQUARE, size=24)
    image, mask = prepared({"image": large, "mask": ids, "expression": "a"}, "segment",
                           settings=settings).frames  # fmt: skip
    np.testing.assert_array_equal(mask, ids[:, 8:32])
    assert image.shape == mask.shape


@pytest.mark.parametrize(
    ("task", "field", "other"),
    [("edit", "source", {}), ("depth", "depth", {}), ("inpaint", "holed", {"caption": "a"})],
)
def test_frames_of_another_aspect_are_misaligned(task, field, other):
    first = get_task(task).frames[0].field
    sample = {first: photo((64, 48)), field: photo((60, 60)), "instruction": "a"} | other
    with pytest.raises(SampleError, match=rf"^misaligned: {field} of 60x60 pixels do not lie"):
        prepared(sample, task)


def test_references_are_whole_and_on_white():
    sample = {
        "later": photo((64, 48)),
        "assets": [Image.new("RGB", size, (9, 9, 9)) for size in ((8, 4), (3, 30))],
        "references": "the one of IMG1 and the other of IMG2",
        "caption": "a",
    }
    later, wide, tall = prepared(sample, "customize").frames
    assert later.shape == wide.shape == tall.shape == (32, 32, 3)
    assert (wide[8:24] == 9).all() and (wide[:8] == 255).all() and (wide[24:] == 255).all()
    assert (tall[:, 16] == 9).all() and (tall[:, :14] == 255).all()


def test_views_are_cut_each_on_its_own():
    views = [Image.new("RGB", size) for size in ((64, 32), (32, 64), (40, 40))]
    sample = {"views": views, "captions": "a"}
    assert {f.shape for f in prepared(sample, "identity").frames} == {(32, 32, 3)}
    frames = prepared(sample, "identity", settings=BUCKETS).frames
    assert {f.shape for f in frames} == {(176, 352, 3)}  # the size of the first one


def test_half_of_the_examples_are_mirrored_in_all_their_frames():
    settings = dataclasses.replace(SQUARE, flip=True)
    source, edited = photo((32, 32), 0), photo((32, 32), 1)
    mirrored = 0
    for seed in range(100):
        frames = prepared(edit(source, edited), "edit", settings=settings, seed=seed).frames
        is_mirrored = not (frames[0] == edited).all()
        step = -1 if is_mirrored else 1
        np.testing.assert_array_equal(frames[0], edited[:, ::step])
        np.testing.assert_array_equal(frames[1], source[:, ::step])
        mirrored += is_mirrored
    assert 30 < mirrored < 70


def test_references_and_views_are_never_mirrored():
    settings = dataclasses.replace(SQUARE, flip=True)
    asset = photo((32, 32), 3)
    sample = {"later": photo((32, 32)), "assets": [Image.fromarray(asset)]}
    sample |= {"references": "a", "caption": "a"}
    views = {"views": [Image.fromarray(asset)], "captions": ""}
    for seed in range(8):
        frames = prepared(sample, "customize", settings=settings, seed=seed).frames
        np.testing.assert_array_equal(frames[1], asset)
        frames = prepared(views, "identity", settings=settings, seed=seed).frames
        np.testing.assert_array_equal(frames[0], asset)


@pytest.mark.parametrize(
    ("more", "can_flip"),
    [
        ({"instruction": "move it Left"}, False),
        ({"instruction": "the rightmost cube"}, False),
        ({"tags": ["seen from the right"]}, False),
        ({"instruction": "a bright cleft"}, True),
        ({"note": "left"}, True),  # no part of the prompt
    ],
)
def test_what_says_left_or_right_is_not_mirrored(more, can_flip):
    settings = dataclasses.replace(SQUARE, flip=True)
    rgb = photo((32, 32))
    found = [
        (prepared(edit(rgb, rgb, **more), "edit", settings=settings, seed=s).frames[0] != rgb).any()
        for s in range(20)
    ]
    assert any(found) == can_flip


# -------------------------------------------------------------------------------------- tags


class Means:
    latent_channels, downscale, identity = 4, 8, {"sha256": "means"}

    def posterior(self, rgb):
        mean = np.zeros((len(rgb), 4, 4, 4), np.float32)
        return mean, mean


class Frames:
    """Frame pairs; odd ones have nothing for the task."""

    fields = ("later", "earlier", "change")

    def __len__(self):
        return 60

    def sample(self, index, rng):
        if index % 2:
            raise UnsuitableError("no caption")
        picture = Image.new("RGB", (32, 32))
        tags = ["realistic style", "dynamic scenario"] if index else []
        return {"earlier": picture, "later": picture, "change": f"a {index}", "tags": tags}


def test_tags_come_through_encoded_records_into_prompts(tmp_path):
    task = get_task("next_frame")
    count = encode_dataset(
        Frames(), task=task, autoencoder=Means(), folder=tmp_path, settings=SQUARE, origin={}
    )
    # half of the samples are unsuitable, which is no sign of damage and stops nothing
    assert count == (30, 0, {"no caption": 30})
    source = EncodedSource([tmp_path], task=task, split="train")
    items = [source.item(source[i], task, np.random.default_rng(0)) for i in range(len(source))]
    prompts = {item["change"]: task.write(item, style="context") for item in items}
    assert prompts["a 2"] == "realistic style, dynamic scenario: a 2 in IMG1"
    assert prompts["a 0"] == "a 0 in IMG1"
    again = encode_dataset(
        Frames(), task=task, autoencoder=Means(), folder=tmp_path, settings=SQUARE, origin={}
    )
    assert again == count


def test_tags_survive_in_a_record():
    mean = np.zeros((1, 1, 4), np.float16)
    for tags in (["a", "b"], []):
        example = EncodedExample([mean], [mean], {"caption": "c"}, tags)
        assert decode_record(encode_record(example)).tags == tuple(tags)
