"""Slices of TPUs: from the names of `launch.plan` to those of Google Cloud's tools.

    python3 launch/topologies.py v5p:4x4x4

prints the slice's facts as lines of `key=value`, which the scripts of `launch/tpu` read. It needs
nothing but a Python of 3.9 or later, so that it runs where the environment is not installed.

Sources, each read in the version of 2026:

- shapes, chips and machines of a slice: docs.cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e, /tpu7x
- images of TPU VMs: docs.cloud.google.com/tpu/docs/runtimes; TPU7x has none, it is on GKE alone
- values of the label cloud.google.com/gke-tpu-accelerator, the types of XPK, and which shape an
  accelerator type stands for: GoogleCloudPlatform/xpk 1.16, src/xpk/core/system_characteristics.py
"""

import math
import sys
from typing import NamedTuple


class TopologyError(ValueError):
    """A slice that cannot be; the message says which can."""


class Generation(NamedTuple):
    """What is the same for all slices of one generation.

    Attributes:
      accelerator: how accelerator types begin; their number counts TensorCores.
      cores_per_chip: TensorCores of a chip.
      host_chips: chips of the largest slice with one host. Hosts of larger slices have 4 chips.
      max_chips: of one slice.
      runtime_version: the image of TPU VMs; empty where there are no TPU VMs.
      gke_accelerator: the value of GKE's node label.
      shapes: the shapes below one cube of 4 x 4 x 4, or all where slices are flat.
    """

    accelerator: str
    cores_per_chip: int
    host_chips: int
    max_chips: int
    runtime_version: str
    gke_accelerator: str
    shapes: tuple


class Slice(NamedTuple):
    """One slice.

    Attributes:
      shape: such as 4x4x4.
      chips: how many it has.
      hosts: virtual machines, and so processes; on GKE nodes of a node pool.
      host_chips: chips of each.
      accelerator_type: the name in `gcloud`; empty for a shape that has none of its own.
      runtime_version: the image of TPU VMs; empty where there are none.
      gke_accelerator: the value of the node label cloud.google.com/gke-tpu-accelerator.
      xpk_type: the name in XPK; empty for what it does not know. It makes slices of 8 chips of
        two hosts.
    """

    shape: str
    chips: int
    hosts: int
    host_chips: int
    accelerator_type: str
    runtime_version: str
    gke_accelerator: str
    xpk_type: str


FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
BELOW_A_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
NOT_IN_XPK = ("v5e:1x1", "v5e:2x2")

GENERATIONS = {
    "v4": Generation("v4", 2, 4, 4096, "tpu-ubuntu2204-base", "tpu-v4-podslice", BELOW_A_CUBE),
    "v5e": Generation("v5litepod", 1, 8, 256, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", FLAT),
    "v5p": Generation("v5p", 2, 4, 6144, "v2-alpha-tpuv5", "tpu-v5p-slice", BELOW_A_CUBE),
    "v6e": Generation("v6e", 1, 8, 256, "v2-alpha-tpuv6e", "tpu-v6e-slice", FLAT),
    "tpu7x": Generation("tpu7x", 2, 4, 9216, "", "tpu7x", ("1x1x1", *BELOW_A_CUBE)),
}


GPUS = ("h100", "h200")
"""GPUs that `launch.plan` knows; `h100:8` is a node with eight."""


def parse_topology(topology: str) -> tuple:
    """`v5p:4x4x4` as its generation and sides, `h100:8` as the GPU and how many a node has.

    Raises:
      TopologyError: an unknown one.
    """
    name, _, shape = topology.partition(":")
    sides = tuple(int(s) if s.isascii() and s.isdigit() else 0 for s in shape.split("x"))
    known = name in GENERATIONS or (name in GPUS and len(sides) == 1)
    if not known or not math.prod(sides):
        raise TopologyError(
            f"topology {topology!r} is unknown; a generation ({', '.join(GENERATIONS)}) and a "
            f"shape, such as v5p:4x4x4, or a GPU ({', '.join(GPUS)}) and how many a node has, "
            "h100:8"
        )
    return name, sides


def find_slice(topology: str) -> Slice:
    """The facts of a slice.

    Args:
      topology: as in `launch.plan --topology`, a generation and a shape in chips.

    Raises:
      TopologyError: no such generation or shape.

    Example:
      >>> find_slice("v5p:4x4x4").accelerator_type
      'v5p-128'
    """
    name, sides = parse_topology(topology)
    if name not in GENERATIONS:
        raise TopologyError(f"{name} has no slices; there are those of {', '.join(GENERATIONS)}")
    generation, shape = GENERATIONS[name], topology.partition(":")[2]
    if shape not in generation.shapes and not _is_cubes(shape, sides, generation):
        cubes = "" if generation.shapes is FLAT else ", and multiples of 4 in rising order, 4x4x8"
        raise TopologyError(
            f"{name} has no slice {shape!r} of at most {generation.max_chips} chips; there are "
            f"{', '.join(generation.shapes)}{cubes}"
        )
    chips = math.prod(sides)
    host_chips = chips if chips <= generation.host_chips else 4
    named = shape in generation.shapes or list(sides) == _most_compact(chips)
    accelerator_type = f"{generation.accelerator}-{chips * generation.cores_per_chip}"
    return Slice(
        shape=shape,
        chips=chips,
        hosts=chips // host_chips,
        host_chips=host_chips,
        accelerator_type=accelerator_type if named else "",
        runtime_version=generation.runtime_version,
        gke_accelerator=generation.gke_accelerator,
        xpk_type=f"{generation.accelerator}-{shape}" if topology not in NOT_IN_XPK else "",
    )


def _is_cubes(shape: str, sides: tuple, generation: Generation) -> bool:
    """Whether a shape is made of whole cubes of 4 x 4 x 4 chips."""
    return (
        generation.shapes is not FLAT
        and len(sides) == 3
        and list(sides) == sorted(sides)
        and all(side % 4 == 0 for side in sides)
        and math.prod(sides) <= generation.max_chips
        and shape == "x".join(map(str, sides))
    )


def _most_compact(chips: int) -> list:
    """Of the shapes with so many chips the one with the smallest surface.

    An accelerator type names a number of chips and no shape. This is the shape that it stands for.
    """
    shapes = [
        [a, b, chips // (a * b)]
        for a in range(4, chips + 1, 4)
        for b in range(a, chips // a + 1, 4)
        if a * b * b <= chips and chips % (a * b * 4) == 0
    ]
    return min(shapes, key=lambda s: s[0] * s[1] + s[1] * s[2] + s[0] * s[2])


def main(argv: list) -> int:
    if len(argv) != 2:
        print("usage: python3 launch/topologies.py GENERATION:SHAPE", file=sys.stderr)
        return 2
    try:
        found = find_slice(argv[1])
    except TopologyError as error:
        print(error, file=sys.stderr)
        return 2
    for key, value in found._asdict().items():
        print(f"{key}={value}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
