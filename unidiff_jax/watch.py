"""Watch over the processes of a job: who is silent, who failed, and an end that names them.

A process that dies or stops leaves the others waiting in a collective for ever, and what JAX says
of it names nobody. So a thread of each process sends a beat every `BEAT_SECONDS` to the key-value
store of JAX's coordination service, which process 0 holds; that one compares them and writes down
which process is missing or has failed, and all others read it, print it and end. Process 0 itself
is missed when the store does not answer or its own beat stands still.

Silence is counted in beats of the listener and not by the clock: a process that was paused itself
must not blame the others when it goes on.
"""

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, Protocol

BEAT_SECONDS = 1.0

SILENT_SECONDS = 30
"""A process that is silent for so long counts as lost. It must be longer than any call that holds
Python's lock, and shorter than the heartbeats of JAX, which name nobody."""

LOST = 69
"""Exit status of a process that ends because another one of its job is lost or failed; sysexits.h
calls it EX_UNAVAILABLE. The job can be started again."""

_BEATS, _LEADER = "unidiff/beat/", "unidiff/leader/"


class Store(Protocol):
    """What is used of JAX's key-value store."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


class Watch:
    """The beats of one process, and what it hears of the others.

    Example:
      >>> watch = Watch(store, index=0, count=2, on_loss=print)
      >>> watch.start()
    """

    def __init__(
        self,
        store: Store,
        *,
        index: int,
        count: int,
        on_loss: Callable[[str], None],
        on_leader: Callable[[str], None] = lambda name: None,
    ):
        """Starts nothing yet.

        Args:
          store: shared by all processes.
          index: this process.
          count: of processes.
          on_loss: called once, in a thread, with a sentence that names the process.
          on_leader: called once, in a thread, with what process 0 is called when it is heard of.
        """
        self._store, self._index, self._count, self._on_loss = store, index, count, on_loss
        self._on_leader = on_leader
        self._limit = round(SILENT_SECONDS / BEAT_SECONDS)
        self._beat, self._failed = 0, ""
        self._silent = dict.fromkeys(range(count), 0)  # beats of ours without one of theirs
        self._last: dict[int, Any] = {}
        self._answered = 0  # beats of the judge since the store answered
        self._verdict = ""
        self._ended = threading.Event()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Sends the first beat, and starts the threads."""
        self._send()
        # two threads: a call to a paused process 0 does not come back
        for work in (self._exchange, self._judge):
            threading.Thread(target=work, daemon=True, name=f"watch {work.__name__}").start()

    def stop(self) -> None:
        """Ends the watch; when all processes are at their end."""
        self._ended.set()

    def fail(self, reason: str) -> None:
        """Tells the others that this process ends with an error; returns when they can know."""
        self._failed = reason or "an error"
        with contextlib.suppress(RuntimeError):  # process 0 may be gone itself
            self._send()
            if self._index == 0:
                self._publish(self._say_failed(0, self._me(), self._failed))
        self._ended.wait(3 * BEAT_SECONDS)

    def await_loss(self) -> None:
        """Waits for as long as it takes to find a lost process; `on_loss` does not return then."""
        self._ended.wait(SILENT_SECONDS + 5 * BEAT_SECONDS)

    # -------------------------------------------------------------------------------------- beats

    def _me(self) -> str:
        return f"{socket.gethostname()}, pid {os.getpid()}"

    def _send(self) -> None:
        with self._lock:
            self._beat += 1
            value = {"beat": self._beat, "who": self._me(), "failed": self._failed}
            self._store.key_value_set(f"{_BEATS}{self._index}", json.dumps(value), True)
            if self._index == 0:
                self._store.key_value_set(f"{_LEADER}beat", json.dumps(value), True)

    def _exchange(self) -> None:
        """Sends and hears, for as long as the store answers."""
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._send()
                heard = dict(self._store.key_value_dir_get(_BEATS if self._index == 0 else _LEADER))
            except RuntimeError:  # no answer; the judge counts
                continue
            self._answered = 0
            if verdict := heard.pop(f"{_LEADER}verdict", None):
                self._verdict = verdict
            for key, text in heard.items():
                number = 0 if key.startswith(_LEADER) else int(key.removeprefix(_BEATS))
                said = json.loads(text)
                if said["failed"] and number != self._index:
                    self._publish(self._say_failed(number, said["who"], said["failed"]))
                elif self._last.get(number) != said:
                    is_first = number == 0 and number not in self._last
                    self._last[number], self._silent[number] = said, 0
                    if is_first:
                        self._on_leader(self._name(0))

    def _publish(self, sentence: str) -> None:
        if self._index == 0:
            self._store.key_value_set(f"{_LEADER}verdict", sentence, True)
        self._verdict = sentence

    def _judge(self) -> None:
        """Counts silence, and ends the watch with the first verdict."""
        while not self._ended.wait(BEAT_SECONDS):
            self._answered += 1
            if self._index > 0 and self._answered > self._limit:
                self._verdict = self._say_silent(0)
            for number in range(self._count) if self._index == 0 else (0,):
                if number == self._index:
                    continue
                if number in self._last:  # one that never came is missed by JAX's start
                    self._silent[number] += 1
                if self._silent[number] > self._limit and not self._verdict:
                    with contextlib.suppress(RuntimeError):
                        self._publish(self._say_silent(number))
            if self._verdict:
                if self._index == 0:  # the others read it from the store, which ends with process 0
                    self._ended.wait(3 * BEAT_SECONDS)
                if not self._failed:  # a process with an error of its own says that
                    self._on_loss(self._verdict)
                return

    def _say_silent(self, number: int) -> str:
        return (
            f"{self._name(number)} has not been heard of for {SILENT_SECONDS} s: it was killed, is "
            "stopped or cut off"
        )

    def _say_failed(self, number: int, who: str, reason: str) -> str:
        return f"process {number} of {self._count} ({who}) ended with an error: {reason}"

    def _name(self, number: int) -> str:
        who = self._last.get(number, {}).get("who", "which was never heard of")
        return f"process {number} of {self._count} ({who})"


def end_process(sentence: str) -> None:
    """Prints why this process ends, and ends it from any thread: the main one may wait for ever."""
    print(
        f"error: {sentence}. This process ends too; the same command goes on from the last "
        "checkpoint",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(LOST)
