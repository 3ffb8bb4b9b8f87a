"""A fine-tuned run goes back to the released layout where it can, and to the unified one always."""

import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx
from safetensors.numpy import load_file

from data_pipelines.build import row_size
from launch.tiny_onediffusion import T5, TRANSFORMER
from unidiff_jax import flow, load_denoiser
from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import read_config
from unidiff_jax.export.run import export_run
from unidiff_jax.export.unified import from_unified
from unidiff_jax.frames import pack_rows, unpatchify
from unidiff_jax.models.lora import LoRAConfig, merge
from unidiff_jax.sample.encoders import LoadedText
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.tasks import get_task
from unidiff_jax.text import END
from unidiff_jax.train.loop import train
from unidiff_jax.train.workdir import model_parts

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
    assert export_run(finished, tmp_path / "out", base=released) == ("released", [])
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


@pytest.fixture
def other(finished, tmp_path):
    """The run as one that the released layout cannot describe."""
    shutil.copytree(finished, tmp_path / "run")
    text = (tmp_path / "run" / "config.json").read_text()
    text = text.replace('"prediction": "v"', '"prediction": "x"')
    text = text.replace('"rope_theta": 10000.0', '"rope_theta": 20.0')
    (tmp_path / "run" / "config.json").write_text(text)
    return tmp_path / "run"


def test_runs_that_the_layout_cannot_describe(other, tmp_path):
    with pytest.raises(ConfigError) as caught:
        export_run(other, tmp_path / "out", layout="released")
    assert "flow.prediction='x', the layout means 'v'" in str(caught.value)
    assert "model.rope_theta=20.0" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_run_as_a_whole_model_for_pytorch(config, finished, other, tmp_path):
    written = export_run(other, tmp_path / "out")
    assert written.name == "unified" and len(written.faults) == 2
    folders = {path.name for path in (tmp_path / "out").iterdir()}
    assert folders == {"transformer", "text_encoder", "tokenizer"}
    found = from_unified(tmp_path / "out" / "transformer")
    assert found.dit.rope_theta == 20.0
    assert found.values["flow"] == {
        "prediction": "x",
        "shift": 1.0,
        "min_sigma": 0.05,
        "timed_conditions": True,
    }
    assert found.values["autoencoder"] == {"kind": "space_to_depth", "downscale": 2}

    run = Pipeline.from_workdir(finished)
    expected = merge(run.params, LoRAConfig(**config("lora.rank=2").lora))
    jax.tree.map(np.testing.assert_array_equal, found.params, expected["dit"])
    text = LoadedText.load(
        tmp_path / "out" / "text_encoder", tokenizer=tmp_path / "out" / "tokenizer"
    )
    states, mask = text.encode(["[[image2depth]] a red cube"])
    model = nnx.merge(model_parts(config("lora.rank=2")).graphdef, run.params)
    ids = np.asarray([run.maker.tokenizer.encode("[[image2depth]] a red cube")], np.int32)
    assert mask.sum() == ids.size
    again = model.text_encoder(jnp.asarray(ids), segment=jnp.ones(ids.shape, jnp.int32))
    np.testing.assert_allclose(states[0, : ids.size], again[0], atol=1e-5)
    assert read_config(tmp_path / "out" / "text_encoder")["model_type"] == "t5"


@pytest.mark.torch
def test_the_folder_samples_in_pytorch_as_the_run_does(finished, tmp_path, parity):
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    from unidiff_jax.export.torch_unified import UnifiedDiT, sample

    export_run(finished, tmp_path, layout="unified")
    pipe, task = Pipeline.from_workdir(finished), get_task("depth")
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    item = {"image": picture, "depth": np.zeros((32, 32), np.float32)}
    example = pipe.maker.example(task, item, example_id=1, prompt="[[image2depth]]")
    expected = pipe.generate([(task, example)], seeds=[0], num_steps=3, guidance=2.0)[0][0]["depth"]

    batch, _ = pack_rows([example], size=row_size(pipe.config))
    noise = flow.draw_noise(jax.random.key(0), jax.tree.map(jnp.asarray, batch))
    count = len(example["tokens"]) // 2
    tokens = np.concatenate([example["tokens"][:count], noise[0, count : 2 * count]])
    latents = [unpatchify(tokens[i : i + count], patch=2, grid=(8, 8)) for i in (0, count)]
    encoder = transformers.T5EncoderModel.from_pretrained(tmp_path / "text_encoder").eval()
    with torch.no_grad():
        ids = [torch.tensor(example["text_ids"][None].astype(np.int64)), torch.tensor([[END]])]
        states = [encoder(text).last_hidden_state for text in ids]
    made = sample(
        UnifiedDiT.from_folder(tmp_path / "transformer"),
        torch.tensor(np.stack(latents).transpose(0, 3, 1, 2)[None]),
        states[0],
        torch.ones_like(ids[0]),
        empty_states=states[1],
        empty_mask=torch.ones_like(ids[1]),
        given=torch.tensor([[1, 0]]),
        num_steps=3,
        text_guidance=2.0,
    )
    rgb = pipe.maker.autoencoder.decode(made[0, 1].numpy().transpose(1, 2, 0))
    error = np.abs(rgb - expected).max() / np.abs(expected).max()
    parity("picture of an exported run in PyTorch", error, bound=1e-4)


def test_the_command(finished, released, tmp_path):
    def run(*args):
        command = [sys.executable, "-m", "launch.export", f"--workdir={finished}", *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    done = run(f"--out={tmp_path / 'out'}", f"--base={released}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["released layout", str(tmp_path / "out")]
    again = run(f"--out={tmp_path / 'out'}", f"--base={released}")
    assert again.returncode != 0 and "exists; choose another --out" in again.stderr
    empty = run(f"--out={tmp_path / 'other'}", f"--base={tmp_path}")
    assert empty.returncode != 0 and "holds no vae" in empty.stderr


def test_the_command_says_why_it_takes_the_other_layout(other, run_command, tmp_path):
    done = run_command("export", f"--workdir={other}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    layout, out = done.stdout.splitlines()
    assert layout.startswith("unified layout, because the released one cannot say: flow.prediction")
    assert out == str(tmp_path / "out")
    refused = run_command(
        "export", f"--workdir={other}", f"--out={tmp_path / 'no'}", "--layout=released"
    )
    assert refused.returncode == 1 and "--layout unified has it" in refused.stderr
