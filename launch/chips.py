"""What accelerators can do, as published, for plans and launchers.

Sources: docs.cloud.google.com/tpu/docs (pages v4, v5e, v5p, v6e, tpu7x), NVIDIA's data sheets of
the H100 and H200 (SXM; dense rates), and, for HBM that programs can use, what the TPU compiler
refuses to exceed, and 95 % of a GPU's. Rates are peaks; a plan built on them is a bound.
"""

import dataclasses

import jax
import numpy as np

from launch.topologies import TopologyError
from launch.topologies import parse_topology as parse
from unidiff_jax.config import ConfigError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      flops: bfloat16 operations a second.
      hbm: bytes a second.
      memory: bytes that a program can use.
      link: bytes a second over one link of the torus, one way; of GPUs, of all links to the node.
      network: bytes a second to chips of other slices (nodes), one way.
      wraps: sides of a slice of which the torus closes; a multiple of it does.
      devices: JAX devices that share the chip, and so the numbers above.
      inside: bytes a second from one of these devices to another, one way.
    """

    flops: float
    hbm: float
    memory: float
    link: float
    network: float
    wraps: int
    devices: int = 1
    inside: float = 0.0

    @property
    def is_gpu(self) -> bool:
        """Whether it hangs on a switch, and not in a torus."""
        return not self.wraps


CHIPS = {
    "v4": Chip(275e12, 1.228e12, 31.2 * GIB, 50e9, 3.1e9, wraps=4),
    "v5e": Chip(197e12, 0.819e12, 15.75 * GIB, 50e9, 3.1e9, wraps=16),
    "v5p": Chip(459e12, 2.765e12, 95.7 * GIB, 100e9, 6.25e9, wraps=4),
    "v6e": Chip(918e12, 1.640e12, 31.25 * GIB, 100e9, 12.5e9, wraps=16),
    # two chiplets, a JAX device each; between them six times what a link of the torus takes
    "tpu7x": Chip(2307e12, 7.380e12, 189.5 * GIB, 100e9, 12.5e9, wraps=4, devices=2, inside=600e9),
    "h100": Chip(989e12, 3.350e12, 75.0 * GIB, 450e9, 50e9, wraps=0),
    "h200": Chip(989e12, 4.800e12, 133.9 * GIB, 450e9, 50e9, wraps=0),
}


KINDS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H200": "h200",
}
"""JAX's names of them."""


def attached_chip() -> Chip | None:
    """What JAX computes on here, as one device of it; None where it is not in the table."""
    name = KINDS.get(jax.devices()[0].device_kind)
    if name is None:
        return None
    chip = CHIPS[name]
    return dataclasses.replace(chip, flops=chip.flops / chip.devices, hbm=chip.hbm / chip.devices)


def torus_links(sides: tuple[int, ...], chip: Chip) -> list[int]:
    """Links by which data come in along each side of a slice.

    A ring has two directions; a line that does not close has one on the average.
    """
    return [
        0 if side == 1 else 2 if side > 2 and chip.wraps and side % chip.wraps == 0 else 1
        for side in sides
    ]


def parse_topology(name: str) -> tuple[str, tuple[int, ...]]:
    """`v5p:4x4x4` as its generation and sides, `h100:8` as the GPU and how many a node has.

    Raises:
      ConfigError: an unknown one.
    """
    try:
        return parse(name)
    except TopologyError as error:
        raise ConfigError(str(error)) from None


def bandwidth(group: list[np.ndarray], *, slices: list[int], sides: tuple[int, ...], chip: Chip):
    """Bytes a second that one device of a group receives from the others.

    Args:
      group: place of each device in its slice.
      slices: the slice of each.
      sides: of a slice.
      chip: what it is made of.
    """
    if len(set(slices)) > 1:
        return chip.network / chip.devices
    if chip.is_gpu:
        return chip.link
    places = np.stack(group)
    chips = len(np.unique(places, axis=0))
    if chips == 1:
        return chip.inside
    spread = [len(set(places[:, axis])) > 1 for axis in range(len(sides))]
    links = sum(n for n, used in zip(torus_links(sides, chip), spread, strict=True) if used)
    # devices of one chip in one group take turns in its ring; in two groups they share the links
    return max(links, 1) * chip.link * (len(group) / chips) / chip.devices
