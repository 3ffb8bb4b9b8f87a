"""unidiff_jax: unified image diffusion in JAX. Every image task is a sequence of frames.

from unidiff_jax import Pipeline
pipe = Pipeline.from_workdir("runs/quickstart")
pipe("depth", image="photo.png")["depth"].save("depth.png")
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unidiff_jax.sample.denoiser import load_denoiser
    from unidiff_jax.sample.onediffusion import OneDiffusionPipeline
    from unidiff_jax.sample.pipeline import Pipeline

__all__ = ["OneDiffusionPipeline", "Pipeline", "load_denoiser"]

_HOMES = {
    "OneDiffusionPipeline": "unidiff_jax.sample.onediffusion",
    "Pipeline": "unidiff_jax.sample.pipeline",
    "load_denoiser": "unidiff_jax.sample.denoiser",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: the package itself loads neither jax nor flax."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unidiff_jax' has no attribute {name!r}")
