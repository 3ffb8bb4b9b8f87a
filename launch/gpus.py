"""GPUs that are not here, as XLA's compiler wants them described.

XLA chooses tiles and kernels by what a device has: cores, shared memory, registers. Where a
device is attached it asks the driver. Here the same facts stand in the form that the compiler takes
for one that is not: `GpuTargetConfigProto` of XLA, as text.

Sources: NVIDIA's H100 whitepaper and data sheets of the H100 and H200 (SXM): cores, L2 cache,
clock, bandwidth; CUDA C++ Programming Guide, technical specifications of compute capability 9.0:
limits of threads, registers and shared memory. The usable bytes of the memories are those of XLA's
own descriptions (openxla/xla, xla/backends/gpu/target_config/specs).
"""

from typing import NamedTuple

import jax
from jax.experimental import topologies

from unidiff_jax.config import ConfigError

MISSING = "the GPU compiler is missing; install it with ./launch/environment.sh cuda"


OPTIONS = {"xla_gpu_enable_triton_gemm": False}
"""Matrix products by cuBLAS alone: which of Triton's kernels is fast, and which works at all, the
compiler finds out by running them."""


class Target(NamedTuple):
    """What tells one Hopper GPU from another.

    Attributes:
      name: JAX's `device_kind`.
      memory: bytes.
      bandwidth: of the memory, bytes a second.
    """

    name: str
    memory: int
    bandwidth: int


TARGETS = {
    "h100": Target("NVIDIA H100 80GB HBM3", 84_942_979_072, 3_350_000_000_000),
    "h200": Target("NVIDIA H200", 151_397_597_184, 4_800_000_000_000),
}


def gpu_devices(name: str, *, per_node: int, nodes: int) -> list[jax.Device]:
    """Devices to compile for; node i has the process index i.

    Args:
      name: one of `TARGETS`.
      per_node: GPUs of a node.
      nodes: how many there are.

    Raises:
      ConfigError: JAX's CUDA plugin is not installed.
    """
    try:
        from jax_cuda13_plugin import _versions
    except ImportError:
        raise ConfigError(MISSING) from None
    found = topologies.get_topology_desc(
        name,
        "cuda",
        topology=f"1x{nodes}x{per_node}",
        target_config=describe(TARGETS[name], cudnn=_versions.cudnn_get_version()),
    )
    return list(found.devices)


def describe(target: Target, *, cudnn: int) -> str:
    """The text of a `GpuTargetConfigProto`; `cudnn` is its version as one number, 92000."""
    return f"""
platform_name: "CUDA"
device_description_str: "{target.name}"
dnn_version_info {{ major: {cudnn // 10000} minor: {cudnn // 100 % 100} patch: {cudnn % 100} }}
gpu_device_info {{
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  device_memory_size: {target.memory}
  memory_bandwidth: {target.bandwidth}
  l2_cache_size: {50 * 2**20}
  shared_memory_per_core: {228 * 2**10}
  shared_memory_per_block: {48 * 2**10}
  shared_memory_per_block_optin: {227 * 2**10}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
}}
"""
