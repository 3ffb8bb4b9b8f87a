"""Suites that are judged elsewhere: exports pictures to a suite's layout, imports its results.

    python -m launch.evaluate --benchmark geneval --data data/geneval --model DIR --out runs/geneval
    # then the suite's own script on runs/geneval/export, which the run names, and:
    python -m launch.judged --suite geneval --data data/geneval --results results.jsonl \\
        --date 2026-11-23 --report runs/geneval/report

`--report` holds the run.json of the run that made the pictures, or a results.json; the page is
rebuilt with the new scores. Pictures of another program are exported with

    python -m launch.judged --suite geneval --data data/geneval --pictures made --export exported

which takes a file a picture, `<prompt's id>.png`, or `<prompt's id>/<0, 1, ...>.png` where a prompt
has several. What is exported already stays.
"""

from pathlib import Path

from absl import flags
from PIL import Image

from launch import command
from unidiff_jax.config import ConfigError
from unidiff_jax.evals.charts import format_number
from unidiff_jax.evals.judged import SUITES, Judge, Prompt, Suite, export, get_suite, picture_names
from unidiff_jax.evals.report import build_report
from unidiff_jax.evals.results import add_scores
from unidiff_jax.evals.results_schema import ReportError
from unidiff_jax.sample.images import InputError, open_picture


def define_flags() -> None:
    flags.DEFINE_enum("suite", None, sorted(SUITES), "The suite.", required=True)
    flags.DEFINE_string("data", None, "The suite's own prompts.", required=True)
    flags.DEFINE_string("pictures", None, "Folder of pictures to export.")
    flags.DEFINE_string("export", None, "Where the suite's layout is written.")
    flags.DEFINE_string("results", None, "What the suite's own script wrote: a folder or a file.")
    flags.DEFINE_string("judge", None, "Who judged; none is the official judge.")
    flags.DEFINE_string("date", None, "The day of the judging, e.g. 2026-11-23.")
    flags.DEFINE_string("report", None, "Folder of the report that gets the scores.")


def main(argv: list[str]) -> None:
    del argv
    command.quiet_libraries()
    try:
        _run(flags.FLAGS)
    except (ReportError, InputError) as error:
        raise ConfigError(str(error)) from None


def _run(values: flags.FlagValues) -> None:
    suite = get_suite(values.suite)
    pairs = [("pictures", "export"), ("results", "report")]
    chosen = [pair for pair in pairs if any(values[name].value for name in pair)]
    if len(chosen) != 1 or not all(values[name].value for name in chosen[0]):
        raise ConfigError("give --pictures and --export, or --results and --report")
    prompts = suite.read_prompts(Path(values.data))
    if values.export:
        export_pictures(suite, prompts, pictures=values.pictures, folder=values.export)
        return
    if not values.date:
        raise ConfigError("--date: judges change; give the day of the judging, e.g. 2026-11-23")
    judge = Judge(values.judge or suite.judge, values.date)
    scores = suite.import_results(Path(values.results), prompts, judge)
    for score in scores:
        failed = f", {score['n_failed']} of {score['n_items']} failed" if score["n_failed"] else ""
        number = format_number(score["value"])
        print(f"{score['protocol']}  {score['metric']}  {number}{failed}")
    add_scores(values.report, scores=scores)
    print(f"report: {build_report(values.report)}")


def export_pictures(suite: Suite, prompts: list[Prompt], *, pictures: str, folder: str) -> None:
    """Copies the pictures to the suite's layout, and says what to run there."""

    def read(prompt: Prompt) -> list[Image.Image]:
        return [open_picture(Path(pictures) / f"{name}.png") for name in picture_names(prompt)]

    number = export(suite, prompts, folder=Path(folder), pictures=read)
    print(f"{number} of {len(prompts)} prompts exported to {folder}, the others were there")
    print(f"next, with {folder} as EXPORT: {suite.command}")


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
