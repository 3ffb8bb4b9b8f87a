"""How much the structure of two pictures differs, as PIE-Bench's official code measures it.

The keys of a picture are those of the last attention of DINO ViT-B/8, its heads side by side, one a
patch and the class token's. Their cosines with each other say what is alike in the picture, and
where, but not how it looks (Tumanyan et al. 2022, "Splicing ViT features", section 3.1). The
distance is the mean squared difference of the two pictures' cosines.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from PIL import Image

from unidiff_jax.evals.extractors.batches import in_batches
from unidiff_jax.evals.extractors.dino import DINOExtractor
from unidiff_jax.evals.extractors.identity import Identity, choose
from unidiff_jax.evals.extractors.pictures import preprocess as prepare
from unidiff_jax.paths import AnyPath

PREPROCESS = ("structure",)
EPS = 1e-8
"""Least product of two keys' lengths."""


@dataclasses.dataclass(frozen=True)
class StructureExtractor:
    """Distance of structure; see `DistanceExtractor`."""

    network: DINOExtractor
    identity: Identity

    @classmethod
    def load(cls, path: AnyPath, *, kind: str, preprocess: str = "") -> "StructureExtractor":
        """Reads a folder; see `load_extractor`."""
        preprocess = choose(preprocess, kind=kind, known=PREPROCESS)
        network = DINOExtractor.load(path, kind=kind)
        return cls(network, Identity(**network.identity | {"preprocess": preprocess}))

    def distance(
        self, a: Sequence[Image.Image], b: Sequence[Image.Image]
    ) -> Float[np.ndarray, "n"]:
        """Distance of each pair of square pictures, in [0, 4]; see `DistanceExtractor`.

        Raises:
          ValueError: sequences of different lengths, or a picture that is not square.
        """
        for number, pair in enumerate(zip(a, b, strict=True)):
            if any(picture.width != picture.height for picture in pair):
                sizes = " and ".join(str(picture.size) for picture in pair)
                raise ValueError(f"pair {number} has {sizes} pixels; structure is of squares")
        return in_batches(
            list(zip(a, b, strict=True)), prepare=self._values, run=self._run, empty=(0,)
        )

    def _values(self, pair: tuple[Image.Image, Image.Image]) -> Float[np.ndarray, "2 h w 3"]:
        size, name = self.network.config.image_size, self.identity["preprocess"]
        return np.stack([prepare(picture, name=name, size=size) for picture in pair])

    def _run(self, values: np.ndarray):
        return distances(self.network.params, values, graphdef=self.network.graphdef)


@functools.partial(jax.jit, static_argnames="graphdef")
def distances(params, pairs, *, graphdef):
    """The program of `StructureExtractor.distance`."""
    network = nnx.merge(graphdef, params)
    first, second = (self_similarity(network.last_keys(pairs[:, side])) for side in (0, 1))
    return jnp.mean(jnp.square(first - second), axis=(1, 2))


def self_similarity(keys: Float[Array, "n t d"]) -> Float[Array, "n t t"]:
    """Cosines of all pairs of a picture's keys."""
    length = jnp.linalg.norm(keys, axis=-1)
    products = jnp.einsum("nsd,ntd->nst", keys, keys)
    return products / jnp.maximum(jnp.einsum("ns,nt->nst", length, length), EPS)
