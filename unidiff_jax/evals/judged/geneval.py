"""GenEval: 553 prompts of six tasks, four pictures each, checked by a detector.

Layout (djghosh13/geneval, evaluation/evaluate_images.py): `<5 digits>/metadata.jsonl` with the
prompt's line, `<5 digits>/samples/<4 digits>.png`. Results are lines {"filename", "tag", "prompt",
"correct", ...}, one a picture. The overall score is the mean of the six tasks' (summary_scores.py).
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from etils import epath
from PIL import Image

from unidiff_jax.evals.judged.suite import (
    Judge,
    Prompt,
    Suite,
    judged_scores,
    read_json_lines,
    save_picture,
    usual_deviations,
)
from unidiff_jax.evals.results_schema import ReportError
from unidiff_jax.paths import written_whole

COUNT = 4
_FILE = re.compile(r"(\d+)[/\\]samples[/\\](\d+)\.png$")


def read_prompts(data: Path) -> list[Prompt]:
    """The lines of `evaluation_metadata.jsonl`, or of a file named so."""
    path = Path(data)
    path = path / "evaluation_metadata.jsonl" if path.is_dir() else path
    lines = read_json_lines(path)
    for number, line in enumerate(lines, start=1):
        if not {"tag", "prompt", "include"} <= set(line):
            raise ReportError(f"{path}:{number} needs the keys tag, prompt and include")
    return [
        Prompt(f"{i:05d}", line["prompt"], group=line["tag"], count=COUNT, extra=line)
        for i, line in enumerate(lines)
    ]


def files(prompt: Prompt) -> list[str]:
    """The pictures, and the prompt's own line."""
    pictures = [f"{prompt.id}/samples/{k:04d}.png" for k in range(prompt.count)]
    return [*pictures, f"{prompt.id}/metadata.jsonl"]


def write(folder: epath.Path, prompt: Prompt, pictures: Sequence[Image.Image]) -> None:
    """Pictures, then the metadata."""
    *names, metadata = files(prompt)
    for name, picture in zip(names, pictures, strict=True):
        save_picture(picture, folder / name)
    with written_whole(folder / metadata) as file:
        file.write_text(json.dumps(dict(prompt.extra)) + "\n", encoding="utf-8")


def import_results(results: Path, prompts: Sequence[Prompt], judge: Judge) -> list[dict[str, Any]]:
    """Overall and the tasks, from `results.jsonl` (the folder that holds it, or the file).

    A picture without a line counts as failed and is left out of its task's mean, as the official
    script does silently.
    """
    path = Path(results)
    path = path / "results.jsonl" if path.is_dir() else path
    known = {prompt.id: prompt for prompt in prompts}
    values: dict[str, dict[str, list[float | None]]] = {}
    for prompt in prompts:
        values.setdefault(prompt.group, {})[prompt.id] = [None] * prompt.count
    for number, line in enumerate(read_json_lines(path), start=1):
        where = f"{path}:{number}"
        match = _FILE.search(str(line.get("filename")))
        prompt = known.get(f"{int(match[1]):05d}") if match else None
        if prompt is None or int(match[2]) >= prompt.count:
            raise ReportError(f"{where}: {line.get('filename')!r} is no picture of the data")
        if line.get("prompt") != prompt.text or line.get("tag") != prompt.group:
            raise ReportError(f"{where}: prompt {prompt.id} reads otherwise in the data")
        if not isinstance(line.get("correct"), bool):
            raise ReportError(f"{where}: correct is {line.get('correct')!r}; expected true, false")
        places = values[prompt.group][prompt.id]
        if places[int(match[2])] is not None:
            raise ReportError(f"{where}: two results for {line['filename']!r}")
        places[int(match[2])] = float(line["correct"])
    return judged_scores(
        values,
        suite=SUITE.name,
        title=SUITE.title,
        protocol=SUITE.name,
        metric="overall",
        description="Share of pictures in which the detector finds what the prompt asks for, mean "
        "of the tasks' means. An item is a picture; the interval resamples prompts.",
        judge=judge,
        replies=[path],
        reference="text",
        each_group=True,
        deviations=usual_deviations(SUITE, prompts, judge),
    )


SUITE = Suite(
    name="geneval",
    title="GenEval",
    task="text_to_image",
    judge="Mask2Former Swin-S and CLIP ViT-L-14",
    num_prompts=553,
    read_prompts=read_prompts,
    files=files,
    write=write,
    import_results=import_results,
    command="python evaluation/evaluate_images.py EXPORT --outfile results.jsonl --model-path DIR",
)
