"""Checks in every test the array shapes that annotations promise, and compiles fast."""

import os

import jaxtyping
import pytest

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
        "unidiff_jax.sample.color_maps",
        "unidiff_jax.sample.guidance",
        "unidiff_jax.sample.solvers",
        "unidiff_jax.train.optim",
    ],
    "shape_checks.checked",
)


@pytest.fixture(scope="session")
def miniworld(tmp_path_factory):
    """A rendered folder: 40 records for training, 12 for validation."""
    from data_pipelines.miniworld.generate import generate
    from data_pipelines.miniworld.manifest import Settings

    folder = tmp_path_factory.mktemp("miniworld")
    counts = {"train": 40, "validation": 12}
    generate(folder, Settings(size=32, counts=counts, shards=2), progress="none")
    return folder


@pytest.fixture(scope="session")
def tokenizer(miniworld, tmp_path_factory):
    """Trained on the captions of `miniworld`."""
    import tiny_run

    from data_pipelines.build import make_tokenizer

    return make_tokenizer(tiny_run.config(miniworld), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """A tiny OneDiffusion folder in the released layout."""
    from launch.tiny_onediffusion import write_tiny_pipeline

    folder = tmp_path_factory.mktemp("released")
    write_tiny_pipeline(folder)
    return folder
