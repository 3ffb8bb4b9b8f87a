"""Scores stand beside published values, and a miniature's never do."""

import json
from pathlib import Path

import pytest
from fake_reports import fake_score, fake_scores, write_scored
from test_report import parse, read_lines, resolve

from unidiff_jax.evals import charts, published, report
from unidiff_jax.evals.results import write_results
from unidiff_jax.evals.results_schema import MINIATURE, ReportError
from unidiff_jax.evals.scoreboard import (
    PUBLISHED,
    RUN,
    TRIVIAL,
    check_table,
    make_groups,
    make_tables,
    published_beside,
)


def test_a_miniature_score_gets_no_published_values():
    assert published_beside(fake_score())
    assert published_beside(fake_score(badge=MINIATURE)) == []
    scores, miniature = make_tables(fake_scores())
    assert {row.badge for group in miniature.groups for row in group.rows} == {MINIATURE}
    assert MINIATURE not in {row.badge for group in scores.groups for row in group.rows}


def test_a_table_of_both_is_refused():
    groups = make_groups([(0, fake_score()), (1, fake_score(badge=MINIATURE, metric="dino"))])
    with pytest.raises(ReportError, match="numbers of a miniature and of: official protocol"):
        check_table(groups)
    paper_beside_miniature = groups[1]._replace(rows=[*groups[1].rows, groups[0].rows[-1]])
    assert groups[0].rows[-1].kind == PUBLISHED
    with pytest.raises(ReportError, match="numbers of a miniature and of: published"):
        check_table([paper_beside_miniature])
    check_table(groups[:1])


def test_rows_of_one_metric_are_together():
    groups = {(g.protocol, g.metric): g for g in make_tables(fake_scores())[0].groups}
    clip_i = groups["magicbrush/single_turn", "clip_i"].rows
    own = [row for row in clip_i if row.kind == RUN]
    assert [row.encoder for row in own] == ["clip-vit-b-32", "clip-vit-l-14", "clip-vit-b-32"]
    assert [row.score["captions"] for row in own] == ["all", "all", "captions differ"]
    assert {row.method for row in clip_i if row.kind == TRIVIAL} == {"copy input"}
    found = [row for row in clip_i if row.kind == PUBLISHED]
    values = published.published_values("magicbrush", "clip_i")
    assert [row.source for row in found] == values
    assert {row.reference for row in found} == {"input", "not stated"}
    assert {row.encoder for row in found} == {"not stated"}


def test_marks_put_better_to_the_right():
    groups = {g.metric: g for g in make_tables(fake_scores())[0].groups}
    for metric, sign in (("clip_i", 1), ("l1", -1)):
        rows = sorted(groups[metric].rows, key=lambda row: sign * row.value)
        assert [row.mark for row in rows] == sorted(row.mark for row in rows)
    first = groups["clip_i"].rows[0]
    assert first.low < first.mark < first.high


def test_directions_must_agree():
    with pytest.raises(ReportError, match="clip_i is better both ways"):
        make_groups([(0, fake_score()), (1, fake_score(higher_is_better=False, captions=None))])


def test_every_number_on_a_page_of_scores_equals_the_files(tmp_path):
    write_scored(tmp_path)
    page = parse(report.build_report(tmp_path))
    sources = {
        "published.json": json.loads(
            Path(published.__file__).with_name("published.json").read_text()
        ),
        "samples/depth.jsonl": read_lines(tmp_path, task="depth"),
        "samples/magicbrush.jsonl": read_lines(tmp_path, task="magicbrush"),
        None: json.loads((tmp_path / "results.json").read_text()),
    }
    shown = set()
    for number in page.numbers:
        source = number.get("data-source")
        expected = resolve(sources[source], number["data-key"])
        if source == "published.json":
            assert number["data-printed"] == expected
            scale = float(expected) / float(number["data-value"])
            assert min(abs(scale - known) for known in (1, 100, 1000)) < 1e-9
            assert float(number["text"]) == pytest.approx(float(number["data-value"]), abs=1e-12)
        else:
            assert json.loads(number["data-value"]) == expected
            assert number["text"] == charts.format_number(expected)
        shown.add((source, number["data-key"]))
    for i, score in enumerate(sources[None]["scores"]):
        assert (None, f"/scores/{i}/value") in shown
        for row in score["rows"]:
            assert (None, f"/scores/{i}/rows/{row}") in shown
        if score["n_failed"]:
            assert (None, f"/scores/{i}/n_failed") in shown
    assert {source for source, _ in shown} == set(sources)


def test_the_page_says_what_a_number_is(tmp_path):
    write_scored(tmp_path)
    html = report.build_report(tmp_path).read_text()
    summary = (tmp_path / "summary.md").read_text()
    for text in (html, summary):
        assert "official metric, substitute weights or data" in text
        assert "Table 2, " in text and "secondary copy" in text
        assert "judge: gpt-4.1" in text
    assert "failed: left out of the mean" in html and "4 of 606 failed" in summary
    assert "Deviates: The dev split" in html and "cd" * 32 in html
    scores, miniature = summary.split("## Miniature scores")
    assert "UniReal" in scores and "UniReal" not in miniature


def test_known_faults_are_shown(tmp_path):
    score = fake_score(benchmark="dreambench", protocol="dreambench/all")
    results = {**write_scored(tmp_path), "scores": [score]}
    write_results(tmp_path, results=results)
    html = report.build_report(tmp_path).read_text()
    assert "A copying error" in html
    assert "FAULT: A copying error" in (tmp_path / "summary.md").read_text()


def test_items_without_a_score_are_the_worst(tmp_path):
    results = write_scored(tmp_path)
    path = tmp_path / "samples" / "magicbrush.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[200].update(value=None, seed_values=[])
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ReportError, match=r"magicbrush\.jsonl:201: value is null on 1 lines, but"):
        report.build_report(tmp_path)
    results["scores"][0].update(n_failed=1, failures="left out of the mean")
    write_results(tmp_path, results=results)
    html = report.build_report(tmp_path).read_text()
    article = html[html.index('id="outputs-magicbrush"') :]
    worst = article.split("Worst items")[1]
    assert worst.index("scene-200") < worst.index("failed</span>")
    assert worst.count('class="id"', 0, worst.index("failed</span>")) == 1
