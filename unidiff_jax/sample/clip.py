"""CLIP's embeddings of texts and pictures, from folders of one tower or of the whole CLIP.

texts = CLIPTexts.load("clip-vit-base-patch32", tokenizer="clip-vit-base-patch32")
images = CLIPImages.load("clip-vit-base-patch32")
similarity = cosine(texts.embed(["a red cat"]), images.embed([picture]))
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from PIL import Image

from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import WEIGHT_NAMES, open_tensors, read_config, write_model
from unidiff_jax.export.mapping import (
    Table,
    clip_text_table,
    clip_vision_table,
    from_official,
    to_official,
)
from unidiff_jax.models.clip import (
    CLIPTextConfig,
    CLIPTextEncoder,
    CLIPVisionConfig,
    CLIPVisionEncoder,
)
from unidiff_jax.models.layers import abstract
from unidiff_jax.paths import AnyPath
from unidiff_jax.text import Tokenizer, load_tokenizer
from unidiff_jax.types import Params

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the RGB values in [0, 1] of CLIP's training pictures."""

_DEFAULT_PROJECTION = 512
"""Of Hugging Face's config."""


def preprocess(
    pictures: Sequence[Image.Image], *, size: int = 224
) -> Float[np.ndarray, "b size size 3"]:
    """Pictures as the vision tower reads them: the shorter side to `size` pixels (bicubic, by PIL),
    the centre cut out, and colours normalised by `MEAN` and `STD`.
    """
    return np.stack([_preprocess(picture, size) for picture in pictures])


def _preprocess(picture: Image.Image, size: int) -> Float[np.ndarray, "size size 3"]:
    picture = picture.convert("RGB")
    short = min(picture.size)
    width, height = (size * side // short for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    rgb = np.asarray(picture.crop((left, top, left + size, top + size)))
    values = (rgb.astype(np.float64) / 255).astype(np.float32)
    return (values - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)


@dataclasses.dataclass(frozen=True)
class CLIPTexts:
    """A text tower, its weights and its tokenizer."""

    tokenizer: Tokenizer
    config: CLIPTextConfig
    graphdef: nnx.GraphDef
    params: Params
    values: Mapping[str, Any]

    @classmethod
    def load(cls, folder: AnyPath, *, tokenizer: AnyPath, dtype: str = "float32") -> "CLIPTexts":
        """Reads a `CLIPModel`, `CLIPTextModel` or `CLIPTextModelWithProjection` folder.

        Raises:
          ConfigError, FolderError, MappingError: another model, files that cannot be read, or
            tensors that do not fit; with every fault.
        """
        values = tower_values(read_config(folder), "text")
        config = clip_text_config(values, dtype=dtype)
        graphdef, params = _load(
            folder, lambda rngs: CLIPTextEncoder(config, rngs=rngs), clip_text_table(config), dtype
        )
        return cls(load_tokenizer(tokenizer), config, graphdef, params, values)

    def save_pretrained(self, folder: AnyPath, *, tokenizer: AnyPath) -> None:
        """Writes a transformers folder of this tower and the tokenizer's beside it."""
        _save(folder, self.params, clip_text_table(self.config), self.values)
        self.tokenizer.save(tokenizer)

    def embed(self, texts: Sequence[str]) -> Float[Array, "b p"]:
        """`text_embeds`, float32, not normalised; texts are cut to the tower's length."""
        length = self.config.max_position_embeddings
        ids, segment = np.zeros((2, len(texts), length), np.int32)
        for row, text in enumerate(texts):
            tokens = self.tokenizer.encode(text)
            if len(tokens) > length:
                tokens = [*tokens[: length - 1], self.tokenizer.end_id]
            ids[row, : len(tokens)], segment[row, : len(tokens)] = tokens, 1
        return _embed_texts(self.params, ids, segment, graphdef=self.graphdef)


@dataclasses.dataclass(frozen=True)
class CLIPImages:
    """A vision tower and its weights."""

    config: CLIPVisionConfig
    graphdef: nnx.GraphDef
    params: Params
    values: Mapping[str, Any]

    @classmethod
    def load(cls, folder: AnyPath, *, dtype: str = "float32") -> "CLIPImages":
        """Reads a `CLIPModel`, `CLIPVisionModel` or `CLIPVisionModelWithProjection` folder; raises
        as `CLIPTexts.load`.
        """
        values = tower_values(read_config(folder), "vision")
        config = clip_vision_config(values, dtype=dtype)
        graphdef, params = _load(
            folder,
            lambda rngs: CLIPVisionEncoder(config, rngs=rngs),
            clip_vision_table(config),
            dtype,
        )
        return cls(config, graphdef, params, values)

    def save_pretrained(self, folder: AnyPath) -> None:
        """Writes a transformers folder of this tower."""
        _save(folder, self.params, clip_vision_table(self.config), self.values)

    def embed(self, pictures: Sequence[Image.Image]) -> Float[Array, "b p"]:
        """`image_embeds`, float32, not normalised."""
        values = preprocess(pictures, size=self.config.image_size)
        return _embed_images(self.params, values, graphdef=self.graphdef)


@functools.partial(jax.jit, static_argnames="graphdef")
def _embed_texts(params, ids, segment, *, graphdef):
    return nnx.merge(graphdef, params).embed(ids, segment=segment).astype(jnp.float32)


@functools.partial(jax.jit, static_argnames="graphdef")
def _embed_images(params, values, *, graphdef):
    return nnx.merge(graphdef, params)(values).embedding.astype(jnp.float32)


def _load(folder: AnyPath, make: Any, table: Table, dtype: str) -> tuple[nnx.GraphDef, Params]:
    graphdef, shapes, _ = abstract(make)
    params = from_official(open_tensors(folder), shapes, table=table, dtype=jnp.dtype(dtype))
    return graphdef, jax.tree.map(jnp.asarray, params)


def _save(folder: AnyPath, params: Params, table: Table, values: Mapping[str, Any]) -> None:
    tensors = to_official(jax.tree.map(np.asarray, params), table=table)
    write_model(folder, tensors, config=values, stem=WEIGHT_NAMES[1])


# -------------------------------------------------------------------------------------- config.json


def tower_values(values: Mapping[str, Any], tower: str) -> dict[str, Any]:
    """The settings of one tower as its own folder would have them.

    Args:
      values: transformers' `config.json` of a whole CLIP or of this tower.
      tower: `text` or `vision`.

    Raises:
      ConfigError: neither of them.
    """
    name = f"CLIP{tower.capitalize()}Model"
    if values.get("model_type") == "clip":
        projection = values.get("projection_dim", _DEFAULT_PROJECTION)
        own = {**values[f"{tower}_config"], **(values.get(f"{tower}_config_dict") or {})}
        return own | {
            "model_type": f"clip_{tower}_model",
            "architectures": [f"{name}WithProjection"],
            "projection_dim": projection,
        }
    if values.get("model_type") != f"clip_{tower}_model":
        raise ConfigError(
            f"model_type={values.get('model_type')!r} is no CLIP {tower} tower; known are 'clip' "
            f"and 'clip_{tower}_model'"
        )
    return dict(values)


def clip_text_config(
    values: Mapping[str, Any], *, dtype: str, skip_layers: int = 0
) -> CLIPTextConfig:
    """Reads the `config.json` of a text tower (`tower_values`)."""
    return CLIPTextConfig(**_known(values, CLIPTextConfig), skip_layers=skip_layers, dtype=dtype)


def clip_vision_config(values: Mapping[str, Any], *, dtype: str) -> CLIPVisionConfig:
    """Reads the `config.json` of a vision tower (`tower_values`).

    Raises:
      ConfigError: pictures that are not RGB.
    """
    if values.get("num_channels", 3) != 3:
        raise ConfigError(f"num_channels={values['num_channels']}: only RGB pictures are known")
    return CLIPVisionConfig(**_known(values, CLIPVisionConfig), dtype=dtype)


def _known(values: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """The fields of a tower's config. A folder without a projection may still give its width."""
    own = {"projection_dim", "skip_layers", "scan_layers", "remat", "dtype"}
    names = {field.name for field in dataclasses.fields(kind)} - own
    chosen = {k: v for k, v in values.items() if k in names and v is not None}
    projects = any(name.endswith("WithProjection") for name in values.get("architectures") or ())
    width = values.get("projection_dim", _DEFAULT_PROJECTION) if projects else 0
    return chosen | {"projection_dim": width, "remat": "none"}
