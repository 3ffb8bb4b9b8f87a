"""Contact sheet: items of every task as a person judges them, frames side by side, prompt below.

contact_sheet("data/subjects-64", size=64).save("sheet.png")
"""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.subjects.items import TASK_NAMES, SubjectScenes, num_frames
from unidiff_jax.evals.pictures import grid, to_rgb
from unidiff_jax.paths import AnyPath
from unidiff_jax.tasks import get_task

_CELL, _GAP, _LINE, _LINES = 96, 6, 15, 3


def contact_sheet(
    folder: AnyPath, *, size: int, split: str = "train", columns: int = 2, seed: int = 0
) -> Image.Image:
    """Random items of each task, a row a task, each with its prompt in the style `base`.

    Args:
      folder: made by `launch.subjects`.
      size: pixels a side of the pictures.
      split: train, validation or test.
      columns: items of each task.
      seed: of the subjects, and of the items' choices.

    Raises:
      SubjectError: no such folder or split, or its looks are smaller than the pictures.
    """
    source = SubjectScenes(folder, split=split, size=size)
    rows = []
    for name in TASK_NAMES:
        task, found = get_task(name), []
        for index in np.random.default_rng([task.id, seed]).permutation(len(source)).tolist():
            item = source.item(source[index], task, np.random.default_rng([task.id, seed, index]))
            if item is not None:
                pictures = [to_rgb(value) for _, value in task.fill(item)]
                found.append((pictures, f"{name}: {task.write(item, style='base')}"))
            if len(found) == columns:
                break
        rows.append(found)
    side = grid([[np.zeros((size, size, 3), np.uint8)]], cell=_CELL, gap=0).width + _GAP
    width = max(num_frames(get_task(name)) for name in TASK_NAMES) * side
    height = side + _LINES * _LINE + _GAP
    page = Image.new("RGB", (columns * width + _GAP, len(rows) * height + _GAP), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(size=12)
    for r, row in enumerate(rows):
        for c, (pictures, text) in enumerate(row):
            corner = (c * width, r * height)
            page.paste(grid([pictures], cell=_CELL, gap=_GAP), corner)
            lines = textwrap.wrap(text, width // 7, max_lines=_LINES, placeholder=" ...")
            for i, line in enumerate(lines):
                at = (corner[0] + _GAP, corner[1] + side + _GAP + i * _LINE)
                pen.text(at, line, fill="#111111", font=font)
    return page
