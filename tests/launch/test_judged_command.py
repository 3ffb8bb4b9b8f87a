"""`python -m launch.judged` exports pictures and imports results into a report."""

import json

import pytest
from absl import flags
from fake_reports import fake_results, fake_score
from PIL import Image

from launch import judged
from unidiff_jax.config import ConfigError
from unidiff_jax.evals.results import read_results, write_results

EDITS = {str(i): {"id": f"{i}.png", "prompt": "edit", "edit_type": "add"} for i in range(3)}


@pytest.fixture
def call(monkeypatch):
    """Runs the command's main with flags of its own."""

    def call(**arguments):
        values = flags.FlagValues()
        for name in ("suite", "data", "pictures", "export", "results", "judge", "date", "report"):
            flags.DEFINE_string(name, arguments.get(name), "", flag_values=values)
        values.mark_as_parsed()
        monkeypatch.setattr(judged.flags, "FLAGS", values)
        judged.main([])

    return call


@pytest.fixture
def data(tmp_path):
    (tmp_path / "basic_edit.json").write_text(json.dumps(EDITS))
    return {"suite": "imgedit_bench", "data": str(tmp_path)}


def test_export_then_import(tmp_path, data, call, capsys):
    for key in EDITS:
        (tmp_path / "made").mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "made" / f"{key}.png")
    out = tmp_path / "out"
    call(**data, pictures=str(tmp_path / "made"), export=str(out))
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png", "2.png"]
    assert "3 of 3 prompts exported" in capsys.readouterr().out

    (out / "result.json").write_text(json.dumps({"0": "a: 3\nb: 4\nc: 5", "1": "no"}))
    report = tmp_path / "report"
    results = {**fake_results(), "tasks": [], "scores": [fake_score(samples=None)]}
    write_results(report, results=results)
    call(**data, results=str(out), report=str(report), date="2026-11-23")
    assert "imgedit_bench/strict  overall  4.000, 2 of 3 failed" in capsys.readouterr().out
    scores = read_results(report)["scores"]
    assert {score["benchmark"] for score in scores} == {"magicbrush", "imgedit_bench"}
    assert "ImgEdit-Bench, basic" in (report / "index.html").read_text()


def test_faults_are_one_line(tmp_path, data, call):
    with pytest.raises(ConfigError, match="give --pictures and --export, or --results and"):
        call(**data, pictures="x", report="y")
    with pytest.raises(ConfigError, match="--date: judges change"):
        call(**data, results=str(tmp_path), report=str(tmp_path))
    with pytest.raises(ConfigError, match=r"result\.json does not exist"):
        call(**data, results=str(tmp_path), report=str(tmp_path), date="2026-11-23")
    with pytest.raises(ConfigError, match=r"0\.png"):
        call(**data, pictures=str(tmp_path), export=str(tmp_path / "out"))
