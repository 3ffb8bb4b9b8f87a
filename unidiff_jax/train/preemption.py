"""SIGTERM: the machine will be taken away, or somebody ends the run. It saves, and says so.

One process notes the signal and saves after the step that is under way. In a job of several the
notice may reach one process alone, and at another step than the others: JAX's preemption service
passes it on, and has all agree on the next step that none has passed yet.
"""

import os
import signal
import sys
import threading
import types

import jax
from jax.experimental import multihost_utils

GRACE_SECONDS = 120.0
"""How long a run may take to save after SIGTERM. Cloud TPU VMs give 30 seconds, Slurm what the job
asks for."""


class PreemptedError(Exception):
    """Training ended after SIGTERM, and its state is saved.

    Attributes:
      step: the number of steps done and saved.
    """

    def __init__(self, step: int, workdir: object):
        super().__init__(f"ended by SIGTERM after step {step}, which is saved in {workdir}")
        self.step = step


class Notice:
    """Watches for SIGTERM while it is open.

    Example:
      >>> with Notice(grace=30) as notice:
      ...     while not notice.reached(step):
      ...         step += 1
    """

    def __init__(self, *, grace: float = GRACE_SECONDS):
        """Watches nothing yet.

        Args:
          grace: seconds from the notice until the process ends, saved or not, with status 1. In a
            job of several processes they count from the agreed step.
        """
        self._grace = grace
        self._noted = False
        self._deadline: threading.Timer | None = None
        self._previous: signal.Handlers | None = None

    def __enter__(self) -> "Notice":
        # with several processes the signal is JAX's, from the start of the job on
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self, step: int) -> bool:
        """Whether to save now and end; all processes ask once after every step."""
        if jax.process_count() > 1:
            self._noted = multihost_utils.reached_preemption_sync_point(step)
        if self._noted and self._deadline is None:
            self._start_deadline()
        return self._noted

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        del number, frame
        self._noted = True
        if self._deadline is None:
            self._start_deadline()

    def _start_deadline(self) -> None:
        self._deadline = threading.Timer(self._grace, self._give_up)
        self._deadline.daemon = True
        self._deadline.start()

    def _give_up(self) -> None:
        print(
            f"error: nothing was saved in the {self._grace:g} s after SIGTERM (--grace); the "
            "newest checkpoint is that of the last interval",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
