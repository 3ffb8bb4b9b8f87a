"""KRIS-Bench: 1267 edits that need knowledge, in 22 categories.

Layout (mercurystraw/Kris_Bench): `<category>/<id>.jpg` below `results/<model>`. The scripts write
`<category>/metrics.json`, {id: {"consistency_score", "consistency_reasoning", ...}}, with integers
from 1 to 5 and null. A reply without JSON goes to a fallback that takes the first digit from 1 to 5
that it finds; its reasoning is then null. Both are imported: `kris_bench/official` with every
score, `kris_bench/strict` with those that come with a reasoning. The scripts compute no total.
"""

from collections.abc import Sequence
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
    picture_file,
    read_json,
    save_each,
    usual_deviations,
)
from unidiff_jax.evals.results_schema import ReportError

METRICS = ("consistency", "instruction", "quality", "knowledge")


def read_prompts(data: Path) -> list[Prompt]:
    """`<category>/annotation.json`, {id: {"ori_img", "ins_en" or "instruction"}}."""
    prompts = []
    for path in found_files(data, "*/annotation.json"):
        for key, item in read_json(path).items():
            text = item.get("instruction") or item.get("ins_en")
            names = item.get("ori_img")
            if not text or not names:
                raise ReportError(f"{path}: {key!r} needs ori_img, and instruction or ins_en")
            names = names if isinstance(names, list) else [names]
            given = tuple(picture_file(path.parent, name) for name in names)
            group = path.parent.name
            prompts.append(Prompt(f"{group}/{key}", text, given=given, group=group))
    return prompts


def files(prompt: Prompt) -> list[str]:
    """One JPEG."""
    return [f"{prompt.id}.jpg"]


def import_results(results: Path, prompts: Sequence[Prompt], judge: Judge) -> list[dict[str, Any]]:
    """Each metric's mean over items, official and strict, from `<category>/metrics.json`.

    A category counts for the metrics that any of its records has.
    """
    paths = found_files(results, "*/metrics.json")
    records = {f"{p.parent.name}/{key}": r for p in paths for key, r in read_json(p).items()}
    check_known(list(records), prompts={p.id: p for p in prompts}, where=str(results))
    asked = {
        metric: {key.partition("/")[0] for key, r in records.items() if f"{metric}_score" in r}
        for metric in METRICS
    }
    usual = usual_deviations(SUITE, prompts, judge)
    judged = {path.parent.name for path in paths}
    absent = sorted({prompt.group for prompt in prompts} - judged)
    if absent:
        usual.append(f"Categories without results: {', '.join(absent)}.")
    entries = []
    for name, text in (
        ("official", "Replies without JSON count with the first digit in them."),
        ("strict", "Replies without JSON are left out."),
    ):
        for metric in METRICS:
            values: dict[str, dict[str, list[float | None]]] = {}
            for prompt in prompts:
                if prompt.group in asked[metric]:
                    record = records.get(prompt.id, {})
                    score = number_in(record.get(f"{metric}_score"), low=1, high=5)
                    if name == "strict" and not record.get(f"{metric}_reasoning"):
                        score = None
                    values.setdefault(prompt.group, {})[prompt.id] = [score]
            if not values:
                continue
            entries += judged_scores(
                values,
                suite=SUITE.name,
                title=SUITE.title,
                protocol=f"{SUITE.name}/{name}",
                metric=metric,
                description=f"Scores from 1 to 5, mean over items. {text}",
                judge=judge,
                replies=paths,
                over="items",
                deviations=[*usual, *([text] if name == "strict" else [])],
            )
    return entries


SUITE = Suite(
    name="kris_bench",
    title="KRIS-Bench",
    task="edit",
    judge="gpt-4o",
    num_prompts=1267,
    read_prompts=read_prompts,
    files=files,
    write=save_each(files),
    import_results=import_results,
    command="python metrics_common.py --models MODEL, and the four others, with EXPORT as "
    "results/MODEL",
)
