"""DPG-Bench: dense prompts, four pictures each in one 2 x 2 grid, questions answered by mPLUG.

Layout (TencentQQGYLab/ELLA, dpg_bench/compute_dpg_bench.py): `<id>.png`, nothing else in the
folder. The script appends `<path>, <score>..., <mean>` a prompt to its results file, then a
summary; every answer goes to `<results>_detail.txt`.

The script has two bugs (ELLA issues 60 and 61): it drops the first row of the questions, which
costs partiprompts97 one, and its *category* scores see only the last picture of a prompt. The
category scores are imported both ways, as `dpg_bench/official` and, from the answers of all
pictures, as `dpg_bench/all_pictures`. What was not asked cannot be repaired, and is counted.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    read_text,
    save_picture,
    usual_deviations,
)
from unidiff_jax.evals.results_schema import ReportError

COUNT = 4
_DETAIL = re.compile(r"(.*), (\(\d+, \d+, \d+, \d+\)), (.*), ([^,]*)")


class Question(NamedTuple):
    """A row of dpg_bench.csv; `asked` is False for the row that the script drops."""

    text: str
    category: str
    asked: bool


def read_prompts(data: Path) -> list[Prompt]:
    """`prompts/<id>.txt` and the questions of `dpg_bench.csv` (perhaps in a folder `dpg_bench`)."""
    data = Path(data)
    data = data if (data / "dpg_bench.csv").exists() else data / "dpg_bench"
    questions: dict[str, list[Question]] = {}
    path = data / "dpg_bench.csv"
    for number, row in enumerate(csv.DictReader(io.StringIO(read_text(path)))):
        try:
            category = row["tuple"].split("(")[0].split("-")[0].strip()
            question = Question(row["question_natural_language"].strip(), category, number > 0)
            questions.setdefault(row["item_id"], []).append(question)
        except (KeyError, AttributeError):
            raise ReportError(
                f"{path}:{number + 2}: needs item_id, tuple and question_natural_language"
            ) from None
    prompts = []
    for file in found_files(data / "prompts", "*.txt"):
        if file.stem not in questions:
            raise ReportError(f"{path} has no question for prompts/{file.name}")
        extra = {"questions": questions[file.stem]}
        prompts.append(Prompt(file.stem, read_text(file).strip(), count=COUNT, extra=extra))
    return prompts


def files(prompt: Prompt) -> list[str]:
    """One grid a prompt."""
    return [f"{prompt.id}.png"]


def write(folder: epath.Path, prompt: Prompt, pictures: Sequence[Image.Image]) -> None:
    """Four square pictures of one size, row by row; `--resolution` is their side."""
    side = pictures[0].width
    if len(pictures) != COUNT or any(picture.size != (side, side) for picture in pictures):
        sizes = [picture.size for picture in pictures]
        raise ValueError(f"{prompt.id}: a grid takes {COUNT} square pictures of one size: {sizes}")
    grid = Image.new("RGB", (2 * side, 2 * side))
    for place, picture in enumerate(pictures):
        grid.paste(picture.convert("RGB"), (place % 2 * side, place // 2 * side))
    save_picture(grid, folder / files(prompt)[0])


def import_results(results: Path, prompts: Sequence[Prompt], judge: Judge) -> list[dict[str, Any]]:
    """The score, and the categories both ways, from `*_results.txt` and its `_detail.txt`.

    The detail is needed for the categories alone; without it they are left out. A prompt without a
    line failed: the script drops pictures silently where an exception is raised.
    """
    path = Path(results)
    if path.is_dir():
        found = found_files(path, "*_results.txt")
        if len(found) > 1:
            raise ReportError(f"{path} has {len(found)} results: name one, e.g. {found[-1]}")
        path = found[0]
    by_id = {prompt.id: prompt for prompt in prompts}
    means, printed = _read_results(path)
    check_known(list(means), prompts=by_id, where=str(path))
    if means and printed is not None:
        mean = 100 * sum(means.values()) / len(means)
        if abs(mean - printed) > 1e-6:
            raise ReportError(f"{path} says DPG-Bench score {printed}, but its lines give {mean}")
    common = {
        "suite": SUITE.name,
        "title": SUITE.title,
        "judge": judge,
        "reference": "text",
        "over": "items",
    }
    deviations = usual_deviations(SUITE, prompts, judge)
    scores = {key: [100 * means[key] if key in means else None] for key in by_id}
    entries = judged_scores(
        {"all": scores},
        protocol=f"{SUITE.name}/official",
        metric="overall",
        description="Share of questions answered yes, 0 where a question that it depends on is "
        "answered no; mean over questions, pictures and prompts. The first question of "
        "partiprompts97 is not asked (ELLA issue 60).",
        replies=[path],
        deviations=deviations,
        failures="left out of the mean, as the official script does",
        **common,
    )
    detail = path.with_name(path.name.replace(".txt", "_detail.txt"))
    if not detail.exists():
        return entries
    answers = _read_detail(detail, by_id)
    for name, places, repaired in (
        ("official", (COUNT - 1,), False),
        ("all_pictures", range(COUNT), True),
    ):
        values: dict[str, dict[str, list[float | None]]] = {}
        for prompt in prompts:
            for place in places:
                given = answers.get((prompt.id, place), [])
                asked = iter(given)
                for question in prompt.extra["questions"]:
                    if not question.asked and not repaired:
                        continue
                    answer = next(asked, None) if question.asked else None
                    group = values.setdefault(question.category, {})
                    group.setdefault(prompt.id, []).append(answer)
        _, *categories = judged_scores(
            values,
            protocol=f"{SUITE.name}/{name}",
            metric="categories",
            description="Share of a category's questions answered yes, "
            + ("all pictures." if repaired else "last picture of each prompt (ELLA issue 61)."),
            replies=[path, detail],
            each_group=True,
            deviations=[*deviations, *(["Categories over all pictures."] if repaired else [])],
            failures="left out: not asked, or dropped by the script",
            **common,
        )
        entries += categories
    return entries


def _read_results(path: Path) -> tuple[dict[str, float], float | None]:
    """Mean score in [0, 1] of each prompt, and the printed total."""
    means: dict[str, float] = {}
    printed = None
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.startswith("DPG-Bench score:"):
            printed = number_in(line.partition(":")[2], low=0, high=100)
        fields = line.split(".png, ")
        if len(fields) != 2:
            continue
        scores = [number_in(text, low=0, high=1) for text in fields[1].split(", ")]
        if len(scores) != COUNT + 1 or None in scores:
            raise ReportError(f"{path}:{number}: expected {COUNT} scores and their mean: {line!r}")
        key = Path(fields[0]).name
        if key in means:
            raise ReportError(f"{path}:{number}: two results for {key!r}")
        means[key] = scores[-1]
    return means, printed


def _read_detail(
    path: Path, prompts: Mapping[str, Prompt]
) -> dict[tuple[str, int], list[float | None]]:
    """100 for yes and 0 for another answer, of each (prompt, picture), in the questions' order.

    A picture whose questions are not those of the data, such as one where the script broke off,
    has none.
    """
    found: dict[tuple[str, int], list[tuple[str, str]]] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        match = _DETAIL.fullmatch(line)
        if match is None:
            raise ReportError(f"{path}:{number}: expected 'path, (crop), question, answer': {line}")
        left, top, *_ = (int(x) for x in match[2].strip("()").split(", "))
        key = (Path(match[1]).name.split(".")[0], 2 * (top > 0) + (left > 0))
        found.setdefault(key, []).append((match[3].strip(), match[4]))
    check_known([key for key, place in found if place == 0], prompts=prompts, where=str(path))
    answers = {}
    for (key, place), lines in found.items():
        asked = [q.text for q in prompts[key].extra["questions"] if q.asked]
        if [text for text, _ in lines] == asked:
            answers[key, place] = [100.0 * (answer == "yes") for _, answer in lines]
    return answers


SUITE = Suite(
    name="dpg_bench",
    title="DPG-Bench",
    task="text_to_image",
    judge="mPLUG-large VQA",
    num_prompts=None,
    read_prompts=read_prompts,
    files=files,
    write=write,
    import_results=import_results,
    command="accelerate launch dpg_bench/compute_dpg_bench.py --image-root-path EXPORT "
    "--resolution SIDE --pic-num 4",
)
