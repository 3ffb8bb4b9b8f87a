"""Low-rank adapters (LoRA; Hu et al. 2021): y = x W + (alpha / rank) (x A) B, with B = 0 at first.

Adapters are parameters of the dense layers that they adapt, so that scanned blocks stack them along
the layer axis as they stack the weights, and the gradient of a frozen W is never formed.
"""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from unidiff_jax.config import ConfigError
from unidiff_jax.models.layers import Linear
from unidiff_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Which layers are adapted, and how much.

    Attributes:
      rank: inner width; 0 is no adapter.
      alpha: the adapter is scaled by alpha / rank.
      targets: regular expression that a layer's whole path must match, such as
        `blocks/(attention/(q|k|v|out)|ffn/.*)`.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = "blocks/attention/(q|k|v|out)"

    def __post_init__(self):
        if self.rank < 0:
            raise ConfigError(f"lora.rank={self.rank} must be 0 (none) or more, for example 16")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ConfigError(f"lora.targets={self.targets!r} is no pattern: {error}") from None


def attach(model: nnx.Module, config: LoRAConfig, *, rngs: nnx.Rngs) -> list[str]:
    """Adds adapters to the layers of a model whose paths match; returns their paths.

    Raises:
      ConfigError: no layer matches; the message has some that exist.
    """
    if not config.rank:
        return []
    layers = {
        "/".join(map(str, path)): module
        for path, module in nnx.iter_graph(model)
        if isinstance(module, Linear)
    }
    chosen = [path for path in layers if re.fullmatch(config.targets, path)]
    if not chosen:
        raise ConfigError(
            f"lora.targets={config.targets!r} matches no layer; there are "
            f"{', '.join(sorted(layers)[:8])}, ..."
        )
    for path in sorted(chosen):
        _adapt(layers[path], config, rngs=rngs)
    return sorted(chosen)


def _adapt(layer: Linear, config: LoRAConfig, *, rngs: nnx.Rngs) -> None:
    weight = layer.weight
    *stack, in_dim, out_dim = weight.shape
    *stack_axes, in_axis, out_axis = weight.get_metadata("axes")
    a = jax.random.normal(rngs.params(), (*stack, in_dim, config.rank)) * in_dim**-0.5
    b = jnp.zeros((*stack, config.rank, out_dim), jnp.float32)
    layer.lora_a = nnx.Param(a, axes=(*stack_axes, in_axis, "rank"))
    layer.lora_b = nnx.Param(b, axes=(*stack_axes, "rank", out_axis))
    layer.lora_scale = config.alpha / config.rank


def merge(params: Params, config: LoRAConfig) -> Params:
    """Parameters of the plain model: every adapter is added to its weight, in float32.

    Args:
      params: nested, with or without adapters.
      config: with which they were attached.
    """

    def visit(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        rest = {k: visit(v) for k, v in node.items() if k not in ("lora_a", "lora_b")}
        if "lora_a" in node:
            change = jnp.matmul(
                jnp.asarray(node["lora_a"], jnp.float32), jnp.asarray(node["lora_b"], jnp.float32)
            )
            weight = jnp.asarray(rest["weight"])
            merged = weight.astype(jnp.float32) + (config.alpha / config.rank) * change
            rest["weight"] = merged.astype(weight.dtype)
        return rest

    return visit(params)
