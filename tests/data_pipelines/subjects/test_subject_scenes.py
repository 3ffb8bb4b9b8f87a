"""Scenes of subjects: exact masks, places, light, and captions that are true."""

import re

import numpy as np
import pytest

from data_pipelines.subjects import scenes
from data_pipelines.subjects.captions import caption, expression, say_places
from data_pipelines.subjects.scenes import COLORS, draw_asset, draw_look, draw_scene, place


def solid(color, size=32):
    """A look that fills its square."""
    look = np.full((size, size, 4), 255, np.uint8)
    look[..., :3] = color
    return look


@pytest.fixture
def unlit(monkeypatch):
    monkeypatch.setattr(scenes, "GAIN", 0.0)
    monkeypatch.setattr(scenes, "SHADE", 0.0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_masks_are_exact(count, unlit, monkeypatch):
    monkeypatch.setattr(scenes, "SCENE_TURN", 0.0)
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)][:count]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = draw_scene([solid(c) for c in colors], size=40, sided=[True] * count, rng=rng)
        behind = scenes.draw_background(40, np.random.default_rng(seed)).picture.astype(int)
        shown = scene.picture.astype(int)
        if count == 1:  # a pixel is a thing's where the thing has the larger part in its colour
            way = np.array(colors[0]) - behind
            share = ((shown - behind) * way).sum(-1) / (way * way).sum(-1)
            assert share[scene.instance == 1].min() >= 0.45
            assert share[scene.instance == 0].max() <= 0.55
        for number, color in enumerate(colors, start=1):
            inside = around(scene.instance == number, np.min)
            assert inside.sum() > 40 and (shown[inside] == color).all()
        outside = ~around(scene.instance > 0, np.max)
        np.testing.assert_array_equal(shown[outside], behind[outside])


def around(mask, choose):
    """The least or largest of a pixel and its eight neighbours."""
    wide = np.pad(mask, 1)
    height, width = mask.shape
    return choose([wide[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


def test_places_are_inside_and_apart():
    rng = np.random.default_rng(0)
    for count, (low, high) in scenes.SIDES.items():
        for _ in range(50):
            sides, centres = np.split(place(count, rng), [1], axis=1)
            assert (low <= sides).all() and (sides <= high).all()
            assert (centres - sides / 2 >= -1e-9).all() and (centres + sides / 2 <= 1 + 1e-9).all()
            for i in range(count):
                for j in range(i):
                    lows = np.maximum((centres - sides / 2)[i], (centres - sides / 2)[j])
                    highs = np.minimum((centres + sides / 2)[i], (centres + sides / 2)[j])
                    shared = np.prod(np.maximum(highs - lows, 0)) / min(sides[i], sides[j]) ** 2
                    assert shared <= scenes.MAX_OVERLAP + 1e-9


def test_a_look_is_drawn_as_it_is_turned_and_mirrored(unlit):
    rng = np.random.default_rng(0)
    look = rng.integers(0, 256, (16, 16, 4)).astype(np.uint8)
    look[..., :3] = np.minimum(look[..., :3], look[..., 3:])
    whole = {"size": 16, "side": 16, "centre": (8, 8), "rng": rng}
    draw = {"turn": 0.0, "mirrored": False}
    np.testing.assert_allclose(draw_look(look, **whole, **draw), look, atol=1)
    flipped = draw_look(look, **whole, **draw | {"mirrored": True})
    np.testing.assert_allclose(flipped, look[:, ::-1], atol=1)
    turned = draw_look(look, **whole, **draw | {"turn": 90.0})
    np.testing.assert_allclose(turned, np.rot90(look, -1), atol=1)
    # half as large, one pixel to the right: the mean of four pixels
    small = draw_look(look, size=16, side=8, centre=(9, 8), rng=rng, **draw)
    mean = look.reshape(8, 2, 8, 2, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(small[4:12, 5:13], mean, atol=1)
    assert not small[:4].any() and not small[:, :5].any()


def test_light_changes_brightness_within_bounds():
    look, values = solid((100, 100, 100)), []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        drawn = draw_look(
            look, size=32, side=32, centre=(16, 16), turn=0.0, mirrored=False, rng=rng
        )
        values.append((drawn[4:28, 4:28, 0].min(), drawn[4:28, 4:28, 0].max()))
    low, high = np.array(values).T
    assert 80 < low.min() < 90 and 110 < high.max() < 120
    assert (high - low).max() > 5  # from one side to the other


def test_a_reference_is_larger_than_in_any_scene_and_on_white():
    look = solid((200, 30, 30))
    largest = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scene = draw_scene([look], size=32, sided=[False], rng=rng)
        largest = max(largest, (scene.instance > 0).sum())
        asset = draw_asset(look, size=32, sided=False, rng=rng)
        assert (asset.astype(int).sum(-1) < 500).sum() > 0.75**2 * 32**2
    assert 0.35 * 32**2 < largest < 0.55 * 32**2
    assert scenes.ASSET_SIDES[0] > scenes.LARGEST
    round_look = look.copy()
    round_look[:8] = 0
    asset = draw_asset(round_look, size=32, sided=False, rng=np.random.default_rng(0))
    assert (asset == 255).all(axis=-1).sum() > 100


def test_backgrounds_are_what_their_words_say():
    sides = {"on the left": (16, 0), "on the right": (16, 31)}
    sides |= {"at the top": (0, 16), "at the bottom": (31, 16)}
    seen = set()
    for seed in range(60):
        background = scenes.draw_background(32, np.random.default_rng(seed))
        named = re.findall(
            rf"({'|'.join(sorted(COLORS, key=len, reverse=True))})(?: ({'|'.join(sides)}))?",
            background.words,
        )
        for color, side in named:
            for at in [sides[side]] if side else [(0, 0), (31, 31), (10, 20)]:
                assert np.abs(background.picture[at].astype(int) - COLORS[color]).max() <= 4
        assert len(named) == (1 if background.words.endswith(" background") else 2)
        seen.add("plain" if len(named) == 1 else background.words.split()[3])
    assert seen == {"plain", "fades", "is"}


def instance(*points, size=20):
    """Things of 3 x 3 pixels around (x, y)."""
    ids = np.zeros((size, size), np.uint8)
    for number, (x, y) in enumerate(points, start=1):
        ids[y - 1 : y + 2, x - 1 : x + 2] = number
    return ids


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([(10, 10)], ["in the middle"]),
        ([(4, 10)], ["on the left"]),
        ([(10, 17)], ["at the bottom"]),
        ([(3, 3)], None),  # a corner
        ([(12, 10)], None),  # hardly off the middle
        ([(4, 10), (15, 12)], ["on the left", "on the right"]),
        ([(15, 10), (4, 12)], ["on the right", "on the left"]),
        ([(10, 16), (12, 3)], ["at the bottom", "at the top"]),
        ([(9, 9), (11, 11)], None),
        ([(16, 5), (3, 5), (10, 6)], ["on the right", "on the left", "in the middle"]),
        ([(3, 3), (16, 4), (9, 16)], None),  # a triangle
    ],
)
def test_places_are_said_where_they_are_plain(points, said):
    assert say_places(instance(*points), len(points)) == said


def test_captions():
    words, sides = ["fox", "owl"], ["on the left", "on the right"]
    sky = "a light blue background"
    assert caption(["fox"], background=sky) == "a fox on a light blue background"
    assert (
        caption(words, background=sky, places=sides, order=[1, 0])
        == "an owl on the right and a fox on the left, on a light blue background"
    )
    assert (
        caption([*words, "grapes"], background=sky, replaced=[1])
        == "a fox, <p> and grapes, on a light blue background"
    )
    assert expression("fox", place=sides[0]) == "the fox on the left"
