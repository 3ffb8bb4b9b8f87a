"""ImgEdit-Bench, basic edits: 737 edits of nine types, three integers from 1 to 5 each.

Layout (PKU-YuanGroup/ImgEdit, Benchmark/Basic): `<key>.png`. The script writes `result.json`,
{key: the judge's reply}, beside the pictures; a second one keeps the lines that end in ": " and an
integer, so that "4.5" or "5/5" vanish and the mean is over what is left. Both are imported: as
`imgedit_bench/official`, and as `imgedit_bench/strict`, where a reply without exactly three
integers from 1 to 5 has failed. The official code has no overall number; here it is the mean over
items.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unidiff_jax.evals.judged.suite import (
    Judge,
    Prompt,
    Suite,
    check_known,
    judged_scores,
    picture_file,
    read_json,
    save_each,
    usual_deviations,
)
from unidiff_jax.evals.results_schema import ReportError

NUM_SCORES = 3


def read_prompts(data: Path) -> list[Prompt]:
    """`basic_edit.json`, {key: {"id", "prompt", "edit_type"}}; `id` is a picture beside it."""
    path = Path(data)
    path = path / "basic_edit.json" if path.is_dir() else path
    prompts = []
    for key, item in read_json(path).items():
        if not {"id", "prompt", "edit_type"} <= set(item):
            raise ReportError(f"{path}: {key!r} needs id, prompt and edit_type")
        given = (picture_file(path.parent, item["id"]),)
        prompts.append(Prompt(key, item["prompt"], given=given, group=item["edit_type"]))
    return prompts


def files(prompt: Prompt) -> list[str]:
    """One picture."""
    return [f"{prompt.id}.png"]


def official_score(reply: str) -> float | None:
    """The mean of a reply's integer lines to two decimals, as the official code has it."""
    scores = _integers(reply)
    return round(sum(scores) / len(scores), 2) if scores else None


def strict_score(reply: str) -> float | None:
    """The mean of a reply's three integers from 1 to 5; None for any other reply."""
    scores = _integers(reply)
    valid = len(scores) == NUM_SCORES and all(1 <= score <= 5 for score in scores)
    return sum(scores) / NUM_SCORES if valid else None


def _integers(reply: str) -> list[int]:
    parts = [line.strip().split(": ") for line in reply.splitlines()]
    return [int(p[1]) for p in parts if len(p) == 2 and p[1].isdecimal()]


def import_results(results: Path, prompts: Sequence[Prompt], judge: Judge) -> list[dict[str, Any]]:
    """The mean over items and each type's, official and strict, from `result.json`."""
    path = Path(results)
    path = path / "result.json" if path.is_dir() else path
    replies = read_json(path)
    check_known(list(replies), prompts={p.id: p for p in prompts}, where=str(path))
    usual = usual_deviations(SUITE, prompts, judge)
    entries = []
    for name, score_of, text in (
        ("official", official_score, "Lines that end in an integer are averaged, others dropped."),
        ("strict", strict_score, "Replies without three integers from 1 to 5 are left out."),
    ):
        values: dict[str, dict[str, list[float | None]]] = {}
        for prompt in prompts:
            reply = replies.get(prompt.id)  # {"error": ...} where the judge did not answer
            score = score_of(reply) if isinstance(reply, str) else None
            values.setdefault(prompt.group, {})[prompt.id] = [score]
        entries += judged_scores(
            values,
            suite=SUITE.name,
            title=SUITE.title,
            protocol=f"{SUITE.name}/{name}",
            metric="overall",
            description=f"Mean of a reply's scores from 1 to 5, mean over items. {text}",
            judge=judge,
            replies=[path],
            over="items",
            each_group=True,
            deviations=[*usual, *([text] if name == "strict" else [])],
        )
    return entries


SUITE = Suite(
    name="imgedit_bench",
    title="ImgEdit-Bench, basic",
    task="edit",
    judge="gpt-4o",
    num_prompts=737,
    read_prompts=read_prompts,
    files=files,
    write=save_each(files),
    import_results=import_results,
    command="python basic_bench.py --result_img_folder EXPORT --edit_json basic_edit.json "
    "--origin_img_root DATA --prompts_json prompts.json",
)
