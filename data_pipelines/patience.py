"""Waiting for data with an end: a stall is reported, and after a limit it is an error."""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from absl import logging

Value = TypeVar("Value")

REPORTS = 10
"""A stall is reported so often before it is an error."""


class StalledError(RuntimeError):
    """Data did not come in time. Threads that wait for it may hang on, also when Python exits."""


class Patience:
    """Calls functions in a thread of its own and waits for each, but not for ever.

    Example:
      >>> batch = Patience(600).call(lambda: next(iterator), what="data shard 0")
    """

    def __init__(self, limit: float, *, doing: Callable[[], str | None] = lambda: None):
        """Starts no thread yet.

        Args:
          limit: seconds until a call is given up; 0 calls directly and waits for ever.
          doing: says what is being waited for, for the message.
        """
        self._limit, self._doing = limit, doing
        self._calls: queue.SimpleQueue[Callable[[], Any]] = queue.SimpleQueue()
        self._ends: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def call(self, function: Callable[[], Value], *, what: str) -> Value:
        """What the function gives or raises.

        Raises:
          StalledError: it took longer than the limit.
        """
        if not self._limit:
            return function()
        if self._thread is None:
            # a daemon: a call that never ends must not keep Python from its end
            self._thread = threading.Thread(target=self._work, daemon=True, name="patience")
            self._thread.start()
        self._calls.put(function)
        for report in range(1, REPORTS + 1):
            try:
                value, error = self._ends.get(timeout=self._limit / REPORTS)
            except queue.Empty:
                said = self._say(what, self._limit * report / REPORTS)
                if report < REPORTS:
                    logging.warning("%s; it is given up after %g s", said, self._limit)
                continue
            if error is not None:
                raise error
            return value
        raise StalledError(f"{said}; data.stall_seconds={self._limit:g} is how long it may take")

    def _say(self, what: str, seconds: float) -> str:
        doing = self._doing()
        return f"{what} has given no batch for {seconds:g} s" + (
            f"; longest under way: {doing}" if doing else "; no record is being read"
        )

    def _work(self) -> None:
        while True:
            function = self._calls.get()
            try:
                end = function(), None
            except BaseException as error:  # the caller's to handle
                end = None, error
            self._ends.put(end)
            del function, end  # while this waits for the next call, nothing is kept alive
