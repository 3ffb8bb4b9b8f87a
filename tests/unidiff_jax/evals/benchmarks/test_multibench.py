"""MultiBench made again: counts and templates of the paper, files, scores."""

import collections

import numpy as np
import pytest
from fake_models import FakeGenerator, as_rgb, fake_tools, score_of
from PIL import Image

from unidiff_jax.evals.benchmarks import get_benchmark, multibench
from unidiff_jax.evals.benchmarks.base import BenchmarkError
from unidiff_jax.evals.benchmarks.runner import SHUFFLED, choose_task, run_benchmark
from unidiff_jax.paths import as_path

MULTIBENCH = get_benchmark("multibench")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten objects a category, of noise; dogs in two pictures."""
    folder = tmp_path_factory.mktemp("references")
    rng = np.random.default_rng(0)

    def write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)

    for category in multibench.CATEGORIES:
        for number in range(multibench.OBJECTS - (category == "living")):
            write(folder / category / f"{category} {number}.png")
    for number in range(2):
        write(folder / f"living/dog/{number:02d}.jpg")
    (folder / "living/notes.txt").write_text("mine")
    return folder


@pytest.fixture(scope="module")
def items(folder):
    return list(MULTIBENCH.read(as_path(folder), "test"))


def test_counts_and_templates_are_the_papers(items):
    assert len(items) == 9200 == MULTIBENCH.counts["test"]
    sizes = collections.Counter(len(item.truth["references"]) for item in items)
    assert sizes == {2: 4 * 300, 3: 4 * 2000}
    assert len({item.truth["prompt"] for item in items}) == 2300
    assert {item.seed for item in items} == {0, 1, 2, 3}
    first = min(items, key=lambda item: item.id)
    assert first.id == "0000_0" and first.truth["prompt"] == "a dog wearing a wearing 0"
    assert first.text["slots"] == "<p> wearing <p>"
    assert first.text["references"] == "the dog of IMG1 and the wearing 0 of IMG2"
    assert [p.name for p in first.given["assets"]] == ["living/dog/00.jpg", "wearing/wearing 0.png"]
    assert [len(own) for own in first.truth["references"]] == [2, 1]
    last = max(items, key=lambda item: item.id)
    assert last.truth["prompt"] == "a living 8 wearing a wearing 9, is eating a food 9"
    assert last.text["slots"] == "<p> wearing <p>, is eating <p>"
    # the first few are of every template
    assert len({item.text["slots"] for item in items[:400]}) == len(multibench.TEMPLATES)


def test_a_model_of_interleaved_prompts_is_asked_for_them():
    generator = FakeGenerator(None)
    generator.tasks = ("text_to_image", "customize", "interleave")
    assert choose_task(MULTIBENCH, generator) == "interleave"
    assert choose_task(get_benchmark("dreambench"), generator) == "interleave"


def test_a_collage_of_the_objects_is_nearer_to_them_than_to_others(folder, items, tmp_path):
    by_id = {item.id: item for item in items}

    def mean(request):
        shown = [as_rgb(own[0].open()) for own in by_id[request.id].truth["references"]]
        return np.mean(shown, axis=0)

    results = run_benchmark(
        MULTIBENCH,
        data=folder,
        out=tmp_path,
        generator=FakeGenerator(mean),
        tools=fake_tools(),
        limit=40,
    )
    for metric in ("clip_i", "dino"):
        found = score_of(results, metric=metric, protocol="multibench", encoder=(
            "clip-b32" if metric == "clip_i" else "dino-s16"))  # fmt: skip
        assert found["value"] > found["rows"][SHUFFLED] + 0.01
        assert found["value"] > found["rows"]["copy input"]
        assert any("not the 9200" in text for text in found["deviations"])


def test_missing_pictures(folder, tmp_path):
    (tmp_path / "living").mkdir()
    with pytest.raises(BenchmarkError, match="it has: living 0, wearing 0, toy 0, food 0"):
        MULTIBENCH.read(as_path(tmp_path), "test")
    Image.new("RGB", (4, 4)).save(tmp_path / "living/dog.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "living/dog.jpg")
    with pytest.raises(BenchmarkError, match="has two objects 'dog'"):
        MULTIBENCH.read(as_path(tmp_path), "test")
