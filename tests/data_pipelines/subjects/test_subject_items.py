"""Items from subjects: fields of every task, true words, references that are no copies, splits."""

import re

import emoji_packages
import numpy as np
import pytest

from data_pipelines import objects
from data_pipelines.subjects.captions import PLACEHOLDER
from data_pipelines.subjects.items import TASK_NAMES, SubjectScenes, num_frames
from data_pipelines.subjects.names import are_apart, phrase
from data_pipelines.subjects.records import Settings, SubjectError, render_subjects
from unidiff_jax.tasks import FrameSpec, Task, get_task

SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    packages = emoji_packages.write_packages(tmp_path_factory.mktemp("packages"))
    folder = tmp_path_factory.mktemp("subjects")
    settings = Settings(size=SIZE, share=0.2, shards=1, seed=7)  # cooks are for training
    render_subjects(folder, **packages, settings=settings, progress="none")
    return folder


@pytest.fixture(scope="module")
def source(folder):
    return SubjectScenes(folder, split="train", size=SIZE)


def items(source, task, *, count=60, seed=0):
    task = get_task(task) if isinstance(task, str) else task
    made = [
        source.item(source[i % len(source)], task, np.random.default_rng([seed, i]))
        for i in range(count)
    ]
    return [item for item in made if item is not None]


def test_tasks(source):
    assert TASK_NAMES == (
        "text_to_image",
        "segment",
        "inpaint",
        "identity",
        "subject",
        "customize",
        "insert",
        "personalize",
        "interleave",
    )
    for name in TASK_NAMES:
        task = get_task(name)
        found = items(source, name)
        assert len(found) >= 10
        for item in found:
            frames = task.fill(item)
            assert len(frames) <= num_frames(task)
            for _, value in frames:
                assert value.shape[:2] == (SIZE, SIZE) and value.dtype in (np.uint8, bool)
            for style in ("token", "context"):
                assert task.write(item, style=style)
        assert max(len(task.fill(item)) for item in found) == num_frames(task)


@pytest.mark.parametrize("task", TASK_NAMES)
def test_items_are_a_function_of_the_generator(source, task):
    first, again = items(source, task, count=12), items(source, task, count=12)
    other = items(source, task, count=12, seed=1)
    for one, two in zip(first, again, strict=True):
        assert one.keys() == two.keys()
        for key in one:
            np.testing.assert_equal(one[key], two[key])
    key = task if task in first[0] else get_task(task).frames[0].field
    same = [np.array_equal(a[key], b[key]) for a, b in zip(first, other, strict=False)]
    assert not any(same)


def middles(item):
    """(x, y) of each thing of an item, in pixels."""
    return {
        words: np.argwhere(item["instance"] == number).mean(axis=0)[::-1]
        for number, words in enumerate(item["words"], start=1)
    }


PLACES = r"(?: (on the left|on the right|at the top|at the bottom|in the middle))?"


def test_captions_are_true(source):
    placed = 0
    for item in items(source, "text_to_image", count=200):
        where, found = middles(item), {}
        for words in item["words"]:
            (match,) = re.findall(
                rf"(?:^|, | and ){phrase(words)}{PLACES}(?= on |,| and )", item["caption"]
            )
            found[words] = match
        placed += any(found.values())
        size = SIZE - 1
        for words, said in found.items():
            x, y = where[words]
            others = [where[name] for name in where if name != words]
            if said in ("on the left", "on the right"):
                sign = 1 if said == "on the left" else -1
                assert all(sign * (other[0] - x) >= 0.15 * SIZE for other in others)
                assert others or sign * (size / 2 - x) >= 0.1 * SIZE
            elif said in ("at the top", "at the bottom"):
                sign = 1 if said == "at the top" else -1
                assert all(sign * (other[1] - y) >= 0.15 * SIZE for other in others)
                assert others or sign * (size / 2 - y) >= 0.1 * SIZE
            elif said and others:
                axis = 0 if "on the left" in found.values() else 1
                (low, high) = sorted(other[axis] for other in others)
                assert low < (x, y)[axis] < high
    assert placed >= 80


def test_masks_and_expressions_mean_one_thing(source):
    for item in items(source, "segment"):
        (number,) = item["shown"]
        np.testing.assert_array_equal(item["mask"], item["instance"] == 1 + number)
        assert item["mask"].sum() >= objects.MIN_SHARE * SIZE**2
        assert item["expression"].startswith(f"the {item['words'][number]}")
        named = [w for w in item["words"] if re.search(rf"\b{w}\b", item["expression"])]
        assert named == [item["words"][number]]


def test_things_of_a_scene_can_be_told_apart(source):
    counts = {len(item["words"]): item["words"] for item in items(source, "text_to_image")}
    assert set(counts) == {1, 2, 3}
    for item in items(source, "text_to_image"):
        words = item["words"]
        assert all(are_apart(a, b) for i, a in enumerate(words) for b in words[:i])
        assert set(np.unique(item["instance"])) == {*range(len(words) + 1)}


def test_holes_hide_a_thing_and_nothing_else(source):
    for item in items(source, "inpaint", count=20):
        (number,) = item["shown"]
        assert item["hole"][item["instance"] == 1 + number].all()
        assert (item["holed"][item["hole"]] == objects.HOLE_GREY).all()
        np.testing.assert_array_equal(item["holed"][~item["hole"]], item["image"][~item["hole"]])


@pytest.mark.parametrize("task", ["customize", "insert"])
def test_references_name_their_things_and_are_no_copies(source, task):
    counts = set()
    for item in items(source, task):
        shown = item["shown"]
        assert len(item["assets"]) == len(shown) == len(set(shown))
        counts.add(len(shown))
        first = 2 if task == "insert" else 1
        names = [item["words"][i] for i in shown]
        assert item["references"] == objects.name_references(names, first=first)
        # in the order in which the caption names them
        at = [item["caption"].index(phrase(name)) for name in names]
        assert at == sorted(at)
        slots = item["slots"]
        for name in names:
            slots = slots.replace(PLACEHOLDER, phrase(name), 1)
        assert slots == item["caption"] and PLACEHOLDER in item["slots"]
        for asset, number in zip(item["assets"], shown, strict=True):
            cut = item["instance"] == 1 + number
            drawn = (asset.astype(int).sum(-1) < 3 * 250).sum()
            assert drawn > 1.15 * cut.sum()  # larger, so that pixels are no answer
    assert counts == ({1} if task == "insert" else {1, 2, 3})


def test_the_canvas_of_an_insertion(source):
    for item in items(source, "insert", count=20):
        hole = (item["canvas"] != item["later"]).any(axis=-1)
        assert hole.any() and (item["canvas"][hole] == objects.HOLE_GREY).all()
        covered = item["canvas"][item["instance"] == 1 + item["shown"][0]]
        assert (covered == objects.HOLE_GREY).all()


def test_a_placeholder_alone_stands_for_one_thing(source):
    task = Task(
        id=63,
        name="placeholder",
        title="",
        frames=(FrameSpec(field="later"),),
        generate=("later",),
        prompt="{slots}",
        base="{slots}",
        metric="identity",
    )
    for item in items(source, task, count=20):
        assert item["slots"].count(PLACEHOLDER) == len(item["assets"]) == len(item["shown"]) == 1


def test_views_show_one_identity(source):
    # the looks drawn in the test differ in brightness; light changes it by less than a quarter
    for item in items(source, "identity"):
        assert item["words"][0] in ("cook", "woman cook", "index pointing up")
        assert len(item["views"]) == item["captions"].count(phrase(item["name"]))
        assert [f"[[img{i}]]" in item["captions"] for i in range(3)].count(True) == len(
            item["views"]
        )
    looks = [item["look"] for item in items(source, "identity", count=len(source))]
    assert set(looks) == set(range(6))
    subjects = {item["name"] for item in items(source, "subject", count=len(source))}
    assert "fox" in subjects


def test_held_out_subjects_are_not_seen_in_training(folder):
    seen = {}
    for split in ("train", "validation", "test"):
        source = SubjectScenes(folder, split=split, size=SIZE)
        found = items(source, "text_to_image", count=len(source))
        seen[split] = {words for item in found for words in item["words"]}
        assert len(found) == len(source) or split != "train"
    assert seen["train"].isdisjoint(seen["validation"] | seen["test"])
    assert seen["validation"].isdisjoint(seen["test"])
    assert sum(map(len, seen.values())) == len(emoji_packages.KEPT)


def test_pictures_larger_than_the_looks(folder):
    assert SubjectScenes(folder, split="test", size=16)[0].words
    with pytest.raises(SubjectError, match=r"looks of 32 pixels a side, for pictures of 48; make"):
        SubjectScenes(folder, split="test", size=48)
