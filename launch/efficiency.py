"""Which options of a config save memory or time, and what they do in the compiled train step."""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from launch import hlo
from launch.chips import GIB
from unidiff_jax.train.offload import HOST
from unidiff_jax.train.state import TrainState

Numbers = dict[str, Any]


def efficiency(
    config: ConfigDict,
    state: TrainState,
    program: dict[str, list[hlo.Instruction]],
    *,
    host_bytes: int,
) -> dict[str, Numbers]:
    """Each option by its key: its value, and numbers of one device.

    Args:
      config: of the run.
      state: shapes with their shardings.
      program: the parsed train step.
      host_bytes: what the compiled step keeps in host memory.
    """
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    wide = sum(_count(leaf) * 4 for leaf in moments)
    kept = bytes_a_device(moments)
    products, narrow = hlo.products(program)
    passes = config.train.num_microbatches
    return {
        "train.num_microbatches": {
            "value": passes,
            "gradient_bytes": bytes_a_device(state.params) if passes > 1 else 0,
        },
        "model.quantized": {
            "value": config.model.quantized,
            "products": products,
            "products_in_8_bits": narrow,
        },
        "optim.moments": {
            "value": config.optim.moments,
            "bytes": kept,
            "saved_bytes": wide - kept,
        },
        "optim.memory": {
            "value": config.optim.memory,
            "host_bytes": host_bytes,
            "saved_bytes": bytes_a_device(
                [leaf for leaf in moments if leaf.sharding.memory_kind == HOST]
            ),
        },
    }


def efficiency_report(options: dict[str, Numbers]) -> str:
    """A line an option."""
    passes, quantized, moments, memory = options.values()
    said = {
        "train.num_microbatches": "the batch in one pass"
        if passes["value"] == 1
        else f"accumulated gradients take {_gib(passes['gradient_bytes'])}",
        "model.quantized": "products with weights in 16 or 32 bits"
        if quantized["value"] == "none"
        else f"{quantized['products_in_8_bits']} of {quantized['products']} products of the "
        "compiled step in 8 bits; the peaks below are those of 16",
        "optim.moments": f"moments take {_gib(moments['bytes'])}"
        + (f", {_gib(moments['saved_bytes'])} less" if moments["saved_bytes"] else ""),
        "optim.memory": "moments stay on the device"
        if memory["value"] == "device"
        else "a GPU that is not here has no host memory: moments are counted on the device"
        if not memory["host_bytes"]
        else f"host memory takes {_gib(memory['host_bytes'])} by the compiled step; "
        f"{_gib(memory['saved_bytes'])} of moments leave the device between steps",
    }
    return "\n".join(f"{key}={options[key]['value']}: {text}" for key, text in said.items())


def bytes_a_device(tree: Any) -> int:
    """Bytes that a tree of shapes with shardings takes on each device."""
    return sum(_count(leaf) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _count(leaf: jax.ShapeDtypeStruct) -> int:
    return int(np.prod(leaf.sharding.shard_shape(leaf.shape)))


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB" if count >= GIB / 100 else f"{count / 2**20:.2f} MiB"
