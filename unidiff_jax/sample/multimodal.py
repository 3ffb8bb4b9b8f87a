"""The multimodal encoder of a released BLIP-2 with a T5, ready to run.

encoder = LoadedMultimodal.load("blip2-flan-t5-xl", tokenizer=load_tokenizer("blip2-flan-t5-xl"))
states, mask, picture = encoder.encode(["<img>fox.png</img> in the snow"])
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from PIL import Image

from unidiff_jax.config import Config
from unidiff_jax.export.files import WEIGHT_NAMES, open_tensors, read_config, write_model
from unidiff_jax.export.mapping import (
    flatten,
    from_official,
    multimodal_table,
    nest,
    to_official,
)
from unidiff_jax.mesh import section_shardings
from unidiff_jax.models.layers import abstract
from unidiff_jax.models.multimodal import MEAN, STD_RGB, MultimodalConfig, MultimodalEncoder
from unidiff_jax.paths import AnyPath
from unidiff_jax.prompts import Interleaved, ListPart, interleave, parse_prompt, resolve_prompt
from unidiff_jax.sample.encoders import multimodal_config
from unidiff_jax.text import PAD, Tokenizer
from unidiff_jax.types import Params

LENGTH_STEP = 64
"""Prompts are padded to a multiple of so many places: the encoder is compiled once a length."""


def preprocess(
    pictures: Sequence[Image.Image], *, size: int = 224
) -> Float[np.ndarray, "n size size 3"]:
    """Pictures as the vision tower reads them: squeezed to a square of `size` pixels (bicubic, by
    PIL), colours normalised by `MEAN` and `STD_RGB`.
    """
    values = np.zeros((len(pictures), size, size, 3), np.float32)
    for value, picture in zip(values, pictures, strict=True):
        rgb = picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        value[:] = (np.asarray(rgb, np.float64) / 255).astype(np.float32)
    return (values - np.asarray(MEAN, np.float32)) / np.asarray(STD_RGB, np.float32)


class EncodedPrompts(NamedTuple):
    """Prompts ready for a denoiser.

    Attributes:
      states: float32.
      mask: 1 where the prompt is.
      picture: the number of the prompt's picture that each place shows, from 1; 0 for a word.
    """

    states: Float[Array, "b L E"]
    mask: Int[Array, "b L"]
    picture: Int[Array, "b L"]


@dataclasses.dataclass(frozen=True)
class LoadedMultimodal:
    """A multimodal encoder, its weights and its tokenizer."""

    tokenizer: Tokenizer
    config: MultimodalConfig
    graphdef: nnx.GraphDef
    params: Params
    values: Mapping[str, Any]

    @classmethod
    def load(
        cls,
        folder: AnyPath,
        *,
        tokenizer: Tokenizer,
        dtype: str = "float32",
        mesh: Config | None = None,
    ) -> "LoadedMultimodal":
        """Reads a transformers folder; of the language model, the encoder alone.

        Args:
          folder: config and weights.
          tokenizer: of the language model; released folders hold its `spiece.model`.
          dtype: of weights and activations; the Q-Former's are float32, as in transformers.
          mesh: see `denoiser.load_denoiser`.

        Raises:
          ConfigError, FolderError, MappingError: another model, files that cannot be read, or
            tensors that do not fit; with every fault.
        """
        values = read_config(folder)
        config = multimodal_config(values, dtype=dtype)
        graphdef, shapes, axes = abstract(lambda rngs: MultimodalEncoder(config, rngs=rngs))
        tensors, shardings = open_tensors(folder), section_shardings(mesh, shapes, axes)
        flat = {}
        for kind, exact in ((dtype, False), ("float32", True)):
            part = from_official(
                tensors,
                shapes,
                table=multimodal_table(config),
                dtype=jnp.dtype(kind),
                shardings=shardings,
                keep=lambda path, exact=exact: _is_exact(path) == exact,
            )
            flat |= flatten(part)
        return cls(tokenizer, config, graphdef, jax.tree.map(jnp.asarray, nest(flat)), values)

    def save_pretrained(self, folder: AnyPath) -> None:
        """Writes a folder that `load` reads; transformers would miss the decoder in it."""
        params = jax.tree.map(np.asarray, self.params)
        tensors = to_official(params, table=multimodal_table(self.config))
        write_model(folder, tensors, config=self.values, stem=WEIGHT_NAMES[1])

    def tokenize(
        self,
        prompt: str | Sequence[ListPart],
        *,
        names: Mapping[str, Any] | None = None,
        folder: AnyPath | None = ".",
    ) -> Interleaved:
        """Tokens and pictures of a prompt; raises InputError as `prompts` does.

        Args:
          prompt: see `prompts`.
          names: see `prompts.resolve_prompt`.
          folder: likewise.
        """
        return interleave(
            resolve_prompt(parse_prompt(prompt), names=names, folder=folder),
            tokenizer=self.tokenizer,
            num_queries=self.config.num_query_tokens,
            image_id=self.values.get("image_token_index") or PAD,
        )

    def encode(
        self,
        prompts: Sequence[str | Sequence[ListPart]],
        *,
        names: Mapping[str, Any] | None = None,
        folder: AnyPath | None = ".",
    ) -> EncodedPrompts:
        """States of prompts of any length, padded to a multiple of `LENGTH_STEP`.

        Args:
          prompts: see `prompts`.
          names: see `prompts.resolve_prompt`.
          folder: likewise.

        Raises:
          InputError: as `prompts` does.
        """
        found = [self.tokenize(prompt, names=names, folder=folder) for prompt in prompts]
        longest = max(len(prompt.ids) for prompt in found)
        length = -(-longest // LENGTH_STEP) * LENGTH_STEP
        ids, query, mask = np.zeros((3, len(found), length), np.int32)
        size, most = self.config.vision.image_size, max(len(p.pictures) for p in found)
        pictures = np.zeros((len(found), most, size, size, 3), np.float32)
        for row, prompt in enumerate(found):
            count = len(prompt.ids)
            ids[row, :count], query[row, :count], mask[row, :count] = prompt.ids, prompt.query, 1
            pictures[row, : len(prompt.pictures)] = preprocess(prompt.pictures, size=size)
        states, picture = encode_multimodal(
            self.params, ids, mask, query, pictures, graphdef=self.graphdef
        )
        return EncodedPrompts(states.astype(jnp.float32), jnp.asarray(mask), picture)


def _is_exact(path: str) -> bool:
    """Whether a parameter keeps float32."""
    return path == "query_tokens" or path.startswith("qformer/")


@functools.partial(jax.jit, static_argnames="graphdef")
def encode_multimodal(params, ids, segment, query, pictures, *, graphdef):
    """The program of `LoadedMultimodal.encode`."""
    encoder = nnx.merge(graphdef, params)
    return encoder(ids, segment=segment, query=query, pictures=pictures)
