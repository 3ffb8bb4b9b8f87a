"""Steps that went wrong: a loss or gradient that is not finite, or a gradient far above the others.

The step itself decides on the device, from values that are the same on all processes, and a bad
step changes nothing but the step count (`step.make_train_step`). The bound of the gradient's norm
is a number that the host gives to each step: `max_norm_ratio` times the median of earlier steps'.

The host looks at a step's verdict `LAG` steps later, when it has long been computed, so that it
never waits for the device. What it then does is a function of the step numbers alone, the same on
all processes and in a run that goes on from a checkpoint. Because of the lag, what follows a bad
step (an incident written down, the return to a checkpoint, the end) comes up to `LAG` steps later.
"""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from unidiff_jax.config import ConfigError
from unidiff_jax.train.step import NO_LIMIT
from unidiff_jax.types import Batch

POLICIES = ("skip", "rollback")

LAG = 2
"""Steps between a step and the look at its verdict: one that computes, one that waits in line."""

WINDOW, ENOUGH = 128, 32
"""The median is that of so many last good steps; with fewer than `ENOUGH` there is no bound."""


class TrainingStoppedError(RuntimeError):
    """Too many steps in a row went wrong; the message says how, and how to look at the first."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """What is a bad step, and what follows.

    Attributes:
      policy: `skip` goes on with the next batch. `rollback` also goes back to the newest
        checkpoint's state, and on with the batches that come next, as PaLM did after spikes of the
        loss (Chowdhery et al. 2022, section 5.1).
      max_norm_ratio: a gradient's norm above so many times the median of the last good steps is
        bad; 0 for no bound.
      max_in_a_row: training stops after so many bad steps in a row; under `rollback`, without a new
        checkpoint between them.
    """

    policy: str = "skip"
    max_norm_ratio: float = 100.0
    max_in_a_row: int = 10

    def __post_init__(self):
        if self.policy not in POLICIES:
            raise ConfigError(
                f"train.guard.policy={self.policy!r} is unknown; one of {', '.join(POLICIES)}"
            )
        if self.max_norm_ratio and self.max_norm_ratio <= 1:
            raise ConfigError(
                f"train.guard.max_norm_ratio={self.max_norm_ratio} would call ordinary steps bad; "
                "a number above 1 such as 100.0, or 0.0 for no bound"
            )
        if self.max_in_a_row < 1:
            raise ConfigError(
                f"train.guard.max_in_a_row={self.max_in_a_row} must be at least 1, say 10"
            )


class BadStep(NamedTuple):
    """A step that changed nothing.

    Attributes:
      step: its number, from 0.
      loss, grad_norm: of its batch.
      limit: bound of the gradient's norm.
      in_a_row: which of the bad steps in a row it is, from 1.
      batch: this process's part of the batch, on the host.
    """

    step: int
    loss: float
    grad_norm: float
    limit: float
    in_a_row: int
    batch: Batch

    def __str__(self) -> str:
        bound = f", bound {self.limit:g}" if np.isfinite(self.limit) else ""
        return f"step {self.step}: loss {self.loss:g}, gradient norm {self.grad_norm:g}{bound}"


class _Step(NamedTuple):
    step: int
    limit: float
    verdict: jax.Array
    batch: Batch


class Guard:
    """Bounds for the next steps, and verdicts on earlier ones.

    Example:
      >>> guard = Guard(GuardConfig())
      >>> state, metrics = program.step(state, batch, guard.limit(step))
      >>> for bad in guard.judge(step, metrics["verdict"], host_batch):
      ...     print(bad)
    """

    def __init__(self, config: GuardConfig, saved: Mapping[str, Any] | None = None):
        """Begins anew, or goes on from `state()`."""
        self._config = config
        self._waiting: collections.deque[_Step] = collections.deque()
        self.restore(saved)

    def restore(self, saved: Mapping[str, Any] | None) -> None:
        """Forgets what waits, and goes on from `state()`; None is from nothing."""
        saved = saved or {"norms": [], "in_a_row": 0}
        self._waiting.clear()
        norms = [(int(step), float(norm)) for step, norm in saved["norms"]]
        self._norms = collections.deque(norms, maxlen=WINDOW + LAG)
        self._in_a_row = int(saved["in_a_row"])

    def state(self) -> dict[str, Any]:
        """JSON-able; call it when nothing waits, after `drain`."""
        return {"norms": [list(pair) for pair in self._norms], "in_a_row": self._in_a_row}

    def limit(self, step: int) -> np.float32:
        """Bound of the gradient's norm in a step, from the steps up to `LAG` before it."""
        known = [norm for number, norm in self._norms if number < step - LAG][-WINDOW:]
        if not self._config.max_norm_ratio or len(known) < ENOUGH:
            return NO_LIMIT
        return np.float32(self._config.max_norm_ratio * np.median(known))

    def judge(
        self, step: int, verdict: jax.Array, batch: Batch, *, limit: np.float32 = NO_LIMIT
    ) -> list[BadStep]:
        """Takes a step that was begun; gives the bad ones among those that are old enough."""
        verdict.copy_to_host_async()
        self._waiting.append(_Step(step, float(limit), verdict, batch))
        return self._look(leave=LAG)

    def drain(self) -> list[BadStep]:
        """The bad ones among all steps; waits for them."""
        return self._look(leave=0)

    def saved(self) -> None:
        """A checkpoint was written: under `rollback` bad steps are counted anew."""
        if self._config.policy == "rollback":
            self._in_a_row = 0

    @property
    def rolls_back(self) -> bool:
        return self._config.policy == "rollback"

    def is_enough(self, bad: BadStep) -> bool:
        """Whether training stops with this bad step."""
        return bad.in_a_row >= self._config.max_in_a_row

    def _look(self, *, leave: int) -> list[BadStep]:
        found = []
        while len(self._waiting) > leave:
            step, limit, verdict, batch = self._waiting.popleft()
            loss, grad_norm, skipped = (float(value) for value in np.asarray(verdict))
            if not skipped:
                self._norms.append((step, grad_norm))
                if not self.rolls_back:
                    self._in_a_row = 0
                continue
            self._in_a_row += 1
            found.append(BadStep(step, loss, grad_norm, limit, self._in_a_row, batch))
        return found
