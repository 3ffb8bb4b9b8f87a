"""GEdit-Bench: 606 edits of eleven kinds, asked in English and in Chinese.

Layout (stepfun-ai/Step1X-Edit, GEdit-Bench): `fullset/<kind>/<en|cn>/<key>.png`, the result, and
`<key>_SRCIMG.png`, the input. The script writes a CSV a kind, `<model>_<kind>_<all|en|cn>_vie_score
.csv`, with the smallest semantics (SC) and quality (PQ) of each item; O is the mean of sqrt(SC PQ),
all averaged over kinds, on all items and on the "intersection" that every compared model answered.

A reply that does not parse is replaced by a random number, and the CSV does not tell which. Who
saves the replies as `replies.jsonl` beside the CSVs, lines {"key", "task_type",
"instruction_language", "sc", "pq"} with the raw texts, gets `.../strict` too, without the guesses.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath
from PIL import Image

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
    read_text,
    save_picture,
    usual_deviations,
)
from unidiff_jax.evals.judged.viescore import parse_reply
from unidiff_jax.evals.results_schema import ReportError

KINDS = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
LANGUAGES = {"en": "English", "cn": "Chinese"}
METRICS = ("semantics", "quality", "overall")
_COLUMNS = ("task_type", "key", "instruction", "instruction_language", "Intersection_exist")


def read_prompts(data: Path) -> list[Prompt]:
    """The rows of the data set's parquet files."""
    prompts = []
    for path, group, row, values in read_parquet(data, columns=_COLUMNS):
        kind, language = values["task_type"], values["instruction_language"]
        if kind not in KINDS or language not in LANGUAGES:
            raise ReportError(f"{path}: {kind!r} in {language!r} is no kind and language of GEdit")
        prompts.append(
            Prompt(
                f"{kind}/{language}/{values['key']}",
                values["instruction"],
                given=(parquet_picture(path, group, row, "input_image", place=None),),
                group=kind,
                extra={
                    "language": language,
                    "intersection": bool(values["Intersection_exist"]),
                },
            )
        )
    return prompts


def files(prompt: Prompt) -> list[str]:
    """The result and the input."""
    return [f"fullset/{prompt.id}.png", f"fullset/{prompt.id}_SRCIMG.png"]


def write(folder: epath.Path, prompt: Prompt, pictures: Sequence[Image.Image]) -> None:
    """The judge sees both at 512 x 512 pixels' area, whatever their sizes."""
    (result,) = pictures
    name, source = files(prompt)
    save_picture(prompt.given[0].read(), folder / source)
    save_picture(result, folder / name)


def import_results(results: Path, prompts: Sequence[Prompt], judge: Judge) -> list[dict[str, Any]]:
    """Semantics, quality and overall of each language that has results, full set and intersection.

    Raises:
      ReportError: a kind without results, or results that the data do not have.
    """
    paths = found_files(results, "**/*_vie_score.csv")
    by_id = {prompt.id: prompt for prompt in prompts}
    scores = _read_csvs(paths)
    check_known(list(scores), prompts=by_id, where=str(results))
    entries = _entries(scores, prompts, judge=judge, replies=paths, strict=False)
    replies = Path(results) / "replies.jsonl"
    if replies.exists():
        parsed = _read_replies(replies)
        check_known(list(parsed), prompts=by_id, where=str(replies))
        entries += _entries(parsed, prompts, judge=judge, replies=[*paths, replies], strict=True)
    return entries


Pairs = Mapping[str, tuple[float | None, float | None]]


def _read_csvs(paths: Sequence[Path]) -> Pairs:
    scores = {}
    for path in paths:
        stem = path.name.removesuffix("_vie_score.csv").rpartition("_")[0]
        kinds = [kind for kind in KINDS if stem.endswith(f"_{kind}")]
        if len(kinds) != 1:
            raise ReportError(f"{path}: the name must be <model>_<kind>_<language>_vie_score.csv")
        for row in csv.DictReader(io.StringIO(read_text(path))):
            try:
                key = f"{kinds[0]}/{row['instruction_language']}/{row['key']}"
                pair = (row["sementics_score"], row["quality_score"])
            except KeyError as error:
                raise ReportError(f"{path} has no column {error}") from None
            if key in scores:
                raise ReportError(f"{path}: two results for {key!r}")
            scores[key] = tuple(number_in(value, low=0, high=10) for value in pair)
    return scores


def _read_replies(path: Path) -> Pairs:
    scores = {}
    for number, line in enumerate(read_json_lines(path), start=1):
        try:
            key = f"{line['task_type']}/{line['instruction_language']}/{line['key']}"
            scores[key] = (parse_reply(line["sc"]), parse_reply(line["pq"]))
        except (KeyError, TypeError, AttributeError):
            raise ReportError(
                f"{path}:{number} needs key, task_type, instruction_language, sc and pq"
            ) from None
    return scores


def _entries(
    scores: Pairs, prompts: Sequence[Prompt], *, judge: Judge, replies: Sequence[Path], strict: bool
) -> list[dict[str, Any]]:
    entries = []
    deviations = usual_deviations(SUITE, prompts, judge)
    text = "Replies that do not parse are replaced by random numbers, uncounted."
    if strict:
        text = "Replies that do not parse are left out and counted."
        deviations.append(text)
    for language in LANGUAGES:
        asked = [p for p in prompts if p.extra["language"] == language]
        if not any(prompt.id in scores for prompt in asked):
            continue
        for name in ("fullset", "intersection"):
            chosen = [p for p in asked if name == "fullset" or p.extra["intersection"]]
            for metric in METRICS:
                values: dict[str, dict[str, list[float | None]]] = {}
                for p in chosen:
                    pair = scores.get(p.id, (None, None))
                    values.setdefault(p.group, {})[p.id] = [_value(pair, metric)]
                entries += judged_scores(
                    values,
                    suite=SUITE.name,
                    title=f"GEdit-Bench, {LANGUAGES[language]}, {name}",
                    protocol=f"{SUITE.name}/{language}/{name}" + ("/strict" if strict else ""),
                    metric=metric,
                    description=f"Scores in [0, 10], mean of the kinds' means. {text}",
                    judge=judge,
                    replies=replies,
                    deviations=deviations,
                )
    if not entries:
        raise ReportError("no result is of a prompt of the data")
    return entries


def _value(pair: tuple[float | None, float | None], metric: str) -> float | None:
    semantics, quality = pair
    if semantics is None or quality is None:
        return None
    return {
        "semantics": semantics,
        "quality": quality,
        "overall": math.sqrt(semantics * quality),
    }[metric]


SUITE = Suite(
    name="gedit_bench",
    title="GEdit-Bench",
    task="edit",
    judge="gpt-4.1",
    num_prompts=1212,
    read_prompts=read_prompts,
    files=files,
    write=write,
    import_results=import_results,
    command="python test_gedit_score.py --model_name MODEL --edited_images_dir DIR --save_dir "
    "RESULTS --backbone gpt4o, with EXPORT as DIR/MODEL",
)
