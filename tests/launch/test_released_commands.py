"""The commands around a released released, on a tiny one that a command makes."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hostile import png_bomb
from PIL import Image
from safetensors.numpy import load_file

from launch import onediffusion
from launch.tiny_onediffusion import write_tiny_pipeline
from unidiff_jax import OneDiffusionPipeline
from unidiff_jax.sample.images import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(*args):
    command = [sys.executable, "-m", "launch.onediffusion", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_picture_that_is_a_bomb_is_one_line(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_bomb())
    done = run("--model=none", "--prompt=a", "--mask=1,0", f"--image={tmp_path}/bomb.png")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "bomb.png is too large" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_seed_gives_the_same_folder(released, tmp_path):
    write_tiny_pipeline(tmp_path)
    files = {p.relative_to(released) for p in released.rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    assert {str(p) for p in files} >= {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model.safetensors",
        "tokenizer/spiece.model",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
    }
    for file in files - {pathlib.Path("tokenizer/spiece.model")}:  # its scores vary in a last digit
        assert (released / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_a_loaded_folder_is_written_as_it_was(released, tmp_path):
    pipe = OneDiffusionPipeline.from_pretrained(released, official_quirks=False)
    pipe.save_pretrained(tmp_path)
    for file in sorted(released.rglob("*.safetensors")):
        old, new = load_file(file), load_file(tmp_path / file.relative_to(released))
        assert old.keys() == new.keys()
        for name, value in old.items():
            assert value.tobytes() == new[name].tobytes() and value.dtype == new[name].dtype, name
    for file in sorted(released.rglob("*.json")):
        assert file.read_text() == (tmp_path / file.relative_to(released)).read_text(), file


def test_text_to_image_and_cameras(released, tmp_path):
    common = ("--model", released, "--num_steps", 2, "--dtype", "float32")
    done = run(*common, "--prompt", "[[text2image]] a red cube", "--out", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "a.png").size == (64, 64)
    picture = tmp_path / "in.png"
    Image.fromarray(np.full((70, 90, 3), 90, np.uint8)).save(picture)
    done = run(
        *common, "--prompt", "[[multiview]] a cube", "--image", picture, "--mask", "0,0,1,0",
        "--azimuths", "0,30", "--height", 64, "--width", 64, "--out", tmp_path / "v.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "v.png").exists() and "camera 1: at" in done.stdout


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--model", "nowhere"), "nowhere/scheduler holds no scheduler_config.json"),
        (("--mask", "1,x"), "--mask 1,x must be numbers with commas"),
        (("--out", "x.gif"), "the name must end in .png"),
        (("--image", "none.png"), "no such picture: none.png"),
    ],
)
def test_bad_input_is_one_line(released, args, message):
    done = run("--model", released, "--prompt", "[[text2image]] x", *args)
    assert done.returncode != 0 and message in done.stderr
    assert "Traceback" not in done.stderr


def test_numbers():
    assert onediffusion.numbers("mask", None) is None
    assert onediffusion.numbers("mask", "1,0") == [1.0, 0.0]
    with pytest.raises(InputError, match="must be numbers"):
        onediffusion.numbers("mask", "")
