"""The autoencoder against diffusers on random weights (marked torch), and what needs no torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from unidiff_jax.config import ConfigError
from unidiff_jax.export.mapping import to_official, vae_table
from unidiff_jax.models.vae import AutoencoderKL, VAEConfig
from unidiff_jax.sample.encoders import LoadedVAE

VARIANTS = {
    "sd": {"latent_channels": 4, "use_quant_conv": True, "use_post_quant_conv": True},
    "sd3": {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    "plain_middle": {"latent_channels": 4, "mid_block_add_attention": False},
}
SIZES = {"block_out_channels": (8, 16, 16), "layers_per_block": 2, "norm_num_groups": 4}


@pytest.mark.torch
@pytest.mark.parametrize("name", VARIANTS)
def test_equals_diffusers(name, tmp_path, parity):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        **(SIZES | VARIANTS[name]),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    ).eval()
    for parameter in theirs.parameters():  # norms and biases away from one and zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path)
    ours = LoadedVAE.load(tmp_path)
    pictures = np.random.default_rng(0).uniform(-1, 1, (2, 3, 24, 32)).astype(np.float32)
    with torch.no_grad():
        expected = theirs.encode(torch.from_numpy(pictures)).latent_dist
        latents = expected.mean
        decoded = theirs.decode(latents).sample
    posterior = ours.encode(jnp.moveaxis(pictures, 1, -1))
    found, mean = np.moveaxis(np.asarray(posterior.mean), -1, 1), expected.mean.numpy()
    parity("AutoencoderKL, means", np.abs(found - mean).max() / np.abs(mean).max(), bound=2e-5)
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(posterior.std), -1, 1), expected.std, rtol=1e-4, atol=1e-5
    )
    again = ours.decode(jnp.moveaxis(jnp.asarray(latents.numpy()), 1, -1))
    found, pictures = np.moveaxis(np.asarray(again), -1, 1), decoded.numpy()
    error = np.abs(found - pictures).max() / np.abs(pictures).max()
    parity("AutoencoderKL, pictures", error, bound=5e-5)


def test_shapes_and_names():
    config = VAEConfig(**(SIZES | VARIANTS["sd"]))
    model = AutoencoderKL(config, rngs=nnx.Rngs(0))
    posterior = model.encode(jnp.zeros((1, 16, 24, 3)))
    assert posterior.mean.shape == (1, 4, 6, 4) and config.downscale == 4
    assert model.decode(posterior.mean).shape == (1, 16, 24, 3)
    params = nnx.to_pure_dict(nnx.split(model)[1])
    names = to_official(jax.tree.map(np.asarray, params), table=vae_table(params))
    assert names["encoder.down_blocks.0.resnets.1.conv1.weight"].shape == (8, 8, 3, 3)
    assert names["decoder.mid_block.attentions.0.to_out.0.weight"].shape == (16, 16)
    assert names["decoder.up_blocks.2.resnets.0.conv_shortcut.weight"].shape == (8, 16, 1, 1)
    assert names["quant_conv.weight"].shape == (8, 8, 1, 1)


def test_an_attention_of_the_first_diffusers(tmp_path):
    config = VAEConfig(**(SIZES | VARIANTS["sd"]))
    model = AutoencoderKL(config, rngs=nnx.Rngs(0))
    params = nnx.to_pure_dict(nnx.split(model)[1])
    tensors = to_official(jax.tree.map(np.asarray, params), table=vae_table(params))
    old = {"to_q": "query", "to_k": "key", "to_v": "value"}
    renamed = {}
    for name, value in tensors.items():
        name = name.replace("to_out.0", "proj_attn")
        renamed[".".join(old.get(part, part) for part in name.split("."))] = value
    save_file(renamed, tmp_path / "diffusion_pytorch_model.safetensors")
    values = SIZES | VARIANTS["sd"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    pictures = jnp.linspace(-1, 1, 8 * 8 * 3).reshape(1, 8, 8, 3)
    got = LoadedVAE.load(tmp_path).encode(pictures).mean
    np.testing.assert_allclose(got, model.encode(pictures).mean, atol=1e-5)


def test_another_architecture_is_refused():
    values = SIZES | VARIANTS["sd"] | {"act_fn": "gelu", "down_block_types": ["AttnDownBlock2D"]}
    with pytest.raises(ConfigError, match=r"act_fn='gelu'.*down_block_types"):
        VAEConfig.from_json(values)
