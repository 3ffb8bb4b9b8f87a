"""MiniWorld folders with faults in them."""

import dataclasses
import shutil

import numpy as np

from data_pipelines.miniworld import manifest, records
from data_pipelines.shards import write_shard

JUNK = b"\xff" * 400


def rewrite(folder, change, *, shard=0, split="train"):
    """Writes a file of records anew; `change(number, blob)` gives each record's bytes."""
    current = manifest.read(folder)
    name = list(current.settings.shards_of(split))[shard]
    source = records.open_files([records.RecordFile(str(folder / name), count(folder, name))])
    blobs = [change(number, source[number]) for number in range(len(source))]
    (folder / name).unlink()
    write_shard(folder / name, blobs)
    current.files[name] = manifest.file_entry(folder / name, num_records=len(blobs))
    manifest.write(folder, current)
    return folder / name


def count(folder, name):
    return manifest.read(folder).files[name]["records"]


def without_depth(blob):
    """The record with one NaN in the depth of its base picture."""
    record = records.decode(blob)
    depth = record.depth.copy()
    depth[0, 3, 5] = np.nan
    return records.encode(dataclasses.replace(record, depth=depth))


def flip(path):
    """Flips bits a third into a file, whose size stays: a disk's silent fault. It ends in padding,
    so that these are the bits of a record in the middle.
    """
    blob = bytearray(path.read_bytes())
    place = len(blob) * 3 // 10
    blob[place : place + 8] = bytes(byte ^ 0xFF for byte in blob[place : place + 8])
    path.write_bytes(blob)


def damaged(miniworld, folder):
    """A copy with faults in three of the twenty records of the first training file.

    Record 2 is junk, record 5 has no depth somewhere, and one after them has flipped bits.
    """
    shutil.copytree(miniworld, folder)
    flip(rewrite(folder, lambda n, blob: {2: JUNK, 5: without_depth(blob)}.get(n, blob)))
    return folder
