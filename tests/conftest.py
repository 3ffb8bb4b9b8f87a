"""Checks in every test the array shapes that annotations promise, and compiles fast."""

import os

import jaxtyping

# Tests compile many small programs and run each a few times: on a CPU the compiler is most of it.
if os.environ.get("JAX_PLATFORMS") == "cpu":
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# Not checked: unidiff_jax.types and unidiff_jax.train.state, whose dataclasses also carry
# shardings and single rows through jax.tree.map; the functions that read them check the fields.
jaxtyping.install_import_hook(
    [
        "unidiff_jax.flow",
        "unidiff_jax.frames",
        "unidiff_jax.mesh",
        "unidiff_jax.models",
        "unidiff_jax.ops",
        "unidiff_jax.sample.guidance",
        "unidiff_jax.sample.solvers",
        "unidiff_jax.train.optim",
    ],
    "shape_checks.checked",
)
