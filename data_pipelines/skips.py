"""Records that cannot be used: skipped, counted, told by name; too many of them end the stream.

A record that is damaged, lies in a lost file or holds values that are no numbers becomes a
`Skipped` in the place of its example. `count_skips` drops it and keeps the counts in the stream's
state. So the examples that are left are a function of seed, position and records: a run that goes
on from a checkpoint skips what the run in one go skips, and stops at the same place.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import grain
from absl import logging

from unidiff_jax.config import ConfigError

AT_LEAST = 20
"""A stream with fewer skipped records goes on, however short it is."""

WINDOW = 10_000
"""The share of skipped records is that of about so many last ones."""

UNUSABLE = (ValueError, LookupError, OSError, RuntimeError)
"""What a damaged record raises. A ConfigError is a ValueError, and no fault of data."""

PAUSE = 0.2
"""Seconds until a failed read is tried again, once: a disk or a bucket may fail for a moment."""

Record, Value = TypeVar("Record"), TypeVar("Value")


class TooManySkippedError(ValueError):
    """So many samples cannot be used that the data or their settings must be wrong."""


class Skipped(NamedTuple):
    """In the place of an example: the record's name, and why it cannot be used."""

    name: str
    reason: str


def usable_or_skipped(
    read: Callable[[], Record], make: Callable[[Record], Value], *, name: Callable[[], str]
) -> Value | Skipped:
    """What `make` gives for a record, or what says that the record cannot be used.

    Args:
      read: the record.
      make: an example of it.
      name: the record's name.

    Raises:
      ConfigError: as `make` does; no record is to blame.
    """
    try:
        with reading(name):
            return make(_read(read))
    except ConfigError:
        raise
    except UNUSABLE as error:
        return Skipped(name(), f"{type(error).__name__}: {error}")


def usable_records(
    source: Any, make: Callable[[int, Any], Value], *, most: int | None = None
) -> Iterator[Value]:
    """What `make` gives for a source's index and record, of the first `most` records that can be
    used or less.
    """
    for index in range(min(len(source), most or len(source))):
        found = usable_or_skipped(
            lambda index=index: source[index],
            lambda record, index=index: make(index, record),
            name=lambda index=index: source.name(index),
        )
        if not isinstance(found, Skipped):
            yield found


def _read(read: Callable[[], Record]) -> Record:
    try:
        return read()
    except (OSError, RuntimeError):
        time.sleep(PAUSE)
        return read()


def count_skips(elements: grain.IterDataset, *, most: float) -> grain.IterDataset:
    """The examples of a stream; its state holds the counts.

    What is `Skipped`, and None for a record that has nothing for its task, is dropped.

    Iterating raises TooManySkippedError where more than the share `most` of the last `WINDOW`
    records are skipped, and at least `AT_LEAST` of them.
    """
    return _CountSkips(elements, most)


def skipped_records(state: Mapping[str, Any]) -> int:
    """Records skipped up to a state of a stream that `count_skips` is part of."""
    while "skipped" not in state:
        state = state["parent"]
    return state["skipped"]


class _CountSkips(grain.IterDataset):
    def __init__(self, parent: grain.IterDataset, most: float):
        super().__init__(parent)
        self._most = most

    def __iter__(self) -> grain.DatasetIterator:
        return _Iterator(iter(self._parent), self._most)


class _Iterator(grain.DatasetIterator):
    def __init__(self, parent: grain.DatasetIterator, most: float):
        super().__init__(parent)
        self._most = most
        self._skipped = 0
        self._recent, self._recent_skipped = 0, 0
        self._told: set[str] = set()

    def __next__(self) -> Any:
        while True:
            element = next(self._parent)
            self._recent += 1
            if self._recent > WINDOW:  # the older half counts half
                self._recent, self._recent_skipped = WINDOW // 2, self._recent_skipped // 2
            if element is None:
                continue
            if not isinstance(element, Skipped):
                return element
            self._skipped += 1
            self._recent_skipped += 1
            if element.name not in self._told:
                self._told.add(element.name)
                logging.warning("skipped %s: %s", element.name, element.reason)
            if self._recent_skipped > max(AT_LEAST, self._most * self._recent):
                raise TooManySkippedError(
                    f"{self._recent_skipped} of the last {self._recent} records cannot be used, "
                    f"more than data.max_skipped={self._most:g} of them; the last is "
                    f"{element.name}: {element.reason}"
                )

    def get_state(self) -> dict[str, Any]:
        return {
            "parent": self._parent.get_state(),
            "skipped": self._skipped,
            "recent": [self._recent, self._recent_skipped],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        if "skipped" not in state:  # of a run that began before anything was counted
            state = {"parent": state, "skipped": 0, "recent": [0, 0]}
        self._parent.set_state(state["parent"])
        self._skipped = state["skipped"]
        self._recent, self._recent_skipped = state["recent"]


# -------------------------------------------------------------------------- what is being read

_reads: dict[int, tuple[Callable[[], str], float]] = {}


@contextlib.contextmanager
def reading(name: Callable[[], str]) -> Iterator[None]:
    """Notes what this thread reads while the body runs, for `longest_read`."""
    thread = threading.get_ident()
    _reads[thread] = (name, time.monotonic())
    try:
        yield
    finally:
        del _reads[thread]


def longest_read() -> str | None:
    """What this process has been reading for longest, and since when; None for nothing."""
    found = sorted(_reads.copy().values(), key=lambda read: read[1])
    if not found:
        return None
    name, since = found[0]
    return f"{name()} (for {time.monotonic() - since:.0f} s)"
