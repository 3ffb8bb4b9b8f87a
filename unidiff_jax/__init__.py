"""unidiff_jax: unified image diffusion in JAX. Every image task is a sequence of frames.

from unidiff_jax import Pipeline
pipe = Pipeline.from_workdir("runs/quickstart")
pipe("depth", image="photo.png")["depth"].save("depth.png")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unidiff_jax.sample.pipeline import Pipeline

__all__ = ["Pipeline"]


def __getattr__(name: str) -> Any:
    """Imports on first use: the package itself loads neither jax nor flax."""
    if name == "Pipeline":
        from unidiff_jax.sample.pipeline import Pipeline

        return Pipeline
    raise AttributeError(f"module 'unidiff_jax' has no attribute {name!r}")
