"""Suites that others judge: made, exported, gone on with, and the judge's answers imported.

Files are fabricated in each suite's own format, answers with one that cannot be read.
"""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_models import FakeGenerator
from PIL import Image

from unidiff_jax.config import ConfigError
from unidiff_jax.evals.benchmarks import get_benchmark, judged
from unidiff_jax.evals.benchmarks.base import BenchmarkError
from unidiff_jax.evals.benchmarks.predictions import Store
from unidiff_jax.evals.benchmarks.runner import run_benchmark
from unidiff_jax.evals.judged import SUITES, Judge, get_suite
from unidiff_jax.evals.report import build_report
from unidiff_jax.evals.results import add_scores, read_results
from unidiff_jax.paths import as_path

SIDE = 8


def flat(value):
    return Image.new("RGB", (6, 4), (value, 0, 0))


def png(value):
    buffer = io.BytesIO()
    flat(value).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": f"{value}.png"}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_picture(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    flat(value).save(path)


# ------------------------------------------------------------------------- data, answers and scores


GENEVAL = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"},
    {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "two cups"},
]


def geneval_data(folder):
    write_lines(folder / "evaluation_metadata.jsonl", GENEVAL)


def geneval_answers(folder):
    lines = [
        {"filename": f"x/{i:05d}/samples/{k:04d}.png", "tag": line["tag"], "correct": k < 2}
        | {"prompt": line["prompt"]}
        for i, line in enumerate(GENEVAL)
        for k in range(4)
    ]
    write_lines(folder / "results.jsonl", lines[:-1])  # one picture without a line
    return folder / "results.jsonl"


def compbench_data(folder):
    folder.mkdir()
    (folder / "color_val.txt").write_text("a red cat.\na blue dog.\n")


def compbench_answers(folder):
    lines = [{"question_id": i, "answer": "0.5000"} for i in range(20)]
    lines[3]["answer"] = "nan"
    write_json(folder / "color/annotation_blip/vqa_result.json", lines)
    return folder


QUESTIONS = {"ab": ["entity - whole (cat)", "global - (photo)"], "cd": ["entity - whole (dog)"]}


def dpg_data(folder):
    (folder / "dpg_bench/prompts").mkdir(parents=True)
    with (folder / "dpg_bench/dpg_bench.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "tuple", "question_natural_language"])
        for item, tuples in QUESTIONS.items():
            (folder / f"dpg_bench/prompts/{item}.txt").write_text(f"A text of {item}.\n")
            writer.writerows([item, text, f"Is it {n}?"] for n, text in enumerate(tuples))


def dpg_answers(folder):
    """The script drops a prompt silently."""
    lines = ["/out/cd.png, 1.0, 1.0, 1.0, 0.0, 0.75", "DPG-Bench score: 75.0"]
    folder.mkdir(exist_ok=True)
    (folder / "dpg-bench_1_results.txt").write_text("\n".join(lines) + "\n")
    return folder


def gedit_rows():
    from unidiff_jax.evals.judged.gedit import KINDS

    return [
        {
            "task_type": kind,
            "key": f"k{i}",
            "instruction": f"edit {i}",
            "instruction_language": "en",
            "input_image": png(i),
            "input_image_raw": png(i),
            "Intersection_exist": True,
        }
        for kind in KINDS
        for i in range(2)
    ]


def gedit_data(folder):
    write_table(folder / "data/train-00000-of-00001.parquet", gedit_rows())


def gedit_answers(folder):
    rows = gedit_rows()
    for kind in {row["task_type"] for row in rows}:
        path = folder / f"m_{kind}_all_vie_score.csv"
        path.parent.mkdir(exist_ok=True)
        own = [row for row in rows if row["task_type"] == kind]
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["key", "instruction_language", "sementics_score", "quality_score"])
            bad = kind == "color_alter"
            writer.writerows(
                [row["key"], "en", "" if bad and row["key"] == "k1" else 4, 9] for row in own
            )
    return folder


def imgedit_data(folder):
    edits = {
        str(i): {"id": f"in/{i}.png", "prompt": f"edit {i}", "edit_type": "add"} for i in range(2)
    }
    write_json(folder / "basic_edit.json", edits)
    for i in range(2):
        write_picture(folder / f"in/{i}.png", i)


def imgedit_answers(folder):
    write_json(folder / "result.json", {"0": "a: 3\nb: 4\nc: 5", "1": "I cannot help with that."})
    return folder


def kris_data(folder):
    write_json(folder / "color/annotation.json", {"1": {"ori_img": "1.jpg", "ins_en": "paint it"}})
    write_picture(folder / "color/1.jpg", 1)
    frames = {"ori_img": ["1-1.jpg", "1-2.jpg"], "ins_en": "what next"}
    write_json(folder / "temporal/annotation.json", {"1": frames})
    for number in (1, 2):
        write_picture(folder / f"temporal/1-{number}.jpg", number)


def kris_answers(folder):
    record = {"consistency_score": 4, "consistency_reasoning": "so"}
    write_json(folder / "color/metrics.json", {"1": record})
    write_json(folder / "temporal/metrics.json", {"1": record | {"consistency_score": None}})
    return folder


def omnicontext_data(folder):
    rows = [
        {
            "key": f"k{i}",
            "task_type": "scene_character",
            "instruction": f"draw {i}",
            "input_images": [png(i), png(i + 7)],
            "instruction_language": "en",
        }
        for i in range(2)
    ]
    write_table(folder / "data/train-00000-of-00001.parquet", rows)


def omnicontext_answers(folder):
    guess = "guess_if_cannot_parse | I cannot help."
    lines = [
        {"key": f"k{i}", "task_type": "scene_character", "PF_score": 9, "SC_score": 4}
        | {"PF_score_reason": "good", "SC_score_reason": guess if i else "good"}
        for i in range(2)
    ]
    write_lines(folder / "gpt4dot1/scene_character/score.jsonl", lines)
    return folder


CASES = {
    # data, answers, pictures made, a file of the export, its size, (protocol, metric), its value,
    # how many failed
    "geneval": (geneval_data, geneval_answers, 8, "00001/samples/0003.png", (SIDE, SIDE),
                ("geneval", "overall"), (1 / 2 + 2 / 3) / 2, 1),
    "t2i_compbench": (compbench_data, compbench_answers, 20, "color/samples/a blue dog._000013.png",
                      (512, 512), ("t2i_compbench/color", "color"), 0.5, 1),
    "dpg_bench": (dpg_data, dpg_answers, 8, "cd.png", (2 * SIDE, 2 * SIDE),
                  ("dpg_bench/official", "overall"), 75.0, 1),
    "gedit_bench": (gedit_data, gedit_answers, 22, "fullset/subject-add/en/k1.png", (6, 4),
                    ("gedit_bench/en/fullset", "overall"), 6.0, 1),
    "imgedit_bench": (imgedit_data, imgedit_answers, 2, "1.png", (6, 4),
                      ("imgedit_bench/strict", "overall"), 4.0, 1),
    "kris_bench": (kris_data, kris_answers, 2, "color/1.jpg", (6, 4),
                   ("kris_bench/official", "consistency"), 4.0, 1),
    "omnicontext": (omnicontext_data, omnicontext_answers, 2, "fullset/scene_character/k1.png",
                    (1024, 1024), ("omnicontext/strict", "overall"), 6.0, 1),
}  # fmt: skip


def grey(request):
    return np.zeros((SIDE, SIDE, 3), np.float32)


@pytest.mark.parametrize("name", sorted(CASES))
def test_made_exported_gone_on_with_and_judged(name, tmp_path):
    write, answer, count, file, size, key, value, failed = CASES[name]
    write(tmp_path / "data")
    out, benchmark, suite = tmp_path / "out", get_benchmark(name), get_suite(name)

    def run(generator):
        return run_benchmark(benchmark, data=tmp_path / "data", out=out, generator=generator)

    first = FakeGenerator(grey)
    results = run(first)
    assert len(first.asked) == len(set(first.asked)) == count
    prompts = suite.read_prompts(tmp_path / "data")
    exported = sorted(
        path.relative_to(out / "export").as_posix()
        for path in (out / "export").rglob("*")
        if path.is_file()
    )
    assert exported == sorted(name for prompt in prompts for name in suite.files(prompt))
    with Image.open(out / "export" / file) as picture:
        assert picture.size == size
    assert results["scores"] == [] and results["export"] == str(out / "export")
    kept = json.loads((out / "report/run.json").read_text())
    assert kept["config"]["generator"] == {"model": "fake"} and kept["git"] and kept["packages"]
    assert kept["seeds"] == [0] and kept["dataset_manifest_sha256"]

    # one prediction is lost, and comes out otherwise: it alone is made and exported again
    lost = sorted((out / "predictions").rglob("*.png"))[-1]
    lost.unlink()
    before = {path: path.stat().st_mtime_ns for path in (out / "export").rglob("*.*")}
    again = FakeGenerator(lambda request: grey(request) + 1)
    run(again)
    lost_id = lost.relative_to(out / "predictions").with_suffix("").as_posix()
    assert again.asked == [lost_id]
    (owner,) = [prompt for prompt in prompts if lost_id in judged.picture_names(prompt)]
    changed = {path for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed == {out / "export" / name for name in suite.files(owner)}

    scores = suite.import_results(answer(tmp_path / "answers"), prompts, Judge("x", "2026-11-23"))
    add_scores(out / "report", scores=scores)
    build_report(out / "report")
    report = read_results(out / "report")
    (score,) = [s for s in report["scores"] if (s["protocol"], s["metric"]) == key]
    assert score["value"] == pytest.approx(value) and score["n_failed"] == failed
    assert report["config"] == kept["config"] and report["run_id"] == "out"


def test_every_suite_is_a_benchmark():
    for name, suite in SUITES.items():
        benchmark = get_benchmark(name)
        assert benchmark.suite is suite and benchmark.score is None
    assert get_benchmark("geneval").counts == {"test": 2212}


def test_what_cannot_be_made_is_not_exported(tmp_path):
    kris_data(tmp_path / "data")
    editor = FakeGenerator(grey)
    editor.tasks = ("edit",)
    benchmark = get_benchmark("kris_bench")
    results = run_benchmark(
        benchmark, data=tmp_path / "data", out=tmp_path / "out", generator=editor
    )
    assert [p.name for p in (tmp_path / "out/export").rglob("*.jpg")] == ["1.jpg"]
    (note,) = [text for text in results["deviations"] if "could not be made" in text]
    assert "temporal/1: it needs the task interleave or customize or personalize or subject" in note
    # what was exported goes when its picture does
    (tmp_path / "out/predictions/color/1.png").unlink()
    broken = FakeGenerator(lambda request: grey(request) * np.nan)
    broken.tasks = ("edit", "customize")
    with pytest.raises(BenchmarkError, match="no item has a prediction"):
        run_benchmark(benchmark, data=tmp_path / "data", out=tmp_path / "out", generator=broken)
    assert not list((tmp_path / "out/export").rglob("*.jpg"))


def test_references_are_asked_for_in_every_way(tmp_path):
    omnicontext_data(tmp_path / "data")
    seen = {}

    def remember(request):
        seen[request.id] = request
        return grey(request)

    run_benchmark(
        get_benchmark("omnicontext"),
        data=tmp_path / "data",
        out=tmp_path / "out",
        generator=FakeGenerator(remember),
    )
    request = seen["scene_character/k1"]
    assert request.task == "customize" and [p.size for p in request.given["assets"]] == [(6, 4)] * 2
    assert [p.getpixel((0, 0))[0] for p in request.given["assets"]] == [1, 8]
    assert request.text["references"] == "the object of IMG1 and the object of IMG2"
    assert request.text["slots"] == "<p> <p>: draw 1"
    assert request.text["captions"] == "[[img0]] draw 1 [[img1]] [[img2]]"


def test_processes_export_their_own_prompts(tmp_path, monkeypatch):
    geneval_data(tmp_path / "data")
    benchmark, out = get_benchmark("geneval"), as_path(tmp_path / "out")
    items = benchmark.read(as_path(tmp_path / "data"), "test")
    store = Store(out, "picture", {})
    for item in items:
        store.write(item, flat(9))
    for index in range(2):
        monkeypatch.setattr(judged, "own_pieces", lambda pieces, index=index: pieces[index::2])
        assert judged.export_made(benchmark.suite, items, store=store) == 1
        there = [f"{number:05d}" for number in range(index + 1)]
        assert sorted(path.name for path in (out / "export").iterdir()) == there


def test_scores_of_other_pictures_do_not_stay(tmp_path):
    imgedit_data(tmp_path / "data")
    out = tmp_path / "out"

    def run(**settings):
        run_benchmark(
            get_benchmark("imgedit_bench"),
            data=tmp_path / "data",
            out=out,
            generator=FakeGenerator(grey, **settings),
        )

    run()
    suite = get_suite("imgedit_bench")
    prompts = suite.read_prompts(tmp_path / "data")
    scores = suite.import_results(
        imgedit_answers(tmp_path / "r"), prompts, Judge("x", "2026-11-23")
    )
    add_scores(out / "report", scores=scores)
    run()
    assert read_results(out / "report")["scores"]
    run(num_steps=3)
    assert not (out / "report/results.json").exists()
    assert (
        json.loads((out / "report/run.json").read_text())["config"]["generator"]["num_steps"] == 3
    )


def test_refusals(tmp_path):
    tmp_path.joinpath("data").mkdir()
    geneval = get_benchmark("geneval")
    with pytest.raises(ConfigError, match=r"launch\.judged --suite geneval --pictures DIR"):
        run_benchmark(geneval, data=tmp_path / "data", out=tmp_path, predictions=tmp_path)
    with pytest.raises(BenchmarkError, match=r"evaluation_metadata\.jsonl does not exist"):
        run_benchmark(geneval, data=tmp_path / "data", out=tmp_path, generator=FakeGenerator(grey))
