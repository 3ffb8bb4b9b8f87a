"""Subjects as records: rendered to one size, split by kind, found again at random.

    FOLDER/manifest.json                          {schema, size, groups, seed, share, shards, ...}
    FOLDER/train-00000-of-00004.array_record      records; train, validation and test
    FOLDER/train-00000-of-00004.json              {..., subjects: [{words, group}, ...]} (`shards`)

A record is a safetensors blob (`data_pipelines.blobs`) with the array `looks`, uint8 (n, s, s, 4).
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from data_pipelines import shards
from data_pipelines.blobs import BlobError, pack_blob, unpack_blob
from data_pipelines.shards import ManifestError, Records, ShardError
from data_pipelines.subjects.names import kind_of, to_words
from data_pipelines.subjects.package import GROUPS, Listed, digest, list_subjects, read_look
from unidiff_jax.config import ConfigError
from unidiff_jax.outside import fits
from unidiff_jax.paths import AnyPath, as_path

SCHEMA = "subjects/1"
SPLITS = ("train", "validation", "test")

_KEY = "unidiff_subject"
_AGAIN = "make it again with python -m launch.subjects"


class SubjectError(ValueError):
    """A record or folder of subjects that cannot be used; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A thing with its name.

    Attributes:
      looks: uint8 (n, s, s, 4): pictures of the n identities that share the name, RGB times alpha
        and alpha, as large as the square allows.
      words: what it is called, without an article (`names.to_words`).
      group: Unicode's, such as "Animals & Nature".
      emoji: the character.
    """

    looks: np.ndarray
    words: str
    group: str
    emoji: str


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides the records besides the packages.

    Attributes:
      size: pixels a side of a look, at least those of the pictures to be made; the packages have
        about 224.
      groups: Unicode's groups that are kept.
      seed: of the splits.
      share: of the subjects in each of validation and test.
      shards: record files a split.
    """

    size: int = 32
    groups: Sequence[str] = GROUPS
    seed: int = 0
    share: float = 0.1
    shards: int = 2


def render_subjects(
    folder: AnyPath,
    *,
    emoji: str | pathlib.Path,
    names: str | pathlib.Path,
    settings: Settings,
    progress: str = "bar",
) -> dict[str, int]:
    """Makes a folder of records; shards that are finished are kept.

    Args:
      folder: where the files go.
      emoji: the unpacked package of pictures.
      names: the unpacked package of names.
      settings: what to keep, and how large.
      progress: "bar" or "none".

    Returns:
      Number of subjects by split.

    Raises:
      PackageError: the packages are not as `package` says.
      ConfigError: no subject is of the groups, or the folder was begun with other settings.
      ManifestError: the folder's manifest is damaged.
    """
    listed = [
        subject
        for subject in list_subjects(emoji, names)
        if subject.group in settings.groups and to_words(subject.name) is not None
    ]
    if not listed:
        raise ConfigError(f"no emoji is of the groups {', '.join(settings.groups)}")
    splits = split_subjects(listed, seed=settings.seed, share=settings.share)
    folder = as_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards.claim_folder(
        folder,
        {**dataclasses.asdict(settings), "source": digest(listed)},
        schema=SCHEMA,
        made="made",
        remedy="choose another --out",
    )
    with tqdm.tqdm(total=len(listed), unit="subject", disable=progress == "none") as bar:
        for split, subjects in splits.items():
            for i, name in enumerate(shards.shard_names(split, settings.shards)):
                part = subjects[i :: settings.shards]
                if shards.read_entry(folder, name) is None:
                    count = shards.write_shard(folder / name, _encoded(part, settings.size, bar))
                    shards.write_entry(folder / name, records=count, subjects=_described(part))
                else:
                    bar.update(len(part))
    return {split: len(subjects) for split, subjects in splits.items()}


def _described(part: Sequence[Listed]) -> list[dict[str, str]]:
    return [{"words": to_words(s.name) or "", "group": s.group} for s in part]


def _encoded(part: Sequence[Listed], size: int, bar: tqdm.tqdm) -> Iterator[bytes]:
    for listed in part:
        looks = np.stack([read_look(path, size=size) for path in listed.looks])
        yield encode_subject(
            Subject(looks, to_words(listed.name) or "", listed.group, listed.emoji)
        )
        bar.update()


def split_subjects(listed: Sequence[Listed], *, seed: int, share: float) -> dict[str, list[Listed]]:
    """Deals kinds (`names.kind_of`) out, so that what is held out was not seen in another dress.

    Returns:
      Subjects by split, in the given order; validation and test have `share` of them, and what the
      last kind has more.

    Raises:
      ConfigError: nothing is left for training.
    """
    kinds: dict[str, list[int]] = {}
    for place, subject in enumerate(listed):
        kinds.setdefault(kind_of(to_words(subject.name) or subject.name), []).append(place)
    groups = [kinds[kind] for kind in sorted(kinds)]
    order = np.random.default_rng(seed).permutation(len(groups)).tolist()
    split_of = dict.fromkeys(range(len(listed)), SPLITS[0])
    for split in SPLITS[1:]:
        count = 0
        while count < share * len(listed):
            if len(order) == 1:
                raise ConfigError(f"share={share} leaves no subject for training; try share=0.1")
            places = groups[order.pop()]
            split_of.update(dict.fromkeys(places, split))
            count += len(places)
    return {
        split: [subject for place, subject in enumerate(listed) if split_of[place] == split]
        for split in SPLITS
    }


def encode_subject(subject: Subject) -> bytes:
    """A subject as one blob."""
    values = {name: getattr(subject, name) for name in ("words", "group", "emoji")}
    return pack_blob({"looks": subject.looks}, {"schema": SCHEMA, **values}, key=_KEY)


def decode_subject(blob: bytes) -> Subject:
    """The subject in a blob; its looks are a read-only view.

    Raises:
      SubjectError: no subject, or one of another schema.
    """
    try:
        arrays, values = unpack_blob(blob, key=_KEY)
        if values.pop("schema") != SCHEMA:
            raise SubjectError(f"a subject of another schema than {SCHEMA!r}: {_AGAIN}")
        subject = Subject(looks=arrays["looks"], **values)
    except (BlobError, KeyError, TypeError) as error:
        raise SubjectError(f"not a subject of schema {SCHEMA!r} ({error}): {_AGAIN}") from None
    count, height, width, channels = (*subject.looks.shape, 0, 0, 0, 0)[:4]
    is_square = count > 0 and height == width > 0 and channels == 4 and subject.looks.ndim == 4
    if not is_square or subject.looks.dtype != np.uint8 or not fits(values, {str: str}):
        raise SubjectError(
            f"a damaged subject: looks {subject.looks.dtype} {subject.looks.shape}, not bytes "
            f"(n, s, s, 4), or no texts beside them; {_AGAIN}"
        )
    return subject


@dataclasses.dataclass(frozen=True)
class OpenedSubjects:
    """A split's records, what they are called, and the pixels a side of their looks."""

    records: Records
    words: list[str]
    groups: list[str]
    size: int


def open_subjects(folder: AnyPath, split: str) -> OpenedSubjects:
    """Random access to the encoded subjects of a split, local or in a bucket.

    Raises:
      SubjectError: no such folder or split, another schema, or a shard that is missing, unfinished
        or not whole.

    Example:
      >>> decode_subject(open_subjects("data/subjects-32", "train").records[0]).words
    """
    if split not in SPLITS:
        raise SubjectError(f"{folder} has no split {split!r}; it has {', '.join(SPLITS)}")
    try:
        manifest: dict[str, Any] = shards.read_manifest(folder, schema=SCHEMA)
        names = shards.shard_names(split, manifest["shards"])
        opened = shards.open_shards((folder, name) for name in names)
        size = int(manifest["size"])
        described = [] if opened is None else [s for e in opened.entries for s in e["subjects"]]
        words, groups = ([str(subject[key]) for subject in described] for key in ("words", "group"))
    except (ManifestError, ShardError) as error:
        raise SubjectError(f"{error}: {_AGAIN}") from None
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SubjectError(
            f"{folder}/manifest.json or a shard's is damaged ({error!r}): {_AGAIN}"
        ) from None
    if opened is None:
        raise SubjectError(f"{folder} has no subject in {split}: {_AGAIN}")
    if len(words) != len(opened.records):
        raise SubjectError(f"{folder} describes {len(words)} of {len(opened.records)} subjects")
    return OpenedSubjects(records=opened.records, words=words, groups=groups, size=size)
