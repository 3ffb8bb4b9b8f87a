"""The unified layout: any of our transformers as a folder for PyTorch, and back.

    config.json                           sizes, flow, latents (`unified_values`)
    diffusion_pytorch_model.safetensors   a PyTorch state dict; several files when large
    modeling_unidiff.py                   the module that reads both, a copy of `torch_unified.py`

The module needs torch and safetensors alone; its text says how it is called. Tensors have our
parameters' names, with a number a block; dense layers are (output, input).
"""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from unidiff_jax.config import Config, ConfigError
from unidiff_jax.export.files import open_tensors, read_config, write_model
from unidiff_jax.export.mapping import from_official, to_official, unified_table
from unidiff_jax.flow import FlowConfig
from unidiff_jax.mesh import section_shardings
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.paths import AnyPath, as_path, written_whole
from unidiff_jax.sample.denoiser import abstract_dit
from unidiff_jax.text import MAX_NAMES
from unidiff_jax.types import Params, Role

SCHEMA = "unidiff_dit/1"
MODULE = "modeling_unidiff.py"

_SIZES = (
    "fusion",
    "hidden_dim",
    "depth",
    "num_heads",
    "num_kv_heads",
    "text_dim",
    "ffn_multiple_of",
    "ffn_dim_multiplier",
    "qk_norm",
    "norm_eps",
    "softcap",
    "rope_theta",
    "rope_scale",
    "guidance_dim",
    "asset_dim",
    "shared_modulation",
)
"""Fields of `DiTConfig` that the file has under their own names."""


class UnifiedFolder(NamedTuple):
    """A folder that was read.

    Attributes:
      dit: the transformer's sizes.
      params: its weights.
      values: the whole `config.json`.
    """

    dit: DiTConfig
    params: Params
    values: dict[str, Any]


def unified_values(
    dit: DiTConfig,
    *,
    patch: int,
    flow: FlowConfig,
    shift: float,
    autoencoder: Mapping[str, Any],
) -> dict[str, Any]:
    """What `config.json` says.

    Args:
      dit: the transformer's sizes.
      patch: latent pixels of a token, each way.
      flow: what its output means.
      shift: of the sampler's levels.
      autoencoder: what made the latents, for the reader.
    """
    return {
        "_class_name": "UnifiedDiT",
        "schema": SCHEMA,
        "patch": patch,
        "latent_channels": dit.patch_dim // patch**2,
        **{name: getattr(dit, name) for name in _SIZES},
        "num_roles": len(Role) - 1,
        "num_names": 2 * MAX_NAMES,
        "flow": {
            "prediction": flow.prediction,
            "shift": shift,
            "min_sigma": flow.min_sigma,
            "timed_conditions": flow.timed_conditions,
        },
        "autoencoder": dict(autoencoder),
    }


def is_unified(values: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of this layout, of whatever version."""
    return str(values.get("schema", "")).startswith(SCHEMA.rpartition("/")[0])


def unified_dit(values: Mapping[str, Any], **settings: Any) -> DiTConfig:
    """The transformer of a `config.json`; `settings` are fields that the file has not.

    Raises:
      ConfigError: another version of the layout, or keys that are missing.
    """
    if values.get("schema") != SCHEMA:
        raise ConfigError(f"schema={values.get('schema')!r} is unknown; this code reads {SCHEMA}")
    missing = [k for k in (*_SIZES, "patch", "latent_channels") if k not in values]
    if missing:
        raise ConfigError(f"the folder's config.json lacks {', '.join(missing)}")
    sizes = {name: values[name] for name in _SIZES}
    patch_dim = values["latent_channels"] * values["patch"] ** 2
    return DiTConfig(patch_dim=patch_dim, **sizes | settings)


def write_unified(
    folder: AnyPath, params: Params, *, dit: DiTConfig, values: Mapping[str, Any]
) -> None:
    """Writes a `transformer` folder, in the weights' own type.

    Args:
      folder: is made.
      params: of the transformer, without adapters.
      dit: its sizes.
      values: see `unified_values`.

    Raises:
      MappingError: parameters of another model.
    """
    table = unified_table(abstract_dit(dit).shapes, depth=dit.depth)
    tensors = to_official(params, table=table)
    source = pathlib.Path(__file__).with_name("torch_unified.py").read_bytes()
    with written_whole(as_path(folder) / MODULE) as file:
        file.write_bytes(source)
    write_model(folder, tensors, config=values)


def from_unified(
    folder: AnyPath, *, dtype: str = "float32", mesh: Config | None = None
) -> UnifiedFolder:
    """Reads a `transformer` folder back.

    Args:
      folder: what `write_unified` made.
      dtype: of weights and activations.
      mesh: see `denoiser.load_denoiser`.

    Raises:
      ConfigError: a folder of another layout.
      FolderError: it cannot be read.
      MappingError: its tensors are not those of its config; every fault is named.
    """
    values = read_config(folder)
    dit = unified_dit(values, dtype=dtype, remat="none")
    _, shapes, axes = abstract_dit(dit)
    params = from_official(
        open_tensors(folder),
        shapes,
        table=unified_table(shapes, depth=dit.depth),
        dtype=np.float32 if dtype == "float32" else jnp.dtype(dtype),
        shardings=section_shardings(mesh, shapes, axes),
    )
    return UnifiedFolder(dit, params, values)
