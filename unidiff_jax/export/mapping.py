"""Tables between our parameters and the tensors of released PyTorch folders.

A line of a table is (our path, official name, kind). `{i}` in the official name is the block's
number: our blocks are stacked along a leading axis. PyTorch keeps a dense layer as (output, input)
and a convolution as (output, input, height, width); we keep (input, output) and (height, width,
input, output). The same table reads and writes.

Tensors may be numpy arrays or anything else with `shape` and slicing, such as the parts of a file:
only what a device holds is read.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Sharding

from unidiff_jax.models.clip import CLIPTextConfig, CLIPVisionConfig
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.models.multimodal import MultimodalConfig
from unidiff_jax.models.qformer import QFormerConfig
from unidiff_jax.models.t5 import T5Config
from unidiff_jax.models.vit import ViTConfig
from unidiff_jax.types import Params

Index = tuple[slice, ...]

_OFFICIAL_AXES = {"vector": None, "matrix": (1, 0), "conv": (3, 2, 0, 1)}
"""Kind -> for each official axis, ours."""


class MappingError(ValueError):
    """Tensors that do not fit the model; the message lists every fault."""


class Tensor(Protocol):
    """A tensor that is read where it is indexed."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __getitem__(self, index: Any) -> np.ndarray: ...


class Entry(NamedTuple):
    """One line of a table.

    Attributes:
      path: of our parameter.
      official: name of its tensor, or of one a layer.
      kind: how axes correspond.
      layers: official numbers of the layers that are stacked; None is 0 to the table's depth.
    """

    path: str
    official: str
    kind: str
    layers: range | None = None

    @property
    def stacked(self) -> bool:
        return "{i}" in self.official

    def names(self, depth: int) -> list[str]:
        """Official names, one a layer where our parameter is stacked."""
        if not self.stacked:
            return [self.official]
        return [self.official.format(i=i) for i in self.layers or range(depth)]

    def to_official(self, value: np.ndarray) -> np.ndarray:
        """One layer of our parameter as the official tensor."""
        axes = _OFFICIAL_AXES[self.kind]
        return np.ascontiguousarray(value if axes is None else value.transpose(axes))

    def read(self, tensor: Tensor, index: Index) -> np.ndarray:
        """Our slice of one layer."""
        axes = _OFFICIAL_AXES[self.kind]
        if axes is None:
            return np.asarray(tensor[index])
        part = np.asarray(tensor[tuple(index[axis] for axis in axes)])
        return part.transpose(np.argsort(axes))

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Shape of one layer of our parameter, from the official tensor's."""
        axes, shape = _OFFICIAL_AXES[self.kind], tuple(tensor.shape)
        if axes is None or len(shape) != len(axes):
            return shape
        return tuple(shape[official] for official in np.argsort(axes))


@dataclasses.dataclass(frozen=True)
class Table:
    """All lines of one model.

    Attributes:
      entries: the lines.
      depth: number of stacked layers.
      ignored: beginnings of official names that have no parameter here, such as a decoder's.
      prefix: beginning that a folder may leave out of all names, as transformers since version 5
        does for one tower of a CLIP.
    """

    entries: tuple[Entry, ...]
    depth: int = 0
    ignored: tuple[str, ...] = ()
    prefix: str = ""


def _linear(path: str, official: str, *, bias: bool) -> list[Entry]:
    entries = [Entry(f"{path}/weight", f"{official}.weight", "matrix")]
    return [*entries, Entry(f"{path}/bias", f"{official}.bias", "vector")] if bias else entries


def _norm(path: str, official: str, *, bias: bool) -> list[Entry]:
    names = ("weight", "bias") if bias else ("weight",)
    return [Entry(f"{path}/{name}", f"{official}.{name}", "vector") for name in names]


# -------------------------------------------------------------------------------------- the tables

_DIT = "layers.{i}"
_DIT_ATTENTION = f"{_DIT}.attention"

DIT_TABLE: tuple[Entry, ...] = (
    *_linear("patch_embed", "x_embedder", bias=True),
    *_linear("sigma_embed/hidden", "t_embedder.mlp.0", bias=True),
    *_linear("sigma_embed/out", "t_embedder.mlp.2", bias=True),
    *_norm("text_norm", "y_embedder.0", bias=True),
    *_linear("text_embed", "y_embedder.1", bias=True),
    *_linear("blocks/modulation", f"{_DIT}.adaLN_modulation.1", bias=True),
    *_norm("blocks/attention_norm", f"{_DIT}.attention_norm1", bias=False),
    *_norm("blocks/attention_out_norm", f"{_DIT}.attention_norm2", bias=False),
    *_norm("blocks/text_norm", f"{_DIT}.attention_y_norm", bias=False),
    *_linear("blocks/attention/q", f"{_DIT_ATTENTION}.wq", bias=False),
    *_linear("blocks/attention/k", f"{_DIT_ATTENTION}.wk", bias=False),
    *_linear("blocks/attention/v", f"{_DIT_ATTENTION}.wv", bias=False),
    *_linear("blocks/attention/text_k", f"{_DIT_ATTENTION}.wk_y", bias=False),
    *_linear("blocks/attention/text_v", f"{_DIT_ATTENTION}.wv_y", bias=False),
    *_linear("blocks/attention/out", f"{_DIT_ATTENTION}.wo", bias=False),
    Entry("blocks/attention/text_gate", f"{_DIT_ATTENTION}.gate", "vector"),
    *_norm("blocks/attention/q_norm", f"{_DIT_ATTENTION}.q_norm", bias=True),
    *_norm("blocks/attention/k_norm", f"{_DIT_ATTENTION}.k_norm", bias=True),
    *_norm("blocks/attention/text_k_norm", f"{_DIT_ATTENTION}.ky_norm", bias=True),
    *_norm("blocks/ffn_norm", f"{_DIT}.ffn_norm1", bias=False),
    *_norm("blocks/ffn_out_norm", f"{_DIT}.ffn_norm2", bias=False),
    *_linear("blocks/ffn/gate", f"{_DIT}.feed_forward.w1", bias=False),
    *_linear("blocks/ffn/down", f"{_DIT}.feed_forward.w2", bias=False),
    *_linear("blocks/ffn/up", f"{_DIT}.feed_forward.w3", bias=False),
    *_linear("out_scale", "final_layer.adaLN_modulation.1", bias=True),
    *_linear("out", "final_layer.linear", bias=True),
)

_QK_NORM = ("blocks/attention/q_norm/", "blocks/attention/k_norm/", "blocks/attention/text_k_norm/")

_T5 = "encoder.block.{i}.layer"
_T5_ATTENTION = f"{_T5}.0.SelfAttention"

T5_TABLE: tuple[Entry, ...] = (
    Entry("embedding", "shared.weight", "vector"),
    Entry(
        "position_bias",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "vector",
    ),
    *_norm("blocks/attention_norm", f"{_T5}.0.layer_norm", bias=False),
    *_linear("blocks/q", f"{_T5_ATTENTION}.q", bias=False),
    *_linear("blocks/k", f"{_T5_ATTENTION}.k", bias=False),
    *_linear("blocks/v", f"{_T5_ATTENTION}.v", bias=False),
    *_linear("blocks/out", f"{_T5_ATTENTION}.o", bias=False),
    *_norm("blocks/ffn_norm", f"{_T5}.1.layer_norm", bias=False),
    *_linear("blocks/ffn_gate", f"{_T5}.1.DenseReluDense.wi_0", bias=False),
    *_linear("blocks/ffn_up", f"{_T5}.1.DenseReluDense.wi_1", bias=False),
    *_linear("blocks/ffn_down", f"{_T5}.1.DenseReluDense.wo", bias=False),
    *_norm("final_norm", "encoder.final_layer_norm", bias=False),
)


def _clip_tower(official: str) -> tuple[Entry, ...]:
    """The blocks, which both towers share."""
    layer = f"{official}.encoder.layers.{{i}}"
    return (
        *_norm("blocks/attention_norm", f"{layer}.layer_norm1", bias=True),
        *_linear("blocks/q", f"{layer}.self_attn.q_proj", bias=True),
        *_linear("blocks/k", f"{layer}.self_attn.k_proj", bias=True),
        *_linear("blocks/v", f"{layer}.self_attn.v_proj", bias=True),
        *_linear("blocks/out", f"{layer}.self_attn.out_proj", bias=True),
        *_norm("blocks/ffn_norm", f"{layer}.layer_norm2", bias=True),
        *_linear("blocks/ffn_up", f"{layer}.mlp.fc1", bias=True),
        *_linear("blocks/ffn_down", f"{layer}.mlp.fc2", bias=True),
    )


CLIP_TEXT_TABLE: tuple[Entry, ...] = (
    Entry("token_embedding", "text_model.embeddings.token_embedding.weight", "vector"),
    Entry("position_embedding", "text_model.embeddings.position_embedding.weight", "vector"),
    *_clip_tower("text_model"),
    *_norm("final_norm", "text_model.final_layer_norm", bias=True),
)

_CLIP_IMAGE = "vision_model.embeddings"

CLIP_VISION_TABLE: tuple[Entry, ...] = (
    Entry("patch_embedding", f"{_CLIP_IMAGE}.patch_embedding.weight", "conv"),
    Entry("class_embedding", f"{_CLIP_IMAGE}.class_embedding", "vector"),
    Entry("position_embedding", f"{_CLIP_IMAGE}.position_embedding.weight", "vector"),
    *_norm("pre_norm", "vision_model.pre_layrnorm", bias=True),
    *_clip_tower("vision_model"),
    *_norm("post_norm", "vision_model.post_layernorm", bias=True),
)

_POSITION_IDS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""Buffers in folders of old transformers."""


_VIT = "encoder.layers.{i}"

VIT_TABLE: tuple[Entry, ...] = (
    Entry("patch_embedding/weight", "embeddings.patch_embedding.weight", "conv"),
    Entry("patch_embedding/bias", "embeddings.patch_embedding.bias", "vector"),
    Entry("class_embedding", "embeddings.class_embedding", "vector"),
    Entry("position_embedding", "embeddings.position_embedding", "vector"),
    *_norm("blocks/attention_norm", f"{_VIT}.layer_norm1", bias=True),
    *_linear("blocks/qkv", f"{_VIT}.self_attn.qkv", bias=True),
    *_linear("blocks/out", f"{_VIT}.self_attn.projection", bias=True),
    *_norm("blocks/ffn_norm", f"{_VIT}.layer_norm2", bias=True),
    *_linear("blocks/ffn_up", f"{_VIT}.mlp.fc1", bias=True),
    *_linear("blocks/ffn_down", f"{_VIT}.mlp.fc2", bias=True),
    *_norm("final_norm", "post_layernorm", bias=True),
)


def _qformer_attention(path: str, official: str) -> tuple[Entry, ...]:
    return (
        *_linear(f"{path}/q", f"{official}.attention.query", bias=True),
        *_linear(f"{path}/k", f"{official}.attention.key", bias=True),
        *_linear(f"{path}/v", f"{official}.attention.value", bias=True),
        *_linear(f"{path}/out", f"{official}.output.dense", bias=True),
        *_norm(f"{path}/norm", f"{official}.output.LayerNorm", bias=True),
    )


def _qformer_layer(path: str, *, looks: bool) -> tuple[Entry, ...]:
    layer = "encoder.layer.{i}"
    cross = _qformer_attention(f"{path}/cross", f"{layer}.crossattention") if looks else ()
    return (
        *_qformer_attention(f"{path}/attention", f"{layer}.attention"),
        *cross,
        *_linear(f"{path}/ffn_up", f"{layer}.intermediate_query.dense", bias=True),
        *_linear(f"{path}/ffn_down", f"{layer}.output_query.dense", bias=True),
        *_norm(f"{path}/ffn_norm", f"{layer}.output_query.LayerNorm", bias=True),
    )


def dit_table(config: DiTConfig) -> Table:
    """The official OneDiffusion transformer (NextDiT)."""
    kept = (e for e in DIT_TABLE if config.qk_norm or not e.path.startswith(_QK_NORM))
    return Table(tuple(kept), depth=config.depth)


def t5_table(config: T5Config) -> Table:
    """transformers' `T5EncoderModel`; a whole T5's decoder is left out."""
    ignored = ("encoder.embed_tokens.", "decoder.", "lm_head.")
    return Table(T5_TABLE, depth=config.num_layers, ignored=ignored)


def clip_text_table(config: CLIPTextConfig) -> Table:
    """transformers' `CLIPTextModel`, or `CLIPTextModelWithProjection` where the tower has one; the
    vision tower of a whole `CLIPModel` is left out.
    """
    ignored = ("vision_model.", "visual_projection.", "logit_scale", *_POSITION_IDS)
    projection = _linear("projection", "text_projection", bias=False)
    if not config.projection_dim:
        projection, ignored = [], (*ignored, "text_projection.")
    entries = (*CLIP_TEXT_TABLE, *projection)
    return Table(entries, config.num_hidden_layers, ignored, prefix="text_model.")


def clip_vision_table(config: CLIPVisionConfig) -> Table:
    """transformers' `CLIPVisionModel`, or `CLIPVisionModelWithProjection` where the tower has one;
    the text tower of a whole `CLIPModel` is left out.
    """
    ignored = ("text_model.", "text_projection.", "logit_scale", *_POSITION_IDS)
    projection = _linear("projection", "visual_projection", bias=False)
    if not config.projection_dim:
        projection, ignored = [], (*ignored, "visual_projection.")
    entries = (*CLIP_VISION_TABLE, *projection)
    return Table(entries, config.num_hidden_layers, ignored, prefix="vision_model.")


def vit_table(config: ViTConfig) -> Table:
    """transformers' `Blip2VisionModel`."""
    kept = (e for e in VIT_TABLE if config.qkv_bias or e.path != "blocks/qkv/bias")
    return Table(tuple(kept), depth=config.num_hidden_layers)


def qformer_table(config: QFormerConfig) -> Table:
    """transformers' `Blip2QFormerModel`."""
    depth, step = config.num_hidden_layers, config.cross_attention_frequency
    entries = _norm("norm", "layernorm", bias=True)
    for number in range(step):
        layer = _qformer_layer(f"groups/layers/{number}", looks=number == 0)
        entries += [entry._replace(layers=range(number, depth, step)) for entry in layer]
    return Table(tuple(entries), depth=config.num_groups)


def multimodal_table(config: MultimodalConfig) -> Table:
    """transformers' `Blip2ForConditionalGeneration` with a T5, whose decoder is left out."""
    entries = [
        Entry("query_tokens", "query_tokens", "vector"),
        *_linear("projection", "language_projection", bias=True),
    ]
    ignored: list[str] = []
    for path, prefix, table in (
        ("vision", "vision_model.", vit_table(config.vision)),
        ("qformer", "qformer.", qformer_table(config.qformer)),
        ("text", "language_model.", t5_table(config.text)),
    ):
        ignored += [prefix + name for name in table.ignored]
        for entry in table.entries:
            layers = entry.layers or (range(table.depth) if entry.stacked else None)
            inside = Entry(f"{path}/{entry.path}", prefix + entry.official, entry.kind, layers)
            entries.append(inside)
    return Table(tuple(entries), ignored=tuple(ignored))


def vae_table(shapes: Params) -> Table:
    """diffusers' `AutoencoderKL`: our tree has its names, and the rank tells the kind."""
    kinds = {1: "vector", 2: "matrix", 4: "conv"}
    return Table(
        tuple(
            Entry(path, path.replace("/", "."), kinds[len(leaf.shape)])
            for path, leaf in flatten(shapes).items()
        )
    )


def unified_table(shapes: Params, *, depth: int) -> Table:
    """Our own PyTorch layout (`torch_unified.UnifiedDiT`): our names, with a number a block."""

    def entry(path: str, rank: int) -> Entry:
        name = path.replace("/", ".")
        if path.startswith("blocks/"):
            name, rank = name.replace("blocks.", "blocks.{i}.", 1), rank - 1
        is_table = path in ("role_embed/weight", "name_embed/weight")
        return Entry(path, name, "matrix" if rank == 2 and not is_table else "vector")

    flat = flatten(shapes)
    entries = tuple(entry(path, len(leaf.shape)) for path, leaf in flat.items())
    return Table(entries, depth=depth)


_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def modern_vae_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of today's diffusers for folders that were written with its first attention layer."""
    return {
        ".".join(_OLD_ATTENTION.get(part, part) for part in name.split(".")): tensor
        for name, tensor in tensors.items()
    }


# ------------------------------------------------------------------------------- reading, writing


def to_official(params: Params, *, table: Table) -> dict[str, np.ndarray]:
    """The official state dict of a model's parameters.

    Args:
      params: nested.
      table: of the model.

    Raises:
      MappingError: a parameter is missing, or one is left over.
    """
    flat = flatten(params)
    tensors: dict[str, np.ndarray] = {}
    faults = []
    for entry in table.entries:
        if entry.path not in flat:
            faults.append(f"no parameter {entry.path}")
            continue
        value = np.asarray(flat.pop(entry.path))
        parts = value if entry.stacked else value[None]
        for name, part in zip(entry.names(table.depth), parts, strict=True):
            tensors[name] = entry.to_official(part)
    _raise(faults + [f"parameter {path} has no official name" for path in sorted(flat)])
    return tensors


def from_official(
    tensors: Mapping[str, Tensor],
    shapes: Params,
    *,
    table: Table,
    dtype: Any = np.float32,
    shardings: Params | None = None,
    keep: Callable[[str], bool] | None = None,
) -> Params:
    """Parameters from an official state dict; nothing is read before everything fits.

    Args:
      tensors: by official name.
      shapes: arrays or shapes of the parameters, nested.
      table: of the model.
      dtype: of the result.
      shardings: where each parameter goes, nested; a process reads only what its devices hold, one
        parameter at a time. None gives numpy arrays.
      keep: tells by our path which parameters to read; all are checked. None reads all.

    Raises:
      MappingError: lists every tensor that is missing, left over or of another shape.
    """
    if not any(name.startswith(table.prefix) for name in tensors):
        tensors = {table.prefix + name: tensor for name, tensor in tensors.items()}
    left = {k: v for k, v in tensors.items() if not k.startswith(table.ignored or "\0")}
    wanted = flatten(shapes)
    faults, readers = [], {}
    for entry in table.entries:
        shape = tuple(wanted[entry.path].shape)
        parts = []
        for name in entry.names(table.depth):
            if name not in left:
                faults.append(f"no tensor {name}")
                continue
            parts.append(left.pop(name))
            expected = shape[1:] if entry.stacked else shape
            if entry.shape(parts[-1]) != expected:
                faults.append(f"{name} gives {entry.shape(parts[-1])}, {entry.path} has {expected}")
        readers[entry.path] = _reader(entry, parts, dtype)
    _raise(faults + [f"tensor {name} has no place" for name in sorted(left)])
    places: dict[str, Sharding] = flatten(shardings) if shardings else {}
    flat = {}
    for path, read in readers.items():
        if keep is not None and not keep(path):
            continue
        shape = tuple(wanted[path].shape)
        if path in places:
            flat[path] = jax.make_array_from_callback(shape, places[path], read)
        else:
            flat[path] = read(tuple(slice(None) for _ in shape))
    return nest(flat)


def _reader(entry: Entry, parts: Sequence[Tensor], dtype: Any) -> Callable[[Index], np.ndarray]:
    """Reads a slice of our parameter from the tensors of its layers."""

    def read(index: Index) -> np.ndarray:
        if not entry.stacked:
            return entry.read(parts[0], index).astype(dtype)
        layers = [entry.read(part, index[1:]).astype(dtype) for part in parts[index[0]]]
        return np.stack(layers)

    return read


def _raise(faults: list[str]) -> None:
    if faults:
        raise MappingError("\n".join(faults))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Paths with slashes; the keys of a list's elements are their numbers."""
    flat = {}
    for name, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{name}/")
            if isinstance(value, dict)
            else {f"{prefix}{name}": value}
        )
    return flat


def nest(flat: Mapping[str, Any]) -> Params:
    """Inverse of `flatten`."""
    tree: Params = {}
    for path, value in flat.items():
        *parents, name = [int(key) if key.isdigit() else key for key in path.split("/")]
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
