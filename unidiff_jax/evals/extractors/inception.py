"""FID's Inception as an extractor."""

import dataclasses
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
from unidiff_jax.export.mapping import Entry, MappingError, Table, Tensor, from_official
from unidiff_jax.models import inception
from unidiff_jax.paths import AnyPath
from unidiff_jax.types import Params

PREPROCESS = ("clean", "legacy_pytorch", "legacy_tensorflow")

NORM_EPS = 1e-3
"""Of the batch norms."""


@dataclasses.dataclass(frozen=True)
class InceptionExtractor:
    """The network's 2048 numbers behind the last pooling; see `Extractor`."""

    params: Params
    identity: Identity

    @classmethod
    def load(cls, path: AnyPath, *, kind: str, preprocess: str = "") -> "InceptionExtractor":
        """Reads a file; see `load_extractor`."""
        preprocess = choose(preprocess, kind=kind, known=PREPROCESS)
        weights = read_weights(path)
        folded = fold_batch_norms(weights.tensors)
        params = from_official(folded, inception.SHAPES, table=inception_table())
        identity = Identity(name=kind, sha256=weights.sha256, preprocess=preprocess, substitute="")
        return cls(jax.tree.map(jnp.asarray, params), identity)

    def images(self, pictures: Sequence[Image.Image]) -> Float[np.ndarray, "n 2048"]:
        """Features for FID and KID, float32."""
        name = self.identity["preprocess"]
        return in_batches(
            pictures,
            prepare=lambda picture: prepare(picture, name=name, size=inception.SIZE),
            run=lambda values: features(self.params, values),
            empty=(0, inception.NUM_FEATURES),
        )


features = jax.jit(inception.features)
"""The program of `InceptionExtractor.images`."""


def inception_table() -> Table:
    """Of what `fold_batch_norms` gives."""
    kinds = {"weight": "conv", "bias": "vector"}
    return Table(
        tuple(
            Entry(f"{name}/{part}", f"{name}.{part}", kind)
            for name in inception.SHAPES
            for part, kind in kinds.items()
        )
    )


def fold_batch_norms(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Convolutions with their batch norms inside: `NAME.weight` and `NAME.bias`.

    Args:
      tensors: of `pt_inception-2015-12-05`, with torchvision's names: `NAME.conv.weight` and
        `NAME.bn.*`; the classifier is left out.

    Raises:
      MappingError: tensors are missing, or the weights are torchvision's own.
    """
    if "fc.weight" in tensors and tensors["fc.weight"].shape[0] != 1008:
        raise MappingError(
            f"fc.weight has {tensors['fc.weight'].shape[0]} classes: these are torchvision's own "
            "weights; FID is defined by pt_inception-2015-12-05-6726825d, which has 1008"
        )
    parts = ("conv.weight", *(f"bn.{n}" for n in ("weight", "bias", "running_mean", "running_var")))
    missing = [f"{n}.{p}" for n in inception.SHAPES for p in parts if f"{n}.{p}" not in tensors]
    if missing:
        raise MappingError("\n".join(f"no tensor {name}" for name in missing))
    folded = {}
    for name in inception.SHAPES:
        weight, scale, shift, mean, variance = (
            np.asarray(tensors[f"{name}.{part}"][...], np.float64) for part in parts
        )
        scale = scale / np.sqrt(variance + NORM_EPS)
        folded[f"{name}.weight"] = weight * scale[:, None, None, None]
        folded[f"{name}.bias"] = shift - mean * scale
    return folded
