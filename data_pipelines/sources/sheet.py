"""Contact sheets: built samples as a person judges them, frames side by side and the prompt below.

contact_sheet("data/pairs", tasks=["insert", "segment"], rows=4, seed=0).save("sheet.png")
"""

import collections
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.sources.base import RawSource, SampleError
from data_pipelines.sources.pairs import BUILDERS, PairSource
from unidiff_jax.evals.pictures import grid
from unidiff_jax.frames import frame_names
from unidiff_jax.paths import AnyPath
from unidiff_jax.tasks import Task, get_task
from unidiff_jax.text import FRAME_NAMES
from unidiff_jax.types import Role

CELL = 256
"""Pixels of a frame's longer side; larger frames are scaled down, smaller ones whole times up."""

TRIES = 32
"""Samples that are looked at, at most, for each one that is shown."""

_PER_LINE = 4
_LINE = 16
_GAP = 6
_NAMES = {number: name for name, number in FRAME_NAMES.items()}
_ROLES = {role: f"({role.name.lower()})" for role in Role if role != Role.NONE}


def contact_sheet(
    folder: AnyPath, *, tasks: Sequence[str] = tuple(BUILDERS), rows: int = 4, seed: int = 0
) -> Image.Image:
    """Random samples of tasks from a folder of curated pairs.

    Args:
      folder: see `curate.pairs.open_pairs`.
      tasks: names of tasks of `BUILDERS`.
      rows: samples of each task.
      seed: of which pairs are taken, and of the samples' choices.

    Raises:
      PairError, SourceError, KeyError: no such folder or task.
    """
    sources = {name: PairSource(folder, task=get_task(name)) for name in tasks}
    return _stack(
        [
            draw_sheet(source, task=get_task(name), rows=rows, seed=seed)
            for name, source in sources.items()
        ]
    )


def draw_sheet(source: RawSource, *, task: Task, rows: int, seed: int = 0) -> Image.Image:
    """Random samples of one task. The title counts the samples that could not be used, by reason.

    Args:
      source: has the task's fields.
      task: of the samples; without cameras.
      rows: samples that are shown; fewer where most of the source is of no use.
      seed: of which samples are taken, and of their choices.
    """
    order = np.random.default_rng(seed).permutation(len(source))[: rows * TRIES]
    parts, unused = [], collections.Counter()
    for index in order.tolist():
        if len(parts) == rows:
            break
        try:
            sample = source.sample(index, np.random.default_rng([seed, index]))
        except SampleError as error:
            unused[str(error)] += 1
            continue
        parts.append(draw_sample(sample, task=task, title=f"sample {index}"))
    title = f"{task.name}: {len(parts)} of {len(parts) + unused.total()} samples"
    reasons = [f"{count} unused: {reason}" for reason, count in unused.most_common()]
    lines = [_stack(parts[i : i + _PER_LINE], axis=1) for i in range(0, len(parts), _PER_LINE)]
    return _stack([_write("\n".join([title, *reasons]), fill="#991111"), *lines])


def draw_sample(sample: Mapping[str, Any], *, task: Task, title: str = "") -> Image.Image:
    """The frames of a sample with their names in the prompt, fields and roles, and the prompt."""
    frames = task.fill({frame.field: sample[frame.field] for frame in task.frames})
    names = frame_names(task, len(frames))
    titles = [
        " ".join(filter(None, (_NAMES.get(name), frame.field, _ROLES.get(frame.role))))
        for name, (frame, _) in zip(names, frames, strict=True)
    ]
    row = [np.asarray(_shrink(picture)) for _, picture in frames]
    captions = [title] if title else []
    pictures = grid([row], columns=titles, captions=captions, cell=CELL)
    return _stack([pictures, _write(task.write(sample, style="context"), width=pictures.width)])


def _shrink(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((CELL, CELL))
    return small


def _write(text: str, *, width: int = 3 * CELL, fill: str = "#111111") -> Image.Image:
    """Text on white, in lines of about `width` pixels."""
    font = ImageFont.load_default(size=12)
    length = max(20, width // 7)
    lines = [line for part in text.split("\n") for line in textwrap.wrap(part, length) or [""]]
    longest = round(max(map(font.getlength, lines))) + 2 * _GAP
    page = Image.new("RGB", (longest, len(lines) * _LINE + 2 * _GAP), "white")
    pen = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        pen.text((_GAP, _GAP + number * _LINE), line, fill=fill, font=font)
    return page


def _stack(parts: Sequence[Image.Image], *, axis: int = 0) -> Image.Image:
    """Pictures below each other (axis 0) or beside each other (1), on white."""
    along, across = (1, 0) if axis == 0 else (0, 1)  # of (width, height)
    size = [0, 0]
    size[along] = sum(part.size[along] for part in parts)
    size[across] = max(part.size[across] for part in parts)
    page = Image.new("RGB", tuple(size), "white")
    corner = [0, 0]
    for part in parts:
        page.paste(part, tuple(corner))
        corner[along] += part.size[along]
    return page
