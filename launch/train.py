"""Trains a model.

    python -m launch.train --config configs/quickstart.py --workdir runs/quickstart
    python -m launch.train --config configs/quickstart.py:tiny --workdir /tmp/run \\
        --set train.num_steps=20

Started again in the same workdir it continues with the newest checkpoint. SIGTERM has it save and
end with status 143; what else can happen to it is in docs/reliability.md.
"""

from absl import flags

from launch import command
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
    command.define_distributed_flag()


def main(argv: list[str]) -> None:
    del argv
    config = command.config_from_flags()
    join_job(flags.FLAGS.distributed)
    command.quiet_libraries()
    train(config, flags.FLAGS.workdir, grace=flags.FLAGS.grace)


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
