"""MultiBench made again: counts and templates of the paper, files, scores."""

import collections
import json

import numpy as np
import pytest
from PIL import Image

from launch import multibench as command
from unidiff_jax.config import ConfigError
from unidiff_jax.evals import multibench
from unidiff_jax.prompts import ImageReference, parse_prompt


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    for category in multibench.CATEGORIES:
        (folder / category).mkdir()
        for number in range(multibench.OBJECTS):
            picture = Image.fromarray(np.full((8, 8, 3), 20 * number, np.uint8))
            picture.save(folder / category / f"{category} {number}.png")
    return folder


@pytest.fixture(scope="module")
def prompts(folder):
    return list(multibench.make_prompts(multibench.read_references(folder)))


def test_counts_and_templates_are_the_papers(prompts):
    assert len(prompts) == 2300
    sizes = collections.Counter(len(prompt.objects) for prompt in prompts)
    assert sizes == {2: 300, 3: 2000} and multibench.SAMPLES == 4
    assert [prompt.number for prompt in prompts] == list(range(2300))
    assert len({prompt.text for prompt in prompts}) == 2300
    assert prompts[0].text == "a living 0 wearing a wearing 0"
    assert prompts[-1].text == "a living 9 wearing a wearing 9, is eating a food 9"
    for prompt in prompts[::97]:
        pictures = [part for part in prompt.parts if isinstance(part, ImageReference)]
        assert [picture.source.stem for picture in pictures] == list(prompt.objects.values())


def test_prompts_are_written_as_they_are_read(prompts, tmp_path):
    multibench.write_prompts(tmp_path, prompts)
    lines = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert len(lines) == 2300 and lines[5]["text"] == prompts[5].text
    assert lines[5]["objects"] == prompts[5].objects
    parts = parse_prompt(lines[5]["prompt"])
    assert [getattr(p, "source", p) for p in parts] == [
        str(getattr(p, "source", p)) for p in prompts[5].parts
    ]


def test_a_stopped_run_continues(prompts, tmp_path):
    calls = []

    def pipeline(task, *, slots, assets, seed):
        calls.append((task, slots, len(assets), seed))
        return {"later": Image.new("RGB", (4, 4))}

    chosen = [prompts[0], prompts[400]]
    for _ in range(2):
        command.sample(pipeline, chosen, tmp_path)
    assert len(calls) == 8 and calls[0] == ("interleave", "<p> wearing <p>", 2, 0)
    assert calls[4][1:3] == ("<p> wearing <p>, is playing with <p>", 3)
    (tmp_path / "samples" / "00000_3.png").unlink()
    command.sample(pipeline, chosen, tmp_path)
    assert calls[8:] == [("interleave", "<p> wearing <p>", 2, 3)]


def test_scores(prompts):
    names = {name for prompt in prompts for name in prompt.objects.values()}
    vectors = dict(zip(sorted(names), np.eye(len(names)), strict=True))
    chosen = prompts[:3] + prompts[-3:]
    perfect = np.stack([sum(vectors[n] for n in p.objects.values()) for p in chosen])
    perfect /= np.linalg.norm(perfect, axis=1, keepdims=True)
    samples = np.repeat(perfect[:, None], 4, axis=1)
    found = multibench.score(chosen, samples=samples, references=vectors, texts=perfect)
    assert found.text == pytest.approx(1) and found.exchanged == pytest.approx(0)
    assert found.pictures == pytest.approx((2**-0.5 + 3**-0.5) / 2)
    without = multibench.score(chosen, samples=samples, references=vectors)
    assert np.isnan(without.text) and without.pictures == found.pictures


def test_missing_pictures(folder, tmp_path):
    (tmp_path / "living").mkdir()
    with pytest.raises(ConfigError, match="it has: living 0, wearing 0, toy 0, food 0"):
        multibench.read_references(tmp_path)
