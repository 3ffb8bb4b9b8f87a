"""Weights that a run starts from (`config.init`): released ones, or another run's."""

import dataclasses
from typing import Any

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
    modern_vae_names,
    nest,
    unified_table,
    vae_table,
)
from unidiff_jax.export.unified import is_unified, unified_dit
from unidiff_jax.models.clip import CLIPTowersConfig
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.models.multimodal import MultimodalConfig
from unidiff_jax.models.text_encoder import TextConfig
from unidiff_jax.models.vae import VAEConfig
from unidiff_jax.paths import AnyPath
from unidiff_jax.sample.denoiser import NextDiTConfig
from unidiff_jax.sample.encoders import Part, released_text_config, text_parts
from unidiff_jax.train.partial import load_partly, plan_restore, report_restore
from unidiff_jax.train.program import Program
from unidiff_jax.train.state import ModelParts, TrainState, create_state, join
from unidiff_jax.train.workdir import (
    load_workdir_config,
    model_configs,
    model_parts,
    sees_pixels,
)
from unidiff_jax.types import Params

_FREE = {"attention", "context", "dtype", "modulation", "quantized", "remat", "scan_layers"}
_FREE |= {"map_layers", "softcap", "text_gate_init"}
"""Settings that do not change what the weights mean, or that training chooses."""

_SHAPES = ("depth", "guidance_dim", "asset_dim")
"""Settings that add parameters, and leave the others what they are."""


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
        found = released_text_config(
            config.init.text_encoder,
            dtype=config.text.get("dtype", "float32"),
            skip_layers=config.text.get("skip_layers", 0),
            multimodal=True,
        )
        faults += _text_differences(found, text)
    if "folder" in config.autoencoder:
        vae = VAEConfig.from_json(read_config(config.autoencoder.folder))
        faults += [
            f"autoencoder.{key} is {config.autoencoder[key]}, the folder's {getattr(vae, key)}"
            for key in ("downscale", "latent_channels")
            if config.autoencoder[key] != getattr(vae, key)
        ]
    if faults:
        raise ConfigError(f"init: the weights are of another model: {'; '.join(faults)}")


def first_state(
    config: ConfigDict,
    program: Program,
    *,
    trained: bool = True,
    report: AnyPath | None = None,
) -> TrainState:
    """The state before the first step; arguments and errors are those of `load_released`."""
    places = join(program.shardings.params, program.shardings.frozen)
    return create_state(
        program.model,
        program.optimizer,
        seed=config.seed,
        shardings=program.shardings,
        released=load_released(
            config, program.model, shardings=places, trained=trained, report=report
        ),
    )


def load_released(
    config: ConfigDict,
    model: ModelParts,
    *,
    shardings: Params,
    trained: bool = True,
    report: AnyPath | None = None,
) -> Params:
    """Weights of the folders that `config.init` names, on the mesh; {} where it names none.

    Trained parameters are float32, frozen ones `init.frozen_dtype`.

    Args:
      config: of the run; `init.transformer` and `init.text_encoder` are folders in the released
        layout (the first also in ours, `export.unified`), or empty (a CLIP's towers are several,
        with commas between); `init.run`, where there is one, is the workdir whose averages the
        trained parameters start from, those alone that `init.new` allows to miss excepted.
      model: its structure.
      shardings: where each parameter goes, nested.
      trained: whether to read trained parameters; a run that continues has them in its checkpoint.
      report: JSON file for what was taken from `init.run`, and what was not.

    Raises:
      FolderError, MappingError: a folder that cannot be read, or does not fit; with every fault.
    """
    dit, text = model_configs(config)
    parts = []
    if config.init.transformer:
        table = _dit_table(config, dit, model.shapes["dit"])
        parts.append(Part(("dit",), config.init.transformer, table))
    if config.init.text_encoder:
        found = text_parts(config.init.text_encoder, text)
        parts += [part._replace(keys=("text_encoder", *part.keys)) for part in found]
    if sees_pixels(config):
        table = vae_table(model.shapes["autoencoder"])
        parts.append(Part(("autoencoder",), config.autoencoder.folder, table))
    frozen = flatten(model.split(model.shapes)[1])
    run = config.init.get("run")
    result: Params = {}
    if run and trained:
        old = model_parts(load_workdir_config(run))
        plan = plan_restore(model, old, new=config.init.get("new", ""))
        places = model.split(shardings)[0]
        result = load_partly(run, plan, model, old, seed=config.seed, shardings=places)
        if report is not None:
            report_restore(plan, run, report)
    for part in parts:
        tensors, above = open_tensors(part.folder), "/".join(part.keys)
        if above == "autoencoder":
            names = tuple(f"{name}." for name in model.shapes[above])
            tensors = modern_vae_names(tensors)
            tensors = {k: v for k, v in tensors.items() if k.startswith(names)}
        for is_frozen in (False, True) if trained and not run else (True,):
            read = from_official(
                tensors,
                part.find(model.shapes),
                table=part.table,
                dtype=jnp.dtype(config.init.frozen_dtype) if is_frozen else np.float32,
                shardings=part.find(shardings),
                keep=lambda path, above=above, f=is_frozen: (f"{above}/{path}" in frozen) == f,
            )
            result = join(result, part.place(read))
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
    new = config.init.get("new", "")
    if new:  # the shapes tell the rest: `plan_restore`
        dit = dataclasses.replace(dit, **{key: getattr(wanted_dit, key) for key in _SHAPES})
    faults = _differences(dit, wanted_dit, "model") + _text_differences(text, wanted_text)
    if new:
        return faults
    if other.train.trainable != config.train.trainable:
        faults.append(
            f"train.trainable is {config.train.trainable!r}, the run's {other.train.trainable!r}"
        )
    if other.lora.rank != config.lora.rank or other.lora.targets != config.lora.targets:
        faults.append("lora has another rank or other targets than the run's")
    return faults


def _text_differences(found: TextConfig, wanted: TextConfig) -> list[str]:
    if isinstance(found, MultimodalConfig) and isinstance(wanted, MultimodalConfig):
        parts = [("text.vision", found.vision, wanted.vision)]
        parts += [
            ("text.qformer", found.qformer, wanted.qformer),
            ("text", found.text, wanted.text),
        ]
        faults = [fault for name, *pair in parts for fault in _differences(*pair, name)]
        if found.num_query_tokens != wanted.num_query_tokens:
            faults.append(
                f"text.num_query_tokens is {wanted.num_query_tokens}, the folder's "
                f"{found.num_query_tokens}"
            )
        return faults
    pairs = [c.towers if isinstance(c, CLIPTowersConfig) else (c,) for c in (found, wanted)]
    kinds = [" and ".join(type(c).__name__.removesuffix("Config") for c in pair) for pair in pairs]
    if kinds[0] != kinds[1]:
        return [f"text is {kinds[1]}, the folder's {kinds[0]}"]
    sections = (
        ["text"] if len(pairs[0]) == 1 else [f"text.towers[{i}]" for i in range(len(pairs[0]))]
    )
    return [
        fault
        for first, second, section in zip(*pairs, sections, strict=True)
        for fault in _differences(first, second, section)
    ]


def _differences(found: Any, wanted: Any, section: str) -> list[str]:
    """Fields of two configs of one class that differ."""
    return [
        f"{section}.{field.name} is {getattr(wanted, field.name)!r}, "
        f"the folder's {getattr(found, field.name)!r}"
        for field in dataclasses.fields(wanted)
        if field.name not in _FREE and getattr(found, field.name) != getattr(wanted, field.name)
    ]
