"""Samples MultiBench made again (`unidiff_jax.evals.multibench`), for scoring.

    python -m launch.multibench --workdir runs/unimog --references data/multibench --out runs/bench

Started again with the same flags it continues; pictures that are there are left alone. `--limit`
takes every so-manieth prompt, so that each template has its share.
"""

from absl import flags
from tqdm import tqdm

from launch import command
from unidiff_jax.evals import multibench
from unidiff_jax.paths import AnyPath, as_path, written_whole
from unidiff_jax.prompts import to_slots
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.train.workdir import load_workdir_config


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    flags.DEFINE_string("references", None, "Folder of ten pictures a category.", required=True)
    flags.DEFINE_string("out", None, "Folder to write.", required=True)
    flags.DEFINE_integer("limit", None, "At most so many prompts; none is all.", lower_bound=1)
    flags.DEFINE_integer("step", None, "Checkpoint; none is the newest.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    command.quiet_libraries()
    values = flags.FLAGS
    references = multibench.read_references(values.references)
    load_workdir_config(values.workdir)  # before Orbax makes the folder of a run that is not there
    pipeline = Pipeline.from_workdir(values.workdir, step=values.step)
    prompts = list(multibench.make_prompts(references))
    if values.limit is not None:
        prompts = prompts[:: -(-len(prompts) // values.limit)]
    sample(pipeline, prompts, values.out)
    print(values.out)


def sample(pipeline: Pipeline, prompts: list[multibench.Prompt], folder: AnyPath) -> None:
    """Writes the prompts and what is missing of their pictures."""
    folder = as_path(folder)
    multibench.write_prompts(folder, prompts)
    wanted = [(prompt, number) for prompt in prompts for number in range(multibench.SAMPLES)]
    for prompt, number in tqdm(wanted, unit="picture", desc="multibench", mininterval=1.0):
        path = folder / "samples" / multibench.sample_name(prompt.number, number)
        if path.exists():
            continue
        slots, pictures = to_slots(prompt.parts)
        made = pipeline("interleave", slots=slots, assets=pictures, seed=number)["later"]
        with written_whole(path) as file:
            made.save(file)


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
