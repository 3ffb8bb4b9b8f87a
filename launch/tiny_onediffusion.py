"""Writes a small OneDiffusion folder with random weights, in the layout of the released one.

    python -m launch.tiny_onediffusion --out runs/tiny-onediffusion --blip2 runs/tiny-blip2

It paints noise, and it shows the way: every command that takes a released folder takes this one.
All parts have the released architecture (queries in groups, norms of queries and keys, a 16-channel
autoencoder, T5 version 1.1) at a thousandth of its size. `--blip2` writes a small BLIP-2 beside it,
for `configs/unimog.py`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from data_pipelines.miniworld.language import VOCABULARY
from launch import command
from unidiff_jax.models.dit import DiT
from unidiff_jax.models.multimodal import MultimodalEncoder
from unidiff_jax.models.t5 import T5Encoder
from unidiff_jax.models.vae import AutoencoderKL, VAEConfig
from unidiff_jax.paths import AnyPath, as_path
from unidiff_jax.sample.denoiser import Denoiser, NextDiTConfig
from unidiff_jax.sample.encoders import LoadedText, LoadedVAE, t5_config
from unidiff_jax.sample.multimodal import LoadedMultimodal, multimodal_config
from unidiff_jax.sample.onediffusion import FlowMatchSchedule, OneDiffusionPipeline
from unidiff_jax.tasks import TASKS
from unidiff_jax.text import FRAME_NAMES, Tokenizer, load_tokenizer, train_tokenizer
from unidiff_jax.types import Params

TRANSFORMER = {
    "input_size": (1, 8, 8),
    "in_channels": 16,
    "hidden_size": 96,
    "depth": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "multiple_of": 32,
    "caption_channels": 64,
    "qk_norm": True,
    "rotary_max_length": 128,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [16, 16, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "scaling_factor": 1.5305,
    "shift_factor": 0.0609,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
T5 = {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "d_model": 64,
    "d_ff": 128,
    "d_kv": 16,
    "num_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "vocab_size": 512,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
BLIP2 = {
    "model_type": "blip-2",
    "vision_config": {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    },
    "qformer_config": {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "text_config": T5,
    "num_query_tokens": 4,
}
SCHEDULE = FlowMatchSchedule(shift=3.0, use_dynamic_shifting=True)


def define_flags() -> None:
    flags.DEFINE_string("out", "runs/tiny-onediffusion", "Folder to write.")
    flags.DEFINE_string("blip2", "", "Folder for a small BLIP-2 too.")
    flags.DEFINE_integer("seed", 0, "Of the weights.", lower_bound=0)


def main(argv: list[str]) -> None:
    del argv
    command.quiet_libraries()
    write_tiny_pipeline(flags.FLAGS.out, seed=flags.FLAGS.seed)
    print(flags.FLAGS.out)
    if flags.FLAGS.blip2:
        write_tiny_blip2(flags.FLAGS.blip2, seed=flags.FLAGS.seed)
        print(flags.FLAGS.blip2)


def write_tiny_pipeline(folder: AnyPath, *, seed: int = 0) -> None:
    """Writes the folder; the same seed gives the same weights."""
    folder = as_path(folder)
    tokenizer = _write_tokenizer(folder / "tokenizer")
    keys = iter(jax.random.split(jax.random.key(seed), 3))

    def start(make) -> tuple[nnx.GraphDef, Params]:
        graphdef, state = nnx.split(make(nnx.Rngs(params=next(keys))))
        return graphdef, _moved(nnx.to_pure_dict(state), seed)

    config = NextDiTConfig.from_json(TRANSFORMER)
    dit = config.dit(softcap=0.0, dtype="float32", remat="none")
    vae, text = VAEConfig.from_json(VAE), t5_config(T5, dtype="float32")
    _, params = start(lambda rngs: DiT(dit, rngs=rngs))
    OneDiffusionPipeline(
        denoiser=Denoiser(config, dit, params),
        vae=LoadedVAE(vae, *start(lambda rngs: AutoencoderKL(vae, rngs=rngs)), VAE),
        text=LoadedText(tokenizer, text, *start(lambda rngs: T5Encoder(text, rngs=rngs)), (T5,)),
        schedule=SCHEDULE,
    ).save_pretrained(folder)


def write_tiny_blip2(folder: AnyPath, *, seed: int = 0) -> None:
    """Writes a BLIP-2 with its tokenizer, of whose language model the encoder alone."""
    config = multimodal_config(BLIP2)
    encoder = MultimodalEncoder(config, rngs=nnx.Rngs(params=jax.random.key(seed)))
    graphdef, state = nnx.split(encoder)
    params = _moved(nnx.to_pure_dict(state), seed)
    tokenizer = _write_tokenizer(as_path(folder))
    LoadedMultimodal(tokenizer, config, graphdef, params, BLIP2).save_pretrained(folder)


def _write_tokenizer(folder: AnyPath) -> Tokenizer:
    train_tokenizer(
        (f"{a} {b}" for a in sorted(VOCABULARY) for b in sorted(VOCABULARY)),
        folder=folder,
        vocab_size=T5["vocab_size"] - len(FRAME_NAMES),
        words=sorted({task.prompt.split()[0] for task in TASKS.values()}),
        extra_ids=len(FRAME_NAMES),
    )
    return load_tokenizer(folder)


def _moved(params: Params, seed: int) -> Params:
    """Away from the start, where gates and last layers are zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(x + 0.02 * rng.standard_normal(x.shape), jnp.float32), params
    )


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
