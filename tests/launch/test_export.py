"""A fine-tuned run goes back to the released layout, and is refused where it cannot."""

import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tiny_run
from safetensors.numpy import load_file

from launch.tiny_onediffusion import T5, TRANSFORMER
from unidiff_jax import load_denoiser
from unidiff_jax.config import ConfigError
from unidiff_jax.export.run import export_run
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.train.loop import train

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config(miniworld):
    """The released sizes but for the channels: the run is in pixels."""

    def config(*more):
        sizes = (
            f"model.hidden_dim={TRANSFORMER['hidden_size']}",
            f"model.depth={TRANSFORMER['depth']}",
            f"model.num_heads={TRANSFORMER['num_heads']}",
            f"model.num_kv_heads={TRANSFORMER['num_kv_heads']}",
            f"model.ffn_multiple_of={TRANSFORMER['multiple_of']}",
            f"text.d_model={T5['d_model']}",
        )
        flow = ("flow.prediction=v", "flow.loss=v")
        rope = ("model.rope_theta=10000.0", "model.rope_scale=1.0")
        short = ("train.num_steps=2", "train.eval_every=2", "train.sample_every=2", "patch=2")
        row = ("data.row.tokens=512",)
        return tiny_run.config(miniworld, *sizes, *flow, *rope, *short, *row, *more)

    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train(config("lora.rank=2"), workdir)
    return workdir


def test_the_exported_transformer_is_the_run_with_its_adapters(finished, released, tmp_path):
    export_run(finished, tmp_path / "out", base=released)
    denoiser = load_denoiser(tmp_path / "out" / "transformer")
    params = Pipeline.from_workdir(finished).params["dit"]
    np.testing.assert_array_equal(
        denoiser.params["patch_embed"]["weight"], params["patch_embed"]["weight"]
    )
    q = params["blocks"]["attention"]["q"]
    assert np.abs(q["lora_b"]).max() > 0
    merged = np.asarray(q["weight"]) + 8.0 * np.asarray(q["lora_a"]) @ np.asarray(q["lora_b"])
    np.testing.assert_allclose(
        denoiser.params["blocks"]["attention"]["q"]["weight"], merged, atol=1e-6
    )
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        for file in (released / part).iterdir():
            assert (tmp_path / "out" / part / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(FileExistsError, match="transformer exists"):
        export_run(finished, tmp_path / "out", base=released)


def test_half_width(finished, tmp_path):
    export_run(finished, tmp_path, dtype="bfloat16")
    tensors = load_file(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {str(t.dtype) for t in tensors.values()} == {"bfloat16"}
    assert not (tmp_path / "vae").exists()
    load_denoiser(tmp_path / "transformer", dtype="bfloat16")


def test_runs_that_the_layout_cannot_describe(config, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text()
    text = text.replace('"prediction": "v"', '"prediction": "x"')
    text = text.replace('"rope_theta": 10000.0', '"rope_theta": 20.0')
    (tmp_path / "run" / "config.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        export_run(tmp_path / "run", tmp_path / "out")
    assert "flow.prediction='x', the layout means 'v'" in str(caught.value)
    assert "model.rope_theta=20.0" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_command(finished, released, tmp_path):
    def run(*args):
        command = [sys.executable, "-m", "launch.export", f"--workdir={finished}", *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run(f"--out={tmp_path / 'out'}", f"--base={released}")
    assert done.returncode == 0, done.stderr
    again = run(f"--out={tmp_path / 'out'}", f"--base={released}")
    assert again.returncode != 0 and "exists; choose another --out" in again.stderr
    empty = run(f"--out={tmp_path / 'other'}", f"--base={tmp_path}")
    assert empty.returncode != 0 and "holds no vae" in empty.stderr
