"""The text encoder that a config's section `text` chooses: T5, CLIP's text towers, or an encoder of
words and pictures (`models.multimodal`).

    {"kind": "t5", "vocab_size": 32128, "d_model": 2048, ...}            sizes of `T5Config`
    {"kind": "clip", "hidden_size": 768, "skip_layers": 1, ...}          of `CLIPTextConfig`
    {"kind": "clip", "skip_layers": 1, "towers": ({...}, {...})}         several on the same ids

    {"kind": "blip2", "vision": {...}, "qformer": {...}, "num_query_tokens": 32, "d_model": ...}
    {"kind": "patches", "picture_dim": 197, "d_model": 128, ...}         of `PatchT5Config`

A section without `kind` is T5's. What stands beside `towers` holds for each of them. The last two
are T5's with pictures, which `data.guidance=prompt` gives them.
"""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float

from unidiff_jax.config import Config, ConfigError
from unidiff_jax.models.clip import CLIPTextConfig, CLIPTowers, CLIPTowersConfig
from unidiff_jax.models.multimodal import (
    MultimodalConfig,
    MultimodalEncoder,
    PatchT5,
    PatchT5Config,
)
from unidiff_jax.models.qformer import QFormerConfig
from unidiff_jax.models.t5 import T5Config, T5Encoder
from unidiff_jax.models.vit import ViTConfig
from unidiff_jax.types import Batch

TextConfig = T5Config | CLIPTowersConfig | MultimodalConfig | PatchT5Config
TextEncoder = T5Encoder | CLIPTowers | MultimodalEncoder | PatchT5
KINDS = ("t5", "clip", "blip2", "patches")
MULTIMODAL = ("blip2", "patches")
"""Kinds that read pictures among the words."""

_SHARED = ("skip_layers", "scan_layers", "remat", "dtype")
"""Settings of CLIP that hold for all towers."""


def text_kind(section: Config) -> str:
    """One of `KINDS`.

    Raises:
      ConfigError: another kind.
    """
    kind = section.get("kind", "t5")
    if kind not in KINDS:
        raise ConfigError(f"text.kind={kind!r} is unknown; one of {', '.join(KINDS)}")
    return kind


def tokenizer_kind(section: Config) -> str:
    """The kind of tokenizer that the encoder reads: `t5` or `clip`."""
    return "clip" if text_kind(section) == "clip" else "t5"


def text_config(section: Config) -> TextConfig:
    """The encoder's settings.

    Raises:
      ConfigError: an unknown kind, or settings that cannot be.
    """
    values: dict[str, Any] = {k: v for k, v in section.items() if k != "kind"}
    kind = text_kind(section)
    if kind == "t5":
        return T5Config(**values)
    if kind == "patches":
        return PatchT5Config(picture_dim=values.pop("picture_dim"), text=T5Config(**values))
    if kind == "blip2":
        shared = {key: values[key] for key in ("scan_layers", "remat") if key in values}
        vision = ViTConfig(
            **shared | dict(values.pop("vision")), dtype=values.get("dtype", "float32")
        )
        qformer = QFormerConfig(
            **shared | dict(values.pop("qformer")), encoder_hidden_size=vision.hidden_size
        )
        queries = values.pop("num_query_tokens")
        return MultimodalConfig(
            vision=vision, qformer=qformer, text=T5Config(**values), num_query_tokens=queries
        )
    towers = [dict(tower) for tower in values.pop("towers", ({},))]
    own = sorted({key for tower in towers for key in tower if key in _SHARED})
    if own or not towers:
        raise ConfigError(
            f"text.towers gives {', '.join(own) or 'no tower'}; a tower has sizes, and "
            f"{', '.join(_SHARED)} stand beside text.towers, for all of them"
        )
    return CLIPTowersConfig(tuple(CLIPTextConfig(**values | tower) for tower in towers))


def make_text_encoder(config: TextConfig, *, rngs: nnx.Rngs) -> TextEncoder:
    """A module that `encode_batch` runs."""
    kinds = {
        T5Config: T5Encoder,
        CLIPTowersConfig: CLIPTowers,
        MultimodalConfig: MultimodalEncoder,
        PatchT5Config: PatchT5,
    }
    return kinds[type(config)](config, rngs=rngs)


def encode_batch(encoder: TextEncoder, batch: Batch) -> Float[Array, "b s e"]:
    """States of a batch's text, with the pictures in it where the encoder reads them.

    Raises:
      ValueError: it does, and the batch has no places for pictures.
    """
    if not isinstance(encoder, MultimodalEncoder | PatchT5):
        return encoder(batch.text_ids, segment=batch.text_segment)
    if batch.text_asset is None or batch.asset_features is None:
        raise ValueError("a multimodal encoder needs examples with data.guidance='prompt'")
    return encoder.read_assets(
        batch.text_ids,
        segment=batch.text_segment,
        asset=batch.text_asset,
        features=batch.asset_features,
    )
