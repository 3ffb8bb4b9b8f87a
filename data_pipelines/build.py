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
from data_pipelines.skips import count_skips, usable_records
from data_pipelines.subjects import items as subject_items
from data_pipelines.subjects.items import SubjectScenes
from data_pipelines.text_states import TextStates
from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import weights_digest
from unidiff_jax.export.mapping import flatten
from unidiff_jax.frames import RowSize, made_alone, pack_rows
from unidiff_jax.identity import IdentityEncoder, make_identity_encoder
from unidiff_jax.models.autoencoder import Autoencoder, SpaceToDepth
from unidiff_jax.models.clip import CLIPTowersConfig
from unidiff_jax.models.layers import abstract
from unidiff_jax.models.multimodal import MultimodalConfig
from unidiff_jax.models.text_encoder import (
    make_text_encoder,
    text_config,
    text_kind,
    tokenizer_kind,
)
from unidiff_jax.paths import AnyPath, as_path, is_remote
from unidiff_jax.processes import ALL, DataShare
from unidiff_jax.sample.encoders import LatentAutoencoder, text_folders
from unidiff_jax.tasks import STYLES, get_task
from unidiff_jax.text import (
    FRAME_NAMES,
    Tokenizer,
    holds_tokenizer,
    load_tokenizer,
    train_tokenizer,
)
from unidiff_jax.train.workdir import sees_pixels, stored_channels
from unidiff_jax.types import Batch, Kind

TOKENIZER_RECORDS = 2000
"""Records whose texts train the miniature's tokenizer."""

BUCKET_THREADS = 32
"""Threads that read records from a bucket where `data.read_threads` is 0: there each record is a
request of its own and takes tens of milliseconds."""


def make_sources(config: ConfigDict, *, split: str) -> dict[str, Source]:
    """Each task's records: of encoded folders where the config names `data.sources`, and otherwise
    of the kind that `source_kinds` says.

    Raises:
      ConfigError: a task without a data set, or a data set of an unknown task.
      EncodedError, RecordsError, SubjectError: records are missing or damaged.
    """
    names = [mix.task.name for mix in parse_mixture(config.data.tasks)]
    if "sources" not in config.data:
        kinds = source_kinds(config)
        opened = {kind: _KINDS[kind](config, split=split) for kind in dict.fromkeys(kinds.values())}
        return {name: opened[kind] for name, kind in kinds.items()}
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
        name: EncodedSource(
            found, task=get_task(name), split=split, spare=_spare(config, split=split)
        )
        for name, found in folders.items()
    }


def source_kinds(config: ConfigDict) -> dict[str, str]:
    """What each task's pictures are of: `data.kind` (miniworld, also where there is none, or
    subjects), and subjects for the tasks in `data.subjects.tasks`, whose folder is
    `data.subjects.folder`.

    Raises:
      ConfigError: an unknown kind, or a task that subjects have nothing for.
    """
    kind = config.data.get("kind", "miniworld")
    if kind not in _KINDS:
        raise ConfigError(f"data.kind={kind!r} is unknown; one of {', '.join(_KINDS)}")
    beside = config.data.subjects.tasks if "subjects" in config.data else ()
    kinds = {
        mix.task.name: "subjects" if mix.task.name in beside else kind
        for mix in parse_mixture(config.data.tasks)
    }
    for name, kind in kinds.items():
        if kind == "subjects" and name not in subject_items.TASK_NAMES:
            raise ConfigError(
                f"data.tasks.{name}: subjects have nothing for it; their tasks are: "
                f"{', '.join(subject_items.TASK_NAMES)}"
            )
    return kinds


def _spare(config: ConfigDict, *, split: str) -> float:
    """The share of a split's records that may be lost: held-out ones must all be there."""
    return config.data.get("max_skipped", 0.0) if split == "train" else 0.0


def make_subjects(config: ConfigDict, *, split: str) -> SubjectScenes:
    """The config's subjects, in `data.folder` or beside it."""
    beside = config.data.get("kind", "miniworld") != "subjects"
    folder = config.data.subjects.folder if beside else config.data.folder
    return SubjectScenes(folder, split=split, size=config.image_size)


def make_miniworld(config: ConfigDict, *, split: str) -> MiniWorldSource:
    """The config's MiniWorld records."""
    return MiniWorldSource(
        config.data.folder,
        split=split,
        edit_kinds=config.data.edit_kinds,
        min_reference_objects=config.data.min_reference_objects,
        num_captions=config.data.num_captions,
        spare=_spare(config, split=split),
    )


_KINDS = {"miniworld": make_miniworld, "subjects": make_subjects}


def check_data(config: ConfigDict) -> TextStates | None:
    """Opens the records and checks that tasks and sizes fit them.

    Returns:
      The states of prompts, where the config names them (`data.text_states`), for `make_loader`.

    Raises:
      ConfigError: an unknown task, sizes that do not divide, fit a row or match the records, or a
        tokenizer without the names by which prompts call frames.
      EncodedError, RecordsError, SubjectError: records are missing or damaged.
    """
    _check_shards(config)
    _check_names(config)
    _check_pixels(config)
    states = open_text_states(config)
    size, unit = config.image_size, config.autoencoder.downscale * config.patch
    if size % unit:
        raise ConfigError(
            f"image_size={size} must be a multiple of autoencoder.downscale * patch = {unit}"
        )
    guidance = config.data.get("guidance", "frames")
    for split in ("train", "validation"):
        for name, source in make_sources(config, split=split).items():
            if split == "train" and len(source) < config.data.num_shards:
                raise ConfigError(
                    f"task {name!r} has {len(source)} records for "
                    f"data.num_shards={config.data.num_shards}; for example "
                    "--set data.num_shards=1"
                )
            task = get_task(name)
            if isinstance(source, EncodedSource):
                largest = source.largest
                tokens, frames = largest.places // config.patch**2, largest.frames
                if guidance != "frames":
                    made = len(made_alone(task, guidance=guidance).frames)
                    tokens, frames = tokens * made // frames, made
                _check_row(config, name, tokens=tokens, frames=frames)
                if largest.channels != stored_channels(config):
                    raise ConfigError(
                        f"the records of task {name!r} have {largest.channels} channels, but "
                        f"autoencoder.latent_channels={config.autoencoder.latent_channels} and "
                        f"autoencoder.in_step={sees_pixels(config)} need {stored_channels(config)}"
                    )
            else:
                drawn = isinstance(source, SubjectScenes)
                frames = subject_items.num_frames(task) if drawn else len(task.frames)
                if guidance != "frames":
                    frames = len(made_alone(task, guidance=guidance).frames)
                _check_row(config, name, tokens=frames * (size // unit) ** 2, frames=frames)
    if "sources" in config.data or "miniworld" not in source_kinds(config).values():
        return states
    for split in ("train", "validation"):
        heights = usable_records(
            make_miniworld(config, split=split), lambda _, record: record.rgb.shape[1]
        )
        height = next(heights, size)  # none is usable: too many are skipped, and that is told
        if height != size:
            raise ConfigError(
                f"image_size={size}, but the pictures in {config.data.folder} have {height} pixels "
                f"a side; for example --set image_size={height}"
            )
    return states


def _check_pixels(config: ConfigDict) -> None:
    """Raises ConfigError where the autoencoder runs in the step on anything but equal pictures."""
    if not sees_pixels(config):
        return
    if "sources" not in config.data:
        raise ConfigError("autoencoder.in_step needs data.sources: pictures in records")
    if config.data.encode.buckets:
        raise ConfigError(
            "autoencoder.in_step needs pictures of one size: --set data.encode.buckets=False"
        )
    for name, source in config.data.sources.items():
        if source.task not in config.data.tasks:
            continue
        if source.size != config.image_size:
            raise ConfigError(
                f"autoencoder.in_step needs pictures of one size, but image_size="
                f"{config.image_size}: --set data.sources.{name}.size={config.image_size}"
            )
        if any(frame.kind == Kind.RAY for frame in get_task(source.task).frames):
            raise ConfigError(
                f"autoencoder.in_step knows no camera frames; --set data.tasks.{source.task}"
                ".weight=0 leaves them out"
            )
    places = (config.image_size // config.autoencoder.downscale // config.patch) ** 2
    if config.data.row.tokens % places:
        raise ConfigError(
            f"autoencoder.in_step needs whole pictures in a row: data.row.tokens="
            f"{config.data.row.tokens} is no multiple of their {places} tokens; for example "
            f"--set data.row.tokens={-(-config.data.row.tokens // places) * places}"
        )


def _check_names(config: ConfigDict) -> None:
    folder = config.init.tokenizer
    if prompt_style(config) == "token" or not folder:
        return
    if text_kind(config.text) == "clip" and config.model.get("fusion", "cross") == "cross":
        raise ConfigError(
            f"data.prompts={config.data.prompts!r} calls frames by names, which are one token to "
            "CLIP's text encoder; model.fusion='joint' and 'dual' tell them apart behind it; for "
            "example --set data.prompts=token"
        )
    if not load_tokenizer(folder).names_frames:
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
    trains one for a T5 on what is said in MiniWorld and of subjects.

    Raises:
      ConfigError: the tokenizer is not of the config's text encoder, or there is none for a CLIP.
      FileNotFoundError: `init.tokenizer` holds none.
    """
    folder, kind = as_path(folder), tokenizer_kind(config.text)
    if holds_tokenizer(folder):
        return _fitting(config, load_tokenizer(folder))
    if config.init.tokenizer:
        _fitting(config, load_tokenizer(config.init.tokenizer)).save(folder)
    elif kind != "t5":
        raise ConfigError(
            f"init.tokenizer is empty, and only a T5's is trained here; with text.kind={kind} it "
            "is a folder with vocab.json and merges.txt"
        )
    else:
        drawn = ["miniworld"] if "sources" in config.data else source_kinds(config).values()
        sources = [_KINDS[kind](config, split="train") for kind in dict.fromkeys(drawn)]
        texts = sorted({text for source in sources for text in _texts(source)})
        style = prompt_style(config)
        words = [] if style == "token" else list(FRAME_NAMES)
        if style in ("token", "short"):
            words += sorted({mix.task.token(style) for mix in parse_mixture(config.data.tasks)})
        train_tokenizer(texts, folder=folder, vocab_size=config.text.vocab_size, words=words)
    return _fitting(config, load_tokenizer(folder))


def _fitting(config: ConfigDict, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, if the config's text encoder reads its ids."""
    kind, text = tokenizer_kind(config.text), text_config(config.text)
    if tokenizer.kind != kind:
        raise ConfigError(
            f"text.kind={kind}, but the tokenizer is of kind {tokenizer.kind}; choose another "
            "init.tokenizer"
        )
    if tokenizer.vocab_size > text.vocab_size:
        raise ConfigError(
            f"text.vocab_size={text.vocab_size}, but the tokenizer has {tokenizer.vocab_size} "
            f"pieces; for example --set text.vocab_size={tokenizer.vocab_size}"
        )
    return tokenizer


def _texts(source: MiniWorldSource | SubjectScenes) -> Iterator[str]:
    """What the first records say."""

    def say(index: int, record: Any) -> list[str]:
        if isinstance(source, SubjectScenes):
            return source.prompts(index, np.random.default_rng(index))
        return prompts(record)

    for texts in usable_records(source, say, most=TOKENIZER_RECORDS):
        yield from texts


def make_autoencoder(config: ConfigDict) -> Autoencoder:
    """The released one whose folder the config names, or the one without weights, also where the
    released one runs in the step.
    """
    if sees_pixels(config):
        return SpaceToDepth(downscale=config.autoencoder.downscale)
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
        guidance=config.data.get("guidance", "frames"),
        visual_dropout=config.data.get("visual_dropout", 0.0),
        identity=make_identity(config),
        entities=config.data.get("entities", 0),
    )


def make_identity(config: ConfigDict) -> IdentityEncoder | None:
    """The encoder of reference objects, where given pictures are no frames.

    Raises:
      ConfigError: an encoder of another width than the config says.
    """
    settings = config.data.get("identity")
    if not settings or config.data.get("guidance", "frames") == "frames":
        return None
    encoder = make_identity_encoder(settings)
    if encoder.dim != settings.dim:
        raise ConfigError(
            f"data.identity.dim={settings.dim}, but the encoder {settings.encoder!r} has "
            f"{encoder.dim}; for example --set data.identity.dim={encoder.dim}"
        )
    return encoder


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
    text = text_config(config.text)
    shapes = abstract(lambda rngs: make_text_encoder(text, rngs=rngs)).shapes
    if any(
        re.fullmatch(config.train.trainable, f"text_encoder/{path}") for path in flatten(shapes)
    ):
        raise ConfigError(
            f"data.text_states: train.trainable={config.train.trainable!r} trains the text "
            "encoder, whose states then change; for example --set train.trainable=dit/.*"
        )
    skip = {}
    if isinstance(text, CLIPTowersConfig):
        skip = {"skip_layers": text.towers[0].skip_layers}
    if isinstance(text, MultimodalConfig):
        skip = {"pictures": f"{text.vision.image_size} pixels, {text.num_query_tokens} places"}
    return skip | {
        "text_encoder": ",".join(map(weights_digest, text_folders(config.init.text_encoder))),
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
        elements = examples.to_iter_dataset(reads, allow_nones=True)
        usable = count_skips(elements, most=data.get("max_skipped", 0.0))
        rows = pack(usable, size=row_size(config), num_bins=data.num_bins)
        return batch_rows(rows, num_rows=data.batch_rows // data.num_shards)

    return Loader(
        stream,
        num_shards=data.num_shards,
        share=share,
        prefetch=data.prefetch,
        stall_seconds=data.get("stall_seconds", 0.0),
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
