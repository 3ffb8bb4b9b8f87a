"""Which process of a job the others wait for: the seconds that each spends between steps.

Steps end on all processes together, since each waits for the others' gradients. What tells a slow
one is how long it takes to begin the next step: waiting for its data, or for a host that is busy
with something else. Time on the devices is not in it: a chip that computes slowly shows in a
profile, and not here.
"""

import contextlib
import time
from collections.abc import Iterator

import jax
import numpy as np
from absl import logging

from unidiff_jax.processes import gather_numbers

LATE = 0.2
"""A process that is later by this share of a step's time is reported."""


class Pace:
    """Seconds of this process between steps, compared with the others' at each log.

    Example:
      >>> with pace.own():
      ...     batch = next(loader)
    """

    def __init__(self):
        self._own = 0.0

    @contextlib.contextmanager
    def own(self) -> Iterator[None]:
        """The body's time is this process's own: it does not wait for the others there."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._own += time.monotonic() - begun

    def compare(self, *, num_steps: int, seconds_per_step: float) -> dict[str, float]:
        """What the log says of it; all processes call it together. {} for one process."""
        if jax.process_count() == 1:
            return {}
        own = gather_numbers([self._own / num_steps])[:, 0]
        self._own = 0.0
        latest, late = int(np.argmax(own)), float(own.max() - own.min())
        if late > LATE * seconds_per_step and jax.process_index() == 0:
            logging.warning(
                "process %d of %d comes %.2f s later to a step of %.2f s than process %d: it waits "
                "for its data, or its host is busy; seconds between steps by process: %s",
                *(latest, len(own), late, seconds_per_step, int(np.argmin(own))),
                ", ".join(f"{seconds:.2f}" for seconds in own),
            )
        return {"latest_process": latest, "latest_seconds": late}
