"""From a config to data: source, example maker, training stream, held-out batches."""

from collections.abc import Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.loader import Loader
from data_pipelines.miniworld.items import MiniWorldSource, prompts
from data_pipelines.mixture import ExampleMaker, TaskMix, mix_examples, parse_mixture, stable_id
from data_pipelines.packing import batch_rows, pack
from unidiff_jax.config import ConfigError
from unidiff_jax.frames import RowSize, pack_rows
from unidiff_jax.models.autoencoder import SpaceToDepth
from unidiff_jax.paths import AnyPath, as_path, is_remote
from unidiff_jax.tasks import TASKS
from unidiff_jax.text import Tokenizer, train_tokenizer
from unidiff_jax.types import Batch

TOKENIZER_RECORDS = 2000
"""Records whose texts train the miniature's tokenizer."""

BUCKET_THREADS = 32
"""Threads that read records from a bucket where `data.read_threads` is 0: there each record is a
request of its own and takes tens of milliseconds."""


def make_source(config: ConfigDict, *, split: str) -> MiniWorldSource:
    """The config's data set."""
    return MiniWorldSource(
        config.data.folder,
        split=split,
        edit_kinds=config.data.edit_kinds,
        min_reference_objects=config.data.min_reference_objects,
        num_captions=config.data.num_captions,
    )


def check_data(config: ConfigDict) -> None:
    """Opens the records and checks that tasks and sizes fit them.

    Raises:
      ConfigError: an unknown task, or sizes that do not divide, fit a row or match the records.
      RecordsError: records are missing or damaged.
    """
    _check_shards(config)
    size, unit = config.image_size, config.autoencoder.downscale * config.patch
    if size % unit:
        raise ConfigError(
            f"image_size={size} must be a multiple of autoencoder.downscale * patch = {unit}"
        )
    for mix in parse_mixture(config.data.tasks):
        num_frames = len(mix.task.frames)
        needs = {
            "tokens": num_frames * (size // unit) ** 2,
            "frames": num_frames + 1,  # the table's row 0 is padding
            "segments": 2,
            "text": config.max_text,
        }
        for key, need in needs.items():
            if config.data.row[key] < need:
                raise ConfigError(
                    f"data.row.{key}={config.data.row[key]} holds no example of task "
                    f"{mix.task.name!r}; at least --set data.row.{key}={need}"
                )
    for split in ("train", "validation"):
        height = make_source(config, split=split)[0].rgb.shape[1]
        if height != size:
            raise ConfigError(
                f"image_size={size}, but the pictures in {config.data.folder} have {height} pixels "
                f"a side; for example --set image_size={height}"
            )


def make_tokenizer(config: ConfigDict, folder: AnyPath) -> Tokenizer:
    """Loads the workdir's tokenizer; the first call trains it on the training captions."""
    folder = as_path(folder)
    if not (folder / "spiece.model").exists():
        source = make_source(config, split="train")
        count = min(len(source), TOKENIZER_RECORDS)
        texts = sorted({text for i in range(count) for text in prompts(source[i])})
        words = sorted({task.prompt.split()[0] for task in TASKS.values()})
        train_tokenizer(texts, folder=folder, vocab_size=config.text.vocab_size, words=words)
    return Tokenizer(folder)


def make_maker(
    config: ConfigDict, tokenizer: Tokenizer, *, caption_dropout: float = 0.0
) -> ExampleMaker:
    """The config's example maker; dropout only in training."""
    return ExampleMaker(
        tokenizer=tokenizer,
        autoencoder=SpaceToDepth(**config.autoencoder),
        patch=config.patch,
        max_text=config.max_text,
        caption_dropout=caption_dropout,
        shift=config.data.shift,
    )


def row_size(config: ConfigDict) -> RowSize:
    """Capacity of the config's rows."""
    return RowSize(**config.data.row)


def make_loader(config: ConfigDict, tokenizer: Tokenizer, *, split: str = "train") -> Loader:
    """The training stream of this process."""
    data = config.data
    source = make_source(config, split=split)
    mixes = parse_mixture(data.tasks)
    maker = make_maker(config, tokenizer, caption_dropout=data.caption_dropout)
    _check_shards(config)

    def stream(shard: int) -> grain.IterDataset:
        examples = mix_examples(
            source, mixes, maker, seed=config.seed, shard=shard, num_shards=data.num_shards
        )
        threads = data.read_threads or (BUCKET_THREADS if is_remote(data.folder) else 0)
        reads = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=64)
        rows = pack(examples.to_iter_dataset(reads), size=row_size(config), num_bins=data.num_bins)
        return batch_rows(rows, num_rows=data.batch_rows // data.num_shards)

    return Loader(
        stream,
        num_shards=data.num_shards,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        prefetch=data.prefetch,
    )


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
    source = make_source(config, split="validation")
    for mix in parse_mixture(config.data.tasks):
        found = 0
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
        maker.example(mix.task, item, example_id=identity, plan=mix.plan)
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
