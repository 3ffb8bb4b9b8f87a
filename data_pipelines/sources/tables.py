"""Tables of named columns as sources of samples: which column fills which field.

Three containers are tables: folders (`folders.py`), WebDataset tars (`tars.py`) and parquet files
(`parquet.py`). Opening one reads names and headers and decodes no picture.

    table = TarTable("data/edits-{000..099}.tar")
    source = TableSource(table, fields={"source": "input.jpg", "edited": "output.jpg",
                                        "instruction": "prompt"})
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from data_pipelines.sources.base import SampleError, SourceError, check_index, read_picture

# Column names that data sets use for a field, the likely ones first.
_USUAL_NAMES = {
    "image": ("image", "jpg", "png", "webp", "jpeg", "img", "picture"),
    "caption": ("caption", "text", "txt", "prompt", "description"),
    "source": ("source", "input_image", "src_img", "original_image", "input"),
    "edited": ("edited", "edited_image", "output_image", "edited_img", "target", "output"),
    "instruction": ("instruction", "edit_prompt", "prompt", "edit", "text", "txt"),
}


class Table(Protocol):
    """Rows of named columns.

    A cell is bytes (a picture's file), text, a number, a list of either, or None where the row has
    none.
    """

    @property
    def columns(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What messages call a row: file and key."""
        ...

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        """The cells of some columns.

        Raises:
          SampleError: the row cannot be read.
        """
        ...


class TableSource:
    """Samples from the rows of a table.

    Pictures are decoded, a list of pictures becomes a list (for `views`), a list of texts gives one
    of them at random, numbers become texts.
    """

    def __init__(
        self,
        table: Table,
        *,
        fields: Mapping[str, str] | Sequence[str] | None = None,
        optional_texts: Sequence[str] = (),
        halves: Mapping[str, tuple[str, str]] | None = None,
        border: int = 0,
    ):
        """Checks the columns.

        Args:
          table: rows.
          fields: the column of each field; `jpg;png` means the first of these that a row has. A
            sequence names fields whose columns have the same names. None takes all columns.
          optional_texts: fields that are "" where a row has no text. For other fields that is an
            error, since a task that needs a text learns nothing from none.
          halves: for a field whose picture shows two ones side by side, the fields that the left
            and the right one become.
          border: pixels around and between the halves.

        Raises:
          SourceError: a column that the table lacks, or halves of no field.
        """
        if fields is None:
            fields = table.columns
        if not isinstance(fields, Mapping):
            fields = {field: field for field in fields}
        self._table = table
        self._columns = {field: tuple(text.split(";")) for field, text in fields.items()}
        _check_columns(self._columns, table.columns)
        self._optional_texts = frozenset(optional_texts)
        self._halves = {field: tuple(names) for field, names in (halves or {}).items()}
        self._border = border
        for what, names in (("optional_texts", optional_texts), ("halves", self._halves)):
            for name in names:
                if name not in fields:
                    raise SourceError(f"{what}: no field {name!r}; there are: {', '.join(fields)}")
        if len(set(self.fields)) < len(self.fields):
            raise SourceError(f"a field is filled twice: {', '.join(self.fields)}")

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of each sample, in the order of the settings."""
        return tuple(name for field in self._columns for name in self._halves.get(field, (field,)))

    def __len__(self) -> int:
        return len(self._table)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One row; see `RawSource.sample`."""
        check_index(index, len(self))
        wanted = list(dict.fromkeys(c for columns in self._columns.values() for c in columns))
        present = [column for column in wanted if column in self._table.columns]
        row = self._table.row(index, present)
        sample = {}
        for field, columns in self._columns.items():
            value = next((row[c] for c in columns if row.get(c) is not None), None)
            name = f"{self._table.name(index)}: {';'.join(columns)}"
            value = self._read(value, rng, name=name, optional=field in self._optional_texts)
            if field in self._halves:
                left, right = self._halves[field]
                sample[left], sample[right] = cut_halves(value, border=self._border, name=name)
            else:
                sample[field] = value
        return sample

    def _read(self, value: Any, rng: np.random.Generator, *, name: str, optional: bool) -> Any:
        if isinstance(value, bytes):
            return read_picture(value, name=name)
        if isinstance(value, list) and value:
            if all(isinstance(item, bytes) for item in value):
                return [read_picture(item, name=f"{name}[{i}]") for i, item in enumerate(value)]
            if all(isinstance(item, str) for item in value):
                value = value[int(rng.integers(len(value)))]
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf:
            return str(value)
        if isinstance(value, str) and value.strip():
            return value.strip()
        if value not in (None, "", []) and not isinstance(value, str):
            raise SampleError(f"{name} is neither a picture nor a text but {type(value).__name__}")
        if optional:
            return ""
        raise SampleError(f"{name} is missing or empty")


def cut_halves(
    picture: Any, *, border: int = 0, name: str = "the picture"
) -> tuple[Image.Image, Image.Image]:
    """The left and the right one of two equal pictures side by side.

    Args:
      picture: both in one.
      border: pixels around and between them.
      name: what messages call it.

    Raises:
      SampleError: no picture, or one that does not divide in this way.
    """
    if not isinstance(picture, Image.Image):
        raise SampleError(f"{name} is no picture of two halves")
    width, height = picture.size
    half = (width - 3 * border) // 2
    if half < 1 or height <= 2 * border or (width - 3 * border) % 2:
        raise SampleError(
            f"{name} is {width}x{height} pixels: no two halves with a border of {border}"
        )
    low, top, bottom = 2 * border + half, border, height - border
    return (
        picture.crop((border, top, border + half, bottom)),
        picture.crop((low, top, low + half, bottom)),
    )


def flatten(record: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested record as columns: `{"description": {"item": 1}}` has `description.item`."""
    columns = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        columns |= flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return columns


def _check_columns(wanted: Mapping[str, Sequence[str]], present: Sequence[str]) -> None:
    missing = {f: ";".join(c) for f, c in wanted.items() if not set(c) & set(present)}
    if not missing:
        return
    lacks = ", ".join(f"{column!r} for the field {field!r}" for field, column in missing.items())
    hint = ""
    if present:
        fields = {field: ";".join(columns) for field, columns in wanted.items()}
        free = [column for column in present if column not in fields.values()] or list(present)
        for field in missing:
            fields[field] = _likely(field, free)
            free = [column for column in free if column != fields[field]] or list(present)
        hint = f"; for example fields={fields}"
    raise SourceError(f"no column {lacks}; columns are: {', '.join(present) or 'none'}{hint}")


def _likely(field: str, columns: Sequence[str]) -> str:
    for name in _USUAL_NAMES.get(field, ()):
        if name in columns:
            return name
    return difflib.get_close_matches(field, columns, n=1, cutoff=0.0)[0]
