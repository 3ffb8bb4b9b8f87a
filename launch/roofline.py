"""How fast a compiled step could be at best: compute, HBM and interconnect, each at its peak.

The bound on the model-FLOP utilisation (MFU) is what the mathematics needs, over what the chips
could do in the slowest of the three times. It assumes that the three overlap completely, so no
machine reaches it; half of it is a cautious guess.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from launch.chips import Chip, bandwidth
from launch.hlo import Collective
from unidiff_jax.flops import Product, products
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.models.text_encoder import TextConfig
from unidiff_jax.ops.splash import BLOCK, LANES, block_size
from unidiff_jax.types import Batch

ONCE = ("patch_embed", "sigma_embed", "text_pool", "text_embed", "text_spread", "out", "text_in")
ONCE += ("role_embed", "name_embed", "frames", "text.")
"""Beginnings of the names of products outside the denoiser's blocks."""


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of a step on every chip, and operations of all chips.

    Attributes:
      needed: operations that the mathematics needs.
      again: operations that the remat policy computes again.
      kernel: operations that the attention kernel adds: scores made again in the backward pass,
        head dimensions and examples rounded up to its blocks.
      compute, hbm, ici, dcn: seconds at the peak of each.
      bound: highest MFU.
      limit: which of the times is the longest.
    """

    needed: int
    again: int
    kernel: int
    compute: float
    hbm: float
    ici: float
    dcn: float
    bound: float
    limit: str

    @property
    def seconds(self) -> float:
        """A step at the bound."""
        return max(self.compute, self.hbm, self.ici, self.dcn)


def train_roofline(
    dit: DiTConfig,
    text: TextConfig,
    batch: Batch,
    *,
    trains_text: bool,
    examples: int,
    attention: Mapping[str, str],
    found: list[Collective],
    traffic: int,
    mesh: Mesh,
    chip: Chip,
    sides: tuple[int, ...],
) -> Roofline:
    """The roofline of a train step.

    Args:
      dit: the denoiser.
      text: its text encoder.
      batch: shapes of the whole batch.
      trains_text: whether the text encoder is trained too.
      examples: equal examples in a row.
      attention: see `attention_kernels`.
      found: collectives of the compiled program.
      traffic: bytes that a device moves to and from HBM.
      mesh: of the topology's devices.
      chip: what they are.
      sides: of a slice.
    """
    every = products(dit, text, batch, trains_text=trains_text, examples=examples)
    needed = sum(p.forward + p.backward for p in every)
    blocks = [p for p in every if not p.name.startswith(ONCE)]
    scores = [p for p in blocks if _is_attention(p)]
    again = sum(p.forward for p in {"full": blocks, "dots": scores, "none": []}[dit.remat])
    kernel = _kernel_flops(dit, batch, scores, examples=examples, kernels=attention)
    rate = chip.flops / chip.devices
    ici, dcn = collective_seconds(found, mesh=mesh, chip=chip, sides=sides)
    times = {
        "compute": (needed + again + kernel) / mesh.size / rate,
        "HBM": traffic / (chip.hbm / chip.devices),
        "interconnect": ici,
        "network": dcn,
    }
    limit = max(times, key=lambda name: times[name])
    return Roofline(
        needed=needed,
        again=again,
        kernel=kernel,
        compute=times["compute"],
        hbm=times["HBM"],
        ici=ici,
        dcn=dcn,
        bound=needed / mesh.size / rate / times[limit],
        limit=limit,
    )


def _is_attention(product: Product) -> bool:
    return product.name in ("attention", "attention.image", "attention.text")


def attention_kernels(dit: DiTConfig, *, is_gpu: bool) -> dict[str, str]:
    """The kernel of `ops.attention` that computes each attention product, by its name."""
    names = ("attention",) if dit.fusion == "joint" else ("attention.image", "attention.text")
    if dit.attention != "auto":
        return dict.fromkeys(names, dit.attention)
    if not is_gpu:
        return dict.fromkeys(names, "splash")
    bound = () if not dit.softcap else ("attention", "attention.image")
    wide = dit.dtype == "float32"
    return {name: "xla" if wide or name in bound else "cudnn" for name in names}


def _kernel_flops(
    dit: DiTConfig,
    batch: Batch,
    attention: list[Product],
    *,
    examples: int,
    kernels: Mapping[str, str],
) -> int:
    """What attention kernels compute beside the products' own operations."""
    tokens, text = batch.tokens.shape[1], batch.text_segment.shape[1]
    queries = {"attention": tokens + text, "attention.image": tokens, "attention.text": tokens}
    keys = queries | {"attention.text": text}
    head = -(-dit.head_dim // LANES) * LANES / dit.head_dim
    total = 0.0
    for p in attention:
        if kernels[p.name] != "splash":
            total += attention_of_others([p], examples)
            if kernels[p.name] == "cudnn":  # the backward pass makes the scores again
                total += examples * p.forward / 2
            continue
        reach = max(BLOCK, queries[p.name] / examples) / queries[p.name]  # share of the examples
        read = min(math.ceil(keys[p.name] * reach / BLOCK) * BLOCK, _rounded(keys[p.name]))
        grown = head * max(1.0, read / (keys[p.name] / examples))
        passes = 4.5 + (1.0 if dit.remat != "none" else 0.0)  # forward 1, backward 3.5, and again 1
        counted = 3.0 + (1.0 if dit.remat != "none" else 0.0)
        total += p.forward * (passes * grown - counted)
    return int(total)


def attention_of_others(attention: list[Product], examples: int) -> int:
    """What attention over whole rows adds, in forward and backward pass."""
    return sum((examples - 1) * (p.forward + p.backward) for p in attention)


def _rounded(length: int) -> int:
    block = block_size(length)
    return -(-length // block) * block


def _slice_of(device: jax.Device) -> int:
    return getattr(device, "slice_index", 0) or 0


def collective_seconds(
    found: list[Collective], *, mesh: Mesh, chip: Chip, sides: tuple[int, ...]
) -> tuple[float, float]:
    """Seconds that a chip's collectives take: inside a slice or node, and between them.

    A collective over several slices is counted as two: inside them, and between them a share that
    is smaller by the chips of a slice.
    """
    devices = list(mesh.devices.flat)
    ici = dcn = 0.0
    for c in found:
        members = [devices[i] for i in c.group]
        slices = [d.process_index if chip.is_gpu else _slice_of(d) for d in members]
        places = [np.asarray(getattr(d, "coords", (d.id,))) for d in members]
        num_slices = len(set(slices))
        inside = [p for p, s in zip(places, slices, strict=True) if s == slices[0]]
        if num_slices > 1:
            rate = bandwidth(places, slices=slices, sides=sides, chip=chip)
            dcn += c.sent / len(inside) / rate
        if len(inside) > 1:
            rate = bandwidth(inside, slices=[0] * len(inside), sides=sides, chip=chip)
            ici += c.sent / rate
    return ici, dcn
