"""Small folders of curated pairs for tests."""

import json

import numpy as np

from data_pipelines import shards
from data_pipelines.curate.pairs import NAME, SCHEMA, Pair, encode_pair

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


def write_pairs(folder, parts, *, schema=SCHEMA):
    """A finished folder: for each shard a list of pairs, or of blobs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"schema": schema, "shards": len(parts)}))
    for name, pairs in zip(shards.shard_names(NAME, len(parts)), parts, strict=True):
        blobs = [p if isinstance(p, bytes) else encode_pair(p, lossless=True) for p in pairs]
        shards.write_shard(folder / name, blobs)
        shards.write_entry(folder / name, records=len(blobs))
    return folder
