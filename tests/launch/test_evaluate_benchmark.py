"""The command on published benchmarks, and what its page says."""

import json
import pathlib
import re

import pytest
from jobs import start_job

from launch.benchmark_hours import ITEMS, hours_table
from unidiff_jax.evals.benchmarks import BENCHMARKS
from unidiff_jax.evals.benchmarks.miniworld_layouts import write_layout
from unidiff_jax.evals.benchmarks.referring import CONVERT

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/benchmarks.md").read_text()


def test_a_run_on_a_drawn_suite(quickstart, run_command, tmp_path):
    write_layout("scannet", tmp_path / "data", count=3)
    flags = [
        "--benchmark=scannet",
        f"--data={tmp_path / 'data'}",
        f"--model={quickstart.workdir}",
        f"--out={tmp_path / 'out'}",
        "--num_steps=1",
        "--limit=2",
    ]
    done = run_command("evaluate", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "scannet/disparity" in done.stdout and "2 items, and not the 800" in done.stdout
    results = json.loads((tmp_path / "out/report/results.json").read_text())
    assert results["command"].startswith("python -m launch.evaluate --benchmark=scannet")
    assert results["steps"] == 20 and results["config"]["generator"]["sample"]["num_steps"] == 1
    assert len(list((tmp_path / "out/predictions").rglob("*.npy"))) == 2


def test_a_suite_that_others_judge(quickstart, run_command, tmp_path):
    """From prompts to the judge's scores in the run's report, by the two commands."""
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    prompt = {"tag": "colors", "include": [{"class": "cup", "count": 1}], "prompt": "a red cube"}
    (data / "evaluation_metadata.jsonl").write_text(json.dumps(prompt) + "\n")
    flags = ["--benchmark=geneval", f"--data={data}", f"--model={quickstart.workdir}"]
    done = run_command("evaluate", *flags, f"--out={out}", "--num_steps=1", "--task=text_to_image")
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"next, with {out}/export as EXPORT: python evaluation/evaluate_images.py" in done.stdout
    assert len({path.read_bytes() for path in (out / "export/00000/samples").iterdir()}) == 4
    lines = [
        {**prompt, "filename": f"{out}/export/00000/samples/{k:04d}.png", "correct": k == 0}
        for k in range(3)
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--suite=geneval", f"--data={data}", f"--results={tmp_path / 'results.jsonl'}"]
    done = run_command("judged", *flags, "--date=2026-11-23", f"--report={out / 'report'}")
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((out / "report/results.json").read_text())
    overall = results["scores"][0]
    assert (overall["value"], overall["n_items"], overall["n_failed"]) == (1 / 3, 4, 1)
    assert results["steps"] == 20 and results["config"]["generator"]["sample"]["num_steps"] == 1
    assert results["config"]["generator"]["sample"]["guidance"] >= 1
    assert "GenEval" in (out / "report/index.html").read_text()


def test_wrong_flags_are_one_line(run_command, tmp_path):
    done = run_command("evaluate", "--benchmark=nyuv2", f"--model={tmp_path}")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --data is missing: the folder of nyuv2, from github.com/prs-eth")
    done = run_command("evaluate", "--limit=3", f"--workdir={tmp_path}")
    assert done.stderr == "error: --limit is for a published benchmark: give --benchmark too\n"


@pytest.mark.slow
def test_two_processes_make_what_one_makes(quickstart, tmp_path):
    write_layout("magicbrush", tmp_path / "data", count=5)

    def run(folder, *, processes):
        job = start_job(
            "evaluate",
            "--benchmark=magicbrush",
            f"--data={tmp_path / 'data'}",
            f"--model={quickstart.workdir}",
            f"--out={folder}",
            "--num_steps=2",
            "--batch=1",  # other rows beside it may round otherwise
            processes=processes,
            devices=2,
            compiled=tmp_path / "compiled",
            folder=tmp_path,
        )
        for process in job:
            assert process.wait() == 0, process.log.read_text()[-3000:]
        return [process.log.read_text() for process in job]

    run(tmp_path / "alone", processes=1)
    first, second = run(tmp_path / "together", processes=2)
    assert "report:" in first and "report:" not in second
    made = [
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("predictions/**/*.png")
        }
        for folder in (tmp_path / "alone", tmp_path / "together")
    ]
    assert len(made[0]) == 9 and made[0].keys() == made[1].keys()
    assert sum(made[0][name] == made[1][name] for name in made[0]) >= 8


def test_the_page_has_every_suite_and_the_computed_hours():
    for name, benchmark in BENCHMARKS.items():
        assert f"| `{name}` | {benchmark.data.where} |" in PAGE
        assert name.split("_google")[0] in PAGE
    (table,) = re.findall(r"<!-- hours -->\n(.*?)\n<!-- /hours -->", PAGE, re.DOTALL)
    assert table == hours_table()
    assert set(ITEMS) <= set(BENCHMARKS)
    assert CONVERT in PAGE
    for flag in re.findall(r"--([a-z_]+)", "".join(re.findall(r"`(python -m [^`]+)`", PAGE))):
        assert flag in (
            "benchmark", "data", "model", "extractors", "split", "chip", "mfu",
        )  # fmt: skip
