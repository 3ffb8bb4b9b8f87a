"""The text encoder that a config's section `text` chooses: T5, or CLIP's text towers.

    {"kind": "t5", "vocab_size": 32128, "d_model": 2048, ...}            sizes of `T5Config`
    {"kind": "clip", "hidden_size": 768, "skip_layers": 1, ...}          of `CLIPTextConfig`
    {"kind": "clip", "skip_layers": 1, "towers": ({...}, {...})}         several on the same ids

A section without `kind` is T5's. What stands beside `towers` holds for each of them.
"""

from typing import Any

from flax import nnx

from unidiff_jax.config import Config, ConfigError
from unidiff_jax.models.clip import CLIPTextConfig, CLIPTowers, CLIPTowersConfig
from unidiff_jax.models.t5 import T5Config, T5Encoder

TextConfig = T5Config | CLIPTowersConfig
KINDS = ("t5", "clip")

_SHARED = ("skip_layers", "scan_layers", "remat", "dtype")
"""Settings of CLIP that hold for all towers."""


def text_kind(section: Config) -> str:
    """One of `KINDS`.

    Raises:
      ConfigError: another kind.
    """
    kind = section.get("kind", "t5")
    if kind not in KINDS:
        raise ConfigError(f"text.kind={kind!r} is unknown; one of {', '.join(KINDS)}")
    return kind


def text_config(section: Config) -> TextConfig:
    """The encoder's settings.

    Raises:
      ConfigError: an unknown kind, or settings that cannot be.
    """
    values: dict[str, Any] = {k: v for k, v in section.items() if k != "kind"}
    if text_kind(section) == "t5":
        return T5Config(**values)
    towers = [dict(tower) for tower in values.pop("towers", ({},))]
    own = sorted({key for tower in towers for key in tower if key in _SHARED})
    if own or not towers:
        raise ConfigError(
            f"text.towers gives {', '.join(own) or 'no tower'}; a tower has sizes, and "
            f"{', '.join(_SHARED)} stand beside text.towers, for all of them"
        )
    return CLIPTowersConfig(tuple(CLIPTextConfig(**values | tower) for tower in towers))


def make_text_encoder(config: TextConfig, *, rngs: nnx.Rngs) -> T5Encoder | CLIPTowers:
    """A module that takes (ids (b, s), segment=(b, s)) to states (b, s, width)."""
    if isinstance(config, T5Config):
        return T5Encoder(config, rngs=rngs)
    return CLIPTowers(config, rngs=rngs)
