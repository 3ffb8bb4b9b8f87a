"""Every suite whose layout can be drawn: read, made by a trivial model, scored, shown."""

import json

import cv2
import numpy as np
import pytest
from fake_models import FakeGenerator, as_rgb, fake_tools, score_of, scores_of
from PIL import Image

from unidiff_jax.cameras import Cameras
from unidiff_jax.config import ConfigError
from unidiff_jax.evals.benchmarks import BENCHMARKS, depth, get_benchmark, views
from unidiff_jax.evals.benchmarks.depth import true_depth
from unidiff_jax.evals.benchmarks.editing import decode_runs
from unidiff_jax.evals.benchmarks.miniworld_layouts import LAYOUTS, write_layout
from unidiff_jax.evals.benchmarks.predictions import to_cameras
from unidiff_jax.evals.benchmarks.referring import true_mask
from unidiff_jax.evals.benchmarks.runner import SHUFFLED, run_benchmark
from unidiff_jax.evals.scoreboard import published_beside
from unidiff_jax.paths import as_path

COUNTS = {"gso_views": 1, "gso_pose": 1, "dreambench": 3, "kitti": 2, "nyuv2": 2, "pie_bench": 2}
COUNTS["multibench"] = 1
NUM_ITEMS = {
    "emu_edit": 4,
    "pie_bench": 2,
    "dreambench": 3 * 2 * 4,
    "multibench": 5 * 4,
    "nyuv2": 2,
    "kitti": 2,  # a line without ground truth is no item
    "scannet": 4,
    "diode": 4,
    "eth3d": 4,
    "refcoco": 4,
    "refcoco+": 4,
    "refcocog": 4,
    "refcocog_google": 4,
    "gso_views": 5 * 2,
    "gso_pose": 5,
    "coco_fid": 4,
    "unsplash50": 4 * 2,
}


@pytest.fixture(autouse=True)
def few_views(monkeypatch):
    """Two views of an object are asked for, of fifteen; ETH3D's pictures are small."""
    monkeypatch.setattr(views, "FIRST_TEST", 23)
    monkeypatch.setattr(depth, "ETH3D_SHAPE", (96, 144))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Folders by benchmark."""
    found = {}

    def draw(name):
        if name not in found:
            found[name] = tmp_path_factory.mktemp(name)
            write_layout(name, found[name], count=COUNTS.get(name, 4))
        return found[name]

    return draw


def grey(request):
    return np.zeros((32, 32, 3), np.float32)


def oracle(name, folder):
    """The true answer to each request, as a model would draw it."""
    benchmark = get_benchmark(name)
    items = {item.id: item for item in benchmark.read(as_path(folder), benchmark.splits[0])}

    def answer(request):
        item = items[request.id]
        if benchmark.kind == "depth":
            near = 1 / np.maximum(true_depth(item, name)[0], 0.1)
            return np.repeat((2 * near / near.max() - 1)[..., None], 3, axis=2)
        if benchmark.kind == "cameras":
            pose = to_cameras(np.linalg.inv(item.truth["poses"])[:, :3])
            # another world: turned, moved and scaled
            turn = cv2.Rodrigues(np.array([0.3, -0.2, 0.5]))[0]
            axes = np.diag([-1.0, 1.0, -1.0])  # OpenGL's to left, up, forward
            rotation = turn @ pose.rotation @ axes
            centers = pose.centers @ turn.T * 2.5 + 1.0
            return pose._replace(
                rotation=rotation, translation=-np.einsum("ni,nij->nj", centers, rotation)
            )
        if name.startswith("refcoco"):
            return np.repeat(np.where(true_mask(item), 1.0, -1.0)[..., None], 3, axis=2)
        return as_rgb(item.truth.get("target", item.truth.get("input")).open())

    return answer


@pytest.mark.parametrize("name", sorted(NUM_ITEMS))
def test_reads_makes_scores_and_shows(drawn, tmp_path, name):
    benchmark = get_benchmark(name)
    answer = (lambda request: random_cameras(6)) if benchmark.kind == "cameras" else grey
    generator = FakeGenerator(answer)
    results = run_benchmark(
        benchmark, data=drawn(name), out=tmp_path, generator=generator, tools=fake_tools()
    )
    assert len(generator.asked) == NUM_ITEMS[name]
    assert results["scores"] and all(s["n_failed"] == 0 for s in results["scores"])
    assert all(any("MiniWorld" in d for d in s["deviations"]) for s in results["scores"])
    rows = set(benchmark.rows) | ({SHUFFLED} if benchmark.shuffles else set())
    assert all(set(score["rows"]) == rows for score in results["scores"])
    page = (tmp_path / "report/index.html").read_text()
    assert benchmark.title.split(" (")[0] in page
    again = FakeGenerator(answer)
    run_benchmark(benchmark, data=drawn(name), out=tmp_path, generator=again, tools=fake_tools())
    assert not again.asked


def random_cameras(count):
    rng = np.random.default_rng(0)
    turns = np.stack([cv2.Rodrigues(rng.standard_normal(3))[0] for _ in range(count)])
    ones = np.ones((count, 2))
    return Cameras(turns, rng.standard_normal((count, 3)), ones, 0 * ones)


def run_oracle(name, drawn, tmp_path):
    return run_benchmark(
        get_benchmark(name),
        data=drawn(name),
        out=tmp_path,
        generator=FakeGenerator(oracle(name, drawn(name))),
        tools=fake_tools(),
    )


@pytest.mark.parametrize("name", ["nyuv2", "kitti", "eth3d", "scannet", "diode"])
def test_true_depth_is_nearly_perfect(drawn, tmp_path, name):
    results = run_oracle(name, drawn, tmp_path)
    fit = {"protocol": f"{name}/disparity"}
    assert score_of(results, metric="absrel", **fit)["value"] < 0.01
    assert score_of(results, metric="delta1", **fit)["value"] > 0.99
    assert score_of(results, metric="inverted_fits", **fit)["value"] == 0
    # nearness against depth: only upside down does it fit
    affine = {"protocol": f"{name}/affine"}
    assert score_of(results, metric="inverted_fits", **affine)["value"] == 1
    delta = score_of(results, metric="delta1", **fit)
    assert delta["rows"]["constant"] < 0.99 and delta["rows"][SHUFFLED] < delta["value"]


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_true_masks_are_found(drawn, tmp_path, name):
    results = run_oracle(name, drawn, tmp_path)
    for metric in ("ciou", "miou", "precision_0.9"):
        found = score_of(results, metric=metric)
        assert found["value"] == 1 and found["rows"]["empty"] == 0
        assert found["rows"][SHUFFLED] < 1


def test_true_cameras_in_another_world(drawn, tmp_path):
    results = run_oracle("gso_pose", drawn, tmp_path)
    for metric in ("r_15", "cc_0.1", "cc_0.3"):
        assert score_of(results, metric=metric)["value"] == 1
    assert score_of(results, metric="r_15")["rows"]["random cameras"] < 0.3
    assert score_of(results, metric="r_15")["rows"][SHUFFLED] < 0.3


def test_true_views(drawn, tmp_path):
    results = run_oracle("gso_views", drawn, tmp_path)
    settings, shuffled = ("inputs1", "inputs2", "inputs2_unknown", "inputs3", "inputs3_unknown"), []
    for setting in settings:
        psnr = score_of(results, metric="psnr", protocol=f"gso_views/{setting}")
        assert psnr["value"] == 60 and psnr["n_items"] == 2  # the cap
        assert psnr["rows"]["copy input"] < 40
        shuffled.append(psnr["rows"][SHUFFLED])  # some are the same view in another setting
    assert np.mean(shuffled) < 50
    # the official script's strips are read back
    (strip,) = (tmp_path / "predictions/logs/GSO25/N2_unknownM25").glob("*/0.png")
    with Image.open(strip) as picture:
        assert picture.size == (25 * 256, 256)
    alone = tmp_path / "strips"
    (tmp_path / "predictions/logs/GSO25").rename(alone)
    again = run_benchmark(
        get_benchmark("gso_views"), data=drawn("gso_views"), out=tmp_path / "b", predictions=alone,
        tools=fake_tools(),
    )  # fmt: skip
    assert score_of(again, metric="psnr", protocol="gso_views/inputs1")["value"] == 60


def test_a_copied_reference(drawn, tmp_path):
    results = run_oracle("dreambench", drawn, tmp_path)
    for encoder in ("clip-b32", "dino-s16"):
        metric = "dino" if encoder == "dino-s16" else "clip_i"
        every, others = (
            score_of(results, metric=metric, encoder=encoder, protocol=protocol)
            for protocol in ("dreambench", "dreambench/other_references")
        )
        assert every["value"] == every["rows"]["copy input"] > others["value"]
        assert every["rows"][SHUFFLED] < every["value"]
        assert every["n_items"] == 24


def test_a_copy_of_one_object_of_several(drawn, tmp_path):
    results = run_oracle("multibench", drawn, tmp_path)
    for metric in ("clip_i", "dino"):
        for protocol, count in (("", 20), ("/two", 12), ("/three", 8)):
            found = scores_of(results, metric=metric, protocol=f"multibench{protocol}")[0]
            assert found["n_items"] == count and found["value"] == found["rows"]["copy input"]
            assert found["value"] < 0.9999  # the other objects are not in it
    # every prompt of the five has the one living thing: other prompts' pictures are the same
    assert found["rows"][SHUFFLED] == pytest.approx(found["value"], abs=1e-6)


def test_a_copy_keeps_what_no_edit_touches(drawn, tmp_path):
    results = run_oracle("pie_bench", drawn, tmp_path)
    assert score_of(results, metric="psnr")["value"] == 60
    assert score_of(results, metric="ssim")["value"] == pytest.approx(1)
    assert score_of(results, metric="mse")["value"] == 0
    assert all(s["value"] == 0 for s in scores_of(results, metric="lpips"))
    (own,) = score_of(results, metric="lpips", encoder="lpips-alex")["deviations"][-1:]
    assert "SqueezeNet" in own
    official = score_of(results, metric="lpips", encoder="lpips-squeeze")
    assert not any("SqueezeNet" in text for text in official["deviations"])
    for part in ("", "_unedited", "_edited"):
        found = score_of(results, metric=f"structure_distance{part}", encoder="dino-b8")
        assert found["value"] == found["rows"]["copy input"] == 0 and not found["higher_is_better"]


def test_distances_are_of_the_part_that_they_say(drawn, tmp_path):
    """An edit that changes nothing outside of its mask."""
    items = get_benchmark("pie_bench").read(as_path(drawn("pie_bench")), "test")
    masks = {item.id: decode_runs(item.truth["runs"]) for item in items}

    def inside(request):
        picture = as_rgb(request.given["source"])
        return np.where(masks[request.id][..., None], -picture, picture)

    results = run_benchmark(
        get_benchmark("pie_bench"),
        data=drawn("pie_bench"),
        out=tmp_path,
        generator=FakeGenerator(inside),
        tools=fake_tools(),
    )
    squeeze = {"encoder": "lpips-squeeze"}
    assert score_of(results, metric="lpips", **squeeze)["value"] == 0
    assert score_of(results, metric="structure_distance_unedited")["value"] == 0
    for name, kind in (("lpips", "lpips-squeeze"), ("structure_distance", "dino-b8")):
        assert score_of(results, metric=f"{name}_edited", encoder=kind)["value"] > 0.01
    whole = score_of(results, metric="structure_distance")["value"]
    assert whole == pytest.approx(score_of(results, metric="lpips_whole")["value"]) and whole > 0.01


def test_equal_sets_have_no_distance(drawn, tmp_path):
    folder = drawn("coco_fid")
    items = get_benchmark("coco_fid").read(as_path(folder), "val2014")
    pictures = sorted((folder / "val2014").glob("*.jpg"))
    place = tmp_path / "made"
    place.mkdir()
    for item, path in zip(items, pictures, strict=True):
        Image.open(path).save(place / f"{item.id}.png")
    results = run_benchmark(
        get_benchmark("coco_fid"), data=folder, out=tmp_path, predictions=place, tools=fake_tools()
    )
    for protocol in ("coco_fid/clean", "coco_fid/legacy_pytorch"):
        found = score_of(results, metric="fid", protocol=protocol)
        assert found["value"] == pytest.approx(0, abs=1e-6) and found["ci95"] is None


def test_equal_captions_are_filtered(drawn, tmp_path):
    results = run_oracle("emu_edit", drawn, tmp_path)
    counts = {
        s["captions"]: s["n_items"]
        for s in scores_of(results, metric="clip_dir", encoder="clip-l14", part=None)
    }
    items = get_benchmark("emu_edit").read(as_path(drawn("emu_edit")), "test")
    pairs = [(item.truth["input_caption"], item.truth["output_caption"]) for item in items]
    assert counts == {"all": 4, "captions differ": sum(a != b for a, b in pairs)}
    assert 0 < counts["captions differ"] < 4


def test_parts_of_a_suite_are_scored_alone_too(drawn, tmp_path):
    results = run_oracle("emu_edit", drawn, tmp_path)
    items = get_benchmark("emu_edit").read(as_path(drawn("emu_edit")), "test")
    counts = {part: sum(item.part == part for item in items) for part in {i.part for i in items}}
    assert len(counts) > 1
    for metric in ("l1", "dino"):
        whole = score_of(results, metric=metric, part=None)
        own = {part: score_of(results, metric=metric, part=part) for part in counts}
        assert {part: score["n_items"] for part, score in own.items()} == counts
        sums = [own[part]["value"] * count for part, count in counts.items()]
        assert sum(sums) / 4 == pytest.approx(whole["value"])
        assert all("copy input" in score["rows"] and not score["samples"] for score in own.values())
        assert published_beside(whole) and not any(map(published_beside, own.values()))
    page = (tmp_path / "report/index.html").read_text()
    assert "<option>the whole</option>" in page
    for part in counts:
        assert f"<option>{part}</option>" in page and f'data-part="{part}"' in page
        assert f"Emu Edit test set: {part}" in page
        assert f"| emu_edit, {part} |" in (tmp_path / "report/summary.md").read_text()


def test_the_mark_says_what_was_drawn(tmp_path):
    write_layout("scannet", tmp_path, count=1, seed=3)
    mark = json.loads((tmp_path / "miniworld.json").read_text())
    assert mark == {"benchmark": "scannet", "count": 1, "seed": 3}
    with pytest.raises(ConfigError, match="'geneval' has no drawn layout; there are emu_edit"):
        write_layout("geneval", tmp_path)
    scored = {name for name, benchmark in BENCHMARKS.items() if benchmark.suite is None}
    assert set(LAYOUTS) == {*NUM_ITEMS, "magicbrush"} == scored
