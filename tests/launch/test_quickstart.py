"""From nothing to a report, and again without doing anything twice."""

import json

import pytest

from configs.quickstart import get_config
from launch import quickstart as command_module
from unidiff_jax.config import ConfigError


def test_a_tiny_run_gives_a_report(quickstart):
    results = json.loads((quickstart.workdir / "report/results.json").read_text())
    assert [t["task"] for t in results["tasks"]] == [
        "depth",
        "depth_to_image",
        "segment",
        "edit_recolor",
    ]
    for task in results["tasks"]:
        assert task["verdict"] == "not learned"
        assert "too few items" in task["reason"]
    assert set(results["wall_clock_seconds"]) == {"render", "train", "evaluate"}
    assert results["steps"] == 20
    assert any(name.startswith("train loss/") for name in results["curves"])
    page = (quickstart.workdir / "report/index.html").read_text()
    assert "not learned" in page
    assert "report/index.html" in quickstart.output.splitlines()[-1]


def test_a_second_start_skips_what_is_done(quickstart, run_command):
    before = (quickstart.workdir / "report/results.json").read_bytes()
    done = run_command("quickstart", *quickstart.flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done before") == 2
    assert (quickstart.workdir / "report/results.json").read_bytes() == before


@pytest.fixture
def folders(tmp_path):
    config = get_config("tiny")
    config.data.folder = str(tmp_path / "data")
    (tmp_path / "data").mkdir()
    (tmp_path / "run").mkdir()
    return config, tmp_path / "run", tmp_path / "data"


def test_fresh_keeps_data_that_somebody_else_made(folders):
    config, workdir, data = folders
    command_module.remove(config, workdir)
    assert data.exists() and not workdir.exists()
    (data / command_module.MARKER).touch()
    command_module.remove(config, workdir)
    assert not data.exists()


def test_fresh_refuses_a_folder_that_is_no_run(folders):
    config, workdir, _ = folders
    (workdir / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="holds no run"):
        command_module.remove(config, workdir)
    assert (workdir / "thesis.txt").exists()


def test_a_config_without_render_is_told_what_to_add():
    config = get_config("tiny")
    del config.data["render"]
    with pytest.raises(ConfigError, match=r"data\.render is missing"):
        command_module.render_settings(config)
