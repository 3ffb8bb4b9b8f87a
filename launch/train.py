"""Trains a model.

    python -m launch.train --config configs/quickstart.py --workdir runs/quickstart
    python -m launch.train --config configs/quickstart.py:tiny --workdir /tmp/run \\
        --set train.num_steps=20

Started again in the same workdir it continues with the newest checkpoint. SIGTERM has it save and
end with status 143. `--supervise` starts it again when it crashes, and keeps a log of that in the
workdir. docs/reliability.md says what else can happen to it.
"""

import sys

from absl import flags

from launch import command
from launch.supervise import supervise
from unidiff_jax.processes import join_job
from unidiff_jax.train.loop import train
from unidiff_jax.train.preemption import GRACE_SECONDS


def define_flags() -> None:
    command.define_config_flags("configs/quickstart.py")
    flags.DEFINE_string(
        "workdir",
        "runs/quickstart",
        "Folder of the run, or gs://bucket/...; continued if it exists.",
    )
    flags.DEFINE_float(
        "grace", GRACE_SECONDS, "Seconds from SIGTERM until it ends, saved or not.", lower_bound=1.0
    )
    flags.DEFINE_bool("supervise", False, "Start it again when it crashes.")
    flags.DEFINE_integer(
        "max_restarts",
        20,
        "With --supervise, crashes in a row without a new checkpoint between them, to be borne.",
        lower_bound=0,
    )
    command.define_distributed_flag()


def main(argv: list[str]) -> int | None:
    del argv
    values = flags.FLAGS
    if values.supervise:
        child = [sys.executable, "-m", "launch.train", *sys.argv[1:], "--nosupervise"]
        return supervise(
            child, values.workdir, max_restarts=values.max_restarts, grace=values.grace
        )
    config = command.config_from_flags()
    join_job(values.distributed)
    command.quiet_libraries()
    train(config, values.workdir, grace=values.grace)
    return None


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
