"""Conditions made on the fly: what each keeps and changes, and where they come from."""

import numpy as np
import pytest
from PIL import Image
from raw_data import same_sample

from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.conditions import CONDITIONS, AddedConditions


def scene(size=(96, 64)):
    """A bright disc on a ramp, with fine noise; nowhere black."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    disc = np.hypot(x - width / 2, y - height / 2) < height / 3
    noise = np.random.default_rng(0).uniform(0, 10, disc.shape)
    grey = 60 + 60 * x / width + 120 * disc + noise
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2).astype(np.uint8))


class One:
    fields = ("image", "caption")

    def __init__(self, picture=None):
        self._picture = picture or scene()

    def __len__(self):
        return 1

    def sample(self, index, rng):
        return {"image": self._picture, "caption": f"{rng.random()}"}


def make(name, seed=0, picture=None):
    picture = picture or scene()
    made = CONDITIONS[name](picture, np.random.default_rng(seed))
    assert tuple(made) == CONDITIONS[name].fields
    assert all(one.mode == "RGB" and one.size == picture.size for one in made.values())
    return np.asarray(next(iter(made.values()))).astype(int)


def detail(rgb):
    return np.abs(np.diff(rgb[..., 0], axis=1)).mean()


@pytest.mark.parametrize("name", ["blurred", "small"])
def test_detail_is_lost_and_light_is_kept(name):
    picture = scene((384, 256))
    before = np.asarray(picture).astype(int)
    losses = []
    for seed in range(10):
        after = make(name, seed, picture)
        assert after.mean() == pytest.approx(before.mean(), abs=2)
        losses.append(detail(after) / detail(before))
    assert max(losses) < 0.8 and len(set(losses)) > 5


def test_holes_are_black_boxes_and_the_rest_is_kept():
    before = np.asarray(scene()).astype(int)
    shares = []
    for seed in range(30):
        after = make("holed", seed)
        hole = (after == 0).all(axis=-1)
        np.testing.assert_array_equal(after[~hole], before[~hole])
        shares.append(hole.mean())
    assert 0.02 < min(shares) < max(shares) <= 0.75


@pytest.mark.parametrize(
    ("name", "least", "most"), [("holed", 0.02, 0.75), ("outpaint", 0.36, 0.84)]
)
def test_the_hole_is_where_the_picture_is_black(name, least, most):
    shares = []
    for seed in range(20):
        made = CONDITIONS[name](scene(), np.random.default_rng(seed))
        hole = np.asarray(made["hole"])
        assert set(np.unique(hole)) == {0, 255}
        np.testing.assert_array_equal(np.asarray(made["holed"]) == 0, hole == 255)
        shares.append((hole == 255).mean())
    assert least < min(shares) < max(shares) < most


def test_edges_are_black_and_white_and_lie_on_the_disc():
    for seed in range(5):
        edges = make("edges", seed)
        assert set(np.unique(edges)) == {0, 255}
        y, x = np.nonzero(edges[..., 0])
        radius = np.hypot(x - 48, y - 32)
        assert np.abs(radius - 64 / 3).max() < 3
    assert not make("edges", picture=Image.new("RGB", (20, 20), "red")).any()


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 3)])
def test_tiny_pictures(name, size):
    make(name, picture=Image.new("RGB", size, "red"))


def test_added_to_a_source():
    source = AddedConditions(One(), ("blurred", "edges"))
    assert source.fields == ("image", "caption", "blurred", "edges") and len(source) == 1
    first, again, other = (source.sample(0, np.random.default_rng(s)) for s in (0, 0, 1))
    assert tuple(first) == source.fields
    assert same_sample(first, again)
    assert not same_sample({"blurred": first["blurred"]}, {"blurred": other["blurred"]})
    np.testing.assert_array_equal(first["image"], scene())  # untouched


def test_what_cannot_be_added():
    with pytest.raises(SourceError, match="no condition 'grey'; there are: blurred, holed"):
        AddedConditions(One(), ("grey",))
    with pytest.raises(SourceError, match="made from the field 'source'; there are: image"):
        AddedConditions(One(), ("edges",), of="source")
    with pytest.raises(SourceError, match="has a field 'edges' of its own"):
        AddedConditions(AddedConditions(One(), ("edges",)), ("edges",))
    with pytest.raises(SampleError, match="the field 'caption' is no picture"):
        AddedConditions(One(), ("edges",), of="caption").sample(0, np.random.default_rng(0))
