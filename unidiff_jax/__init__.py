"""unidiff_jax: unified image diffusion in JAX. Every image task is a sequence of frames."""
