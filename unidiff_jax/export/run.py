"""A training run as a folder in OneDiffusion's released layout."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from unidiff_jax.config import ConfigError
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.models.lora import LoRAConfig, merge
from unidiff_jax.models.text_encoder import text_kind
from unidiff_jax.paths import AnyPath, as_path, copy_tree
from unidiff_jax.sample.denoiser import SOFTCAP, Denoiser, NextDiTConfig
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.train.workdir import load_workdir_config, model_configs

_OTHER_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
_INDEX = "model_index.json"


def export_run(
    workdir: AnyPath,
    folder: AnyPath,
    *,
    base: AnyPath | None = None,
    dtype: str = "float32",
    step: int | None = None,
) -> None:
    """Writes the averaged weights, adapters merged, as `folder/transformer`.

    The other parts of a pipeline are copied from `base`.

    Args:
      workdir: of the run.
      folder: to write; its `transformer` must not exist.
      base: a released folder; None is the one that `init.transformer` lies in, and without it the
        transformer is written alone.
      dtype: of the written weights.
      step: which checkpoint; None is the newest.

    Raises:
      ConfigError: the layout cannot say what this model is; with every reason.
      FileExistsError: there is a transformer already.
      FileNotFoundError: no run, or a base without its parts.
    """
    config = load_workdir_config(workdir)
    dit, _ = model_configs(config)
    check_exportable(config, dit)
    folder = as_path(folder)
    target = folder / "transformer"
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another --out or remove it")
    if base is None and config.init.transformer:
        parent = as_path(config.init.transformer).parent
        base = parent if (parent / _INDEX).is_file() else None
    missing = [] if base is None else [p for p in _OTHER_PARTS if not (as_path(base) / p).is_dir()]
    if missing:
        raise FileNotFoundError(f"{base} holds no {', '.join(missing)}")

    exact = ConfigDict(config.to_dict())
    exact.init.frozen_dtype = "float32"  # released weights as they are under the adapters
    params = Pipeline.from_workdir(workdir, step=step, config=exact).params
    params = merge(params, LoRAConfig(**config.lora))["dit"]
    params = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, jnp.dtype(dtype))), params)
    Denoiser(released_config(config, dit), dit, params).save_pretrained(target)
    if base is not None:
        for part in _OTHER_PARTS:
            copy_tree(as_path(base) / part, folder / part)
        (as_path(base) / _INDEX).copy(folder / _INDEX, overwrite=True)


def check_exportable(config: ConfigDict, dit: DiTConfig) -> None:
    """Refuses models that the official code would read as something else.

    Raises:
      ConfigError: with every reason.
    """
    faults = [
        f"{key}={found!r}, the layout means {want!r}"
        for key, found, want in (
            ("flow.prediction", config.flow.prediction, "v"),
            ("flow.timed_conditions", config.flow.get("timed_conditions", True), True),
            ("model.fusion", dit.fusion, "cross"),
            ("text.kind", text_kind(config.text), "t5"),
            ("model.rope_theta", dit.rope_theta, 10000.0),
            ("model.rope_scale", dit.rope_scale, 1.0),
        )
        if found != want
    ]
    if dit.softcap not in (0.0, SOFTCAP):
        faults.append(f"model.softcap={dit.softcap}, the official code has {SOFTCAP} or none")
    if faults:
        raise ConfigError(f"this run has no OneDiffusion layout: {'; '.join(faults)}")


def released_config(config: ConfigDict, dit: DiTConfig) -> NextDiTConfig:
    """The sizes in the names of the released `config.json`."""
    latent = config.image_size // config.autoencoder.downscale
    return NextDiTConfig(
        input_size=(1, latent, latent),
        patch_size=(1, config.patch, config.patch),
        in_channels=dit.patch_dim // config.patch**2,
        hidden_size=dit.hidden_dim,
        depth=dit.depth,
        num_heads=dit.num_heads,
        num_kv_heads=dit.num_kv_heads,
        multiple_of=dit.ffn_multiple_of,
        ffn_dim_multiplier=dit.ffn_dim_multiplier,
        norm_eps=dit.norm_eps,
        caption_channels=dit.text_dim,
        qk_norm=dit.qk_norm,
        rotary_max_length=128,
    )
