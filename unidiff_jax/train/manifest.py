"""What a finished checkpoint consists of: sizes and digests of its files, so that damage is seen.

A manifest is written after a save is finished, beside training, and compared before a restore. A
file's digest is CRC-32: it finds what disks, copies and crashes do, at some gigabytes a second, and
is no protection against malice. A bucket's files are not read again for it: the store keeps a
CRC-32C of each object and answers for its bytes, so the manifest holds that one.

Each process of a job writes the manifest of its share of the files, `manifest-I-of-N.json`, and
checks a share of all. The manifest is there when all N parts are. A checkpoint whose manifest is
not there was finished just before a crash, or saved by a version without manifests.
"""

import concurrent.futures
import json
import os
import re
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import jax

from unidiff_jax.paths import AnyPath, as_path, is_remote, write_json
from unidiff_jax.processes import gather_json, own_pieces

_NAME = re.compile(r"manifest-(\d+)-of-(\d+)\.json")

_CHUNK = 2**24
_WRITERS, _READERS = 2, 8
"""Threads: few beside a running step, more when all wait."""


class Entry(NamedTuple):
    """A file's size in bytes and its digest."""

    size: int
    digest: str


def write_manifest(folder: AnyPath) -> None:
    """Writes this process's part; the checkpoint in `folder` is finished, on all processes."""
    names = sorted(_sizes(folder))
    found = _entries(folder, own_pieces(names), threads=_WRITERS)
    index, count = jax.process_index(), jax.process_count()
    write_json(
        as_path(folder) / f"manifest-{index}-of-{count}.json",
        {"num_files": len(names), "files": found},
    )


def find_faults(folder: AnyPath, *, items: Iterable[str]) -> list[str] | None:
    """Compares a checkpoint with its manifest; all processes call it, and get the same answer.

    Args:
      folder: of the checkpoint.
      items: its subfolders that count; files beside them always do.

    Returns:
      What differs, a sentence each; None where there is no whole manifest.
    """
    items = set(items)
    known, faults = _read(folder), []
    if known is not None:
        tops = {name.partition("/")[0] for name in known if "/" in name}
        faults = [f"{item} is not in it" for item in sorted(items - tops)]
        wanted = [n for n in sorted(known) if "/" not in n or n.partition("/")[0] in items]
        faults += _differences(folder, {n: known[n] for n in own_pieces(wanted)})
    answers = gather_json({str(jax.process_index()): None if known is None else faults})
    if any(answer is None for answer in answers.values()):
        return None
    return [fault for answer in answers.values() for fault in answer]


def _read(folder: AnyPath) -> dict[str, Entry] | None:
    """The parts of a manifest together; None where one is missing or cannot be read."""
    parts, counts = {}, set()
    for path in as_path(folder).iterdir():
        if found := _NAME.fullmatch(path.name):
            try:
                parts[int(found[1])] = json.loads(path.read_text())
            except ValueError:  # torn
                return None
            counts.add(int(found[2]))
    if len(counts) != 1 or parts.keys() != set(range(*counts)):
        return None
    files = {
        name: Entry(*entry) for part in parts.values() for name, entry in part["files"].items()
    }
    whole = {part["num_files"] for part in parts.values()} == {len(files)}
    return files if whole else None


def _differences(folder: AnyPath, wanted: dict[str, Entry]) -> list[str]:
    sizes = _sizes(folder)
    faults = [f"{name} is missing" for name in wanted if name not in sizes]
    there = {name: entry for name, entry in wanted.items() if name in sizes}
    faults += [
        f"{name} has {sizes[name]} bytes instead of {entry.size}"
        for name, entry in there.items()
        if sizes[name] != entry.size
    ]
    same = [name for name, entry in there.items() if sizes[name] == entry.size]
    found = _entries(folder, same, threads=_READERS)
    faults += [f"{name} holds other bytes" for name in same if found[name] != wanted[name]]
    return faults


def _sizes(folder: AnyPath) -> dict[str, int]:
    """Sizes of a checkpoint's files by their path in it."""
    if is_remote(folder):
        return {name: int(info["size"]) for name, info in _objects(folder).items()}
    root = os.fspath(folder)
    paths = (os.path.join(top, name) for top, _, names in os.walk(root) for name in names)
    sizes = {os.path.relpath(path, root): os.path.getsize(path) for path in paths}
    return {name: size for name, size in sizes.items() if not _NAME.match(name)}


def _entries(folder: AnyPath, names: Iterable[str], *, threads: int) -> dict[str, Entry]:
    names = list(names)
    if is_remote(folder):
        objects = _objects(folder)
        return {n: Entry(int(objects[n]["size"]), f"crc32c:{objects[n]['crc32c']}") for n in names}
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        found = pool.map(_digest, [os.path.join(folder, name) for name in names])
        return dict(zip(names, found, strict=True))


def _digest(path: str) -> Entry:
    size, crc, chunk = 0, 0, bytearray(_CHUNK)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(chunk):
            size, crc = size + count, zlib.crc32(memoryview(chunk)[:count], crc)
    return Entry(size, f"crc32:{crc:08x}")


def _objects(folder: AnyPath) -> dict[str, dict[str, str]]:
    """What the store says of a folder's objects, asked anew."""
    import gcsfs  # of an extra; `as_path` has refused buckets without it

    root = os.fspath(folder).removeprefix("gs://").rstrip("/") + "/"
    found = gcsfs.GCSFileSystem(use_listings_cache=False).find(root, detail=True)
    names = {name.removeprefix(root): info for name, info in found.items()}
    # a name that ends in a stroke stands for a folder
    return {n: info for n, info in names.items() if n and n[-1] != "/" and not _NAME.match(n)}
