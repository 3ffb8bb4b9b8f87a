"""A workdir: config.json, lock, tokenizer/, checkpoints/, metrics.jsonl, samples/, init.json,
incidents/, profile/, report/, restarts.log.
"""

from ml_collections import ConfigDict

from unidiff_jax.config import ConfigError, differences, to_json
from unidiff_jax.export.files import read_config
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.models.lora import LoRAConfig
from unidiff_jax.models.pixels import PixelConfig
from unidiff_jax.models.text_encoder import MULTIMODAL, TextConfig, text_config, text_kind
from unidiff_jax.models.vae import SD3_VAE, VAEConfig
from unidiff_jax.outside import InputError, read_object
from unidiff_jax.paths import AnyPath, as_path, written_whole
from unidiff_jax.train.state import ModelParts, abstract_model


def latent_channels(config: ConfigDict) -> int:
    """Channels of a latent; the autoencoder without weights has three for each pixel."""
    return config.autoencoder.get("latent_channels") or 3 * config.autoencoder.downscale**2


def stored_channels(config: ConfigDict) -> int:
    """Channels of what records hold at the places of latents: these, or blocks of pixels."""
    return 3 * config.autoencoder.downscale**2 if sees_pixels(config) else latent_channels(config)


def sees_pixels(config: ConfigDict) -> bool:
    """Whether the step runs the autoencoder (`models.pixels`)."""
    return bool(config.autoencoder.get("in_step"))


def on_latents(config: ConfigDict) -> ConfigDict:
    """The same model as it samples: with latents that come from outside."""
    if not sees_pixels(config):
        return config
    config = config.copy_and_resolve_references()
    config.autoencoder.in_step = False
    return config


def pixel_config(config: ConfigDict) -> PixelConfig | None:
    """The autoencoder in the step; None where batches hold latents.

    Without its folder, as a plan is made, it is Stable Diffusion 3's.
    """
    if not sees_pixels(config):
        return None
    folder, dtype = as_path(config.autoencoder.folder), config.autoencoder.dtype
    vae = VAEConfig.from_json(read_config(folder), dtype=dtype) if folder.is_dir() else SD3_VAE
    return PixelConfig(vae=vae, size=config.image_size, patch=config.patch)


def model_configs(config: ConfigDict) -> tuple[DiTConfig, TextConfig]:
    """The model's settings; the widths of what the denoiser reads follow from the rest.

    Raises:
      ConfigError: settings that cannot be, prompts that are longer than the text encoder reads, or
        a weight of attention maps without layers or entities to take them of.
    """
    text = text_config(config.text)
    if text.max_length is not None and config.max_text > text.max_length:
        raise ConfigError(
            f"max_text={config.max_text}, but the text encoder reads {text.max_length} tokens; for "
            f"example --set max_text={text.max_length}"
        )
    if config.flow.get("map_weight"):
        for key, value, example in (
            ("model.map_layers", config.model.get("map_layers"), f"({config.model.depth // 2},)"),
            ("data.entities", config.data.get("entities"), 4),
        ):
            if not value:
                raise ConfigError(
                    f"flow.map_weight={config.flow.map_weight} needs {key}, which is {value!r}; "
                    f"for example --set {key}={example}"
                )
    patch_dim = config.patch**2 * latent_channels(config)
    on_channels = config.data.get("guidance") == "channels"
    _check_prompts(config)
    dit = DiTConfig(
        patch_dim=patch_dim,
        guidance_dim=patch_dim + config.patch**2 if on_channels else 0,
        asset_dim=config.data.identity.dim if on_channels and config.data.get("identity") else 0,
        text_dim=text.width,
        **config.model,
    )
    return dit, text


def _check_prompts(config: ConfigDict) -> None:
    kind, guidance = text_kind(config.text), config.data.get("guidance", "frames")
    if (kind in MULTIMODAL) != (guidance == "prompt"):
        fix = "data.guidance=prompt" if kind in MULTIMODAL else f"text.kind={MULTIMODAL[-1]}"
        raise ConfigError(
            f"text.kind={kind!r} with data.guidance={guidance!r}: pictures stand in the prompt "
            f"where the encoder reads them, and only there; for example --set {fix}"
        )
    if kind == "patches" and config.text.picture_dim != config.data.identity.dim:
        raise ConfigError(
            f"text.picture_dim={config.text.picture_dim} must be "
            f"data.identity.dim={config.data.identity.dim}"
        )


def model_parts(config: ConfigDict) -> ModelParts:
    """The model with its adapters, and which of its parameters are trained."""
    dit, text = model_configs(config)
    return abstract_model(
        dit,
        text,
        adapters=LoRAConfig(**config.lora),
        trainable=config.train.trainable,
        pixels=pixel_config(config),
    )


# May change between runs in one workdir: they do not change what is learned.
FREE_KEYS = (
    "train.log_every",
    "train.eval_every",
    "train.sample_every",
    "train.save_every",
    "train.keep",
    "train.profile_start",
    "train.profile_steps",
    "train.compiler_options",
    "train.guard.",
    "data.prefetch",
    "data.max_skipped",
    "data.stall_seconds",
    "data.read_threads",
    "data.folder",
    "init.new",  # read at the start alone
    "eval.",
    # how the same numbers are computed, and where
    "mesh.",
    "model.attention",
    "model.context",
    "model.modulation",
    "model.remat",
    "model.scan_layers",
)


def claim_workdir(config: ConfigDict, workdir: AnyPath) -> None:
    """Writes the config into a new workdir, or checks that an old one holds the same.

    Raises:
      ConfigError: the workdir holds another config; names the keys that differ.
    """
    path = as_path(workdir) / "config.json"
    if not path.exists():
        with written_whole(path) as file:
            file.write_text(to_json(config) + "\n")
        return
    found = differences(load_workdir_config(workdir), config)
    changed = {k: v for k, v in found.items() if not k.startswith(FREE_KEYS)}
    if changed:
        shown = "; ".join(f"{k} was {a!r}, now {b!r}" for k, (a, b) in list(changed.items())[:4])
        raise ConfigError(
            f"{workdir} holds a run with another config ({shown}): continue with the "
            "same config or choose another --workdir"
        )


def load_workdir_config(workdir: AnyPath) -> ConfigDict:
    """The config of a run.

    Raises:
      FileNotFoundError: there is none.
      ConfigError: it is no JSON object, or no config.
    """
    path = as_path(workdir) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} holds no training run (no config.json)")
    try:
        return ConfigDict(read_object(path))
    except InputError as error:
        raise ConfigError(str(error)) from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # keys that none can have
        raise ConfigError(f"{path} is no config: {error}") from None
