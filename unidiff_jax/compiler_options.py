"""Options of the XLA compiler by platform, which a run's `train.compiler_options` may override.

They are data of the program and not variables of the shell, so that a plan, a benchmark and a run
compile the same.
"""

from typing import Any

OPTIONS: dict[str, dict[str, Any]] = {
    "tpu": {
        # A weight that lies over all three sides of a slice is gathered by all-gathers: the
        # compiler would add up arrays that are zero but for one's own part, which sends twice as
        # much, and keep the result from the forward to the backward pass.
        "xla_tpu_enable_async_collective_fusion": True,
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather": True,
        "xla_tpu_enable_async_collective_fusion_multiple_steps": True,
        "xla_tpu_prefer_async_allgather_to_allreduce": True,
        # Computes beside collectives.
        "xla_tpu_overlap_compute_collective_tc": True,
        "xla_enable_async_all_gather": True,
    },
    "cuda": {
        # Computes beside collectives, and sends weights in few large messages.
        "xla_gpu_enable_latency_hiding_scheduler": True,
        "xla_gpu_all_gather_combine_threshold_bytes": 2**28,
        "xla_gpu_reduce_scatter_combine_threshold_bytes": 2**28,
    },
}


def compiler_options(platform: str, given: dict[str, Any]) -> dict[str, Any] | None:
    """Options for a platform of JAX (`tpu`, `gpu`, `cpu`), the given ones first; None for none.

    Example:
      >>> compiler_options("cpu", {})
    """
    known = OPTIONS.get("cuda" if platform == "gpu" else platform, {})
    return known | given or None
