"""What every command shares: the config flags, and errors that read as one line.

A main is

    def define_flags():
        command.define_config_flags("configs/quickstart.py")

    def main(argv):
        config = command.config_from_flags()

    if __name__ == "__main__":
        command.run(main, define_flags=define_flags)

and is started with `python -m launch.train --config=configs/quickstart.py --set train.num_steps=9`.
Flags are defined when the command starts and not when its module is imported, so that one test can
import several mains whose flags have the same names.

An error that the caller can mend (a wrong config or flag, a file that is not there, a full disk) is
printed without a traceback; `--debug` brings the traceback back. Any other exception is a fault of
the program and keeps its traceback.
"""

import ctypes
import errno
import importlib.util
import logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict

from unidiff_jax.config import ConfigError, load_config
from unidiff_jax.paths import bucket_fault

# Flags defined by the functions below count as the main's own, so that its --help lists them.
flags.disclaim_key_flags()

# Exit statuses, as shells use them: the end by a signal is 128 + its number. A wrong config is
# wrong usage like a wrong flag: nothing comes of starting it again.
FAILED, WRONG_USAGE, INTERRUPTED, PREEMPTED = 1, 2, 130, 143


def define_config_flags(default: str | None = None) -> None:
    """Defines `--config` and `--set`; for a main's `define_flags`.

    Args:
      default: the config file to use without `--config`; None makes the flag required.
    """
    flags.DEFINE_string(
        "config", default, "Config file, with its argument: --config=configs/quickstart.py:tiny"
    )
    flags.DEFINE_multi_string("set", [], "Override, repeatable: --set train.num_steps=100")


def define_distributed_flag() -> None:
    """Defines `--distributed`; for a main's `define_flags`, and `processes.join_job`."""
    flags.DEFINE_string(
        "distributed",
        "",
        "Several processes of one job: auto on Cloud TPU, GKE, Slurm or MPI; by hand "
        "process/processes@address, such as 0/2@localhost:1234.",
    )


def config_from_flags() -> ConfigDict:
    """Loads the config that `--config` and `--set` name.

    Raises:
      ConfigError: if `--config` is missing or `load_config` finds a fault.
    """
    spec, overrides = flags.FLAGS["config"].value, flags.FLAGS["set"].value
    if not spec:
        raise ConfigError("config: no file given; for example --config=configs/quickstart.py:tiny")
    return load_config(spec, overrides=overrides or ())


def run(
    main: Callable[[list[str]], Any],
    *,
    define_flags: Callable[[], None] | None = None,
    argv: list[str] | None = None,
) -> None:
    """Defines and parses the flags, runs `main(argv)` and exits.

    Args:
      main: takes the command line without its flags; returns None or an exit status.
      define_flags: defines the main's own flags; `--debug` is added to them.
      argv: the command line, `sys.argv` by default.

    Raises:
      SystemExit: always; 0 or main's status, 1 for an error, 2 for wrong flags or a wrong config,
        130 for Ctrl-C, 143 for SIGTERM where the state is saved.

    Example:
      >>> run(main, define_flags=define_flags)  # the last line of a main's module
    """
    if define_flags is not None:
        define_flags()
    flags.DEFINE_bool("debug", False, "Show the full traceback of every error.")

    def guarded(rest: list[str]) -> Any:
        try:
            return main(rest)
        except KeyboardInterrupt:
            # Everything is saved and closed by now. The ordinary way out would tear down native
            # threads that still compute or read, and abort the process now and then.
            print("error: interrupted", file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(INTERRUPTED)
        except Exception as error:
            _leave_if_preempted(error)
            message = describe(error)
            shown = None if flags.FLAGS.debug else message
            _leave_at_once(error, shown)
            if shown is None:
                raise
            _exit(shown, WRONG_USAGE if isinstance(error, ConfigError) else FAILED)

    keep_freed_memory()
    app.run(guarded, argv=argv, flags_parser=_parse_flags)


def require(module: str, *, extra: str) -> None:
    """Raises ConfigError unless a module of an extra is installed."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{module} is not installed; run: ./launch/environment.sh {extra}")


def keep_freed_memory() -> None:
    """Tells glibc to keep what a step frees for the next step.

    XLA's CPU backend allocates its buffers anew for every call; glibc would give them back to the
    system and fault every page in again, which took half of a train step's time on two cores.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):  # not glibc: nothing to tune
        return
    trim_threshold, top_pad, mmap_max, arena_max = -1, -2, -4, -8  # malloc.h
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 2**28)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(arena_max, 1)


def quiet_libraries() -> None:
    """Keeps libraries' notes on files, workers and backends out of a command's output."""
    for name in ("absl", "apache_beam", "gcsfs", "jax"):
        logging.getLogger(name).setLevel(logging.WARNING)


def describe(error: Exception) -> str | None:
    """One line for an error that the caller can mend (a ConfigError: one a fault), else None."""
    if isinstance(error, _mendable()):
        return str(error)
    if (fault := bucket_fault(error)) is not None:
        return fault
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"disk full{_at(error)}: free some space or write to another folder"
    if isinstance(error, FileNotFoundError):
        # Raised by the system it has a file name, raised by us it has a sentence.
        return f"no such file or folder{_at(error)}" if error.filename else str(error)
    return None


def _leave_if_preempted(error: Exception) -> None:
    """Ends the command that was told to, when its state is saved."""
    import jax

    from unidiff_jax.train.preemption import PreemptedError

    if not isinstance(error, PreemptedError):
        return
    print(f"{error}; the same command goes on from there", file=sys.stderr, flush=True)
    sys.stdout.flush()
    if jax.process_count() > 1:  # the processes of a job take leave of each other
        sys.exit(PREEMPTED)
    os._exit(PREEMPTED)  # as after Ctrl-C


def _mendable() -> tuple[type[Exception], ...]:
    """Errors whose message is written for the caller; imported only when something went wrong."""
    from data_pipelines.curate.checkpoints import CheckpointError
    from data_pipelines.curate.clips import ClipError, StoppedError
    from data_pipelines.curate.pairs import PairError
    from data_pipelines.encoded import EncodedError
    from data_pipelines.miniworld.generate import GenerateError
    from data_pipelines.miniworld.manifest import RecordsError
    from data_pipelines.patience import StalledError
    from data_pipelines.shards import ManifestError
    from data_pipelines.skips import TooManySkippedError
    from data_pipelines.sources.base import SourceError
    from data_pipelines.subjects.package import PackageError
    from data_pipelines.subjects.records import SubjectError
    from unidiff_jax.evals.benchmarks.base import BenchmarkError
    from unidiff_jax.evals.results_schema import ReportError
    from unidiff_jax.export.files import FolderError
    from unidiff_jax.export.mapping import MappingError
    from unidiff_jax.outside import InputError
    from unidiff_jax.train.checkpoint import DamagedError
    from unidiff_jax.train.guard import TrainingStoppedError
    from unidiff_jax.train.incidents import IncidentError
    from unidiff_jax.train.lock import WorkdirBusyError

    return (
        BenchmarkError,
        CheckpointError,
        ClipError,
        ConfigError,
        DamagedError,
        EncodedError,
        FolderError,
        GenerateError,
        IncidentError,
        InputError,
        ManifestError,
        MappingError,
        PackageError,
        PairError,
        RecordsError,
        ReportError,
        SourceError,
        StalledError,
        StoppedError,
        SubjectError,
        TooManySkippedError,
        TrainingStoppedError,
        WorkdirBusyError,
    )


def _at(error: OSError) -> str:
    return f": {error.filename}" if error.filename else ""


def _parse_flags(argv: list[str]) -> list[str]:
    if {"-h", "--help", "--helpshort"} & set(argv[1:]):
        app.usage(shorthelp=True, writeto_stdout=True)  # absl would exit with 1
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        _exit(f"{' '.join(str(error).split())}; --help lists the flags", WRONG_USAGE)
    if len(rest) > 1:
        # No command takes positional arguments: a lost "--" would otherwise go unseen.
        _exit(f"unexpected argument {rest[1]!r}; --help lists the flags", WRONG_USAGE)
    return rest


def _leave_at_once(error: Exception, message: str | None) -> None:
    """Ends the process where Python's own end would wait: for the other processes of a job, which
    end with this one, or for threads that hang in reading.
    """
    import jax

    from data_pipelines.patience import StalledError
    from unidiff_jax import processes

    if not (processes.in_job() or isinstance(error, StalledError)):
        return
    if message is None:
        traceback.print_exception(error)
    else:
        _print_error(message)
    sys.stdout.flush()
    sys.stderr.flush()
    reason = (message or f"{type(error).__name__}: {error}").splitlines()[0]
    # a collective fails where another process is gone
    processes.fail_job(reason, consequence=isinstance(error, jax.errors.JaxRuntimeError))
    os._exit(WRONG_USAGE if isinstance(error, ConfigError) else FAILED)


def _exit(message: str, status: int) -> NoReturn:
    _print_error(message)
    sys.exit(status)


def _print_error(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
