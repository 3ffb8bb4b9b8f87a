"""DINO (Caron et al. 2021) and DINOv2 (Oquab et al. 2024): the class token behind the last norm.

The pooler that transformers puts behind DINO is untrained and not used. DINOv2's positions are of
37 x 37 patches and are brought to the picture's as transformers does it; the original code samples
them a tenth of a patch aside, which moves features a little.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from PIL import Image

from unidiff_jax.config import ConfigError
from unidiff_jax.evals.extractors.batches import in_batches
from unidiff_jax.evals.extractors.identity import Identity, choose, differences
from unidiff_jax.evals.extractors.pictures import preprocess as prepare
from unidiff_jax.evals.extractors.pictures import resample
from unidiff_jax.evals.extractors.weights import read_weights
from unidiff_jax.export.files import read_config
from unidiff_jax.export.mapping import Tensor, dino_table, from_official, join_qkv
from unidiff_jax.models.layers import abstract
from unidiff_jax.models.vit import VisionTransformer, ViTConfig
from unidiff_jax.paths import AnyPath
from unidiff_jax.types import Params

PREPROCESS = ("imagenet",)

SIZE = 224
"""Pixels a side of the pictures that DINOv2's released network is given, trained with 518."""

_POSITIONS = "embeddings.position_embeddings"

RELEASED = {
    "dino-s16": {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "patch_size": 16,
        "image_size": SIZE,
        "layer_scale": False,
    },
    "dino-b8": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 8,
        "image_size": SIZE,
        "layer_scale": False,
    },
    "dinov2-b14": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "patch_size": 14,
        "image_size": SIZE,
        "layer_scale": True,
    },
}
"""Sizes of the released networks."""


@dataclasses.dataclass(frozen=True)
class DINOExtractor:
    """A vision transformer; see `Extractor`."""

    config: ViTConfig
    graphdef: nnx.GraphDef
    params: Params
    identity: Identity

    @classmethod
    def load(cls, path: AnyPath, *, kind: str, preprocess: str = "") -> "DINOExtractor":
        """Reads a folder; see `load_extractor`."""
        preprocess = choose(preprocess, kind=kind, known=PREPROCESS)
        config = dino_config(read_config(path))
        weights = read_weights(path)
        graphdef, shapes, _ = abstract(lambda rngs: VisionTransformer(config, rngs=rngs))
        tensors = join_qkv(_at_size(weights.tensors, config.image_size // config.patch_size))
        params = from_official(tensors, shapes, table=dino_table(config))
        identity = Identity(
            name=kind,
            sha256=weights.sha256,
            preprocess=preprocess,
            substitute=", ".join(differences(config, RELEASED[kind])),
        )
        return cls(config, graphdef, jax.tree.map(jnp.asarray, params), identity)

    def images(self, pictures: Sequence[Image.Image]) -> Float[np.ndarray, "n d"]:
        """States of the class token, float32, not normalised."""
        name, size = self.identity["preprocess"], self.config.image_size
        return in_batches(
            pictures,
            prepare=lambda picture: prepare(picture, name=name, size=size),
            run=lambda values: class_states(self.params, values, graphdef=self.graphdef),
            empty=(0, self.config.hidden_size),
        )


@functools.partial(jax.jit, static_argnames="graphdef")
def class_states(params, values, *, graphdef):
    """The program of `DINOExtractor.images`."""
    return nnx.merge(graphdef, params)(values)[:, 0]


def dino_config(values: Mapping[str, Any]) -> ViTConfig:
    """Reads the `config.json` of transformers' `ViTModel` or `Dinov2Model`.

    Raises:
      ConfigError: another model, or one whose blocks are others.
    """
    kind = values.get("model_type")
    if kind not in ("vit", "dinov2"):
        raise ConfigError(f"model_type={kind!r} is no DINO; known are 'vit' and 'dinov2'")
    if values.get("hidden_act", "gelu") != "gelu" or values.get("use_swiglu_ffn"):
        raise ConfigError("only blocks with hidden_act='gelu' and use_swiglu_ffn=false are known")
    width = values.get("hidden_size", 768)
    second = kind == "dinov2"
    wide = int(width * values.get("mlp_ratio", 4)) if second else values.get("intermediate_size")
    return ViTConfig(
        hidden_size=width,
        intermediate_size=wide or 4 * width,
        num_hidden_layers=values.get("num_hidden_layers", 12),
        num_attention_heads=values.get("num_attention_heads", 12),
        image_size=min(SIZE, values.get("image_size", SIZE)),
        patch_size=values.get("patch_size", 14 if second else 16),
        layer_norm_eps=values.get("layer_norm_eps", 1e-6 if second else 1e-12),
        qkv_bias=values.get("qkv_bias", True),
        layer_scale=second,
        remat="none",
    )


def _at_size(tensors: Mapping[str, Tensor], side: int) -> dict[str, Tensor]:
    """The tensors with positions of side x side patches."""
    found = dict(tensors)
    if _POSITIONS not in found:
        return found
    positions = np.asarray(found[_POSITIONS][...])
    first, grid = positions[:, :1], positions[0, 1:]
    old = round(len(grid) ** 0.5)
    if old != side:
        grid = grid.reshape(old, old, -1)
        grid = resample(grid, size=(side, side), kind="torch_bicubic").reshape(side * side, -1)
        found[_POSITIONS] = np.concatenate([first, grid[None]], axis=1)
    return found
