"""Traces of a run's steps, asked for by its config or while it runs.

    train.profile_start=100      trace the steps after step 100; 0 traces none
    train.profile_steps=5        how many
    touch WORKDIR/trace          trace the next steps of a run that is under way

A trace lies in `WORKDIR/profile` in the layout of TensorBoard and xprof. Process 0 makes it, of the
devices and the host that it has. The run waits for the devices where a trace begins and ends, and
computes the same.
"""

import socket
import tempfile
import time

import jax
from absl import logging
from etils import epath
from tqdm import tqdm

from unidiff_jax.config import ConfigError
from unidiff_jax.paths import AnyPath, as_path, copy_tree

REQUEST = "trace"
"""The file in a workdir that asks for a trace; the run removes it."""

LOOK_SECONDS = 5.0
"""Between two looks for the request: a bucket takes a twentieth of a second to answer."""


class Profile:
    """The traces of one start of a run.

    Example:
      >>> profile = Profile(workdir, start=0, num_steps=5)
      >>> profile.before(step, state)
      >>> state, metrics = train_step(state, batch)
      >>> profile.after(step + 1, state)
      >>> profile.close(state)
    """

    def __init__(self, workdir: AnyPath, *, start: int, num_steps: int):
        """Traces nothing yet.

        Args:
          workdir: of the run.
          start: steps before the trace that the config asks for; 0 for no trace.
          num_steps: steps of a trace.

        Raises:
          ConfigError: numbers that cannot be.
        """
        if num_steps < 1 or start < 0:
            raise ConfigError(
                f"train.profile_start={start} and train.profile_steps={num_steps} must be at least "
                "0 and 1; for example --set train.profile_start=0 --set train.profile_steps=5"
            )
        self._workdir = as_path(workdir)
        self._start, self._num_steps = start, num_steps
        self._looked = 0.0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._first = 0

    def before(self, step: int, state: object) -> None:
        """Begins a trace where one is due; call it when `step` steps are done."""
        if jax.process_index() > 0 or self._folder is not None:
            return
        if (self._start and step == self._start) or self._is_asked():
            jax.block_until_ready(state)  # earlier steps are not of the trace
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # most of the file, and of the time that it costs
            self._folder, self._first = tempfile.TemporaryDirectory(), step
            try:
                jax.profiler.start_trace(self._folder.name, profiler_options=options)
            except RuntimeError as error:  # somebody else's trace is running
                self._drop(error)

    def after(self, step: int, state: object) -> None:
        """Ends the trace where it has its steps; call it when `step` steps are done."""
        if self._folder is not None and step - self._first >= self._num_steps:
            self._end(step, state)

    def close(self, step: int, state: object) -> None:
        """Ends a trace that is under way: the run is over."""
        if self._folder is not None:
            self._end(step, state)

    def _is_asked(self) -> bool:
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        request = self._workdir / REQUEST
        if not request.exists():
            return False
        request.unlink()
        return True

    def _end(self, step: int, state: object) -> None:
        assert self._folder is not None
        target = self._workdir / "profile"
        run = target / "plugins" / "profile" / f"step_{self._first:08d}"
        try:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            (made,) = (epath.Path(self._folder.name) / "plugins" / "profile").iterdir()
            copy_tree(made, run)
        except (OSError, RuntimeError, ValueError) as error:
            self._drop(error)
            return
        self._folder.cleanup()
        self._folder = None
        tqdm.write(
            f"traced steps {self._first + 1} to {step} on {socket.gethostname()}; see it with: "
            f"xprof --logdir {target}"
        )

    def _drop(self, error: Exception) -> None:
        """A trace that fails leaves the run as it is."""
        assert self._folder is not None
        logging.warning("no trace of the steps after %d: %s", self._first, error)
        self._folder.cleanup()
        self._folder = None
