"""Masks as COCO's run lengths, which YouTube-VIS has.

A mask is written column by column as lengths of runs, of zeros first: [1, 3, 2] is 0 1 1 1 0 0. The
lengths are a list, or a text of numbers in groups of five bits, the lowest first: each character
less 48 is a group, with bit 5 set where the number goes on; bit 4 of its last group is its sign.
From the fourth number on the text has the difference to the number two places before.

COCO's own decoder returns memory that was never written where the runs of a text end early; this
one refuses them.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from unidiff_jax.outside import MAX_PIXELS

_MAX_BITS = 60  # of a number in a text: one that goes on for ever would eat all time


class RunLengthError(ValueError):
    """Not the run lengths of a mask."""


def decode_mask(runs: Mapping[str, Any]) -> np.ndarray:
    """The mask, bool (h, w).

    Args:
      runs: {"size": [h, w], "counts": list or str}.

    Raises:
      RunLengthError: not such a record, or its runs do not fill the size.
    """
    try:
        height, width = map(int, runs["size"])
        counts = runs["counts"]
        if isinstance(counts, str):
            counts = unpack_counts(counts)
        lengths = np.array(counts, np.int64)
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise RunLengthError(f"no record of run lengths: {error}") from None
    total = height * width
    if max(height, width, total) > MAX_PIXELS:
        raise RunLengthError(f"a mask of {height} x {width} pixels; at most {MAX_PIXELS} in all")
    fit = lengths.ndim == 1 and min(height, width) > 0
    fit = fit and ((lengths >= 0) & (lengths <= total)).all()  # or the sum could begin anew
    if not fit or lengths.sum() != total:
        raise RunLengthError(f"the runs do not fill {height} x {width} pixels")
    values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return values.reshape(width, height).T


def unpack_counts(text: str) -> list[int]:
    """Lengths of runs from a text.

    Raises:
      RunLengthError: another character, or a number that does not end.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise RunLengthError(f"{character!r} does not occur in run lengths")
        value |= (group & 31) << shift
        shift += 5
        if shift > _MAX_BITS:
            raise RunLengthError(f"a number of more than {_MAX_BITS} bits")
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise RunLengthError("the last number does not end")
    return counts
