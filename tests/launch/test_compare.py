"""Comparing evaluated runs: values, paired differences, table and picture."""

import json

import numpy as np
import pytest
from PIL import Image

from launch import compare
from unidiff_jax.config import ConfigError

ITEMS, SEEDS = 40, 3


def write_report(workdir, *, scores, shuffled=0.0, learned=True, color=0):
    """What the comparison reads of a report, with one entry whose value is a mean and a ratio."""
    folder = workdir / "report"
    (folder / "samples").mkdir(parents=True)
    (folder / "img").mkdir()
    tasks = []
    for name, value in (("edit_move", scores.mean()), ("segment", scores.mean() + 0.1)):
        tasks.append(
            {
                "task": name,
                "title": name,
                "metric": "gain",
                "value": float(value),
                "floor": 0.25,
                "floor_name": "copy",
                "ceiling": 1.0,
                "shuffled": shuffled,
                "over_floor": {"value": 0.1, "low": 0.0, "high": 0.2},
                "over_shuffled": {"value": 0.1, "low": 0.0, "high": 0.2},
                "verdict": "learned" if learned else "not learned",
                "secondary": {},
                "n_items": len(scores),
                "seeds": [0, 1, 2],
            }
        )
        lines = []
        for i, row in enumerate(scores):
            images = {}
            for kind, level in (("input", 10), ("output", color), ("target", 250)):
                images[kind] = f"img/{i}_{kind}.png"
                Image.new("RGB", (8, 8), (level,) * 3).save(folder / images[kind])
            lines.append(
                json.dumps({"prompt": f"item {i}", "seed_values": list(row), "images": images})
            )
        (folder / "samples" / f"{name}.jsonl").write_text("\n".join(lines))
    results = {
        "tasks": tasks,
        "steps": 7,
        "wall_clock_seconds": {"train": 3.5},
        "config": {"seed": 1},
        "git": {"sha": "abc", "dirty": False},
        "device": "cpu",
    }
    (folder / "results.json").write_text(json.dumps(results))


@pytest.fixture
def runs(tmp_path):
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 1, (ITEMS, 1))  # items differ far more than arms
    found = {"all": [], "less": []}
    for arm, offset, color in (("all", 0.0, 100), ("less", -0.2, 200)):
        for seed in range(2):
            workdir = tmp_path / f"{arm}-{seed}"
            scores = hard + offset + 0.01 * rng.normal(0, 1, (ITEMS, SEEDS))
            write_report(workdir, scores=scores, learned=arm == "all" or seed == 0, color=color)
            found[arm].append(str(workdir))
    return found


def test_differences_are_paired_over_items(runs):
    compared = compare.compare(runs)
    assert list(compared["entries"]) == ["edit_move"]  # a ratio's items cannot be averaged
    less = compared["arms"]["less"]["entries"]["edit_move"]
    difference = less["difference"]
    assert difference["value"] == pytest.approx(-0.2, abs=0.01)
    # items spread by 1, so that unpaired intervals would be .4 wide
    assert -0.21 < difference["low"] < difference["value"] < difference["high"] < -0.19
    assert compared["arms"]["all"]["entries"]["edit_move"]["difference"]["value"] == 0
    assert less["value"] == pytest.approx(np.mean(less["values"])) and len(less["values"]) == 2
    assert less["learned"] == [True, False]
    assert compared["arms"]["all"]["runs"][0]["train_seconds"] == 3.5


def test_the_command_writes_numbers_table_and_picture(runs, tmp_path, run_command):
    out = tmp_path / "docs" / "compared"
    arguments = [f"--run={arm}={workdir}" for arm, found in runs.items() for workdir in found]
    done = run_command("compare", *arguments, f"--out={out}", "--rows=3")
    assert done.returncode == 0, done.stderr
    assert json.loads(out.with_suffix(".json").read_text())["reference"] == "all"
    table = out.with_suffix(".md").read_text()
    assert table in done.stdout
    assert "| *floor* | 0.250 (copy) |" in table
    assert "(-0.2" in table and table.count(" *") == 2  # the floor's row and one arm
    sheet = np.asarray(Image.open(out.with_suffix(".png")).convert("L"))
    for level in (10, 100, 200, 250):
        assert (sheet == level).sum() >= 3 * 96 * 96


def test_faults_say_what_to_do(runs, tmp_path):
    with pytest.raises(ConfigError, match="is not ARM=WORKDIR, such as all="):
        compare.parse_runs(["runs/all-0"])
    with pytest.raises(ConfigError, match="two arms or more"):
        compare.parse_runs(["all=a", "all=b"])
    write_report(tmp_path / "other", scores=np.zeros((ITEMS // 2, SEEDS)))
    with pytest.raises(ConfigError, match="other items in edit_move"):
        compare.compare(runs | {"other": [str(tmp_path / "other")]})
    with pytest.raises(FileNotFoundError):
        compare.compare(runs | {"missing": [str(tmp_path / "missing")]})
