"""OmniContext: 400 prompts with one to three references, in eight tasks.

Layout (VectorSpaceLab/OmniGen2): `fullset/<task>/<key>.png`, 1024 x 1024 pixels. The script writes
`<task>/score.jsonl` with prompt following (PF) and subject consistency (SC) in [0, 10]; the overall
score is the mean of sqrt(PF SC), averaged over tasks. Tasks are read one by one: after a resumed
run `combined_score.jsonl` lacks the tasks that were done before. Replies that do not parse are
replaced by random numbers, with a reason that says so: `omnicontext/official` has them,
`omnicontext/strict` leaves them out and counts them.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unidiff_jax.evals.judged.suite import (
    Judge,
    Prompt,
    Suite,
    check_known,
    found_files,
    judged_scores,
    number_in,
    parquet_picture,
    read_json_lines,
    read_parquet,
    save_each,
    usual_deviations,
)
from unidiff_jax.evals.judged.viescore import GUESSED
from unidiff_jax.evals.results_schema import ReportError

METRICS = ("prompt_following", "subject_consistency", "overall")
_COLUMNS = ("key", "task_type", "instruction", "input_images")


def read_prompts(data: Path) -> list[Prompt]:
    """The rows of the data set's parquet files."""
    prompts = []
    for path, group, row, values in read_parquet(data, columns=_COLUMNS):
        given = tuple(
            parquet_picture(path, group, row, "input_images", place=place)
            for place in range(len(values["input_images"]))
        )
        task = values["task_type"]
        prompts.append(
            Prompt(f"{task}/{values['key']}", values["instruction"], given=given, group=task)
        )
    return prompts


def files(prompt: Prompt) -> list[str]:
    """One picture."""
    return [f"fullset/{prompt.id}.png"]


def import_results(results: Path, prompts: Sequence[Prompt], judge: Judge) -> list[dict[str, Any]]:
    """Both scores and the overall one, official and strict, from `**/<task>/score.jsonl`."""
    paths = found_files(results, "**/score.jsonl")
    lines: dict[str, Mapping[str, Any]] = {}
    for path in paths:
        for number, line in enumerate(read_json_lines(path), start=1):
            key = f"{line.get('task_type')}/{line.get('key')}"
            if key in lines:
                raise ReportError(f"{path}:{number}: two results for {key!r}")
            lines[key] = line
    check_known(list(lines), prompts={p.id: p for p in prompts}, where=str(results))
    usual = usual_deviations(SUITE, prompts, judge)
    entries = []
    for name, text in (
        ("official", "Replies that do not parse count with a random number."),
        ("strict", "Replies that do not parse are left out."),
    ):
        for metric in METRICS:
            values: dict[str, dict[str, list[float | None]]] = {}
            for p in prompts:
                value = _value(lines.get(p.id, {}), metric, strict=name == "strict")
                values.setdefault(p.group, {})[p.id] = [value]
            entries += judged_scores(
                values,
                suite=SUITE.name,
                title=SUITE.title,
                protocol=f"{SUITE.name}/{name}",
                metric=metric,
                description=f"Scores in [0, 10], mean of the tasks' means. {text}",
                judge=judge,
                replies=paths,
                deviations=[*usual, *([text] if name == "strict" else [])],
            )
    return entries


def _value(line: Mapping[str, Any], metric: str, *, strict: bool) -> float | None:
    pair = []
    for key in ("PF", "SC"):
        guessed = str(line.get(f"{key}_score_reason", "")).startswith(GUESSED)
        score = None if strict and guessed else line.get(f"{key}_score")
        pair.append(number_in(score, low=0, high=10))
    if None in pair:
        return None
    return dict(zip(METRICS, (*pair, math.sqrt(pair[0] * pair[1])), strict=True))[metric]


SUITE = Suite(
    name="omnicontext",
    title="OmniContext",
    task="customize",
    judge="gpt-4.1",
    num_prompts=400,
    read_prompts=read_prompts,
    files=files,
    write=save_each(files),
    import_results=import_results,
    command="python -m omnicontext.test_omnicontext_score --test_data OmniGen2/OmniContext "
    "--result_dir DIR --model_name MODEL, with EXPORT as DIR/MODEL",
)
