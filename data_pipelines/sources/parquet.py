"""Parquet files as a table.

A column is bytes (a picture's file), Hugging Face's struct of bytes and path (a picture), a list of
these, texts or numbers. Other structs are columns by their parts, such as `description.item`.

Parquet is read by row group. One row group a file is kept, of a few files; so samples in order are
quick, and samples in random order read a whole row group each. Small row groups (about 100 rows, as
Hugging Face writes for pictures) make that bearable.
"""

import collections
import concurrent.futures
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from data_pipelines.sources import files
from data_pipelines.sources.base import SampleError, SourceError

MAX_GROUP = 2**33
"""Bytes of a row group, unpacked."""


class ParquetTable:
    """Rows of all files, in the order of the files' names."""

    def __init__(self, pattern: str, *, num_kept: int = 4):
        """Reads the footers of all files.

        Args:
          pattern: see `files.find_files`.
          num_kept: files of which a row group stays in memory.

        Raises:
          SourceError: no file, a damaged one, or files without a common column.
        """
        self._paths = [str(path) for path in files.find_files(pattern, suffix=".parquet")]
        self._num_kept = num_kept
        with concurrent.futures.ThreadPoolExecutor(files.NUM_READERS) as pool:
            footers = list(pool.map(_read_footer, self._paths))
        common = set.intersection(*(set(columns) for columns, _ in footers))
        self._columns = tuple(column for column in footers[0][0] if column in common)
        if not self._columns:
            raise SourceError(f"{pattern}: the files have no column in common")
        rows = [(file, group, n) for file, (_, ns) in enumerate(footers) for group, n in ns]
        self._file = [file for file, _, _ in rows]
        self._group = [group for _, group, _ in rows]
        self._ends = np.cumsum([n for _, _, n in rows], dtype=np.int64)
        if not len(self):
            raise SourceError(f"{pattern}: the files have no rows")
        self._start_keeping()

    @property
    def columns(self) -> tuple[str, ...]:
        return self._columns

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def name(self, index: int) -> str:
        place, row = self._find(index)
        return f"{self._paths[self._file[place]]} row {row} of row group {self._group[place]}"

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        place, row = self._find(index)
        table = self._read(place, tuple(columns))
        cells = {}
        for column in columns:
            top, *parts = (column,) if column in table.column_names else column.split(".")
            value = table.column(top)[row].as_py()
            for part in parts:
                value = None if value is None else value[part]
            cells[column] = _cell(value, name=f"{self.name(index)}: {column}")
        return cells

    def _find(self, index: int) -> tuple[int, int]:
        place = int(np.searchsorted(self._ends, index, side="right"))
        return place, index - (int(self._ends[place - 1]) if place else 0)

    def _read(self, place: int, columns: tuple[str, ...]) -> pa.Table:
        file, group = self._file[place], self._group[place]
        with self._lock:
            kept = self._kept.pop(file, None)
            if kept is None or kept[:2] != (group, columns):
                kept = (group, columns, self._load(file, group, columns))
            self._kept[file] = kept
            while len(self._kept) > self._num_kept:
                self._kept.popitem(last=False)
        return kept[2]

    def _load(self, file: int, group: int, columns: tuple[str, ...]) -> pa.Table:
        path = self._paths[file]
        try:
            with epath.Path(path).open("rb") as opened:
                parquet = pq.ParquetFile(opened)
                if (size := parquet.metadata.row_group(group).total_byte_size) > MAX_GROUP:
                    raise SampleError(
                        f"{path} row group {group} has {size:,} bytes when it is unpacked, at most "
                        f"{MAX_GROUP:,} are read; write smaller row groups"
                    )
                table = parquet.read_row_group(group, columns=list(columns), use_threads=False)
                table.validate()
                return table
        except (pa.ArrowException, OSError) as error:
            raise SampleError(f"{path} row group {group} cannot be read: {error}") from None

    def _start_keeping(self) -> None:
        self._kept: collections.OrderedDict[int, tuple[int, tuple[str, ...], pa.Table]]
        self._kept = collections.OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start_keeping()


def _read_footer(path: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Columns, and the number and rows of each row group that has some."""
    try:
        with epath.Path(path).open("rb") as file:
            parquet = pq.ParquetFile(file)
            schema, metadata = parquet.schema_arrow, parquet.metadata
            counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} is no parquet file or is damaged: {error}") from None
    columns = [name for field in schema for name in _columns(field, "")]
    return columns, [(group, count) for group, count in enumerate(counts) if count]


def _columns(field: pa.Field, prefix: str) -> Iterator[str]:
    name = f"{prefix}{field.name}"
    if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") < 0:
        for part in field.type:
            yield from _columns(part, f"{name}.")
    else:
        yield name


def _cell(value: Any, *, name: str) -> Any:
    if isinstance(value, list):
        return [_cell(item, name=name) for item in value]
    if isinstance(value, dict) and "bytes" in value:
        if value["bytes"] is None and value.get("path"):
            raise SampleError(f"{name} names a file, {value['path']!r}, and does not hold it")
        return value["bytes"]
    return value
