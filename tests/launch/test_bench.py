"""The benchmark's numbers exist and make sense; how large a time is, no test says."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from data_pipelines.curate.benchmark import Row
from data_pipelines.miniworld.generate import generate
from data_pipelines.miniworld.manifest import Settings
from launch import bench, bench_network, command
from unidiff_jax.config import ConfigError, load_config

ROOT = pathlib.Path(__file__).resolve().parents[2]

TINY = (
    "image_size=16",
    "model.hidden_dim=24",
    "model.depth=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.ffn_multiple_of=8",
    "text.d_model=16",
    "text.d_ff=16",
    "text.d_kv=8",
    "text.num_layers=1",
    "text.num_heads=2",
    "patch=4",
    "data.row.tokens=32",
    "data.row.frames=9",
    "data.row.segments=5",
    "data.row.text=72",
    "data.batch_rows=2",
    "sample.num_steps=2",
)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniworld")
    generate(folder, Settings(size=16, counts={"train": 40}, shards=1), progress="none")
    return load_config("configs/quickstart.py", overrides=[*TINY, f"data.folder={folder}"])


@pytest.fixture(scope="module")
def numbers(config):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "PEAK_SHAPES", ((64, 64, 64),))
        patch.setattr(bench, "DATA_SECONDS", 0.05)
        jax.config.update("jax_disable_most_optimizations", True)  # half the compile time
        try:
            return bench.run_parts(config, parts=bench.PARTS, num_steps=3)
        finally:
            jax.config.update("jax_disable_most_optimizations", False)


def test_every_part_gives_positive_numbers(numbers):
    assert list(numbers) == ["machine", *bench.PARTS]
    for part in bench.PARTS:
        for key, value in numbers[part].items():
            if isinstance(value, float | int):
                assert math.isfinite(value) and value > 0, f"{part}.{key}"


def test_shares_are_shares(numbers):
    packing, step = numbers["packing"], numbers["step"]
    for key in ("tokens", "frames", "text"):
        assert 0 < packing[key] <= 1
    assert packing["batches"] >= 50
    assert 0 < numbers["loop"]["wait_share"] < 1
    assert step["best_ms"] <= step["p10_ms"] <= step["median_ms"] <= step["p90_ms"]
    # two rows hold 1 to 4 examples each, of 2 pictures with 4 tokens each
    assert 2 <= step["examples_per_step"] <= 8
    assert step["tokens_per_second"] / step["examples_per_second"] == pytest.approx(8)


def test_ratio_compares_the_loader_with_the_step(numbers):
    data = numbers["data"]
    assert data["needed_examples_per_second"] == numbers["step"]["examples_per_second"]
    assert data["ratio"] == pytest.approx(
        data["examples_per_second"] / data["needed_examples_per_second"]
    )


def test_table_shows_every_part(numbers):
    table = bench.format_table(numbers)
    for text in ("machine:", "parameters", "train step", "packing", "data", "loop", "sampling"):
        assert text in table
    assert "render" not in table and "MiniWorld picture" in table


def test_table_says_what_is_too_low(numbers):
    slow = numbers | {
        "data": numbers["data"] | {"ratio": 1.9},
        "packing": numbers["packing"] | {"tokens": 0.94},
    }
    faults = [line for line in bench.format_table(slow).splitlines() if "too low" in line]
    assert len(faults) == 2
    assert "95%" in faults[0] and "wait for data" in faults[1]
    good = numbers | {
        "data": numbers["data"] | {"ratio": 2.1},
        "packing": numbers["packing"] | {"tokens": 0.96},
    }
    assert "too low" not in bench.format_table(good)


def test_parts_without_data_need_none_and_json_has_the_numbers(tmp_path):
    path = tmp_path / "bench.json"
    missing = f"data.folder={tmp_path / 'none'}"
    line = [sys.executable, "-m", "launch.bench", "--parts", "render", "--set", missing]
    done = subprocess.run(
        [*line, "--json", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    numbers = json.loads(path.read_text())
    assert list(numbers["render"]) == ["32", "64", "128"]
    assert done.stdout.strip() == bench.format_table(numbers)


def test_missing_data_is_one_line_with_the_command(config, tmp_path):
    missing = config.copy_and_resolve_references()
    missing.data.folder = str(tmp_path / "none")
    with pytest.raises(FileNotFoundError) as error:
        bench.run_parts(missing, parts=["packing"])
    line = command.describe(error.value)
    assert line == str(error.value) and "\n" not in line
    assert line.endswith(f"python -m launch.miniworld --out {tmp_path / 'none'} --size 16")


def test_unknown_part_is_refused(config):
    with pytest.raises(ConfigError, match="no part 'speed'; parts are: step"):
        bench.run_parts(config, parts=["step", "speed"])


def test_a_network_is_timed_beside_torch_where_there_is_one(monkeypatch):
    mid = bench_network.WORKLOADS["onediffusion_mid"]
    tiny = dataclasses.replace(mid.config, hidden_size=24, depth=1, num_heads=2, caption_channels=8)
    work = bench_network.Workload(tiny, frames=2, side=4, words=3)
    monkeypatch.setitem(bench_network.WORKLOADS, "tiny", work)
    numbers = bench_network.measure("tiny", num_rounds=2)
    has_torch = importlib.util.find_spec("torch") is not None
    for who in ["ours", "torch"] if has_torch else ["ours"]:
        for kind in bench_network.KINDS:
            assert 0 < numbers[who][kind]["best_ms"] <= numbers[who][kind]["median_ms"]
    assert ("ratio" in numbers) == has_torch
    assert numbers.get("difference", 0.0) < 1e-5
    table = bench.format_table({"machine": bench.describe_machine(), "model": numbers})
    assert "forward and backward, ours" in table and ("ours / torch" in table) == has_torch


def test_trackers_are_measured_without_config_and_model(monkeypatch, tmp_path, capsys):
    rows = [Row("rendered", "flow", mean=0.81, spread=0.05, num_tracks=9, frames_per_second=40.0)]
    path = tmp_path / "bench.json"
    given = types.SimpleNamespace(model=None, tracking=True, json=str(path), steps=1)
    monkeypatch.setattr(bench.flags, "FLAGS", given)
    monkeypatch.setattr(bench, "measure_trackers", lambda: rows)
    monkeypatch.delattr(bench, "Bench")
    bench.main([])
    numbers = json.loads(path.read_text())
    assert numbers["tracking"] == [dataclasses.asdict(rows[0])]
    assert capsys.readouterr().out.strip() == bench.format_table(numbers)
    assert "rendered clips, flow  J 0.810 +- 0.050" in bench.format_table(numbers)
