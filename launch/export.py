"""Writes a run's model as a folder for PyTorch: averaged weights, adapters merged.

    python -m launch.export --workdir runs/finetune --out runs/finetune-released
    python -m launch.export --workdir runs/unireal-256 --out runs/unireal-torch

Two layouts. `released` is OneDiffusion's: the official code loads it, and so does this code. The
other parts of the pipeline are copied from the folder that the run started from, or from --base.
`unified` is for any model (other fusions, predictions, rotary embeddings, guidance on channels,
identities): beside the weights lies `modeling_unidiff.py`, which needs torch and safetensors alone
and says how it is called, and around it the run's text encoder, tokenizer and autoencoder. Without
--layout it is `released` where that can say what the model is. The layout is printed, and why.
"""

from absl import flags

from launch import command
from unidiff_jax.export.run import LAYOUTS, export_run
from unidiff_jax.sample.images import InputError


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_enum("layout", None, LAYOUTS, "Without it, released where that is possible.")
    flags.DEFINE_string("base", None, "Released folder whose other parts are copied.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the written weights.")
    flags.DEFINE_integer("step", None, "Checkpoint; none is the newest.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    command.quiet_libraries()
    values = flags.FLAGS
    try:
        written = export_run(
            values.workdir,
            values.out,
            layout=values.layout,
            base=values.base,
            dtype=values.dtype,
            step=values.step,
        )
    except FileExistsError as error:
        raise InputError(str(error)) from error
    why = ""
    if written.name == "unified" and values.layout is None:
        why = f", because the released one cannot say: {'; '.join(written.faults)}"
    print(f"{written.name} layout{why}\n{values.out}")


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
