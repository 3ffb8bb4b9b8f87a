"""The manifest of a rendered MiniWorld folder: its settings and what every file must be.

    manifest.json = {schema, generator, settings, files: {name: {bytes, records, sha256}}}

It is rewritten after each finished shard, so it lists what can be trusted: a file that it lists
is whole, anything else in the folder is rendered again. It holds no time or machine name, hence
the same settings give the same bytes.
"""

import dataclasses
import hashlib
import shlex
from typing import Any

from data_pipelines.miniworld.scene import SPLITS
from data_pipelines.shards import MAX_SHARDS
from unidiff_jax.outside import fits, read_object
from unidiff_jax.paths import AnyPath, as_path, is_remote, write_json

SCHEMA = "miniworld/1"
GENERATOR = 1  # raise it whenever the same settings would give other bytes
NAME = "manifest.json"

MAX_RECORDS = 2**30
"""Of a split; ids are below it."""

_WHOLE = ("size", "seed", "samples", "shards", "edits", "clip_frames")


class RecordsError(ValueError):
    """A data folder or record that cannot be used; the message says how to render it again."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that decides the bytes of a rendered folder.

    Attributes:
      size: pixels a side of every image.
      counts: records by split.
      seed: 0 or more.
      samples: rays a side of each pixel.
      shards: files a split, fewer if it has fewer records.
      edits: edit pairs a record.
      clip_frames: frames of a record's clip besides the base image; 0 for no clip.
    """

    size: int
    counts: dict[str, int]
    seed: int = 0
    samples: int = 2
    shards: int = 4
    edits: int = 3
    clip_frames: int = 2

    def __post_init__(self):
        if not fits(vars(self), {name: int for name in _WHOLE} | {"counts": {str: int}}):
            raise ValueError(f"counts and {', '.join(_WHOLE)} are not all whole numbers")
        unknown = sorted(set(self.counts) - set(SPLITS))
        if unknown:
            raise ValueError(f"counts has unknown splits {unknown}; use {', '.join(SPLITS)}")
        for name, smallest in (("size", 8), ("seed", 0), ("samples", 1), ("shards", 1)):
            if getattr(self, name) < smallest:
                raise ValueError(f"{name}={getattr(self, name)}; use {smallest} or more")
        if min(self.edits, self.clip_frames, *self.counts.values()) < 0:
            raise ValueError("edits, clip_frames and counts must be 0 or more")
        for name, count, largest in (
            ("shards", self.shards, MAX_SHARDS),
            ("counts", max(self.counts.values(), default=0), MAX_RECORDS),
        ):
            if count > largest:
                raise ValueError(f"{name} has {count}; use {largest} or fewer")

    def shards_of(self, split: str) -> dict[str, range]:
        """File name -> the record indices of the split that it holds."""
        count = self.counts.get(split, 0)
        total = min(self.shards, count)
        edges = [count * i // total for i in range(total + 1)] if total else [0]
        return {
            f"{split}-{i:05d}-of-{total:05d}.array_record": range(edges[i], edges[i + 1])
            for i in range(total)
        }

    def command(self, folder: AnyPath) -> str:
        """The command line that renders this data."""
        counts = " ".join(f"--{split} {self.counts.get(split, 0)}" for split in SPLITS)
        return render_command(
            folder,
            f"--size {self.size} {counts} --seed {self.seed} --samples {self.samples} "
            f"--shards {self.shards} --edits {self.edits} --clip_frames {self.clip_frames}",
        )


@dataclasses.dataclass
class Manifest:
    """Settings and the finished files: name -> {bytes, records, sha256}."""

    settings: Settings
    files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    schema: str = SCHEMA
    generator: int = GENERATOR


def render_command(folder: AnyPath, settings: str = "") -> str:
    """The command line that renders into a folder; for a bucket, locally, and then copies."""
    place = as_path(folder)
    local = f"data/{place.name}" if is_remote(folder) else str(folder)
    render = f"python -m launch.miniworld --out {shlex.quote(local)} {settings}".rstrip()
    if not is_remote(folder):
        return render
    return f"{render} && gcloud storage cp -r {shlex.quote(local)} {shlex.quote(str(place.parent))}"


def sha256(path: AnyPath) -> str:
    """The file's SHA-256 in hexadecimal."""
    with as_path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]


def file_entry(path: AnyPath, *, num_records: int) -> dict[str, Any]:
    """What the manifest says of a finished file."""
    return {"bytes": as_path(path).stat().length, "records": num_records, "sha256": sha256(path)}


def write(folder: AnyPath, manifest: Manifest) -> None:
    """Writes `manifest.json` in one step: a reader sees the old one or the new one."""
    write_json(as_path(folder) / NAME, dataclasses.asdict(manifest))


def read(folder: AnyPath) -> Manifest:
    """Reads a folder's manifest.

    Raises:
      RecordsError: there is none, it is not a manifest, or it is one of another schema.
    """
    path = as_path(folder) / NAME
    again = render_command(folder)
    try:
        tree = read_object(path)
        check_schema(tree["schema"], f"remove {folder} and render the data again with: {again}")
        manifest = Manifest(**{**tree, "settings": Settings(**tree["settings"])})
        if not fits(manifest.files, {str: {"bytes": int, "records": int}}):
            raise ValueError("a file without its bytes and records")
        return manifest
    except RecordsError:
        raise
    except FileNotFoundError:
        raise RecordsError(f"{path} is missing; render the data with: {again}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise RecordsError(
            f"{path} is damaged ({error}); remove the folder and render it again with: {again}"
        ) from None


def check_schema(schema: str, remedy: str) -> None:
    """Raises RecordsError, ending in `remedy`, unless the schema is the one this code reads."""
    if schema != SCHEMA:
        raise RecordsError(f"the data has schema {schema!r} but {SCHEMA!r} is needed; {remedy}")
