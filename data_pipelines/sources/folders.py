"""Folders of pictures as tables, in three layouts.

| layout | looks like | columns |
|---|---|---|
| metadata | `metadata.jsonl` or `metadata.csv`, as Hugging Face's imagefolder | see below |
| subfolders | `source/1.png`, `edited/1.png`, `instruction/1.txt` | names of the subfolders |
| side_files | `1.jpg` with `1.txt` or `1.json` | `image`, `caption`, keys of the JSON |

In metadata `file_name` names the picture of the column `image`, `NAME_file_name` that of `NAME`;
`file_names` and `NAME_file_names` are lists of pictures. Other keys are columns as they are.
"""

import csv
import io
import itertools
from collections.abc import Sequence
from typing import Any

from etils import epath

from data_pipelines.sources import files
from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.tables import Table, flatten

LAYOUTS = ("metadata", "subfolders", "side_files")

_ROWS_FOR_COLUMNS = 100
"""Rows of a metadata.jsonl that tell its columns."""


def open_folder(path: str, *, layout: str | None = None) -> Table:
    """Opens a folder.

    Args:
      path: the folder.
      layout: one of `LAYOUTS`; None looks what is there, in this order.

    Raises:
      SourceError: no such folder, or nothing of the layout in it.
    """
    if layout is not None and layout not in LAYOUTS:
        raise SourceError(f"layout is one of {', '.join(LAYOUTS)}, got {layout!r}")
    folder = epath.Path(path).expanduser()
    if not folder.is_dir():
        raise SourceError(f"no such folder: {path}")
    names = files.list_names(folder)
    metadata = [name for name in ("metadata.jsonl", "metadata.csv") if name in names]
    pictures = [name for name in names if _suffix(name) in files.PICTURES]
    if layout is None:
        layout = "metadata" if metadata else "side_files" if pictures else "subfolders"
    if layout == "metadata":
        if not metadata:
            raise SourceError(f"{path} has no metadata.jsonl and no metadata.csv")
        return MetadataTable(folder, metadata[0])
    if layout == "side_files":
        if not pictures:
            raise SourceError(f"{path} has no pictures ({', '.join(files.PICTURES)})")
        return SideFileTable(folder, names)
    return SubfolderTable(folder, names)


class MetadataTable:
    """Rows of a metadata file, with the pictures that it names."""

    def __init__(self, folder: epath.Path, name: str):
        self._folder = folder
        self._path = folder / name
        try:
            text = files.read_text(self._path)
            if name.endswith(".csv"):
                self._rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
                self._header = self._rows.pop(0) if self._rows else []
            else:
                # not splitlines: JSON texts may hold other line ends, such as U+2028
                self._rows = [line for line in text.split("\n") if line.strip()]
                self._header = []
            records = [self._record(i) for i in range(min(len(self._rows), _ROWS_FOR_COLUMNS))]
        except (SampleError, csv.Error) as error:
            raise SourceError(f"{self._path}: {error}") from None
        self._columns = tuple(dict.fromkeys(_column(key) for record in records for key in record))
        if not self._columns:
            raise SourceError(f"{self._path} has no rows")

    @property
    def columns(self) -> tuple[str, ...]:
        return self._columns

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return f"{self._path} row {index}"

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        record = self._record(index)
        # a picture's key wins over a plain key of the same column
        keys = {_column(key): key for key in sorted(record, key=lambda key: key != _column(key))}
        row = {}
        for column in columns:
            value = record.get(keys.get(column, column))
            if value and keys[column] != column:
                value = (
                    [self._picture(index, name) for name in value]
                    if isinstance(value, list)
                    else self._picture(index, value)
                )
            row[column] = value
        return row

    def _record(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        if isinstance(row, str):
            return flatten(files.decode_json(row, name=self.name(index)))
        if len(row) > len(self._header):
            raise SampleError(
                f"{self.name(index)} has {len(row)} cells, the head has {len(self._header)}"
            )
        return dict(zip(self._header, row, strict=False))

    def _picture(self, index: int, name: Any) -> bytes:
        try:
            return files.read_bytes(files.inside(self._folder, name))
        except SampleError as error:
            raise SampleError(f"{self.name(index)}: {error}") from None


class SubfolderTable:
    """One subfolder a column; a row is the files of one stem."""

    def __init__(self, folder: epath.Path, names: Sequence[str]):
        self._folder = folder
        self._files: dict[str, dict[str, str]] = {}
        for column in names:
            if not (folder / column).is_dir():
                continue
            found: dict[str, str] = {}
            for name in files.list_names(folder / column):
                stem, suffix = name.rpartition(".")[0], _suffix(name)
                if suffix not in (*files.PICTURES, ".txt"):
                    continue
                if stem in found:
                    raise SourceError(f"{folder / column} has both {found[stem]} and {name}")
                found[stem] = name
            if found:
                self._files[column] = found
        if not self._files:
            raise SourceError(
                f"{folder} has no metadata file, no pictures and no subfolders with some"
            )
        self._stems = sorted(set(itertools.chain.from_iterable(self._files.values())))

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._files)

    def __len__(self) -> int:
        return len(self._stems)

    def name(self, index: int) -> str:
        return f"{self._folder} {self._stems[index]}"

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        row = {}
        for column in columns:
            name = self._files[column].get(self._stems[index])
            row[column] = None if name is None else _read(self._folder / column, name)
        return row


class SideFileTable:
    """One picture a row, with the text or JSON of the same stem."""

    def __init__(self, folder: epath.Path, names: Sequence[str]):
        self._folder = folder
        self._names = frozenset(names)
        self._pictures = [name for name in names if _suffix(name) in files.PICTURES]
        stems = [name.rpartition(".")[0] for name in self._pictures]
        columns = ["image"]
        if any(f"{stem}.txt" in self._names for stem in stems):
            columns.append("caption")
        first = next((stem for stem in stems if f"{stem}.json" in self._names), None)
        if first is not None:
            try:
                columns += self._side_record(first)
            except SampleError as error:
                raise SourceError(str(error)) from None
        self._columns = tuple(dict.fromkeys(columns))

    @property
    def columns(self) -> tuple[str, ...]:
        return self._columns

    def __len__(self) -> int:
        return len(self._pictures)

    def name(self, index: int) -> str:
        return str(self._folder / self._pictures[index])

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        stem = self._pictures[index].rpartition(".")[0]
        row: dict[str, Any] = {}
        if set(columns) - {"image"} and f"{stem}.json" in self._names:
            row |= self._side_record(stem)
        if "caption" in columns and f"{stem}.txt" in self._names:
            row["caption"] = _read(self._folder, f"{stem}.txt")
        if "image" in columns:
            row["image"] = _read(self._folder, self._pictures[index])
        return {column: row.get(column) for column in columns}

    def _side_record(self, stem: str) -> dict[str, Any]:
        return flatten(files.read_json(files.inside(self._folder, f"{stem}.json")))


def _suffix(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix.lower()}" if dot and stem else ""


def _column(key: str) -> str:
    """The column of a metadata key: that of the pictures whose names it holds, or itself."""
    for end, alone in (("file_name", "image"), ("file_names", "images")):
        if key == end:
            return alone
        if key.endswith(f"_{end}"):
            return key.removesuffix(f"_{end}")
    return key


def _read(folder: epath.Path, name: str) -> bytes | str:
    path = files.inside(folder, name)
    return files.read_text(path) if name.endswith(".txt") else files.read_bytes(path)
