"""Trains a model.

    python -m launch.train --config configs/quickstart.py --workdir runs/quickstart
    python -m launch.train --config configs/quickstart.py:tiny --workdir /tmp/run \\
        --set train.num_steps=20

Started again in the same workdir it continues with the newest checkpoint.
"""

from absl import flags

from launch import command
from unidiff_jax.processes import join_job
from unidiff_jax.train.loop import train


def define_flags() -> None:
    command.define_config_flags("configs/quickstart.py")
    flags.DEFINE_string(
        "workdir",
        "runs/quickstart",
        "Folder of the run, or gs://bucket/...; continued if it exists.",
    )
    command.define_distributed_flag()


def main(argv: list[str]) -> None:
    del argv
    config = command.config_from_flags()
    join_job(flags.FLAGS.distributed)
    command.quiet_libraries()
    train(config, flags.FLAGS.workdir)


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
