"""Expressions are read back by an independent little parser and must name one object."""

import re

import numpy as np
import pytest

from data_pipelines.miniworld import edits, language, video
from data_pipelines.miniworld.render import camera_to_world, intrinsics
from data_pipelines.miniworld.scene import COLORS, SHAPES, SIZES, TEXTURES, sample_scene

SCENES = [
    sample_scene(np.random.default_rng([1, seed]), split=split)
    for split in ("train", "heldout")
    for seed in range(30)
]
PATTERN = re.compile(
    r"the (?:(?P<extreme>leftmost|rightmost|nearest|farthest) )?(?P<noun>[a-z ]+?)"
    r"(?: (?P<relation>left of|right of|in front of|behind) the (?P<anchor>[a-z ]+))?"
)


def seen_at(scene, body):
    """(x in the image, depth) of an object's centre, through the camera matrices."""
    to_camera = np.linalg.inv(camera_to_world(scene.camera))
    local = to_camera[:3, :3] @ np.array(body.center) + to_camera[:3, 3]
    x, _, depth = intrinsics() @ (local * [1, -1, -1])
    return x / depth, depth


def nouns(scene, text):
    found = list(scene.objects)
    for word in text.split():
        if word in COLORS:
            found = [o for o in found if o.color == word]
        elif word in SHAPES:
            found = [o for o in found if o.shape == word]
        elif word in SIZES:
            found = [o for o in found if o.size == word]
        elif word in TEXTURES:
            found = [o for o in found if o.texture == TEXTURES.index(word)]
        else:
            assert word == "object"
    return found


def resolve(scene, expression):
    match = PATTERN.fullmatch(expression)
    assert match, expression
    found = nouns(scene, match["noun"])
    if match["extreme"]:
        axis, sign = {
            "leftmost": (0, 1),
            "rightmost": (0, -1),
            "nearest": (1, 1),
            "farthest": (1, -1),
        }[match["extreme"]]
        found = [min(found, key=lambda o: sign * seen_at(scene, o)[axis])]
    if match["relation"]:
        (anchor,) = nouns(scene, match["anchor"])
        ax, adepth = seen_at(scene, anchor)
        holds = {
            "left of": lambda x, depth: x < ax,
            "right of": lambda x, depth: x > ax,
            "in front of": lambda x, depth: depth < adepth,
            "behind": lambda x, depth: depth > adepth,
        }[match["relation"]]
        found = [o for o in found if o is not anchor and holds(*seen_at(scene, o))]
    return [o.id for o in found]


def words(text):
    return text.replace(",", "").split()


def test_every_reference_names_its_object_alone():
    kinds = set()
    for scene in SCENES:
        for body in scene.objects:
            for reference in language.references(scene, body.id):
                assert resolve(scene, reference.expression) == [body.id], reference
                kinds.add(reference.kind)
    assert kinds == {"attribute", "extreme", "relation"}


def test_most_objects_can_be_referred_to():
    total = [bool(language.references(s, o.id)) for s in SCENES for o in s.objects]
    assert np.mean(total) > 0.95


def test_all_text_is_in_the_vocabulary():
    rng = np.random.default_rng(0)
    texts = []
    for scene in SCENES:
        texts += language.captions(scene, rng, num_captions=4)
        texts += [edit.instruction for edit in edits.sample_edits(scene, rng, num_edits=5)]
        texts += [video.frames(scene, rng, 3, kinds=(kind,)).description for kind in video.KINDS]
        for body in scene.objects:
            texts += [r.expression for r in language.references(scene, body.id)]
    used = {word for text in texts for word in words(text)}
    assert used <= language.VOCABULARY
    assert all(text == text.lower() for text in texts)


@pytest.mark.parametrize(
    ("description", "instructions"),
    [
        (
            "the red cube disappears",
            {"remove the red cube", "delete the red cube", "take the red cube away"},
        ),
        (
            "a small blue sphere appears left of the red cube",
            {f"{verb} a small blue sphere left of the red cube" for verb in ("add", "put")},
        ),
        (
            "the cube slides to the left",
            {"move the cube to the left", "slide the cube to the left"},
        ),
        ("the camera moves to the right", {"the camera moves to the right"}),
        ("the camera rises", {"the camera rises"}),
        ("the light turns to the left", {"the light turns to the left"}),
    ],
)
def test_descriptions_of_clips_become_instructions(description, instructions):
    rng = np.random.default_rng(0)
    assert {language.as_instruction(rng, description) for _ in range(40)} == instructions


def test_every_clip_is_told_in_the_words_of_edits():
    rng = np.random.default_rng(0)
    for scene in SCENES[:20]:
        for kind in ("move", "appear", "vanish"):
            clip = video.frames(scene, rng, 2, kinds=(kind,))
            if clip.kind == kind:  # otherwise the light turned
                told = language.as_instruction(rng, clip.description)
                assert (
                    told.split()[0]
                    in {
                        "move": ("move", "slide"),
                        "appear": ("add", "put"),
                        "vanish": ("remove", "delete", "take"),
                    }[kind]
                )
                assert {*words(told)} <= language.VOCABULARY


def test_the_first_caption_names_everything():
    rng = np.random.default_rng(0)
    for scene in SCENES:
        first, second = language.captions(scene, rng)
        assert first and second
        assert f"a {scene.floor} floor" in first
        for body in scene.objects:
            assert f"a {language.describe(body)}" in first


def test_counts_are_right():
    rng = np.random.default_rng(0)
    numbers = {"one": 1, "two": 2, "three": 3, "four": 4, "a": 1}
    checked = 0
    for scene in SCENES:
        for caption in language.captions(scene, rng, num_captions=8)[1:]:
            if any(size in words(caption) for size in SIZES):
                continue
            on_floor = re.sub(r" on (a|the) \w+ floor$", "", caption).removeprefix("there ")
            total = sum(numbers.get(word, 0) for word in words(on_floor))
            assert total == len(scene.objects), caption
            checked += 1
    assert checked > 20


def test_an_absent_object_is_an_error():
    with pytest.raises(KeyError, match="no object 99"):
        language.references(SCENES[0], 99)
