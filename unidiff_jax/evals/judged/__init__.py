"""Suites that are judged elsewhere: pictures out in the official layout, official results in.

Their scores come from detectors, question-answering models or judges that do not run here. So a run
is exported, scored by the suite's own script, and its result files are imported
(`evals.benchmarks.judged` makes and exports it in one command):

    suite = get_suite("geneval")
    prompts = suite.read_prompts(Path("data/geneval"))
    export(suite, prompts, folder=Path("export"), pictures=make)
    scores = suite.import_results(Path("results.jsonl"), prompts, Judge(suite.judge, "2026-11-23"))

Nothing imitates a judge. What could not be parsed is counted and left out, never replaced; where an
official script has a known fault, its own number and the one without the fault are both imported.
"""

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

from PIL import Image
from tqdm import tqdm

from unidiff_jax.config import ConfigError
from unidiff_jax.evals.judged import (
    compbench,
    dpg,
    gedit,
    geneval,
    imgedit,
    kris,
    omnicontext,
)
from unidiff_jax.evals.judged.suite import Given, Judge, Prompt, Suite
from unidiff_jax.evals.results_schema import ReportError
from unidiff_jax.paths import AnyPath, as_path

__all__ = [
    "SUITES",
    "Given",
    "Judge",
    "Prompt",
    "Suite",
    "check_files",
    "export",
    "get_suite",
    "is_exported",
    "picture_names",
]

SUITES: dict[str, Suite] = {
    module.SUITE.name: module.SUITE
    for module in (geneval, compbench, dpg, gedit, imgedit, kris, omnicontext)
}


def get_suite(name: str) -> Suite:
    """Raises ConfigError for an unknown name."""
    if name not in SUITES:
        raise ConfigError(f"suite {name!r} is unknown; one of {', '.join(SUITES)}")
    return SUITES[name]


def picture_names(prompt: Prompt) -> list[str]:
    """Names, without an ending, of a prompt's pictures before they are exported."""
    return [prompt.id] if prompt.count == 1 else [f"{prompt.id}/{k}" for k in range(prompt.count)]


def is_exported(suite: Suite, prompt: Prompt, *, folder: AnyPath) -> bool:
    """Whether all files of a prompt are there; each is written whole."""
    return all((as_path(folder) / name).exists() for name in suite.files(prompt))


def check_files(suite: Suite, prompts: Sequence[Prompt], *, folder: AnyPath) -> None:
    """Raises ReportError for a prompt whose files would lie outside of the folder."""
    for prompt in prompts:
        for name in suite.files(prompt):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise ReportError(f"{suite.name}: {name!r} would lie outside of {folder}")


def export(
    suite: Suite,
    prompts: Sequence[Prompt],
    *,
    folder: AnyPath,
    pictures: Callable[[Prompt], Sequence[Image.Image]],
) -> int:
    """Writes the pictures of all prompts that have none yet, and says of how many.

    Args:
      suite: says where they go.
      prompts: from its `read_prompts`; a process of several takes its own part of them.
      folder: of the export; what is there stays.
      pictures: makes or opens a prompt's `count` pictures.

    Raises:
      ReportError: a prompt whose files would lie outside of the folder.
      ValueError: another number of pictures than the prompt's count.
    """
    check_files(suite, prompts, folder=folder)
    missing = [prompt for prompt in prompts if not is_exported(suite, prompt, folder=folder)]
    for prompt in tqdm(missing, desc=f"export {suite.name}", unit="prompt"):
        made = pictures(prompt)
        if len(made) != prompt.count:
            raise ValueError(f"{prompt.id}: {len(made)} pictures made, {prompt.count} asked for")
        suite.write(as_path(folder), prompt, made)
    return len(missing)
