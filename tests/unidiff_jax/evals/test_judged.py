"""Suites judged elsewhere, on fabricated files in their true formats."""

import csv
import io
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_reports import fake_results, fake_score, write_samples
from PIL import Image

from unidiff_jax.config import ConfigError
from unidiff_jax.evals.judged import (
    SUITES,
    Judge,
    export,
    gedit,
    get_suite,
    imgedit,
    picture_names,
)
from unidiff_jax.evals.judged.viescore import parse_reply
from unidiff_jax.evals.results import add_scores, read_results, write_results
from unidiff_jax.evals.results_schema import OFFICIAL, SUBSTITUTE, ReportError

DATE = "2026-11-23"
SIDE = 8


def picture(value, *, size=(SIDE, SIDE)):
    return Image.new("RGB", size, (value % 256, 0, 0))


def png(value):
    buffer = io.BytesIO()
    picture(value).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": f"{value}.png"}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make(prompts):
    """Pictures of the prompts, each with the number of its prompt and place."""
    places = {prompt.id: i for i, prompt in enumerate(prompts)}
    return lambda prompt: [picture(10 * places[prompt.id] + k) for k in range(prompt.count)]


def export_all(name, data, folder):
    suite = get_suite(name)
    prompts = suite.read_prompts(data)
    assert export(suite, prompts, folder=folder, pictures=make(prompts)) == len(prompts)
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert files == sorted(file for prompt in prompts for file in suite.files(prompt))
    assert export(suite, prompts, folder=folder, pictures=make(prompts)) == 0
    return suite, prompts


def judged(suite, prompts, results, *, judge=None):
    """Entries by (protocol, metric); results.json takes them."""
    scores = suite.import_results(results, prompts, Judge(judge or suite.judge, DATE))
    write_results(results if results.is_dir() else results.parent, results=with_scores(scores))
    found = {(score["protocol"], score["metric"]): score for score in scores}
    assert len(found) == len(scores)
    return found


def with_scores(scores):
    return {**fake_results(), "tasks": [], "scores": scores}


def red(path):
    with Image.open(path) as image:
        return image.convert("RGB").getpixel((0, 0))[0]


# ---------------------------------------------------------------------------- GenEval

GENEVAL = [
    {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": "a cat"},
    {"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"},
    {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "two cups"},
]


def geneval_lines(correct, *, root="/somewhere/images"):
    return [
        {
            "filename": f"{root}/{i:05d}/samples/{k:04d}.png",
            **{"tag": GENEVAL[i]["tag"], "prompt": GENEVAL[i]["prompt"]},
            **{"correct": value, "reason": "", "metadata": "{}", "details": "{}"},
        }
        for i, values in correct.items()
        for k, value in enumerate(values)
    ]


def test_geneval(tmp_path):
    write_lines(tmp_path / "data" / "evaluation_metadata.jsonl", GENEVAL)
    suite, prompts = export_all("geneval", tmp_path / "data", tmp_path / "out")
    assert json.loads((tmp_path / "out/00002/metadata.jsonl").read_text()) == GENEVAL[2]
    assert red(tmp_path / "out/00002/samples/0003.png") == 23
    correct = {0: [True, True, True, False], 1: [True, False, False, False], 2: [True] * 4}
    write_lines(tmp_path / "r" / "results.jsonl", geneval_lines(correct))
    scores = judged(suite, prompts, tmp_path / "r")
    overall = scores["geneval", "overall"]
    assert overall["value"] == pytest.approx((4 / 8 + 4 / 4) / 2)
    assert overall["ci95"][0] <= overall["value"] <= overall["ci95"][1]
    assert scores["geneval", "single_object"]["value"] == pytest.approx(0.5)
    assert overall["n_items"] == 12 and overall["n_failed"] == 0
    assert overall["badge"] == SUBSTITUTE and "3 prompts; the suite has 553." in str(overall)
    assert overall["judge"]["date"] == DATE and len(overall["judge"]["sha256"]) == 64


def test_geneval_counts_pictures_without_a_line(tmp_path):
    write_lines(tmp_path / "evaluation_metadata.jsonl", GENEVAL)
    suite = get_suite("geneval")
    prompts = suite.read_prompts(tmp_path)
    lines = geneval_lines({0: [True, False], 1: [False] * 4, 2: [True]})
    write_lines(tmp_path / "results.jsonl", lines)
    scores = judged(suite, prompts, tmp_path)
    assert scores["geneval", "single_object"]["value"] == pytest.approx(1 / 6)
    assert scores["geneval", "single_object"]["n_failed"] == 2
    assert scores["geneval", "overall"]["n_failed"] == 5
    for change, message in (
        ({"correct": "yes"}, r"results\.jsonl:1: correct is 'yes'"),
        ({"prompt": "a cow"}, "prompt 00000 reads otherwise"),
        ({"filename": "00009/samples/0000.png"}, "no picture of the data"),
        ({"filename": lines[1]["filename"]}, "two results for"),
    ):
        write_lines(tmp_path / "results.jsonl", [{**lines[0], **change}, *lines[1:]])
        with pytest.raises(ReportError, match=message):
            suite.import_results(tmp_path, prompts, Judge("x", DATE))


# ---------------------------------------------------------------------------- T2I-CompBench


def test_compbench(tmp_path):
    for category, texts in {"color": ["a red cat.", "a blue dog."], "complex": ["much."]}.items():
        path = tmp_path / "data" / f"{category}_val.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(texts) + "\n")
    suite, prompts = export_all("t2i_compbench", tmp_path / "data", tmp_path / "out")
    assert red(tmp_path / "out/color/samples/a blue dog._000013.png") == 13
    answers = [f"{i / 20:.4f}" for i in range(20)]
    lines = [{"question_id": i, "answer": answer} for i, answer in enumerate(answers)]
    lines[3]["answer"] = "nan"
    write_json(tmp_path / "out/color/annotation_blip/vqa_result.json", lines[:-1])
    scores = judged(suite, prompts, tmp_path / "out")
    assert list(scores) == [("t2i_compbench/color", "color")]
    score = scores["t2i_compbench/color", "color"]
    valid = [i / 20 for i in range(19) if i != 3]
    assert score["value"] == pytest.approx(np.mean(valid))
    assert (score["n_items"], score["n_failed"]) == (20, 2)
    assert score["badge"] == SUBSTITUTE  # two prompts of 300


@pytest.mark.parametrize("text", ["a_b", "a/b", "", "x" * 250])
def test_compbench_refuses_prompts_that_are_no_file_names(tmp_path, text):
    (tmp_path / "color_val.txt").write_text(f"fine\n{text}\n")
    with pytest.raises(ReportError, match=r"color_val\.txt:2: a prompt is part of a file's name"):
        get_suite("t2i_compbench").read_prompts(tmp_path)


# ---------------------------------------------------------------------------- DPG-Bench

DPG = {
    "partiprompts97": ["entity - whole (cat)", "attribute - color (cat, red)", "global - (photo)"],
    "drawbench3": ["entity - whole (dog)", "relation - spatial (dog, left)"],
}
DPG_FIELDS = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
    "question_natural_language"
).split(",")


def write_dpg(tmp_path):
    data = tmp_path / "dpg_bench"
    (data / "prompts").mkdir(parents=True)
    with (data / "dpg_bench.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, DPG_FIELDS)
        writer.writeheader()
        for item, tuples in DPG.items():
            (data / "prompts" / f"{item}.txt").write_text(f"A text of {item}.\n")
            for i, text in enumerate(tuples):
                question = f"Is it so, {item} {i}?"
                row = dict.fromkeys(DPG_FIELDS, "-") | {"item_id": item, "tuple": text}
                writer.writerow({**row, "question_natural_language": question})
    return data


def write_dpg_results(folder, answers, *, total=None):
    """answers: {item: [answers of each picture to the questions that are asked]}."""
    folder.mkdir(exist_ok=True)
    lines, details, means = [], [], []
    crops = [(0, 0, 8, 8), (8, 0, 16, 8), (0, 8, 8, 16), (8, 8, 16, 16)]
    for item, pictures in answers.items():
        scores = [sum(a == "yes" for a in given) / len(given) for given in pictures]
        means.append(np.mean(scores))
        lines.append(", ".join(map(str, [f"/out/{item}.png", *scores, means[-1]])))
        first = 1 if item == "partiprompts97" else 0
        for crop, given in zip(crops, pictures, strict=True):
            for i, answer in enumerate(given, start=first):
                details.append(f"/out/{item}.png, {crop}, Is it so, {item} {i}?, {answer}")
    total = 100 * np.mean(means) if total is None else total
    lines += ["Model: out", "L1 category scores:", "\tentity: 12.5", f"DPG-Bench score: {total}"]
    (folder / "dpg-bench_1_results.txt").write_text("\n".join(lines) + "\n")
    (folder / "dpg-bench_1_results_detail.txt").write_text("\n".join(details) + "\n")


def test_dpg(tmp_path):
    write_dpg(tmp_path)
    suite, prompts = export_all("dpg_bench", tmp_path, tmp_path / "out")
    with Image.open(tmp_path / "out" / "partiprompts97.png") as grid:
        assert grid.size == (2 * SIDE, 2 * SIDE)
        corners = [grid.getpixel((x, y))[0] for y in (0, SIDE) for x in (0, SIDE)]
    assert corners == [10, 11, 12, 13]  # the second prompt, since they are sorted

    answers = {
        "partiprompts97": [["yes", "yes"], ["yes", "no"], ["no", "no"], ["no", "yes"]],
        "drawbench3": [["yes", "no"], ["yes", "no"], ["yes", "no"], ["no", "no"]],
    }
    write_dpg_results(tmp_path / "r", answers)
    scores = judged(suite, prompts, tmp_path / "r")
    assert scores["dpg_bench/official", "overall"]["value"] == pytest.approx(
        100 * (0.5 + 0.375) / 2
    )
    official = {m: s["value"] for (p, m), s in scores.items() if p == "dpg_bench/official"}
    assert official == {"overall": 43.75, "entity": 0, "attribute": 0, "global": 100, "relation": 0}
    every = {m: s["value"] for (p, m), s in scores.items() if p == "dpg_bench/all_pictures"}
    assert every == {"entity": 75, "attribute": 50, "global": 50, "relation": 0}
    # The question that the script never asks, of four pictures.
    assert scores["dpg_bench/all_pictures", "entity"]["n_failed"] == 4
    assert scores["dpg_bench/official", "entity"]["n_failed"] == 0
    assert scores["dpg_bench/all_pictures", "entity"]["badge"] == SUBSTITUTE
    assert scores["dpg_bench/official", "overall"]["badge"] == OFFICIAL


def test_dpg_counts_dropped_prompts_and_refuses_contradictions(tmp_path):
    suite = get_suite("dpg_bench")
    prompts = suite.read_prompts(write_dpg(tmp_path))
    write_dpg_results(tmp_path / "r", {"partiprompts97": [["yes", "yes"]] * 4})
    (tmp_path / "r/dpg-bench_1_results_detail.txt").unlink()
    score = judged(suite, prompts, tmp_path / "r")["dpg_bench/official", "overall"]
    assert (score["value"], score["n_items"], score["n_failed"]) == (100.0, 2, 1)
    assert "as the official script does" in score["failures"]
    write_dpg_results(tmp_path / "r", {"partiprompts97": [["yes", "yes"]] * 4}, total=88.0)
    with pytest.raises(ReportError, match=r"says DPG-Bench score 88\.0, but its lines give 100"):
        suite.import_results(tmp_path / "r", prompts, Judge("x", DATE))


# ---------------------------------------------------------------------------- GEdit


def write_gedit(tmp_path):
    rows = [
        {
            "task_type": kind,
            "key": f"k{i}",
            "instruction": f"edit {i}",
            "instruction_language": language,
            "input_image": png(i),
            "input_image_raw": png(i),
            "Intersection_exist": i == 0,
        }
        for kind in gedit.KINDS
        for language in ("en", "cn")
        for i in range(2)
    ]
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "train-00000-of-00001.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=5)
    return rows


def write_gedit_csvs(folder, rows, *, score):
    fields = ["key", "edited_image", "instruction", "sementics_score", "quality_score"]
    fields += ["intersection_exist", "instruction_language"]
    folder.mkdir(exist_ok=True, parents=True)
    for kind in gedit.KINDS:
        with (folder / f"my_model_{kind}_all_vie_score.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fields)
            writer.writeheader()
            for row in rows:
                if row["task_type"] == kind and score(row) is not None:
                    semantics, quality = score(row)
                    line = {"key": row["key"], "edited_image": "x", "instruction": "x"}
                    line |= {"sementics_score": semantics, "quality_score": quality}
                    line |= {"intersection_exist": row["Intersection_exist"]}
                    writer.writerow({**line, "instruction_language": row["instruction_language"]})


def test_gedit(tmp_path):
    rows = write_gedit(tmp_path)
    suite, prompts = export_all("gedit_bench", tmp_path / "data", tmp_path / "out")
    place = [p.id for p in prompts].index("subject-add/cn/k1")
    assert red(tmp_path / "out/fullset/subject-add/cn/k1.png") == 10 * place % 256
    assert red(tmp_path / "out/fullset/subject-add/cn/k1_SRCIMG.png") == 1

    def score(row):
        if row["instruction_language"] == "cn":
            return None
        if (row["task_type"], row["key"]) == ("color_alter", "k1"):
            return ("", 5)
        return (4, 9) if row["key"] == "k0" else (1, 4)

    write_gedit_csvs(tmp_path / "r" / "my_model" / "gpt4o", rows, score=score)
    scores = judged(suite, prompts, tmp_path / "r")
    full = scores["gedit_bench/en/fullset", "overall"]
    assert full["value"] == pytest.approx((10 * (6 + 2) / 2 + 6) / 11)
    assert (full["n_items"], full["n_failed"]) == (22, 1)
    assert scores["gedit_bench/en/intersection", "overall"]["value"] == pytest.approx(6)
    assert scores["gedit_bench/en/intersection", "semantics"]["value"] == pytest.approx(4)
    assert {protocol for protocol, _ in scores} == {
        "gedit_bench/en/fullset",
        "gedit_bench/en/intersection",
    }

    replies = [
        {
            **{k: row[k] for k in ("key", "task_type", "instruction_language")},
            "sc": "I'm sorry." if row["key"] == "k1" else '{"score": [4, 8], "reasoning": "x"}',
            "pq": '```json\n{"score": [9, 9]}\n```',
        }
        for row in rows
        if row["instruction_language"] == "en"
    ]
    write_lines(tmp_path / "r" / "replies.jsonl", replies)
    scores = judged(suite, prompts, tmp_path / "r")
    strict = scores["gedit_bench/en/fullset/strict", "overall"]
    assert (strict["value"], strict["n_failed"]) == (pytest.approx(6), 11)
    assert strict["badge"] == SUBSTITUTE


def test_gedit_needs_every_kind(tmp_path):
    rows = write_gedit(tmp_path)
    suite = get_suite("gedit_bench")
    prompts = suite.read_prompts(tmp_path / "data")
    write_gedit_csvs(
        tmp_path / "r",
        rows,
        score=lambda row: None if row["task_type"] == "ps_human" else (1, 1),
    )
    with pytest.raises(ReportError, match="'ps_human' has no valid result"):
        suite.import_results(tmp_path / "r", prompts, Judge("x", DATE))


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"score": [7, 8], "reasoning": "fine"}', 7.0),
        ('Here: {"score": 3}', 3.0),
        ("[7, 8]", None),
        ('{"score": []}', None),
        ('{"score": [11]}', None),
        ('{"score": ["high"]}', None),
        ('{"score": [7, 8}', None),
        ("", None),
    ],
)
def test_a_reply_that_does_not_parse_is_none(reply, value):
    assert parse_reply(reply) == value


# ---------------------------------------------------------------------------- ImgEdit


def test_imgedit(tmp_path):
    edits = {
        f"{i}": {"id": f"in/{i}.png", "prompt": f"edit {i}", "edit_type": kind}
        for i, kind in enumerate(["add", "add", "style", "style"])
    }
    write_json(tmp_path / "data" / "basic_edit.json", edits)
    (tmp_path / "data" / "in").mkdir()
    for i in range(4):
        picture(50 + i).save(tmp_path / "data" / "in" / f"{i}.png")
    suite, prompts = export_all("imgedit_bench", tmp_path / "data", tmp_path / "out")
    assert prompts[2].given[0].read().getpixel((0, 0))[0] == 52
    replies = {
        "0": "Brief reasoning: fine\nPrompt Compliance: 5\nVisual Seamlessness: 4\nPhysical: 4",
        "1": "Prompt Compliance: 4.5\nVisual Seamlessness: 3\nPhysical: 5/5",
        "2": {"error": "rate limit"},
        "3": "Prompt Compliance: 1\nVisual Seamlessness: 2\nPhysical: 3",
    }
    write_json(tmp_path / "out" / "result.json", replies)
    scores = judged(suite, prompts, tmp_path / "out")
    official, strict = (f"imgedit_bench/{name}" for name in ("official", "strict"))
    assert scores[official, "overall"]["value"] == pytest.approx((4.33 + 3 + 2) / 3)
    assert scores[strict, "overall"]["value"] == pytest.approx((13 / 3 + 2) / 2)
    assert [scores[p, "overall"]["n_failed"] for p in (official, strict)] == [1, 2]
    assert scores[official, "add"]["value"] == pytest.approx((4.33 + 3) / 2)
    assert imgedit.strict_score("a: 1\nb: 2\nc: 3\nd: 4") is None


# ---------------------------------------------------------------------------- KRIS


def test_kris(tmp_path):
    data = tmp_path / "data"
    for category, items in {
        "color_change": {"1": {"ori_img": "1.jpg", "ins_en": "paint it"}},
        "temporal_prediction": {
            "1": {"ori_img": ["1-1.jpg", "1-2.jpg"], "instruction": "what next"},
            "2": {"ori_img": ["1-1.jpg", "1-2.jpg"], "instruction": "and then"},
        },
    }.items():
        write_json(data / category / "annotation.json", items)
    suite, prompts = export_all("kris_bench", data, tmp_path / "out")
    assert [len(prompt.given) for prompt in prompts] == [1, 2, 2]
    assert (tmp_path / "out/temporal_prediction/2.jpg").read_bytes()[:2] == b"\xff\xd8"

    def record(score, reasoning="because"):
        return {
            "instruction": "x",
            "consistency_score": score,
            "consistency_reasoning": reasoning,
        }

    write_json(
        tmp_path / "out/color_change/metrics.json",
        {"1": {**record(4), "knowledge_score": 2, "knowledge_reasoning": "so"}},
    )
    write_json(
        tmp_path / "out/temporal_prediction/metrics.json", {"1": record(1, None), "2": record(None)}
    )
    scores = judged(suite, prompts, tmp_path / "out")
    official = scores["kris_bench/official", "consistency"]
    assert (official["value"], official["n_items"], official["n_failed"]) == (2.5, 3, 1)
    strict = scores["kris_bench/strict", "consistency"]
    assert (strict["value"], strict["n_failed"]) == (4.0, 2)
    knowledge = scores["kris_bench/official", "knowledge"]
    assert (knowledge["value"], knowledge["n_items"]) == (2.0, 1)


# ---------------------------------------------------------------------------- OmniContext


def test_omnicontext(tmp_path):
    rows = [
        {
            "key": f"k{i}",
            "task_type": task,
            "instruction": f"draw {i}",
            "input_images": [png(i), png(i + 7)],
            "instruction_language": "en",
        }
        for task in ("single_object", "scene_character")
        for i in range(2)
    ]
    (tmp_path / "data" / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data/data/train-00000-of-00001.parquet")
    suite, prompts = export_all("omnicontext", tmp_path / "data", tmp_path / "out")
    assert prompts[3].given[1].read().getpixel((0, 0))[0] == 8
    guess = "guess_if_cannot_parse | I cannot help."
    for task in ("single_object", "scene_character"):
        lines = [
            {
                "key": f"k{i}",
                "task_type": task,
                "PF_score": 9,
                "PF_score_reason": "good",
                "SC_score": 4 if i == 0 else 1,
                "SC_score_reason": guess if (task, i) == ("single_object", 1) else "good",
            }
            for i in range(2)
        ]
        write_lines(tmp_path / "out/gpt4dot1" / task / "score.jsonl", lines)
    scores = judged(suite, prompts, tmp_path / "out", judge="qwen2.5-vl")
    official = scores["omnicontext/official", "overall"]
    assert (official["value"], official["n_failed"]) == (pytest.approx(4.5), 0)
    strict = scores["omnicontext/strict", "overall"]
    assert (strict["value"], strict["n_failed"]) == (pytest.approx((6 + 4.5) / 2), 1)
    assert official["judge"]["name"] == "qwen2.5-vl"
    assert "Judged by qwen2.5-vl, officially by gpt-4.1." in official["deviations"]
    value = scores["omnicontext/strict", "prompt_following"]["value"]
    assert math.isclose(value, 9)


# ---------------------------------------------------------------------------- all


def test_every_suite_says_what_to_run():
    assert len(SUITES) == 7
    for name, suite in SUITES.items():
        assert suite.name == name and "EXPORT" in suite.command and suite.judge
    with pytest.raises(ConfigError, match="suite 'genevel' is unknown; one of geneval"):
        get_suite("genevel")


def test_an_export_continues_and_takes_the_right_number(tmp_path):
    write_lines(tmp_path / "evaluation_metadata.jsonl", GENEVAL)
    suite = get_suite("geneval")
    prompts = suite.read_prompts(tmp_path)
    assert picture_names(prompts[1]) == [f"00001/{k}" for k in range(4)]
    export(suite, prompts[:2], folder=tmp_path / "out", pictures=make(prompts))
    (tmp_path / "out/00001/samples/0002.png").unlink()
    asked = []

    def pictures(prompt):
        asked.append(prompt.id)
        return make(prompts)(prompt)

    assert export(suite, prompts, folder=tmp_path / "out", pictures=pictures) == 2
    assert asked == ["00001", "00002"]
    with pytest.raises(ValueError, match="00000: 1 pictures made, 4 asked for"):
        export(suite, prompts, folder=tmp_path / "new", pictures=lambda p: [picture(0)])


def test_an_export_stays_in_its_folder(tmp_path):
    write_json(
        tmp_path / "basic_edit.json", {"../x": {"id": "0.png", "prompt": "", "edit_type": "a"}}
    )
    suite = get_suite("imgedit_bench")
    prompts = suite.read_prompts(tmp_path)
    with pytest.raises(ReportError, match=r"'\.\./x\.png' would lie outside of"):
        export(suite, prompts, folder=tmp_path / "out", pictures=make(prompts))
    assert not (tmp_path / "x.png").exists()


def test_a_date_is_a_date(tmp_path):
    write_lines(tmp_path / "evaluation_metadata.jsonl", GENEVAL)
    write_lines(tmp_path / "results.jsonl", geneval_lines({i: [True] * 4 for i in range(3)}))
    suite = get_suite("geneval")
    with pytest.raises(ReportError, match="date 'yesterday' is not an ISO date"):
        suite.import_results(tmp_path, suite.read_prompts(tmp_path), Judge("x", "yesterday"))


def test_scores_are_added_to_a_run(tmp_path):
    score = fake_score(samples=None)
    with pytest.raises(ReportError, match="whose scores are these"):
        add_scores(tmp_path, scores=[score])
    run = {**fake_results(), "tasks": []}
    run = {key: value.item() if hasattr(value, "item") else value for key, value in run.items()}
    (tmp_path / "run.json").write_text(json.dumps({**run, "curves": {}}))
    add_scores(tmp_path, scores=[score])
    add_scores(tmp_path, scores=[{**score, "value": 0.5}, fake_score(metric="dino")])
    assert [s["value"] for s in read_results(tmp_path)["scores"]] == [0.5, score["value"]]
    write_samples(tmp_path, task="magicbrush")
