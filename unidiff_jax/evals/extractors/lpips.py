"""LPIPS as a distance between pictures."""

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from PIL import Image

from unidiff_jax.evals.extractors.batches import in_batches
from unidiff_jax.evals.extractors.identity import Identity, choose
from unidiff_jax.evals.extractors.pictures import preprocess as prepare
from unidiff_jax.evals.extractors.weights import read_weights
from unidiff_jax.export.mapping import Entry, Table, Tensor, from_official
from unidiff_jax.models import lpips
from unidiff_jax.paths import AnyPath
from unidiff_jax.types import Params

PREPROCESS = ("lpips",)

Pair = tuple[Image.Image, Image.Image]


@dataclasses.dataclass(frozen=True)
class LPIPSExtractor:
    """LPIPS 0.1; see `DistanceExtractor`.

    Attributes:
      net: `alex`, `squeeze` or `vgg`.
    """

    net: str
    params: Params
    identity: Identity

    @classmethod
    def load(cls, path: AnyPath, *, kind: str, preprocess: str = "") -> "LPIPSExtractor":
        """Reads heads and backbone; see `load_extractor`."""
        preprocess = choose(preprocess, kind=kind, known=PREPROCESS)
        weights = read_weights(path)
        net = kind.removeprefix("lpips-")
        tensors = official_names(weights.tensors)
        params = from_official(tensors, lpips.lpips_shapes(net), table=lpips_table(net))
        identity = Identity(name=kind, sha256=weights.sha256, preprocess=preprocess, substitute="")
        return cls(net, jax.tree.map(jnp.asarray, params), identity)

    def distance(
        self, a: Sequence[Image.Image], b: Sequence[Image.Image]
    ) -> Float[np.ndarray, "n"]:
        """Distance of each pair, from 0 up; see `DistanceExtractor`."""
        by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
        least = lpips.MIN_SIZE[self.net]
        for number, (first, second) in enumerate(zip(a, b, strict=True)):
            if first.size != second.size or min(first.size) < least:
                raise ValueError(
                    f"pair {number} has {first.size} and {second.size} pixels; a pair has one "
                    f"size, of at least {least} pixels a side"
                )
            by_size[first.size].append(number)
        found = np.zeros(len(a), np.float32)
        for numbers in by_size.values():
            pairs = [(a[number], b[number]) for number in numbers]
            found[numbers] = in_batches(pairs, prepare=_values, run=self._run, empty=(0,))
        return found

    def _run(self, values: np.ndarray):
        return distances(self.params, values, net=self.net)


def _values(pair: Pair) -> Float[np.ndarray, "2 h w 3"]:
    return np.stack([prepare(picture, name="lpips", size=0) for picture in pair])


@functools.partial(jax.jit, static_argnames="net")
def distances(params, pairs, *, net):
    """The program of `LPIPSExtractor.distance`."""
    return lpips.distance(params, pairs[:, 0], pairs[:, 1], net=net)


def lpips_table(net: str) -> Table:
    """Of what `official_names` gives; the classifier is left out."""
    entries = []
    for name, parts in lpips.lpips_shapes(net).items():
        inside = "" if "features" in name else ".model.1"
        for part in parts:
            kind = "conv" if part == "weight" else "vector"
            entries.append(Entry(f"{name}/{part}", f"{name}{inside}.{part}", kind))
    return Table(tuple(entries), ignored=("classifier.", "scaling_layer."))


def official_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of torchvision and of the released heads, for the names of a whole `lpips.LPIPS` too:
    `net.slice2.3.weight` is `features.3.weight`, and `lins.0.` repeats `lin0.`.
    """
    named = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^net\.slice\d+\.", "features.", name)
        name = re.sub(r"^lins\.(\d+)\.", r"lin\1.", name)
        named[name] = tensor
    return named
