"""Feature extractors of the published benchmarks, in JAX, from weights that the user has.

clip = load_extractor("clip-b32", "weights/clip-vit-base-patch32")
scores = similarity.clip_text(clip.images(pictures), clip.texts(captions))

| kind | network | path | features | preprocess |
|---|---|---|---|---|
| `clip-b32`, `clip-l14` | CLIP | Hugging Face folder with its tokenizer | 512, 768 | `clip` |
| `dino-s16` | DINO ViT-S/16 | Hugging Face folder (`facebook/dino-vits16`) | 384 | `imagenet` |
| `dinov2-b14` | DINOv2 ViT-B/14 | Hugging Face folder (`facebook/dinov2-base`) | 768 | `imagenet` |
| `inception` | FID's Inception | `pt_inception-2015-12-05-6726825d` (file) | 2048 | `clean` |
| `lpips-alex`, `-squeeze`, `-vgg` | LPIPS 0.1 | heads, torchvision's backbone | pairs | `lpips` |
| `dino-b8` | DINO ViT-B/8 | folder (`facebook/dino-vitb8`) | pairs, by their keys | `structure` |

Those of pairs are distances.

Pictures are preprocessed on the host by PIL, as the official code does it; `pictures` says how.
Everything runs in float32 with products in full precision. `.pth` files are read where PyTorch is
installed; safetensors always. Nothing is downloaded.

`identity` goes into a report. Its `substitute` is empty for a network of the released sizes;
otherwise it says what differs, and a score made with it is no official one.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float
from PIL import Image

from unidiff_jax.config import ConfigError
from unidiff_jax.evals.extractors.identity import Identity
from unidiff_jax.paths import AnyPath

KINDS = (
    "clip-b32",
    "clip-l14",
    "dino-s16",
    "dinov2-b14",
    "inception",
    "lpips-alex",
    "lpips-squeeze",
    "lpips-vgg",
    "dino-b8",
)

Features = Float[np.ndarray, "n d"]
Distances = Float[np.ndarray, "n"]


class Extractor(Protocol):
    """Maps pictures to features."""

    @property
    def identity(self) -> Identity: ...

    def images(self, pictures: Sequence[Image.Image]) -> Features:
        """Features of pictures of any sizes, float32, not normalised; no pictures give (0, d)."""
        ...


class TextExtractor(Extractor, Protocol):
    """CLIP: maps pictures and texts into one space."""

    def texts(self, texts: Sequence[str]) -> Features:
        """Features of texts, float32, not normalised; long texts are cut to 77 tokens."""
        ...


class DistanceExtractor(Protocol):
    """LPIPS, or DINO's keys: distances between pictures."""

    @property
    def identity(self) -> Identity: ...

    def distance(self, a: Sequence[Image.Image], b: Sequence[Image.Image]) -> Distances:
        """Distance of each pair, from 0 up.

        Raises:
          ValueError: sequences of different lengths, or a pair of different sizes.
        """
        ...


def load_extractor(
    kind: str, path: AnyPath, *, preprocess: str = ""
) -> Extractor | TextExtractor | DistanceExtractor:
    """Loads an extractor.

    Args:
      kind: one of `KINDS`.
      path: of the weights, see the table above. Folders hold `config.json` and safetensors; CLIP's
        also `vocab.json` and `merges.txt`. LPIPS takes a folder of two files, heads and backbone
        (`alex.pth` and `alexnet-owt-7be5be79.pth`, `squeeze.pth` and
        `squeezenet1_1-b8a52dc0.pth`, or `vgg.pth` and `vgg16-397923af.pth`), or one file with both.
      preprocess: another than the kind's own, of those in `pictures`, for example
        `instruct_pix2pix` of a CLIP, `legacy_pytorch` or `legacy_tensorflow` of `inception`.

    Raises:
      ConfigError: an unknown kind, a preprocessing that it does not have, or PyTorch's format where
        PyTorch is missing.
      FolderError, MappingError: files that cannot be read, or tensors that do not fit; with every
        fault.

    Example:
      >>> inception = load_extractor("inception", "pt_inception-2015-12-05-6726825d.pth")
      >>> inception.images(pictures).shape
      (8, 2048)
    """
    if kind not in KINDS:
        raise ConfigError(f"extractor {kind!r} is unknown; one of {', '.join(KINDS)}")
    if kind.startswith("clip-"):
        from unidiff_jax.evals.extractors.clip import CLIPExtractor as chosen
    elif kind == "dino-b8":
        from unidiff_jax.evals.extractors.structure import StructureExtractor as chosen
    elif kind.startswith("dino"):
        from unidiff_jax.evals.extractors.dino import DINOExtractor as chosen
    elif kind == "inception":
        from unidiff_jax.evals.extractors.inception import InceptionExtractor as chosen
    else:
        from unidiff_jax.evals.extractors.lpips import LPIPSExtractor as chosen
    return chosen.load(path, kind=kind, preprocess=preprocess)
