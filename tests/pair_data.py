"""Small folders of curated pairs for tests."""

import hashlib
import json

import numpy as np
from array_record.python import array_record_module

from data_pipelines.curate.pairs import SCHEMA, Pair, encode_pair, shard_names

SIZE = (48, 64)
"""Rows and columns."""


def boxes_of_ids(places, *, size=SIZE):
    """A map of ids from {id: (left, top, right, bottom)}; later ones lie on earlier ones."""
    ids = np.zeros(size, np.uint8)
    for number, (left, top, right, bottom) in places.items():
        ids[top:bottom, left:right] = number
    return ids


FIRST = boxes_of_ids({1: (4, 6, 24, 20), 2: (34, 22, 60, 44), 3: (4, 30, 14, 44)})
LAST = boxes_of_ids({1: (10, 8, 30, 22), 2: (30, 20, 56, 42), 3: (6, 28, 16, 42)})
NAMES = {1: "a red ball", 2: "the box", 3: "Dog"}


def make_pair(*, first=FIRST, last=LAST, seed=0, **changes):
    """Two frames of noise with three things that move."""
    rng = np.random.default_rng(seed)
    values = {
        "frames": rng.integers(0, 256, (2, *first.shape, 3), np.uint8),
        "masks": np.stack([first, last]),
        "names": NAMES,
        "caption": "a red ball rolls to the box",
        "clip": f"clip-{seed}",
        "times": (0.5, 2.0),
        "tags": ["realistic style", "dynamic scenario"],
        "flow": 0.1,
        "difference": 0.2,
        "depth": rng.uniform(1, 9, (2, *first.shape)).astype(np.float16),
    }
    return Pair(**(values | changes))


def write_pairs(folder, shards, *, schema=SCHEMA):
    """A finished folder: for each shard a list of pairs, or of blobs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"schema": schema, "shards": len(shards)}))
    for name, pairs in zip(shard_names(len(shards)), shards, strict=True):
        path, entry = folder / name, {"records": len(pairs), "bytes": 0, "sha256": ""}
        if pairs:
            writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
            for pair in pairs:
                writer.write(pair if isinstance(pair, bytes) else encode_pair(pair, lossless=True))
            writer.close()
            entry["bytes"] = path.stat().st_size
            entry["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        path.with_suffix(".json").write_text(json.dumps(entry))
    return folder
