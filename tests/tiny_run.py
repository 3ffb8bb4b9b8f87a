"""A training run of seconds, derived from the quick start."""

import pathlib

from ml_collections import ConfigDict

from unidiff_jax.config import load_config

OVERRIDES = (
    "model.hidden_dim=24",
    "model.depth=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.ffn_multiple_of=8",
    "text.vocab_size=160",
    "text.d_model=16",
    "text.d_ff=16",
    "text.d_kv=8",
    "text.num_layers=1",
    "text.num_heads=2",
    "max_text=64",
    "patch=4",
    "data.row.tokens=128",
    "data.row.frames=9",
    "data.row.segments=5",
    "data.row.text=200",
    "data.batch_rows=8",
    "data.num_bins=8",
    "optim.warmup_steps=5",
    "train.num_steps=30",
    "train.log_every=5",
    "train.eval_every=15",
    "train.eval_items=4",
    "train.sample_every=30",
    "train.save_every=15",
    "sample.num_steps=2",
)


def overrides(folder: pathlib.Path, *more: str) -> list[str]:
    return [*OVERRIDES, f"data.folder={folder}", *more]


def config(folder: pathlib.Path, *more: str) -> ConfigDict:
    return load_config("configs/quickstart.py", overrides=overrides(folder, *more))
