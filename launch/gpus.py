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
        target_config=describe(
            TARGETS[name],
            cuda=_dotted(_versions.cuda_runtime_get_version(), unit=1000),
            cudnn=_dotted(_versions.cudnn_get_version(), unit=10000),
        ),
    )
    return list(found.devices)


def _dotted(version: int, *, unit: int) -> str:
    """`13020` with a unit of 1000 as 13.2.0, `92001` with one of 10,000 as 9.20.1."""
    step = 10 if unit == 1000 else 100
    return f"{version // unit}.{version % unit // step}.{version % step}"


def describe(target: Target, *, cuda: str, cudnn: str) -> str:
    """The text of a `GpuTargetConfigProto`, for the installed CUDA (13.0.0) and cuDNN (9.20.0)."""
    major, minor, patch = cudnn.split(".")
    return f"""
platform_name: "CUDA"
device_description_str: "{target.name}"
dnn_version_info {{ major: {major} minor: {minor} patch: {patch} }}
gpu_device_info {{
  name: "{target.name}"
  driver_version: "{cuda}"
  runtime_version: "{cuda}"
  compile_time_toolkit_version: "{cuda}"
  dnn_version: "{cudnn}"
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
