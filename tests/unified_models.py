"""Small transformers of every kind with random weights, for the tests of the unified layout."""

import jax
import numpy as np

from unidiff_jax.flow import FlowConfig
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.sample.denoiser import abstract_dit

PATCH, CHANNELS, TEXT_DIM, ASSET_DIM = 2, 3, 20, 7
PATCH_DIM = PATCH**2 * CHANNELS

_CHANNELS = {"guidance_dim": PATCH_DIM + PATCH**2}
_ASSETS = {"asset_dim": ASSET_DIM}
_PLAIN = {"qk_norm": False, "softcap": 0.0}

VARIANTS = {
    "joint": {"fusion": "joint", "softcap": 0.0},
    "joint_shared": {"fusion": "joint", "shared_modulation": True, "qk_norm": False},
    "joint_guided": {"fusion": "joint", "num_kv_heads": 1, **_CHANNELS, **_ASSETS},
    "dual": {"fusion": "dual", **_PLAIN},
    "dual_guided": {"fusion": "dual", "norm_eps": 1e-3, **_CHANNELS, **_ASSETS},
    "dual_shared": {"fusion": "dual", "shared_modulation": True, "softcap": 0.0, **_CHANNELS},
    "cross": {"ffn_dim_multiplier": 1.5, **_CHANNELS},
    "cross_shared": {"shared_modulation": True, **_PLAIN, **_ASSETS},
}


def dit_config(variant: str) -> DiTConfig:
    """Scores reach beyond the bound of 2, and angles are far from 0."""
    sizes = {"hidden_dim": 48, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_multiple_of": 8}
    rope = {"rope_theta": 20.0, "rope_scale": 2.0}
    settings = {"patch_dim": PATCH_DIM, "text_dim": TEXT_DIM, "softcap": 2.0, "remat": "none"}
    return DiTConfig(**sizes | rope | settings | VARIANTS[variant])


def flow_config(variant: str, prediction: str = "v") -> FlowConfig:
    """Given frames know their level in every second variant."""
    timed = list(VARIANTS).index(variant) % 2 == 1
    return FlowConfig(prediction=prediction, timed_conditions=timed)


def random_params(config: DiTConfig, seed: int = 0):
    """Weights at which every part of the network matters, gates included."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        is_weight, is_norm = path[-1].key == "weight", "norm" in str(path)
        scale = shape.shape[-2] ** -0.5 if is_weight and not is_norm else 0.3
        offset = 1.0 if is_weight and is_norm else 0.0
        return offset + scale * rng.standard_normal(shape.shape, np.float32)

    return jax.tree.map_with_path(draw, abstract_dit(config).shapes)
