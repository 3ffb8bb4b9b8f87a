"""Writes a run's transformer in OneDiffusion's released layout, for PyTorch and for this code.

    python -m launch.export --workdir runs/finetune --out runs/finetune-released

Averaged weights, adapters merged. The other parts of the pipeline are copied from the folder that
the run started from, or from --base. Runs that the layout cannot describe are refused, with the
reasons: another prediction than velocity, another fusion, another rotary embedding.
"""

from absl import flags

from launch import command
from unidiff_jax.export.run import export_run
from unidiff_jax.sample.images import InputError


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_string("base", None, "Released folder whose other parts are copied.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the written weights.")
    flags.DEFINE_integer("step", None, "Checkpoint; none is the newest.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    command.quiet_libraries()
    values = flags.FLAGS
    try:
        export_run(
            values.workdir, values.out, base=values.base, dtype=values.dtype, step=values.step
        )
    except FileExistsError as error:
        raise InputError(str(error)) from error
    print(values.out)


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
