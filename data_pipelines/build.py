"""From a config to data: source, example maker, training stream, held-out batches."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from data_pipelines.encoded import EncodedSource
from data_pipelines.loader import Loader
from data_pipelines.miniworld.items import MiniWorldSource, prompts
from data_pipelines.mixture import (
    ExampleMaker,
    Source,
    TaskMix,
    mix_examples,
    parse_mixture,
    stable_id,
)
from data_pipelines.packing import batch_rows, pack
from data_pipelines.text_states import TextStates
from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import weights_digest
from unidiff_jax.frames import RowSize, pack_rows
from unidiff_jax.models.autoencoder import Autoencoder, SpaceToDepth
from unidiff_jax.paths import AnyPath, as_path, is_remote
from unidiff_jax.processes import ALL, DataShare
from unidiff_jax.sample.encoders import LatentAutoencoder
from unidiff_jax.tasks import STYLES, get_task
from unidiff_jax.text import FRAME_NAMES, Tokenizer, train_tokenizer
from unidiff_jax.train.workdir import latent_channels
from unidiff_jax.types import Batch

TOKENIZER_RECORDS = 2000
"""Records whose texts train the miniature's tokenizer."""

BUCKET_THREADS = 32
"""Threads that read records from a bucket where `data.read_threads` is 0: there each record is a
request of its own and takes tens of milliseconds."""


def make_sources(config: ConfigDict, *, split: str) -> dict[str, Source]:
    """Each task's records: of encoded folders where the config names `data.sources`, and of
    MiniWorld otherwise.

    Raises:
      ConfigError: a task without a data set, or a data set of an unknown task.
      EncodedError, RecordsError: records are missing or damaged.
    """
    names = [mix.task.name for mix in parse_mixture(config.data.tasks)]
    if "sources" not in config.data:
        return dict.fromkeys(names, make_miniworld(config, split=split))
    folders: dict[str, list[epath.Path]] = {name: [] for name in names}
    for name, settings in config.data.sources.items():
        if settings.task in folders:
            folders[settings.task].append(as_path(config.data.folder) / name)
    without = [name for name, found in folders.items() if not found]
    if without:
        raise ConfigError(
            f"data.tasks.{without[0]} has no data set: data.sources names none of that task; "
            f"--set data.tasks.{without[0]}.weight=0 leaves it out"
        )
    return {
        name: EncodedSource(found, task=get_task(name), split=split)
        for name, found in folders.items()
    }


def make_miniworld(config: ConfigDict, *, split: str) -> MiniWorldSource:
    """The config's MiniWorld records."""
    return MiniWorldSource(
        config.data.folder,
        split=split,
        edit_kinds=config.data.edit_kinds,
        min_reference_objects=config.data.min_reference_objects,
        num_captions=config.data.num_captions,
    )


def check_data(config: ConfigDict) -> TextStates | None:
    """Opens the records and checks that tasks and sizes fit them.

    Returns:
      The states of prompts, where the config names them (`data.text_states`), for `make_loader`.

    Raises:
      ConfigError: an unknown task, sizes that do not divide, fit a row or match the records, or a
        tokenizer without the names by which prompts call frames.
      EncodedError, RecordsError: records are missing or damaged.
    """
    _check_shards(config)
    _check_names(config)
    states = open_text_states(config)
    size, unit = config.image_size, config.autoencoder.downscale * config.patch
    if size % unit:
        raise ConfigError(
            f"image_size={size} must be a multiple of autoencoder.downscale * patch = {unit}"
        )
    for split in ("train", "validation"):
        for name, source in make_sources(config, split=split).items():
            if split == "train" and len(source) < config.data.num_shards:
                raise ConfigError(
                    f"task {name!r} has {len(source)} records for "
                    f"data.num_shards={config.data.num_shards}; for example "
                    "--set data.num_shards=1"
                )
            if isinstance(source, EncodedSource):
                largest = source.largest
                _check_row(
                    config, name, tokens=largest.places // config.patch**2, frames=largest.frames
                )
                if largest.channels != latent_channels(config):
                    raise ConfigError(
                        f"autoencoder.latent_channels={latent_channels(config)}, but the latents "
                        f"of task {name!r} have {largest.channels}"
                    )
            else:
                frames = len(get_task(name).frames)
                _check_row(config, name, tokens=frames * (size // unit) ** 2, frames=frames)
    if "sources" in config.data:
        return states
    for split in ("train", "validation"):
        height = make_miniworld(config, split=split)[0].rgb.shape[1]
        if height != size:
            raise ConfigError(
                f"image_size={size}, but the pictures in {config.data.folder} have {height} pixels "
                f"a side; for example --set image_size={height}"
            )
    return states


def _check_names(config: ConfigDict) -> None:
    folder = config.init.tokenizer
    if folder and prompt_style(config) != "token" and not Tokenizer(folder).names_frames:
        raise ConfigError(
            f"data.prompts={config.data.prompts!r} calls frames {next(iter(FRAME_NAMES))} and so "
            f"on, but init.tokenizer={folder!r} has no pieces for these words and fewer than "
            f"{len(FRAME_NAMES)} spare ids (a T5's tokenizer_config.json says extra_ids 100)"
        )


def _check_row(config: ConfigDict, task: str, *, tokens: int, frames: int) -> None:
    """Raises ConfigError where a row does not hold one example."""
    # row 0 of the tables is padding
    needs = {"tokens": tokens, "frames": frames + 1, "segments": 2, "text": config.max_text}
    for key, need in needs.items():
        if config.data.row[key] < need:
            raise ConfigError(
                f"data.row.{key}={config.data.row[key]} does not hold every example of task "
                f"{task!r}; at least --set data.row.{key}={need}"
            )


def make_tokenizer(config: ConfigDict, folder: AnyPath) -> Tokenizer:
    """Loads the workdir's tokenizer; the first call copies `init.tokenizer` or, where it is empty,
    trains one on MiniWorld's captions.
    """
    folder = as_path(folder)
    if (folder / "spiece.model").exists():
        return Tokenizer(folder)
    if config.init.tokenizer:
        Tokenizer(config.init.tokenizer).save(folder)
    else:
        source = make_miniworld(config, split="train")
        count = min(len(source), TOKENIZER_RECORDS)
        texts = sorted({text for i in range(count) for text in prompts(source[i])})
        words = sorted({mix.task.prompt.split()[0] for mix in parse_mixture(config.data.tasks)})
        if prompt_style(config) != "token":
            words = list(FRAME_NAMES)
        train_tokenizer(texts, folder=folder, vocab_size=config.text.vocab_size, words=words)
    return Tokenizer(folder)


def make_autoencoder(config: ConfigDict) -> Autoencoder:
    """The released one whose folder the config names, or the one without weights."""
    if "folder" in config.autoencoder:
        return LatentAutoencoder(config.autoencoder.folder, dtype=config.autoencoder.dtype)
    return SpaceToDepth(**config.autoencoder)


def make_maker(
    config: ConfigDict, tokenizer: Tokenizer, *, caption_dropout: float = 0.0
) -> ExampleMaker:
    """The config's example maker; dropout only in training."""
    return ExampleMaker(
        tokenizer=tokenizer,
        autoencoder=make_autoencoder(config),
        patch=config.patch,
        max_text=config.max_text,
        caption_dropout=caption_dropout,
        shift=config.data.shift,
        style=prompt_style(config),
        roles=config.data.get("roles", True),
    )


def text_origin(config: ConfigDict) -> dict[str, Any]:
    """What decides the states of a prompt, for `text_states`.

    Raises:
      ConfigError: the config has no encoded data, or trains its text encoder.
    """
    if "sources" not in config.data or not config.init.text_encoder:
        raise ConfigError(
            "data.text_states needs encoded data and a released text encoder; for example "
            "--config configs/onediffusion.py"
        )
    if re.fullmatch(config.train.trainable, "text_encoder/final_norm/weight"):
        raise ConfigError(
            f"data.text_states: train.trainable={config.train.trainable!r} trains the text "
            "encoder, whose states then change; for example --set train.trainable=dit/.*"
        )
    return {
        "text_encoder": weights_digest(config.init.text_encoder),
        "dtype": config.text.dtype,
        "frozen_dtype": config.init.frozen_dtype,
        "max_text": config.max_text,
    }


def open_text_states(config: ConfigDict) -> TextStates | None:
    """The states of prompts; None where the config names none.

    It reads all weights of the text encoder, to know whether the states are of them.
    """
    if not config.data.get("text_states"):
        return None
    return TextStates(config.data.text_states, origin=text_origin(config))


def prompt_style(config: ConfigDict) -> str:
    """How prompts are written: the config's `data.prompts`, and `token` where it has none.

    Raises:
      ConfigError: an unknown style.
    """
    style = config.data.get("prompts", "token")
    if style not in STYLES:
        raise ConfigError(f"data.prompts={style!r} is unknown; one of {', '.join(STYLES)}")
    return style


def row_size(config: ConfigDict) -> RowSize:
    """Capacity of the config's rows."""
    return RowSize(**config.data.row)


def make_loader(
    config: ConfigDict,
    tokenizer: Tokenizer,
    *,
    split: str = "train",
    share: DataShare = ALL,
    states: TextStates | None = None,
) -> Loader:
    """The training stream of the processes that hold this share of the rows.

    `states` are those of prompts, where they are open already.
    """
    data = config.data
    sources = make_sources(config, split=split)
    mixes = parse_mixture(data.tasks)
    maker = make_maker(config, tokenizer, caption_dropout=data.caption_dropout)
    if states := states or open_text_states(config):
        maker = dataclasses.replace(maker, text_states=states)
    _check_shards(config)

    def stream(shard: int) -> grain.IterDataset:
        examples = mix_examples(
            sources, mixes, maker, seed=config.seed, shard=shard, num_shards=data.num_shards
        )
        threads = data.read_threads or (BUCKET_THREADS if is_remote(data.folder) else 0)
        reads = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=64)
        rows = pack(examples.to_iter_dataset(reads), size=row_size(config), num_bins=data.num_bins)
        return batch_rows(rows, num_rows=data.batch_rows // data.num_shards)

    return Loader(stream, num_shards=data.num_shards, share=share, prefetch=data.prefetch)


def _check_shards(config: ConfigDict) -> None:
    rows, shards = config.data.batch_rows, config.data.num_shards
    if rows % shards:
        raise ConfigError(
            f"data.batch_rows={rows} must be a multiple of data.num_shards={shards}; for example "
            "--set data.num_shards=1"
        )


def heldout_items(
    config: ConfigDict, *, num_items: int
) -> Iterator[tuple[TaskMix, int, Mapping[str, Any]]]:
    """The first `num_items` items of each task in the validation split, with their identities."""
    sources = make_sources(config, split="validation")
    for mix in parse_mixture(config.data.tasks):
        source, found = sources[mix.task.name], 0
        for index in range(len(source)):
            if found == num_items:
                break
            item = source.item(source[index], mix.task, np.random.default_rng([mix.task.id, index]))
            if item is not None:
                found += 1
                yield mix, stable_id(mix.task, index), item


def heldout_batches(config: ConfigDict, tokenizer: Tokenizer, *, num_items: int) -> list[Batch]:
    """Fixed batches of the validation split, `num_items` of each task, for the held-out loss.

    The last batch is filled up with rows whose loss mask is 0, so that all have one shape.
    """
    maker = make_maker(config, tokenizer)
    examples = [
        maker.example(mix.task, item, example_id=identity, plan=mix.plan, cut=True, shift=mix.shift)
        for mix, identity, item in heldout_items(config, num_items=num_items)
    ]
    batch, _ = pack_rows(examples, size=row_size(config))
    return split_rows(batch, num_rows=config.data.batch_rows)


def split_rows(batch: Batch, *, num_rows: int) -> list[Batch]:
    """Cuts a batch into batches of `num_rows`; the last is filled with empty rows."""
    total = len(batch.tokens)
    missing = -total % num_rows

    def fill(leaf: np.ndarray) -> np.ndarray:
        return np.concatenate([leaf, np.zeros((missing, *leaf.shape[1:]), leaf.dtype)])

    full = jax.tree.map(fill, batch)
    return [
        jax.tree.map(lambda leaf, i=i: leaf[i : i + num_rows], full)
        for i in range(0, total + missing, num_rows)
    ]
