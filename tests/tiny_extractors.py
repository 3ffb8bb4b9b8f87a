"""A folder of small extractors with random weights: CLIPs and a DINO, in Hugging Face's layout."""

import dataclasses
import pathlib

import numpy as np
import tiny_clip

from unidiff_jax.evals.extractors.dino import dino_config
from unidiff_jax.export.files import WEIGHT_NAMES, write_model
from unidiff_jax.export.mapping import dino_table, flatten, nest, to_official
from unidiff_jax.models.layers import abstract
from unidiff_jax.models.vit import VisionTransformer

DINO = {
    "model_type": "vit",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def write_extractors(folder: pathlib.Path) -> pathlib.Path:
    """Writes `clip-b32`, `clip-l14`, `dino-s16` and `dino-b8`."""
    for name in ("clip-b32", "clip-l14"):
        size = tiny_clip.write_tokenizer(folder / name)
        text = dataclasses.replace(tiny_clip.TEXT, vocab_size=size, max_position_embeddings=77)
        tiny_clip.write_whole(folder / name, text=text)
    config = dino_config(DINO)
    _, shapes, _ = abstract(lambda rngs: VisionTransformer(config, rngs=rngs))
    rng = np.random.default_rng(0)
    params = {
        path: rng.standard_normal(leaf.shape).astype(np.float32) * 0.3
        for path, leaf in flatten(shapes).items()
    }
    tensors = to_official(nest(params), table=dino_table(config))
    for name in ("dino-s16", "dino-b8"):
        write_model(folder / name, tensors, config=DINO, stem=WEIGHT_NAMES[1])
    return folder
