"""The command that curates video."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("av", reason="needs the extra curate")
pytest.importorskip("apache_beam", reason="needs the extra curate")

from data_pipelines.curate.pairs import decode_pair, open_pairs
from data_pipelines.miniworld.generate import generate
from data_pipelines.miniworld.manifest import Settings


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("miniworld")
    settings = Settings(size=32, counts={"train": 12}, shards=1, clip_frames=3)
    generate(folder, settings, progress="none")
    return folder


def test_pairs_in_threads_are_those_of_one_worker(clips, tmp_path, run_command):
    shown, written = [], []
    for workers in (1, 2):
        out = tmp_path / f"pairs-{workers}"
        done = run_command(
            "curate",
            f"--input={clips}",
            *("--format=miniworld", "--split=train", "--describe=given", "--track=given"),
            *("--tags=synthetic style", "--min_sharpness=0", "--lossless", "--shards=3"),
            *(f"--output={out}", f"--workers={workers}", f"--sheet={tmp_path / 'sheet.png'}"),
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert "INFO" not in done.stderr
        shown.append(done.stdout)
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert written[0] == written[1]
    manifest = json.loads(written[0]["manifest.json"])
    assert manifest["clips"] == 12 and manifest["records"] > 8
    assert manifest["settings"]["tags"] == ["synthetic style"]
    assert f"{manifest['records']} pairs of 12 clips" in shown[0]
    pairs = open_pairs(tmp_path / "pairs-1")
    assert len(pairs) == manifest["records"]
    assert any(decode_pair(pairs[i]).names for i in range(len(pairs)))
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 10


@pytest.mark.parametrize(
    ("flags", "message", "status"),
    [
        (["--describe=kosmos2"], "--describe kosmos2 needs --describe_model=FOLDER", 2),
        (["--track=sam2"], "--track sam2 needs --track_model=FOLDER", 2),
        (["--format=video"], "has no video files", 1),
    ],
)
def test_faults_say_what_to_do(clips, tmp_path, run_command, flags, message, status):
    done = run_command(
        "curate", f"--input={clips}", "--format=miniworld", f"--output={tmp_path}", *flags
    )
    assert done.returncode == status and message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_clip_can_stop_the_command_in_one_line(tmp_path, run_command):
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / "noise.mp4").write_bytes(b"x" * 4000)
    done = run_command(
        "curate", f"--input={folder}", f"--output={tmp_path / 'o'}", "--on_bad=error"
    )
    assert done.returncode == 1
    assert "error: corrupt: " in done.stderr and "noise.mp4" in done.stderr
    assert "Traceback" not in done.stderr
