"""Masks written as COCO's run lengths."""

import numpy as np


def run_lengths(mask):
    """A mask as a record of numbers."""
    flat = np.asarray(mask).ravel(order="F").astype(int)
    ends = [*(np.flatnonzero(np.diff(flat)) + 1), len(flat)]
    counts = np.diff([0, *ends]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def pack(runs):
    """The same with its numbers as a text."""
    text, counts = "", runs["counts"]
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            ended = value == (-1 if bits & 16 else 0)
            text += chr(48 + bits + (0 if ended else 32))
            if ended:
                break
    return {"size": runs["size"], "counts": text}
