"""Weights that a run starts from (`config.init`): released ones, or another run's."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import open_tensors, read_config
from unidiff_jax.export.mapping import (
    Table,
    dit_table,
    flatten,
    from_official,
    nest,
    t5_table,
    unified_table,
)
from unidiff_jax.export.unified import is_unified, unified_dit
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.models.t5 import T5Config
from unidiff_jax.models.vae import VAEConfig
from unidiff_jax.sample.denoiser import NextDiTConfig
from unidiff_jax.sample.encoders import t5_config
from unidiff_jax.train.checkpoint import load_average
from unidiff_jax.train.state import ModelParts, join
from unidiff_jax.train.workdir import load_workdir_config, model_configs
from unidiff_jax.types import Params

_FREE = {"attention", "context", "dtype", "modulation", "quantized", "remat", "scan_layers"}
_FREE |= {"softcap", "text_gate_init"}
"""Settings that do not change what the weights mean, or that training chooses."""


def check_released(config: ConfigDict) -> None:
    """Compares the config with the folders that `config.init` names; shapes alone do not tell heads
    and bounds apart.

    Raises:
      ConfigError: a folder of another model; with every difference.
      FolderError: a folder without a readable config.
      FileNotFoundError: `init.run` is no run.
    """
    dit, text = model_configs(config)
    faults = []
    if config.init.get("run"):
        faults += _run_differences(config)
    if config.init.transformer:
        values = read_config(config.init.transformer)
        if is_unified(values):
            found = unified_dit(values)
        else:
            found = NextDiTConfig.from_json(values).dit(softcap=dit.softcap, dtype=dit.dtype)
        faults += _differences(found, dit, "model")
    if config.init.text_encoder:
        found = t5_config(read_config(config.init.text_encoder), dtype=text.dtype)
        faults += _differences(found, text, "text")
    if "folder" in config.autoencoder:
        vae = VAEConfig.from_json(read_config(config.autoencoder.folder))
        faults += [
            f"autoencoder.{key} is {config.autoencoder[key]}, the folder's {getattr(vae, key)}"
            for key in ("downscale", "latent_channels")
            if config.autoencoder[key] != getattr(vae, key)
        ]
    if faults:
        raise ConfigError(f"init: the weights are of another model: {'; '.join(faults)}")


def load_released(
    config: ConfigDict, model: ModelParts, *, shardings: Params, trained: bool = True
) -> Params:
    """Weights of the folders that `config.init` names, on the mesh; {} where it names none.

    Trained parameters are float32, frozen ones `init.frozen_dtype`.

    Args:
      config: of the run; `init.transformer` and `init.text_encoder` are folders in the released
        layout (the first also in ours, `export.unified`), or empty; `init.run`, where there is one,
        is the workdir whose averages the trained parameters start from.
      model: its structure.
      shardings: where each parameter goes, nested.
      trained: whether to read trained parameters; a run that continues has them in its checkpoint.

    Raises:
      FolderError, MappingError: a folder that cannot be read, or does not fit; with every fault.
    """
    dit, text = model_configs(config)
    parts = {
        "dit": (config.init.transformer, _dit_table(config, dit, model.shapes["dit"])),
        "text_encoder": (config.init.text_encoder, t5_table(text)),
    }
    frozen = flatten(model.split(model.shapes)[1])
    run = config.init.get("run")
    result: Params = {}
    if run and trained:
        result = load_average(
            run, model.split(model.shapes)[0], shardings=model.split(shardings)[0]
        )
    for part, (folder, table) in parts.items():
        if not folder:
            continue
        tensors = open_tensors(folder)
        for is_frozen in (False, True) if trained and not run else (True,):
            read = from_official(
                tensors,
                model.shapes[part],
                table=table,
                dtype=jnp.dtype(config.init.frozen_dtype) if is_frozen else np.float32,
                shardings=shardings[part],
                keep=lambda path, part=part, f=is_frozen: (f"{part}/{path}" in frozen) == f,
            )
            result = join(result, {part: read} if read else {})
    return result


def _dit_table(config: ConfigDict, dit: DiTConfig, shapes: Params) -> Table:
    """The names of `init.transformer`, which knows no adapters."""
    folder = config.init.transformer
    if not folder or not is_unified(read_config(folder)):
        return dit_table(dit)
    plain = {k: v for k, v in flatten(shapes).items() if not k.endswith(("/lora_a", "/lora_b"))}
    return unified_table(nest(plain), depth=dit.depth)


def _run_differences(config: ConfigDict) -> list[str]:
    """What tells the trained parameters of `init.run` from the config's."""
    other = load_workdir_config(config.init.run)
    (dit, text), (wanted_dit, wanted_text) = model_configs(other), model_configs(config)
    faults = _differences(dit, wanted_dit, "model") + _differences(text, wanted_text, "text")
    if other.train.trainable != config.train.trainable:
        faults.append(
            f"train.trainable is {config.train.trainable!r}, the run's {other.train.trainable!r}"
        )
    if other.lora.rank != config.lora.rank or other.lora.targets != config.lora.targets:
        faults.append("lora has another rank or other targets than the run's")
    return faults


def _differences(
    found: DiTConfig | T5Config, wanted: DiTConfig | T5Config, section: str
) -> list[str]:
    return [
        f"{section}.{field.name} is {getattr(wanted, field.name)!r}, "
        f"the folder's {getattr(found, field.name)!r}"
        for field in dataclasses.fields(wanted)
        if field.name not in _FREE and getattr(found, field.name) != getattr(wanted, field.name)
    ]
