"""Mesh presets and the rules that map logical axes to mesh axes.

Axes, outermost first: `data` (whole replicas, across slices: only gradients cross it), `fsdp` (rows
of the batch and one axis of every large weight), `seq` (tokens of long sequences), `tensor` (heads
and feed-forward width). One axis may be -1: what is left of the devices.
"""

from ml_collections import ConfigDict

from unidiff_jax.config import ConfigError

PRESETS = {
    # one device, or all devices as one FSDP group: the default. A chip gathers all weights three
    # times a step, whatever their number is, so it wants thousands of tokens on each.
    "fsdp": {"data": 1, "fsdp": -1, "seq": 1, "tensor": 1},
    # plain data parallelism, for models that fit on each chip
    "data": {"data": -1, "fsdp": 1, "seq": 1, "tensor": 1},
    # heads and feed-forward width over all devices: one picture made by several chips
    "tensor": {"data": 1, "fsdp": 1, "seq": 1, "tensor": -1},
    # two-way tensor parallelism inside FSDP: half of the rows, for few and long ones
    "fsdp_tensor2": {"data": 1, "fsdp": -1, "seq": 1, "tensor": 2},
    # FSDP in each of two slices, and only gradients between them
    "slices2": {"data": 2, "fsdp": -1, "seq": 1, "tensor": 1},
    # tokens of a row over chips, for sequences too long for one
    "fsdp_seq2": {"data": 1, "fsdp": -1, "seq": 2, "tensor": 1},
    "fsdp_seq4": {"data": 1, "fsdp": -1, "seq": 4, "tensor": 1},
    "seq": {"data": 1, "fsdp": 1, "seq": -1, "tensor": 1},
}

# Logical axis -> mesh axes. An axis that does not divide stays whole; the first that fits wins.
RULES = {
    "batch": ("data", "fsdp"),
    "embed": ("fsdp", "seq"),
    "text": ("fsdp", "seq"),
    "condition": ("fsdp", "seq"),
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
}


def get_mesh(preset: str = "fsdp") -> ConfigDict:
    """The mesh section of a config."""
    if preset not in PRESETS:
        raise ConfigError(f"unknown mesh preset {preset!r}; presets are: {', '.join(PRESETS)}")
    return ConfigDict({"axes": PRESETS[preset], "rules": RULES})
