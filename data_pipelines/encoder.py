"""Encodes a raw data set into latents (`encoded`), on all devices of all processes.

An example has the size of the bucket of its first picture; with cameras it is square, because a ray
frame covers the square in the middle of its picture. Frames that belong together go through one
placement (`geometry`): photographs with antialiasing, maps without. Reference objects are fitted
whole, on white, and views of a scene or subject are cut to the size each on its own.

The autoencoder runs on batches of one size, spread over this process's devices. Where it is to run
in the train step, records hold blocks of pixels (`models.autoencoder.SpaceToDepth`). For guidance
on channels a record also holds the task's region and the features of its reference objects.
"""

import collections
import concurrent.futures
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath
from PIL import Image

from data_pipelines import encoded, shards
from data_pipelines.encoded import EncodedExample, Largest
from data_pipelines.geometry import MisalignedError, Placement, fit_whole
from data_pipelines.skips import TooManySkippedError
from data_pipelines.sources.base import RawSource, SampleError, UnsuitableError
from unidiff_jax import cameras
from unidiff_jax.config import ConfigError
from unidiff_jax.frames import CODECS, fit_mask
from unidiff_jax.identity import IdentityEncoder
from unidiff_jax.models.autoencoder import SpaceToDepth
from unidiff_jax.paths import AnyPath, as_path
from unidiff_jax.processes import first_alone, meet, own_pieces
from unidiff_jax.sample.buckets import nearest_bucket
from unidiff_jax.sample.encoders import LatentAutoencoder
from unidiff_jax.tasks import FrameSpec, Task
from unidiff_jax.types import Kind, Role

_READ_THREADS = 8
_MAX_SKIPPED = 0.2
_SKIPPED_AT_LEAST = 20

_SIDES = re.compile(r"\b(left|right)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodeSettings:
    """How a data set is encoded.

    Attributes:
      size: pixels a side of a square picture; others have about its area.
      buckets: whether pictures keep their aspect ratio (`sample.buckets`), or all are square.
      samples: examples made of each raw sample, with different random choices.
      validation: raw samples kept out of training.
      shards: files of the training split.
      seed: of the split and of all choices.
      flip: whether half of the examples are mirrored, at random: all frames that belong together,
        and never where the texts say left or right.
    """

    size: int
    buckets: bool = True
    samples: int = 1
    validation: int = 64
    shards: int = 8
    seed: int = 0
    flip: bool = False

    def __post_init__(self):
        try:
            if self.buckets:
                nearest_bucket(1, 1, side=self.size)
        except ValueError as error:
            raise ConfigError(
                f"{error}; square pictures may have any size: --set data.encode.buckets=false"
            ) from None


@dataclasses.dataclass(frozen=True)
class Guides:
    """What records hold for guidance on channels or in the prompt (`frames.GUIDANCE`).

    Attributes:
      regions: whether that includes the tasks' regions.
      entities: whether that includes where the reference objects are, for tasks whose samples say
        it (`entity_masks`).
      identity: encoder of reference objects; None for none.
      origin: what decides the features, for the manifest.
    """

    regions: bool = False
    entities: bool = False
    identity: IdentityEncoder | None = None
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)


NO_GUIDES = Guides()


@dataclasses.dataclass(frozen=True)
class _Prepared:
    """An example before the autoencoder: a uint8 picture or a float ray map a frame."""

    frames: Sequence[np.ndarray]
    texts: Mapping[str, str]
    tags: Sequence[str]
    region: np.ndarray | None = None
    features: np.ndarray | None = None
    entities: np.ndarray | None = None


class EncodeCount(NamedTuple):
    """What became of raw samples.

    Attributes:
      records: examples that were written.
      skipped: samples that could not be used.
      unsuitable: samples that have nothing for the task, by reason.
    """

    records: int
    skipped: int
    unsuitable: collections.Counter[str]


def encode_dataset(
    source: RawSource,
    *,
    task: Task,
    autoencoder: LatentAutoencoder | SpaceToDepth,
    folder: AnyPath,
    settings: EncodeSettings,
    origin: Mapping[str, Any],
    batch: int = 16,
    guides: Guides = NO_GUIDES,
    on_samples: Callable[[int], Any] = lambda count: None,
) -> EncodeCount:
    """Encodes what is missing of a folder; a stopped job continues, finished shards stay.

    The processes of a job share the shards, and return when all are finished.

    Args:
      source: the raw samples.
      task: which frames and texts an example has.
      autoencoder: of the pictures.
      folder: to write, see `encoded`.
      settings: what decides the records.
      origin: where the samples come from, for the manifest.
      batch: pictures a device takes at once; does not change the records.
      guides: what records hold for guidance on channels.
      on_samples: called with the number of samples that this process has done.

    Returns:
      What became of the samples of all processes, in old shards and new ones.

    Raises:
      ConfigError: the folder was begun with other settings.
      TooManySkippedError: more than a fifth of a shard's samples, and at least 20, are no use.
    """
    folder = as_path(folder)
    plan = split_plan(len(source), settings)
    manifest = {
        "task": task.name,
        "settings": dataclasses.asdict(settings),
        "origin": dict(origin),
        "autoencoder": autoencoder.identity,
        "guides": None if guides == NO_GUIDES else dict(guides.origin),
        "raw_samples": len(source),
        "shards": {split: len(parts) for split, parts in plan.items()},
    }
    with first_alone(f"claim {folder}"):
        shards.claim_folder(
            folder,
            manifest,
            schema=encoded.SCHEMA,
            made="encoded",
            remedy="choose another --set data.folder=FOLDER",
        )
    places = _places(folder, plan)
    for path, indices in own_pieces(places):
        if shards.read_entry(folder, path.name) is None:
            _encode_shard(
                path,
                indices,
                source,
                task,
                autoencoder,
                settings,
                batch,
                guides,
                on_samples=on_samples,
            )
        else:
            on_samples(len(indices))
    meet(f"encoded {folder}")
    return _count([path for path, _ in places])


def own_samples(count: int, settings: EncodeSettings) -> int:
    """How many of `count` raw samples this process encodes."""
    places = _places(epath.Path(), split_plan(count, settings))
    return sum(len(indices) for _, indices in own_pieces(places))


def _count(paths: Sequence[epath.Path]) -> EncodeCount:
    """Adds up finished shards."""
    with concurrent.futures.ThreadPoolExecutor(_READ_THREADS) as pool:  # a bucket answers slowly
        entries = list(pool.map(lambda path: shards.check_entry(path.parent, path.name), paths))
    unsuitable = collections.Counter()
    for entry in entries:
        unsuitable.update(entry["unsuitable"])
    return EncodeCount(
        records=sum(entry["records"] for entry in entries),
        skipped=sum(len(entry["skipped"]) for entry in entries),
        unsuitable=unsuitable,
    )


def _places(
    folder: epath.Path, plan: Mapping[str, Sequence[np.ndarray]]
) -> list[tuple[epath.Path, np.ndarray]]:
    """File and raw samples of every shard, of all splits."""
    return [
        (folder / name, indices)
        for split, parts in plan.items()
        for name, indices in zip(shards.shard_names(split, len(parts)), parts, strict=True)
    ]


def split_plan(count: int, settings: EncodeSettings) -> dict[str, list[np.ndarray]]:
    """Raw sample indices of each shard; a sample is in one split only.

    Raises:
      ConfigError: no sample is left for training.
    """
    if settings.validation >= count:
        raise ConfigError(
            f"data.encode.validation={settings.validation} leaves nothing of {count} samples for "
            f"training; for example --set data.encode.validation={count // 20}"
        )
    order = np.random.default_rng(settings.seed).permutation(count)
    parts = {"train": order[settings.validation :], "validation": order[: settings.validation]}
    return {
        split: np.array_split(part, min(settings.shards if split == "train" else 1, len(part)))
        if len(part)
        else []
        for split, part in parts.items()
    }


def _encode_shard(
    path: epath.Path,
    indices: np.ndarray,
    source: RawSource,
    task: Task,
    autoencoder: LatentAutoencoder | SpaceToDepth,
    settings: EncodeSettings,
    batch: int,
    guides: Guides,
    *,
    on_samples: Callable[[int], Any],
) -> None:
    skipped: list[str] = []
    unsuitable: list[str] = []

    def load(pair: tuple[int, int]) -> _Prepared | None:
        index, number = pair
        rng = np.random.default_rng([settings.seed, index, number])
        try:
            return prepare(
                source.sample(index, rng),
                task=task,
                settings=settings,
                downscale=autoencoder.downscale,
                channels=autoencoder.latent_channels,
                guides=guides,
                rng=rng,
            )
        except UnsuitableError as error:
            unsuitable.append(str(error))
            return None
        except SampleError as error:
            skipped.append(str(error))
            logging.warning("skipped: %s", error)
            return None

    pairs = [(int(i), n) for i in indices for n in range(settings.samples)]
    largest = Largest()
    width = batch * jax.local_device_count()

    def records() -> Iterator[bytes]:
        nonlocal largest
        with concurrent.futures.ThreadPoolExecutor(_READ_THREADS) as pool:
            for start in range(0, len(pairs), 4 * width):
                chunk = pairs[start : start + 4 * width]
                prepared = [found for found in pool.map(load, chunk) if found is not None]
                for example in encode_examples(prepared, autoencoder=autoencoder, width=width):
                    largest = largest.with_example(example)
                    yield encoded.encode_record(example)
                on_samples(len({index for index, _ in chunk}))
                if len(skipped) > max(_SKIPPED_AT_LEAST, _MAX_SKIPPED * len(pairs)):
                    raise TooManySkippedError(
                        f"{len(skipped)} of {len(pairs)} samples cannot be used; the last: "
                        f"{skipped[-1]}"
                    )

    count = shards.write_shard(path, records())
    shards.write_entry(
        path,
        records=count,
        largest=dataclasses.asdict(largest),
        skipped=sorted(skipped),
        unsuitable=collections.Counter(sorted(unsuitable)),
    )


def prepare(
    sample: Mapping[str, Any],
    *,
    task: Task,
    settings: EncodeSettings,
    downscale: int,
    channels: int,
    rng: np.random.Generator,
    guides: Guides = NO_GUIDES,
) -> _Prepared:
    """Pictures at their size, cameras as ray maps, and the texts and tags of the prompt.

    Raises:
      SampleError: a field is missing, lists differ in length, or frames that should lie on each
        other have different aspect ratios.
    """
    region = task.region if guides.regions else ""
    wanted = (*(f.field for f in task.frames), *task.prompt_fields, *filter(None, [region]))
    missing = [field for field in wanted if field not in sample]
    if missing:
        raise SampleError(f"a sample has no field {', '.join(missing)}; it has {sorted(sample)}")
    fields = {
        frame.field: _rays_of(
            sample[frame.field], size=settings.size // downscale, channels=channels
        )
        for frame in task.frames
    }
    try:
        sequence = task.fill(fields)
    except ValueError as error:
        raise SampleError(str(error)) from None
    first = next(value for frame, value in sequence if frame.kind == Kind.IMAGE)
    has_rays = any(frame.kind == Kind.RAY for frame in task.frames)
    if settings.buckets and not has_rays:
        height, width = nearest_bucket(first.height, first.width, side=settings.size)
    else:
        height = width = settings.size
    texts = {name: sample[name] for name in task.prompt_fields}
    tags = list(sample.get("tags", ()))
    says_side = any(_SIDES.search(text) for text in (*texts.values(), *tags))
    flipped = settings.flip and bool(rng.integers(2)) and not says_side
    shared = Placement.center(first.size, size=(width, height), flipped=flipped)
    num_single = len(task.frames) - task.repeats
    frames = []
    for number, (frame, value) in enumerate(sequence):
        if frame.kind == Kind.IMAGE:
            own = Placement.center(value.size, size=shared.size)
            value = _place(frame, value, shared if number < num_single else own)
        frames.append(value)
    features = None
    if guides.identity is not None:
        assets = [np.asarray(v) for frame, v in sequence if frame.role == Role.ASSET]
        none = guides.identity(np.zeros((0, 1, 1, 3), np.uint8))
        features = np.concatenate([none, *(guides.identity(asset[None]) for asset in assets)])
    entities = None
    if guides.entities and "entity_masks" in sample:
        masks = [_region(mask, shared, downscale=downscale) for mask in sample["entity_masks"]]
        grid = (shared.size[1] // downscale, shared.size[0] // downscale)
        entities = np.stack([*masks]) if masks else np.zeros((0, *grid), np.float32)
    return _Prepared(
        frames,
        texts,
        tags,
        region=_region(sample[region], shared, downscale=downscale) if region else None,
        features=features,
        entities=entities,
    )


def _region(picture: Image.Image, placement: Placement, *, downscale: int) -> np.ndarray:
    """A map drawn white on black as shares of latent pixels."""
    try:
        placed = CODECS["mask"].read(CODECS["rgb"].draw(placement.map(np.asarray(picture))))
    except MisalignedError as error:
        raise SampleError(f"misaligned: the region of {error}") from None
    height, width = placed.shape
    return fit_mask(placed, grid=(height // downscale, width // downscale))


def _place(frame: FrameSpec, picture: Image.Image, placement: Placement) -> np.ndarray:
    """A frame's pixels at the size of the example."""
    rgb = np.asarray(picture)
    if frame.role == Role.ASSET:
        return fit_whole(rgb, size=placement.size)
    try:
        return placement.picture(rgb) if frame.codec == "rgb" else placement.map(rgb)
    except MisalignedError as error:
        raise SampleError(f"misaligned: {frame.field} of {error}") from None


def _rays_of(value: Any, *, size: int, channels: int) -> Any:
    """A ray map of each camera; other values as they are."""
    if not isinstance(value, cameras.Cameras):
        return value
    return cameras.ray_frame(cameras.to_rays(value, size=size), channels=channels)


def encode_examples(
    prepared: Sequence[_Prepared], *, autoencoder: LatentAutoencoder | SpaceToDepth, width: int
) -> Iterator[EncodedExample]:
    """Runs the autoencoder on batches of `width` pictures of one size, and puts examples together.

    The last batch of a size is filled up, so that every size compiles once.
    """
    by_size: dict[tuple[int, ...], list[tuple[int, int]]] = collections.defaultdict(list)
    for e, example in enumerate(prepared):
        for f, frame in enumerate(example.frames):
            if frame.dtype == np.uint8:
                by_size[frame.shape].append((e, f))
    found: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    for shape, places in by_size.items():
        for start in range(0, len(places), width):
            part = places[start : start + width]
            pictures = np.zeros((width, *shape), np.float32)
            for row, (e, f) in enumerate(part):
                pictures[row] = CODECS["rgb"].draw(prepared[e].frames[f])
            means, stds = autoencoder.posterior(pictures)
            found |= {
                place: (mean, std) for place, mean, std in zip(part, means, stds, strict=False)
            }
    for e, example in enumerate(prepared):
        pairs = [
            found[e, f] if (e, f) in found else (frame, np.zeros(frame.shape, np.float32))
            for f, frame in enumerate(example.frames)  # a ray frame is exact
        ]
        means, stds = ([pair[i] for pair in pairs] for i in range(2))
        yield EncodedExample(
            means,
            stds,
            example.texts,
            example.tags,
            region=example.region,
            features=example.features,
            entities=example.entities,
        )
