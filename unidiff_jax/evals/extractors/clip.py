"""CLIP as an extractor of pictures and texts."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from unidiff_jax.evals.extractors.batches import in_batches
from unidiff_jax.evals.extractors.identity import Identity, choose, differences
from unidiff_jax.evals.extractors.pictures import preprocess as prepare
from unidiff_jax.evals.extractors.weights import read_weights
from unidiff_jax.paths import AnyPath
from unidiff_jax.sample.clip import CLIPImages, CLIPTexts

PREPROCESS = ("clip", "instruct_pix2pix")

RELEASED = {
    "clip-b32": (
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32},
        {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8},
    ),
    "clip-l14": (
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14},
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
}
"""Sizes of OpenAI's vision and text towers. Both have quick GELU, which retrained ones often have
not."""


@dataclasses.dataclass(frozen=True)
class CLIPExtractor:
    """Both towers; see `Extractor` and `TextExtractor`."""

    vision: CLIPImages
    text: CLIPTexts
    identity: Identity

    @classmethod
    def load(cls, path: AnyPath, *, kind: str, preprocess: str = "") -> "CLIPExtractor":
        """Reads a folder; see `load_extractor`."""
        preprocess = choose(preprocess, kind=kind, known=PREPROCESS)
        weights = read_weights(path)
        vision = CLIPImages.load(path, tensors=weights.tensors)
        text = CLIPTexts.load(path, tokenizer=path, tensors=weights.tensors)
        seen, read = RELEASED[kind]
        shared = {"hidden_act": "quick_gelu"}
        found = differences(vision.config, seen | shared | {"image_size": 224}, prefix="vision ")
        found += differences(text.config, read | shared, prefix="text ")
        identity = Identity(
            name=kind, sha256=weights.sha256, preprocess=preprocess, substitute=", ".join(found)
        )
        return cls(vision, text, identity)

    def images(self, pictures: Sequence[Image.Image]) -> Float[np.ndarray, "n d"]:
        """`image_embeds` of pictures, float32, not normalised."""
        size, name = self.vision.config.image_size, self.identity["preprocess"]
        return in_batches(
            pictures,
            prepare=lambda picture: prepare(picture, name=name, size=size),
            run=self.vision.embed_values,
            empty=(0, self.vision.config.projection_dim),
        )

    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """`text_embeds` of texts, float32, not normalised; long texts are cut."""
        return in_batches(
            texts,
            prepare=np.asarray,
            run=lambda batch: self.text.embed(batch.tolist()),
            empty=(0, self.text.config.projection_dim),
        )
