"""A training run as a folder for PyTorch, in one of two layouts.

`released` is OneDiffusion's, which the official code and ours load. It cannot say what most models
are. `unified` (`export.unified`) says what any model is, and brings the module that reads it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import WEIGHT_NAMES, read_config, write_model
from unidiff_jax.export.mapping import t5_table, to_official
from unidiff_jax.export.unified import unified_values, write_unified
from unidiff_jax.flow import FlowConfig
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.models.lora import LoRAConfig, merge
from unidiff_jax.models.multimodal import PatchT5Config
from unidiff_jax.models.t5 import T5Config
from unidiff_jax.models.text_encoder import text_kind
from unidiff_jax.models.vae import VAEConfig
from unidiff_jax.paths import AnyPath, as_path, copy_tree
from unidiff_jax.sample.clip import tower_values
from unidiff_jax.sample.denoiser import SOFTCAP, Denoiser, NextDiTConfig
from unidiff_jax.sample.encoders import t5_values, text_folders, text_parts
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.text import load_tokenizer
from unidiff_jax.train.workdir import load_workdir_config, model_configs, model_parts
from unidiff_jax.types import Params

LAYOUTS = ("released", "unified")

PICTURES = "picture_encoder"
"""Folder of what brings pictures among the words of a `models.multimodal.PatchT5`."""

_OTHER_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
_INDEX = "model_index.json"


class Layout(NamedTuple):
    """How a run is written.

    Attributes:
      name: one of `LAYOUTS`.
      faults: why the released layout cannot say what the model is.
    """

    name: str
    faults: list[str]


def export_run(
    workdir: AnyPath,
    folder: AnyPath,
    *,
    layout: str | None = None,
    base: AnyPath | None = None,
    dtype: str = "float32",
    step: int | None = None,
) -> Layout:
    """Writes the averaged weights, adapters merged, as `folder/transformer`.

    Beside it, the released layout has the other parts of `base`. The unified layout has what the
    run's pictures and prompts need: `tokenizer`, `text_encoder` (written where the run has its own,
    with `picture_encoder` beside it where that reads pictures, and copied where it is a released
    one) and `vae` (copied, where the run is on latents).

    Args:
      workdir: of the run.
      folder: to write; its `transformer` must not exist.
      layout: one of `LAYOUTS`; None is `released` where that can say what the model is.
      base: a released folder to copy from. None is the one that `init.transformer` lies in, and
        without it the released layout has the transformer alone; the unified layout copies from
        the folders in the run's config.
      dtype: of the written weights.
      step: which checkpoint; None is the newest.

    Returns:
      The layout that was written.

    Raises:
      ConfigError: the layout cannot say what this model is; with every reason.
      FileExistsError: there is a transformer already.
      FileNotFoundError: no run, or a part that is to be copied is missing.
    """
    config = load_workdir_config(workdir)
    dit, _ = model_configs(config)
    chosen = choose_layout(config, dit, layout)
    folder = as_path(folder)
    target = folder / "transformer"
    if target.exists():
        raise FileExistsError(f"{target} exists; choose another --out or remove it")
    parts = (_unified_parts if chosen.name == "unified" else _released_parts)(config, base)
    missing = [path for path in parts.values() if not path.exists()]
    if missing:
        raise FileNotFoundError(
            "; ".join(f"{path.parent} holds no {path.name}" for path in missing)
        )

    exact = ConfigDict(config.to_dict())
    exact.init.frozen_dtype = "float32"  # released weights as they are under the adapters
    params = Pipeline.from_workdir(workdir, step=step, config=exact).params
    params = merge(params, LoRAConfig(**config.lora))
    params = jax.tree.map(lambda x: np.asarray(jnp.asarray(x, jnp.dtype(dtype))), params)
    for name, source in parts.items():
        if source.is_dir():
            copy_tree(source, folder / name)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            source.copy(folder / name, overwrite=True)
    if chosen.name == "released":
        Denoiser(released_config(config, dit), dit, params["dit"]).save_pretrained(target)
    else:
        _write_text(workdir, folder, config, params)
        values = unified_values(
            dit,
            patch=config.patch,
            flow=FlowConfig(**config.flow),
            shift=config.data.shift,
            autoencoder=_autoencoder_values(config, parts),
        )
        write_unified(target, params["dit"], dit=dit, values=values)
    return chosen


def choose_layout(config: ConfigDict, dit: DiTConfig, layout: str | None) -> Layout:
    """The layout that is asked for; None takes the released one where it can.

    Raises:
      ConfigError: an unknown layout, or the released one for a model that it cannot describe.
    """
    if layout not in (None, *LAYOUTS):
        raise ConfigError(f"layout={layout!r} is unknown; one of {', '.join(LAYOUTS)}")
    faults = released_faults(config, dit)
    if layout == "released" and faults:
        raise ConfigError(
            f"this run has no OneDiffusion layout: {'; '.join(faults)}; --layout unified has it"
        )
    return Layout(layout or ("unified" if faults else "released"), faults)


def released_faults(config: ConfigDict, dit: DiTConfig) -> list[str]:
    """What the official code would read as something else."""
    faults = [
        f"{key}={found!r}, the layout means {want!r}"
        for key, found, want in (
            ("flow.prediction", config.flow.prediction, "v"),
            ("flow.timed_conditions", config.flow.get("timed_conditions", True), True),
            ("model.fusion", dit.fusion, "cross"),
            ("text.kind", text_kind(config.text), "t5"),
            ("model.rope_theta", dit.rope_theta, 10000.0),
            ("model.rope_scale", dit.rope_scale, 1.0),
            ("model.shared_modulation", dit.shared_modulation, False),
            ("data.guidance", config.data.get("guidance", "frames"), "frames"),
        )
        if found != want
    ]
    if dit.asset_dim:
        faults.append("data.identity is set, the layout has no features of references")
    if dit.softcap not in (0.0, SOFTCAP):
        faults.append(f"model.softcap={dit.softcap}, the official code has {SOFTCAP} or none")
    return faults


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


def _released_parts(config: ConfigDict, base: AnyPath | None) -> dict[str, epath.Path]:
    """What is copied beside a released transformer, by name."""
    if base is None and config.init.transformer:
        parent = as_path(config.init.transformer).parent
        base = parent if (parent / _INDEX).is_file() else None
    if base is None:
        return {}
    return {name: as_path(base) / name for name in (*_OTHER_PARTS, _INDEX)}


def _unified_parts(config: ConfigDict, base: AnyPath | None) -> dict[str, epath.Path]:
    """What is copied beside a unified transformer, by name."""
    parts = {}
    if "folder" in config.autoencoder:
        parts["vae"] = as_path(config.autoencoder.folder)
    if not _has_own_text(config):
        folders = text_folders(config.init.text_encoder)
        parts |= {
            name: as_path(path) for name, path in zip(_text_names(folders), folders, strict=True)
        }
    return parts if base is None else {name: as_path(base) / name for name in parts}


def _has_own_text(config: ConfigDict) -> bool:
    """Whether the text encoder's weights are the run's, and not a released folder's."""
    model = model_parts(config)
    return not config.init.text_encoder or "text_encoder" in model.split(model.shapes)[0]


def _text_names(folders: Sequence[str]) -> list[str]:
    """Names of a pipeline's text encoders: `text_encoder`, `text_encoder_2` and so on."""
    return ["text_encoder", *(f"text_encoder_{n}" for n in range(2, len(folders) + 1))]


def _write_text(workdir: AnyPath, folder: epath.Path, config: ConfigDict, params: Params) -> None:
    """The run's tokenizer, and its text encoder where that is its own."""
    load_tokenizer(as_path(workdir) / "tokenizer").save(folder / "tokenizer")
    if not _has_own_text(config):
        return
    _, text = model_configs(config)
    if isinstance(text, T5Config | PatchT5Config):
        own = params["text_encoder"]
        if isinstance(text, PatchT5Config):
            layer = {key: np.ascontiguousarray(v.T) for key, v in own["picture_in"].items()}
            layer = {f"picture_in.{key}": value for key, value in layer.items()}
            values = {"picture_dim": text.picture_dim, "width": text.width}
            write_model(folder / PICTURES, layer, config=values, stem=WEIGHT_NAMES[1])
            own, text = own["text"], text.text
        tensors = to_official(own, table=t5_table(text))
        write_model(folder / "text_encoder", tensors, config=t5_values(text), stem=WEIGHT_NAMES[1])
        return
    if not config.init.text_encoder:
        raise ConfigError("a CLIP without init.text_encoder has no config.json to be written with")
    sources = text_folders(config.init.text_encoder)
    places = ",".join(str(folder / name) for name in _text_names(sources))
    for part, source in zip(text_parts(places, text), sources, strict=True):
        values = tower_values(read_config(source), "text") | {"architectures": ["CLIPTextModel"]}
        tensors = to_official(part.find(params["text_encoder"]), table=part.table)
        write_model(part.folder, tensors, config=values, stem=WEIGHT_NAMES[1])


def _autoencoder_values(
    config: ConfigDict, parts: Mapping[str, epath.Path]
) -> dict[str, str | int | float]:
    """What makes latents of pictures: the folder `vae`, whose latents are multiplied by the scaling
    factor, or blocks of pixels that become channels (`models.autoencoder.SpaceToDepth`).
    """
    downscale = config.autoencoder.downscale
    if "vae" not in parts:
        return {"kind": "space_to_depth", "downscale": downscale}
    vae = VAEConfig.from_json(read_config(parts["vae"]))
    return {
        "kind": "autoencoder_kl",
        "downscale": downscale,
        "scaling_factor": vae.scaling_factor,
    }
