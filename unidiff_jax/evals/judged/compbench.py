"""T2I-CompBench and T2I-CompBench++: eight categories of prompts, ten pictures each.

Layout (Karine-Huang/T2I-CompBench): a folder a category, `<category>/samples/<prompt>_<6 digits>
.png`. **The file name is the prompt**: the scripts split it at "_", sort by the number, and the
3-in-1 score takes ten in a row for one prompt. Each category's script writes a `vqa_result.json`
of {"question_id", "answer"} below the category's folder.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unidiff_jax.evals.judged.suite import (
    Judge,
    Prompt,
    Suite,
    judged_scores,
    number_in,
    read_json,
    read_text,
    save_each,
    usual_deviations,
)
from unidiff_jax.evals.results_schema import ReportError

COUNT = 10
NUM_PROMPTS = 300
"""Of each category."""

RESULTS = {
    "color": "annotation_blip",
    "shape": "annotation_blip",
    "texture": "annotation_blip",
    "spatial": "labels/annotation_obj_detection_2d",
    "3d_spatial": "labels/annotation_obj_detection_3d",
    "numeracy": "annotation_num",
    "non_spatial": "annotation_clip",
    "complex": "annotation_3_in_1",
}
"""Where the script of each category writes its `vqa_result.json`."""

_MAX_NAME = 255 - len("_000000.partial.png")


def read_prompts(data: Path) -> list[Prompt]:
    """The lines of `<category>_val.txt`, of the categories that are there.

    Raises:
      ReportError: no category, or a prompt that cannot be a file's name.
    """
    prompts = []
    for category in RESULTS:
        path = Path(data) / f"{category}_val.txt"
        if not path.exists():
            continue
        for i, text in enumerate(line.strip() for line in read_text(path).splitlines()):
            if not text or "_" in text or "/" in text or len(text.encode()) > _MAX_NAME:
                raise ReportError(
                    f"{path}:{i + 1}: a prompt is part of a file's name, so it cannot be empty, "
                    f"hold '_' or '/', or have more than {_MAX_NAME} bytes: {text[:60]!r}"
                )
            prompt = Prompt(f"{category}/{i:04d}", text, group=category, count=COUNT)
            prompts.append(prompt._replace(extra={"first": i * COUNT}))
    if not prompts:
        names = ", ".join(f"{category}_val.txt" for category in RESULTS)
        raise ReportError(f"{data} has none of {names}")
    return prompts


def files(prompt: Prompt) -> list[str]:
    """Numbered through the category."""
    numbers = range(prompt.extra["first"], prompt.extra["first"] + prompt.count)
    return [f"{prompt.group}/samples/{prompt.text}_{number:06d}.png" for number in numbers]


def import_results(results: Path, prompts: Sequence[Prompt], judge: Judge) -> list[dict[str, Any]]:
    """One entry a category that has results. The suite defines no mean over categories."""
    entries = []
    for category, folder in RESULTS.items():
        asked = [prompt for prompt in prompts if prompt.group == category]
        path = Path(results) / category / folder / "vqa_result.json"
        if not asked or not path.exists():
            continue
        values: dict[int, float | None] = {}
        for line in read_json(path):
            number = line.get("question_id") if isinstance(line, dict) else None
            if not isinstance(number, int) or number in values:
                raise ReportError(f"{path}: question_id {number!r} is missing or given twice")
            values[number] = number_in(line.get("answer"), low=-1.0, high=1.0)
        places = {p.id: range(p.extra["first"], p.extra["first"] + p.count) for p in asked}
        unknown = set(values) - {number for numbers in places.values() for number in numbers}
        if unknown:
            raise ReportError(f"{path}: question_id {min(unknown)} is no picture of the data")
        entries += judged_scores(
            {category: {key: [values.get(n) for n in ns] for key, ns in places.items()}},
            suite=SUITE.name,
            title=f"T2I-CompBench++, {category}",
            protocol=f"{SUITE.name}/{category}",
            metric=category,
            description="Mean over pictures of the category's official score. An item is a "
            "picture; the interval resamples prompts.",
            judge=judge,
            replies=[path],
            reference="text",
            deviations=[
                *usual_deviations(SUITE, asked, judge),
                *([] if len(asked) == NUM_PROMPTS else [f"{len(asked)} prompts, not 300."]),
            ],
            split="val",
        )
    if not entries:
        raise ReportError(f"{results} has no <category>/.../vqa_result.json of {list(RESULTS)}")
    return entries


SUITE = Suite(
    name="t2i_compbench",
    title="T2I-CompBench++",
    task="text_to_image",
    judge="BLIP-VQA, UniDet and CLIP ViT-B/32",
    num_prompts=None,
    read_prompts=read_prompts,
    files=files,
    write=save_each(files),
    import_results=import_results,
    command="python BLIP_vqa.py --out_dir EXPORT/color; python 2D_spatial_eval.py --outpath "
    "EXPORT/spatial; and so on, a script a category",
)
