"""Runs a config's frozen text encoder on every prompt of its data, once, for training.

    python -m launch.encode --config configs/onediffusion.py:stage=finetune,weights=FOLDER
    python -m launch.precompute --config configs/onediffusion.py:stage=finetune,weights=FOLDER \\
        --set data.text_states=data/finetune-text
    python -m launch.train --config configs/onediffusion.py:stage=finetune,weights=FOLDER \\
        --set data.text_states=data/finetune-text --workdir RUN

`launch.encode` does the same for pictures, and comes first: the prompts are made of what it wrote.
A stopped run continues with the same command. States take 4 KiB a token of T5 XL, in bfloat16; they
pay where prompts come again often.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.build import make_maker, make_sources, make_tokenizer, text_origin
from data_pipelines.mixture import parse_mixture
from data_pipelines.text_states import Batched, all_prompts, write_states
from launch import command
from unidiff_jax.config import ConfigError
from unidiff_jax.models.text_encoder import MULTIMODAL, text_kind
from unidiff_jax.processes import join_job
from unidiff_jax.sample.encoders import LoadedText


def define_flags() -> None:
    command.define_config_flags("configs/onediffusion.py")
    flags.DEFINE_integer("shards", 8, "Files.", lower_bound=1)
    flags.DEFINE_integer("batch", 64, "Prompts at once.", lower_bound=1)
    command.define_distributed_flag()


def main(argv: list[str]) -> None:
    del argv
    config = command.config_from_flags()
    join_job(flags.FLAGS.distributed)
    command.quiet_libraries()
    precompute(config, num_shards=flags.FLAGS.shards, batch=flags.FLAGS.batch)


def precompute(config: ConfigDict, *, num_shards: int, batch: int) -> None:
    """Writes the folder `data.text_states`.

    Raises:
      ConfigError: the config names none, or trains its text encoder.
    """
    folder = config.data.get("text_states")
    if not folder:
        raise ConfigError(
            "data.text_states is empty; for example --set data.text_states=data/text-states"
        )
    origin = text_origin(config)
    tokenizer = make_tokenizer(config, config.init.tokenizer)
    maker = make_maker(config, tokenizer)
    mixes = parse_mixture(config.data.tasks)
    sources = make_sources(config, split="train")
    prompts = list(tqdm(all_prompts(sources, mixes, maker), desc="prompts", unit="prompt"))
    text = LoadedText.load(
        config.init.text_encoder,
        tokenizer=config.init.tokenizer,
        dtype=config.text.dtype,
        round_to=config.init.frozen_dtype,
        skip_layers=config.text.get("skip_layers", 0),
        multimodal=True,
    )
    width = config.data.identity.dim if text_kind(config.text) in MULTIMODAL else None
    run = functools.partial(encode_prompts, text.params, graphdef=text.graphdef)

    def encode(prompts: Batched) -> np.ndarray:
        features = prompts.features
        if features is None and width is not None:
            features = np.zeros((len(prompts.ids), 1, width), np.uint8)
        return jax.device_get(run(*prompts[:3], features))

    others = jax.process_index() != 0
    with tqdm(total=len(prompts), unit="prompt", desc="states", disable=others) as bar:
        write_states(
            prompts,
            encode=encode,
            folder=folder,
            origin=origin,
            num_shards=min(num_shards, len(prompts)),
            batch=batch,
            on_prompts=bar.update,
        )
    if jax.process_index() == 0:
        print(f"{folder}: {len(prompts)} prompts")


@functools.partial(jax.jit, static_argnames="graphdef")
def encode_prompts(params, ids, mask, asset, features, *, graphdef):
    """The program of `precompute`; without features the encoder reads words alone."""
    encoder = nnx.merge(graphdef, params)
    if features is None:
        return encoder(ids, segment=mask).astype(jnp.float32)
    states = encoder.read_assets(ids, segment=mask, asset=asset, features=features)
    return states.astype(jnp.float32)


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
