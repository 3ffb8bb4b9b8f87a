"""Which fields a prepared data set fills, known by its features.

| features | as in | fields |
|---|---|---|
| `video`, `segmentations`, `depth`, `camera...` | MOVi | see `movi.MoviSource` |
| `image`, `objects.mask`, `objects.refexp.raw` | `ref_coco` | see `referring.ReferringSource` |
| `image`, `depth` | `nyu_depth_v2` | `image`, `depth` |
| `image`, `captions.text` | `coco_captions` | `image`, `caption` |

Any other data set is read by naming the column of each field, as in folders, tars and parquet.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.sources import movi
from data_pipelines.sources.base import RawSource, SourceError, check_index, read_picture
from data_pipelines.sources.depths import draw_nearness
from data_pipelines.sources.movi import MoviSource
from data_pipelines.sources.prepared import PreparedTable
from data_pipelines.sources.referring import ReferringSource
from data_pipelines.sources.tables import TableSource

_CAPTIONS = {"image": "image", "caption": "captions.text"}


def open_structure(
    table: PreparedTable,
    *,
    fields: Mapping[str, str] | Sequence[str] | None = None,
    num_views: tuple[int, int] | None = None,
) -> RawSource:
    """The source of a prepared data set.

    Args:
      table: the data set.
      fields: a mapping reads columns (`TableSource`); a sequence names some of the fields that the
        structure fills; None takes all of these.
      num_views: of MOVi: the least and the largest number of frames.

    Raises:
      SourceError: an unknown structure without a mapping, a field or column that is not there, or
        views of something else than MOVi.
    """
    is_movi = not isinstance(fields, Mapping) and _has(table, movi.COLUMNS)
    if num_views is not None and not is_movi:
        raise SourceError("num_views is for MOVi: other prepared data sets have no views")
    if isinstance(fields, Mapping):
        return TableSource(table, fields=fields)
    if is_movi:
        return MoviSource(table, fields=fields, num_views=num_views or (2, 6))
    if _has(table, ReferringSource.COLUMNS):
        source: RawSource = ReferringSource(table)
    elif _has(table, DepthSource.fields):
        source = DepthSource(table)
    elif _has(table, tuple(_CAPTIONS.values())):
        source = TableSource(table, fields=_CAPTIONS)
    else:
        columns = table.columns or ("none",)
        raise SourceError(
            "these features have no fields of their own, so name the column of each field; columns "
            f"are: {', '.join(columns)}; for example fields={{'image': {columns[0]!r}}}"
        )
    unknown = [name for name in fields or () if name not in source.fields]
    if unknown:
        raise SourceError(
            f"no field {unknown[0]!r}, the data set fills: {', '.join(source.fields)}; a mapping "
            f"takes columns, which are: {', '.join(table.columns)}"
        )
    return source


class DepthSource:
    """Pictures with z-depth, in the features of TFDS' `nyu_depth_v2`.

    | field | what |
    |---|---|
    | `image` | the picture |
    | `depth` | nearness, see `depths` |
    """

    fields = ("image", "depth")

    def __init__(self, table: PreparedTable):
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One picture; see `RawSource.sample`."""
        check_index(index, len(self))
        name = self._table.name(index)
        values = self._table.values(index, self.fields)
        return {
            "image": read_picture(values["image"], name=f"{name}: image"),
            "depth": draw_nearness(values["depth"], name=f"{name}: depth"),
        }


def _has(table: PreparedTable, columns: Sequence[str]) -> bool:
    return set(columns) <= set(table.features)
