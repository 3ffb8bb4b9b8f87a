"""What the recipes on a released autoencoder's latents share; not a config of its own.

The autoencoder (8 x 8 pixels to 16 channels), the text encoder (T5 1.1 XL) and the tokenizer come
from a folder in OneDiffusion's released layout and stay frozen. Pictures are encoded once by
`launch.encode`; text goes through the encoder in each step, or once through `launch.precompute`.
"""

from typing import Any

from ml_collections import ConfigDict


def released_parts(weights: str) -> ConfigDict:
    """The sections of a config that a folder in the released layout decides."""
    config = ConfigDict()
    config.autoencoder = {
        "folder": f"{weights}/vae",
        "downscale": 8,
        "latent_channels": 16,
        "dtype": "bfloat16",
    }
    config.patch = 2
    config.max_text = 300
    config.text = {  # T5 1.1 XL
        "vocab_size": 32128,
        "d_model": 2048,
        "d_ff": 5120,
        "d_kv": 64,
        "num_layers": 24,
        "num_heads": 32,
        "scan_layers": True,
        "remat": "none",
        "dtype": "bfloat16",
    }
    config.init = {
        "transformer": "",
        "text_encoder": f"{weights}/text_encoder",
        "tokenizer": f"{weights}/tokenizer",
        "frozen_dtype": "bfloat16",
    }
    return config


CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "hidden_act": "gelu",
}


def clip_parts(config: ConfigDict, folder: str) -> None:
    """Takes the text encoder from a pipeline in Stable Diffusion XL's layout: OpenAI's CLIP L and
    OpenCLIP's G side by side, each without its last block, 77 tokens.
    """
    config.max_text = 77
    config.text = ConfigDict(
        {
            "kind": "clip",
            "vocab_size": 49408,
            "max_position_embeddings": config.max_text,
            "towers": (CLIP_L, CLIP_G),
            "skip_layers": 1,
            "scan_layers": True,
            "remat": "none",
            "dtype": "bfloat16",
        }
    )
    config.init.text_encoder = f"{folder}/text_encoder,{folder}/text_encoder_2"
    config.init.tokenizer = f"{folder}/tokenizer"


def reading() -> dict[str, Any]:
    """How data sets are encoded and read: keys of `data`."""
    return {
        "encode": {
            **{"buckets": True, "flip": False, "validation": 512},
            **{"shards": 64, "seed": 0, "batch": 16},
        },
        "text_states": "",
        "num_bins": 32,
        "num_shards": 32,
        "read_threads": 16,
        "prefetch": 4,
    }


def training(*, num_steps: int, trainable: str) -> dict[str, Any]:
    """The section `train`."""
    return {
        "num_steps": num_steps,
        "num_microbatches": 1,
        "trainable": trainable,
        "compiler_options": {},
        "log_every": 100,
        "eval_every": 5000,
        "eval_items": 64,
        "sample_every": 5000,
        "save_every": 1000,
        "keep": 3,
        "profile_start": 0,
        "profile_steps": 5,
    }


def shrink(config: ConfigDict, *, steps: int, max_text: int) -> None:
    """Sizes of `launch.tiny_onediffusion`, pictures of 64 x 64 and a run of a minute.

    Tasks, data sets and rows are the recipe's to choose.
    """
    config.image_size = 64
    config.max_text = max_text
    config.model.update(
        {"hidden_dim": 96, "depth": 3, "num_heads": 4, "num_kv_heads": 2, "ffn_multiple_of": 32}
    )
    config.model.update({"dtype": "float32", "remat": "none"})
    config.text.update({"vocab_size": 512, "d_model": 64, "d_ff": 128, "d_kv": 16})
    config.text.update({"num_layers": 2, "num_heads": 4, "dtype": "float32"})
    config.init.frozen_dtype = "float32"
    config.autoencoder.dtype = "float32"
    data = config.data
    data.folder = f"{data.folder}-tiny"
    data.encode.update({"buckets": False, "validation": 20, "shards": 2})
    data.update({"batch_rows": 8, "num_bins": 8, "num_shards": 1, "read_threads": 0})
    config.optim.update({"learning_rate": 1e-3, "warmup_steps": 20, "ema_decay": 0.99})
    config.train.update(
        {
            "num_steps": steps or 200,
            "log_every": 20,
            "eval_every": 100,
            "eval_items": 16,
            "sample_every": 100,
            "save_every": 100,
        }
    )
    config.sample.num_steps = 4
