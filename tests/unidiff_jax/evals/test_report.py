"""The page says what the files say, and nothing is shown from files that are broken."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from fake_reports import NUM_ITEMS, fake_results, fake_score, fake_task, write_samples

from unidiff_jax.config import config_hash
from unidiff_jax.evals import charts, report
from unidiff_jax.evals.results import (
    SampleWriter,
    git_state,
    read_results,
    write_results,
)
from unidiff_jax.evals.results_schema import SCHEMA_VERSION, ReportError

VOID = {"meta", "img", "br", "rect", "circle", "line", "path"}


class NumberParser(HTMLParser):
    """Elements with data-key, the text outside of them and of drawings, and all sources."""

    def __init__(self):
        super().__init__()
        self.numbers, self.sources, self.text, self.open = [], [], [], []
        self._current = None

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        self.sources += [attributes[k] for k in ("src", "href") if k in attributes]
        if "data-key" in attributes:
            self._current = {**attributes, "text": ""}

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag
        if tag == "data":
            self.numbers.append(self._current)
            self._current = None

    def handle_data(self, data):
        if self._current is not None:
            self._current["text"] += data
        elif self.open and self.open[-1] not in ("style", "title", "text"):
            self.text.append(data)


def parse(path):
    parser = NumberParser()
    parser.feed(path.read_text(encoding="utf-8"))
    assert not parser.open
    return parser


def resolve(document, pointer):
    """A JSON pointer (RFC 6901)."""
    for key in pointer.split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        document = document[int(key) if isinstance(document, list) else key]
    return document


def read_lines(folder, *, task):
    text = (folder / "samples" / f"{task}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path):
    write_results(tmp_path, results=fake_results())
    for task in ("depth", "outside"):
        write_samples(tmp_path, task=task)
    return tmp_path


# ---------------------------------------------------------------------------- the page


def test_every_number_on_the_page_equals_the_files(folder):
    page = parse(report.build_report(folder))
    results = json.loads((folder / "results.json").read_text())
    sources = {
        f"samples/{task}.jsonl": read_lines(folder, task=task) for task in ("depth", "outside")
    }
    for number in page.numbers:
        document = sources[number["data-source"]] if "data-source" in number else results
        expected = resolve(document, number["data-key"])
        assert json.loads(number["data-value"]) == expected
        assert number["text"] == charts.format_number(expected)

    shown = {number["data-key"] for number in page.numbers}
    for i, task in enumerate(results["tasks"]):
        keys = ("value", "ci95/0", "ci95/1", "floor", "shuffled", "ceiling", "n_items", "n_failed")
        assert {f"/tasks/{i}/{key}" for key in keys} <= shown
        assert {f"/tasks/{i}/floors/{name}" for name in task["floors"]} <= shown
    assert "/tasks/2/secondary/a~1b~0c" in shown
    assert "/curves/training loss~1depth/666/1" in shown
    assert {"/steps", "/params", "/wall_clock_seconds/train"} <= shown


def test_no_number_is_printed_outside_of_a_data_element(folder):
    """What remains are versions, the config, and reasons, which are copied from the files."""
    page = parse(report.build_report(folder))
    results = json.loads((folder / "results.json").read_text())
    copied = json.dumps(results["config"], indent=2) + "".join(
        task["reason"] for task in results["tasks"]
    )
    for text in page.text:
        for decimal in re.findall(r"\d+\.\d+", text):
            is_version = text.strip() in results["packages"].values()
            assert is_version or decimal in copied, text


def test_the_page_is_one_file(folder):
    html = report.build_report(folder).read_text()
    page = parse(folder / "index.html")
    assert all(source.startswith(("data:image/png;base64,", "#task-")) for source in page.sources)
    assert len([s for s in page.sources if s.startswith("data:")]) == 2 * 16 * 3
    assert "<script>" not in html and "@import" not in html and "url(" not in html
    assert not re.search(r"https?://", html)


def test_the_page_comes_from_the_files_alone_and_is_reproducible(folder):
    first = report.build_report(folder).read_bytes()
    summary = (folder / "summary.md").read_bytes()
    (folder / "index.html").unlink()
    (folder / "summary.md").write_text("stale")
    assert report.main([str(folder)]) == 0
    assert (folder / "index.html").read_bytes() == first
    assert (folder / "summary.md").read_bytes() == summary


def test_the_first_and_the_worst_items_are_shown(folder):
    html = report.build_report(folder).read_text()
    articles = re.findall(r'<article class="task" id="task-(\w+)">(.*?)</article>', html, re.DOTALL)
    for task, article in articles:
        if task == "edit":
            assert "No samples were stored" in article
            continue
        ids = re.findall(r'<span class="id">([^<]+)</span>', article)
        samples = read_lines(folder, task=task)
        assert ids[:8] == [f"scene-{i:03d}" for i in range(8)]
        worst = sorted(samples, key=lambda s: s["value"] * (-1 if task == "outside" else 1))
        assert ids[8:] == [sample["id"] for sample in worst[:8]]


def test_text_is_escaped(folder):
    html = report.build_report(folder).read_text()
    assert "<b>markup" not in html and "&lt;b&gt;markup" in html
    assert "prompt 0 &lt;of&gt; depth" in html


def test_verdicts_floors_and_badge_are_on_both_documents(folder):
    html = report.build_report(folder).read_text()
    summary = (folder / "summary.md").read_text()
    results = json.loads((folder / "results.json").read_text())
    assert [t["verdict"] for t in results["tasks"]] == ["learned", "not learned", "not learned"]
    for text in (html, summary):
        assert "miniature" in text and "not learned" in text and "c0ffee" in text
        for task in results["tasks"]:
            assert charts.format_number(task["value"]) in text
    assert r"copy\|paste" in summary
    rows = [line for line in summary.splitlines() if line.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {9}


def test_bars_put_better_to_the_right():
    tasks = fake_results()["tasks"]
    higher, lower = charts.make_bar(tasks[0]), charts.make_bar(tasks[2])
    assert higher.floor < higher.low < higher.value < higher.high < higher.ceiling
    assert lower.low < lower.value < lower.high < lower.floor
    assert charts.make_bar(tasks[1]).ceiling is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (0, "0"),
        (2512384, "2,512,384"),
        (0.0, "0.000"),
        (-0.12345, "-0.123"),
        (9.9996, "10.00"),
        (13.25678, "13.26"),
        (1234.56, "1,234.6"),
        (0.0003, "3.0e-04"),
    ],
)
def test_numbers_are_formatted_one_way(value, text):
    assert charts.format_number(value) == text


# ---------------------------------------------------------------------------- broken folders


def edit_line(folder, *, number, change):
    path = folder / "samples" / "depth.jsonl"
    lines = path.read_text().splitlines()
    lines[number - 1] = change(lines[number - 1])
    path.write_text("\n".join(lines) + "\n")


def changed(**changes):
    return lambda line: json.dumps({**json.loads(line), **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda line: line[:-5], r"samples/depth\.jsonl:3: not JSON"),
        (lambda line: "", r"samples/depth\.jsonl:3: not JSON"),
        (lambda line: "[1]", r"samples/depth\.jsonl:3: .*must be an object"),
        (lambda line: line.replace('"value"', '"score"'), r"depth\.jsonl:3: value is missing"),
        (lambda line: re.sub(r'"value": [\d.]+', '"value": NaN', line), r":3: not JSON \(NaN"),
        (changed(value="high"), r"depth\.jsonl:3: value is \"high\"; expected a finite number"),
        (changed(id="scene-000"), r"depth\.jsonl:3: id 'scene-000' is that of line 1"),
        (changed(id="../x"), r"depth\.jsonl:3: id is"),
        (changed(images={"photo": "img/a.png"}), r"depth\.jsonl:3: images is"),
        (changed(images={"input": "img/a.png"}), r":3: image 'img/a\.png' does not exist"),
        (changed(images={"input": "results.json"}), r":3: image path .* is not under img/"),
        (changed(images={"input": "img/../../a.png"}), r":3: image path .* is not under img/"),
    ],
)
def test_a_bad_line_is_named(folder, change, message):
    edit_line(folder, number=3, change=change)
    with pytest.raises(ReportError, match=message):
        report.build_report(folder)


def test_a_damaged_picture_is_named(folder):
    path = folder / "img" / "depth" / "scene-001_output.png"
    path.write_bytes(path.read_bytes()[:40])
    message = r"samples/depth\.jsonl:2: image 'img/depth/scene-001_output\.png' is not a readable"
    with pytest.raises(ReportError, match=message):
        report.build_report(folder)


def test_samples_without_a_task_are_named(folder):
    write_samples(folder, task="unknown")
    with pytest.raises(ReportError, match=r"unknown\.jsonl: results\.json has no task"):
        report.build_report(folder)


def test_a_selection_of_items_is_refused(folder):
    path = folder / "samples" / "depth.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ReportError, match=r"depth\.jsonl: 299 lines, .* n_items 300"):
        report.build_report(folder)


def test_the_shell_command_reports_instead_of_tracing(folder, capsys):
    (folder / "results.json").write_text("{")
    assert report.main([str(folder)]) == 1
    assert "error: results.json: not JSON" in capsys.readouterr().err
    (folder / "results.json").unlink()
    assert report.main([str(folder)]) == 1
    assert "does not exist" in capsys.readouterr().err


# ---------------------------------------------------------------------------- results


def test_results_survive_the_round_trip(tmp_path):
    results = fake_results()
    loaded = json.loads(write_results(tmp_path, results=results).read_text())
    assert loaded["schema_version"] == SCHEMA_VERSION
    assert loaded["config_hash"] == config_hash(results["config"])
    assert loaded["tasks"] == results["tasks"]
    assert loaded["steps"] == 2000


def test_all_faults_are_reported_at_once(tmp_path):
    results = {**fake_results(), "seeds": [], "params": 1.5}
    del results["device"]
    with pytest.raises(ReportError) as caught:
        write_results(tmp_path, results=results)
    for fault in ("seeds is []", "params is 1.5", "device is missing; expected text"):
        assert fault in str(caught.value)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": float("nan")}, r"tasks\[0\]\.value is NaN; expected a finite number"),
        ({"ci95": [1.0, 0.0]}, r"tasks\[0\]\.ci95"),
        ({"verdict": "learnt"}, r"tasks\[0\]\.verdict is \"learnt\"; expected 'learned' or"),
        ({"floor": 0.3}, r"floor is not floors\['mean'\]"),
        ({"floor": -0.4, "floor_name": "ramp"}, "'ramp' is not the best floor"),
        ({"n_items": 299}, "'learned' needs 300 items and 3 seeds"),
        ({"seeds": [0, 1]}, "'learned' needs 300 items and 3 seeds"),
        ({"value": -0.1}, "'learned' needs a value beyond floor and shuffled"),
        ({"shuffled": 0.9}, "'learned' needs a value beyond floor and shuffled"),
        ({"task": "edit"}, "two tasks are called 'edit'"),
    ],
)
def test_an_entry_that_contradicts_the_rule_is_refused(tmp_path, change, message):
    results = fake_results()
    results["tasks"][0].update(change)
    with pytest.raises(ReportError, match=message):
        write_results(tmp_path, results=results)


def test_the_seeds_named_are_the_seeds_judged():
    values = np.ones((4, 2))
    with pytest.raises(ReportError, match="depth: 3 seeds named, 2 judged"):
        fake_task("depth", values=values, floors={"copy": np.zeros(4)})


# ---------------------------------------------------------------------------- scores


def test_a_run_may_have_scores_alone(tmp_path):
    scores = [
        fake_score(),
        fake_score(captions="captions differ", n_items=200, samples=None),
        fake_score(score=12.3, metric="fid", reference="none", encoder=None, samples=None),
    ]
    write_results(tmp_path, results={**fake_results(), "tasks": [], "scores": scores})
    loaded = read_results(tmp_path)
    assert loaded["scores"] == scores
    assert loaded["scores"][0]["ci95"][0] < loaded["scores"][0]["value"]
    assert loaded["scores"][2]["ci95"] is None


def test_results_of_the_first_version_are_still_read(tmp_path):
    path = write_results(tmp_path, results=fake_results())
    content = json.loads(path.read_text())
    del content["scores"]
    path.write_text(json.dumps({**content, "schema_version": 1}))
    assert read_results(tmp_path)["scores"] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"badge": "official"}, r"scores\[0\]\.badge is .official.; expected 'official protocol'"),
        ({"reference": "target"}, r"reference is .target.; expected 'input' or 'gt'"),
        ({"metric": "CLIP I"}, r"metric is .CLIP I.; expected an id"),
        ({"protocol": "emu_edit/test"}, "protocol must begin with the benchmark, 'magicbrush'"),
        ({"encoder": {"name": "clip"}}, r"encoder is .* expected \{'name'"),
        ({"encoder": {"name": "c", "sha256": "x", "preprocess": "p"}}, "64 hexadecimal digits"),
        ({"judge": {"name": "gpt-4.1"}}, r"judge is .* expected \{'name': text, 'date'"),
        ({"n_failed": 2}, "failures must say what became of the n_failed items"),
        ({"failures": "left out"}, "failures must say"),
        ({"n_failed": NUM_ITEMS + 1, "failures": "x"}, "n_failed exceeds n_items"),
        ({"deviations": ["Other weights."]}, "with deviations cannot have the badge 'official"),
        ({"samples": "depth"}, "samples is 'depth', the name of a task"),
        ({"rows": {"copy": float("nan")}}, r"rows is .* expected \{name: finite number\}"),
    ],
)
def test_a_score_that_contradicts_itself_is_refused(tmp_path, change, message):
    with pytest.raises(ReportError, match=message):
        write_results(tmp_path, results={**fake_results(), "scores": [fake_score(**change)]})


def test_one_number_is_not_given_twice(tmp_path):
    results = {**fake_results(), "scores": [fake_score(), fake_score(title="Again")]}
    with pytest.raises(ReportError, match=r"the same number as scores\[0\]"):
        write_results(tmp_path, results=results)


def test_a_run_of_nothing_is_refused(tmp_path):
    with pytest.raises(ReportError, match="tasks and scores are empty"):
        write_results(tmp_path, results={**fake_results(), "tasks": []})


def test_git_state_outside_of_a_checkout_is_unknown(tmp_path):
    assert git_state(tmp_path) == {"sha": "unknown", "dirty": None}


def test_sample_writer_refuses_what_the_page_could_not_show(tmp_path):
    image = np.zeros((4, 4, 3))
    item = {"prompt": "", "value": 0.5, "seed_values": [0.5], "images": {"output": image}}
    with pytest.raises(ReportError, match="task 'a/b' must consist of"):
        SampleWriter(tmp_path, task="a/b")
    with SampleWriter(tmp_path, task="depth") as writer:
        writer.write("one", **item)
        for arguments, message in [
            ({"id": "one"}, "two items with id 'one'"),
            ({"id": "../two"}, "id '../two' must consist of"),
            ({"id": "two", "value": np.nan}, "value that is not finite"),
            ({"id": "two", "images": {"photo": image}}, r"images have keys \['photo'\]"),
        ]:
            with pytest.raises(ReportError, match=message):
                writer.write(**{**item, **arguments})


def test_large_pictures_are_shrunk_and_small_ones_enlarged(folder):
    with SampleWriter(folder, task="depth") as writer:
        for i in range(NUM_ITEMS):
            images = {"input": np.zeros((200, 400, 3)), "output": np.zeros((40, 40, 3))}
            writer.write(f"scene-{i:03d}", prompt="", value=0.5, seed_values=[0.5], images=images)
    html = report.build_report(folder).read_text()
    sizes = re.findall(r'width="(\d+)" height="(\d+)" alt="(\w+) of scene-000"', html)
    assert sizes[:2] == [("192", "96", "input"), ("120", "120", "output")]
