"""One table between our parameters and the tensors of the official OneDiffusion transformer.

A line of the table is (our path, official name, kind). `{i}` in the official name is the block's
number: our blocks are stacked along a leading axis. A `matrix` is transposed, because PyTorch keeps
(output, input) and we keep (input, output); a `vector` is taken as it is.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.types import Params


class MappingError(ValueError):
    """Tensors that do not fit the model; the message lists every fault."""


class Entry(NamedTuple):
    """One line of the table."""

    path: str
    official: str
    kind: str


def _linear(path: str, official: str, *, bias: bool) -> list[Entry]:
    entries = [Entry(f"{path}/weight", f"{official}.weight", "matrix")]
    return [*entries, Entry(f"{path}/bias", f"{official}.bias", "vector")] if bias else entries


def _norm(path: str, official: str, *, bias: bool) -> list[Entry]:
    names = ("weight", "bias") if bias else ("weight",)
    return [Entry(f"{path}/{name}", f"{official}.{name}", "vector") for name in names]


_BLOCK = "layers.{i}"
_ATTENTION = f"{_BLOCK}.attention"

DIT_TABLE: tuple[Entry, ...] = (
    *_linear("patch_embed", "x_embedder", bias=True),
    *_linear("sigma_embed/hidden", "t_embedder.mlp.0", bias=True),
    *_linear("sigma_embed/out", "t_embedder.mlp.2", bias=True),
    *_norm("text_norm", "y_embedder.0", bias=True),
    *_linear("text_embed", "y_embedder.1", bias=True),
    *_linear("blocks/modulation", f"{_BLOCK}.adaLN_modulation.1", bias=True),
    *_norm("blocks/attention_norm", f"{_BLOCK}.attention_norm1", bias=False),
    *_norm("blocks/attention_out_norm", f"{_BLOCK}.attention_norm2", bias=False),
    *_norm("blocks/text_norm", f"{_BLOCK}.attention_y_norm", bias=False),
    *_linear("blocks/attention/q", f"{_ATTENTION}.wq", bias=False),
    *_linear("blocks/attention/k", f"{_ATTENTION}.wk", bias=False),
    *_linear("blocks/attention/v", f"{_ATTENTION}.wv", bias=False),
    *_linear("blocks/attention/text_k", f"{_ATTENTION}.wk_y", bias=False),
    *_linear("blocks/attention/text_v", f"{_ATTENTION}.wv_y", bias=False),
    *_linear("blocks/attention/out", f"{_ATTENTION}.wo", bias=False),
    Entry("blocks/attention/text_gate", f"{_ATTENTION}.gate", "vector"),
    *_norm("blocks/attention/q_norm", f"{_ATTENTION}.q_norm", bias=True),
    *_norm("blocks/attention/k_norm", f"{_ATTENTION}.k_norm", bias=True),
    *_norm("blocks/attention/text_k_norm", f"{_ATTENTION}.ky_norm", bias=True),
    *_norm("blocks/ffn_norm", f"{_BLOCK}.ffn_norm1", bias=False),
    *_norm("blocks/ffn_out_norm", f"{_BLOCK}.ffn_norm2", bias=False),
    *_linear("blocks/ffn/gate", f"{_BLOCK}.feed_forward.w1", bias=False),
    *_linear("blocks/ffn/down", f"{_BLOCK}.feed_forward.w2", bias=False),
    *_linear("blocks/ffn/up", f"{_BLOCK}.feed_forward.w3", bias=False),
    *_linear("out_scale", "final_layer.adaLN_modulation.1", bias=True),
    *_linear("out", "final_layer.linear", bias=True),
)


_QK_NORM = ("blocks/attention/q_norm/", "blocks/attention/k_norm/", "blocks/attention/text_k_norm/")


def dit_table(config: DiTConfig) -> list[Entry]:
    """The lines that a model of this config has."""
    return [e for e in DIT_TABLE if config.qk_norm or not e.path.startswith(_QK_NORM)]


def to_official(params: Params, *, config: DiTConfig) -> dict[str, np.ndarray]:
    """The official state dict of a transformer's parameters.

    Args:
      params: of a `DiT`, nested.
      config: its sizes.

    Raises:
      MappingError: a parameter is missing, or one is left over.
    """
    flat = _flatten(params)
    tensors: dict[str, np.ndarray] = {}
    faults = []
    for entry in dit_table(config):
        if entry.path not in flat:
            faults.append(f"no parameter {entry.path}")
            continue
        value = np.asarray(flat.pop(entry.path))
        for name, part in _layers(entry, value, depth=config.depth):
            tensors[name] = np.ascontiguousarray(part.T if entry.kind == "matrix" else part)
    _raise(faults + [f"parameter {path} has no official name" for path in sorted(flat)])
    return tensors


def from_official(
    tensors: Mapping[str, np.ndarray], shapes: Params, *, config: DiTConfig
) -> Params:
    """Parameters of a `DiT` from the official state dict.

    Args:
      tensors: by official name.
      shapes: arrays or shapes of the parameters, nested.
      config: the sizes.

    Raises:
      MappingError: lists every tensor that is missing, left over or of another shape.
    """
    left, wanted = dict(tensors), _flatten(shapes)
    flat: dict[str, np.ndarray] = {}
    faults = []
    for entry in dit_table(config):
        stacked = "{i}" in entry.official
        shape = wanted[entry.path].shape
        parts = []
        for name in _names(entry, depth=config.depth):
            if name not in left:
                faults.append(f"no tensor {name}")
                continue
            part = np.asarray(left.pop(name), np.float32)
            part = part.T if entry.kind == "matrix" else part
            expected = tuple(shape[1:] if stacked else shape)
            if part.shape != expected:
                faults.append(f"{name} gives {part.shape}, {entry.path} has {expected}")
            parts.append(part)
        if not faults:
            flat[entry.path] = np.stack(parts) if stacked else parts[0]
    _raise(faults + [f"tensor {name} has no place" for name in sorted(left)])
    return _nest(flat)


def _names(entry: Entry, *, depth: int) -> list[str]:
    if "{i}" not in entry.official:
        return [entry.official]
    return [entry.official.format(i=i) for i in range(depth)]


def _layers(entry: Entry, value: np.ndarray, *, depth: int) -> list[tuple[str, np.ndarray]]:
    parts = value if "{i}" in entry.official else value[None]
    return list(zip(_names(entry, depth=depth), parts, strict=True))


def _raise(faults: list[str]) -> None:
    if faults:
        raise MappingError("\n".join(faults))


def _flatten(tree: Params, prefix: str = "") -> dict[str, np.ndarray]:
    flat = {}
    for name, value in tree.items():
        flat |= (
            _flatten(value, f"{prefix}{name}/")
            if isinstance(value, dict)
            else {prefix + name: value}
        )
    return flat


def _nest(flat: Mapping[str, np.ndarray]) -> Params:
    tree: Params = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree
