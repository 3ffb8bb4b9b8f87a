"""RefCOCO, RefCOCO+ and RefCOCOg as Hugging Face has them, in parquet.

| data sets | pictures | outline of an object |
|---|---|---|
| `jxu124/refcoco`, `refcocoplus`, `refcocog` | COCO's, beside the files | COCO's annotation |
| `lmms-lab/RefCOCO`, `RefCOCOplus`, `RefCOCOg` | in the files | one polygon |

A row is an object with its sentences. The columns tell which of the two it is.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.parquet import ParquetTable
from unidiff_jax.evals.benchmarks.base import (
    BenchmarkError,
    Item,
    Picture,
    fields_of,
    picture_file,
)
from unidiff_jax.outside import InputError, decode_object, decode_picture

PLACES = ("data", "", "{name}/data", "{name}")
"""Where the files of a set may lie in `--data`."""

OTHER_NAMES = {"val": "validation", "testA": "test"}
"""What `jxu124` calls a split."""

ANNOTATED = ("sentences", "raw_anns", "raw_image_info", "image_path")
PICTURED = ("question_id", "image", "answer", "segmentation", "bbox", "iscrowd")

MIXED = {("refcoco", "val"): 3811, ("refcocog", "val"): 2573}
"""Objects of splits where `lmms-lab` has 5,000 more, 8,811 and 7,573: as many as Google's `val`."""

_OFF = 2.0
"""Pixels by which a polygon may miss the box of its object."""


def find_table(folder: epath.Path, split: str, *, name: str) -> ParquetTable | None:
    """The rows of a split; None where the folder has no such files.

    Raises:
      BenchmarkError: a damaged file, or one without the columns of either release.
    """
    for stem in (split, OTHER_NAMES.get(split, split)):
        for place in PLACES:
            where = folder / place.format(name=name)
            pattern = f"{stem}-*.parquet"
            if not where.is_dir() or not any(where.glob(pattern)):
                continue
            try:
                table = ParquetTable(f"{where}/{pattern}")
            except SourceError as error:
                raise BenchmarkError(str(error)) from None
            known = (ANNOTATED,) if stem != split else (ANNOTATED, PICTURED)
            if not any(set(columns) <= set(table.columns) for columns in known):
                wanted = " nor ".join(", ".join(columns) for columns in known)
                raise BenchmarkError(
                    f"{where}/{pattern} has not the columns {wanted}; it has "
                    f"{', '.join(table.columns)}"
                )
            return table
    return None


def read_table(
    table: ParquetTable, split: str, *, name: str, images: epath.Path | None
) -> list[Item]:
    """One item a sentence.

    Args:
      table: from `find_table`.
      split: of the set.
      name: of the set.
      images: COCO's `train2014`; None where the folder has none.

    Raises:
      BenchmarkError: a row that cannot be read, or pictures that are not there.
    """
    is_annotated = set(ANNOTATED) <= set(table.columns)
    try:
        if not is_annotated:
            return _read_pictured(table, split, name=name)
        if images is None:
            raise BenchmarkError(
                f"{table.name(0)} names pictures and does not hold them; put COCO's train2014 "
                "beside the parquet files"
            )
        return list(_read_annotated(table, split, images))
    except (SampleError, InputError) as error:
        raise BenchmarkError(str(error)) from None


def _read_annotated(table: ParquetTable, split: str, images: epath.Path) -> Iterator[Item]:
    for index in _rows(table):
        row, where = table.row(index, ANNOTATED), table.name(index)
        annotation = decode_object(row["raw_anns"], name=f"{where}: raw_anns")
        info = decode_object(row["raw_image_info"], name=f"{where}: raw_image_info")
        (outline,) = fields_of(annotation, "segmentation", where=f"{where}: raw_anns")
        width, height = fields_of(info, "width", "height", where=f"{where}: raw_image_info")
        picture = picture_file(images, str(row["image_path"]).split("/")[-1])
        for sentence in row["sentences"]:
            number, words = fields_of(sentence, "sent_id", "sent", where=f"{where}: sentences")
            yield Item(
                id=f"{split}/{number}",
                given={"image": picture},
                text={"expression": words},
                size=(width, height),
                truth={"segmentation": outline},
            )


def _read_pictured(table: ParquetTable, split: str, *, name: str) -> list[Item]:
    words = [column for column in PICTURED if column != "image"]  # pictures later: less to keep
    every = [table.row(index, words) for index in range(len(table))]
    crowds = sum(len(row["answer"]) for row in every if row["iscrowd"])
    found: list[tuple[int, dict[str, Any], Picture, tuple[int, int]]] = []
    for index in _rows(table):
        if every[index]["iscrowd"]:  # an area, whose run lengths are no polygon
            continue
        picture = _picture(table, index, name=f"{split}/{index:05d}")
        found.append((index, every[index], picture, picture.open().size))
    notes = ["The re-release has one polygon an object, and an object may have several parts."]
    off = sum(_misses_box(row["segmentation"], row["bbox"]) for _, row, _, _ in found)
    if off:
        notes.append(f"{off} polygons do not reach the sides of their object's box.")
    if crowds:
        notes.append(f"{crowds} sentences of crowds are left out.")
    usual = MIXED.get((name, split))
    if usual and len(table) > usual:
        notes.append(
            f"The re-release has {len(table):,} objects in {split} and the split has {usual:,}: "
            "another split's are among them."
        )
    return [
        Item(
            id=f"{split}/{index:05d}_{number}",
            given={"image": picture},
            text={"expression": sentence},
            size=size,
            truth={"segmentation": [row["segmentation"]], "deviations": notes},
        )
        for index, row, picture, size in found
        for number, sentence in enumerate(row["answer"])
    ]


def _rows(table: ParquetTable) -> Iterator[int]:
    yield from tqdm(range(len(table)), unit="object", desc="read", mininterval=1.0)


def _picture(table: ParquetTable, index: int, *, name: str) -> Picture:
    """A picture that stays in its file until it is opened."""
    return Picture(name, lambda: decode_picture(table.row(index, ("image",))["image"], name=name))


def _misses_box(polygon: Sequence[float], box: Sequence[float]) -> bool:
    """Whether a polygon's extent is not the box (x, y, width, height)."""
    points = np.asarray(polygon, np.float64)
    if len(points) < 6 or len(points) % 2 or len(box) != 4:
        return True
    corners = points.reshape(-1, 2)
    x, y, width, height = box
    extent = np.concatenate([corners.min(axis=0), corners.max(axis=0)])
    return bool(np.abs(extent - [x, y, x + width, y + height]).max() > _OFF)
