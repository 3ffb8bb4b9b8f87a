"""WebDataset tars as tables, read at random without unpacking.

A sample is the run of members that share a key: the path up to the first dot of the last part.
What follows the dot is the column, in small letters: `a/001.jpg` and `a/001.seg.png` are the
columns `jpg` and `seg.png` of the sample `a/001`. The keys of a member `.json` are columns too.
Members that are neither pictures, texts nor JSON are passed over.

Opening reads the headers once and keeps for each member where its bytes lie; a sample is read by
seeking. Nothing is unpacked: no member's path is ever used as a path, and links are passed over.
"""

import concurrent.futures
import tarfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from data_pipelines.sources import files
from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.tables import flatten
from unidiff_jax.outside import MAX_FILE, MAX_JSON

_PICTURES = tuple(suffix.removeprefix(".") for suffix in files.PICTURES)
_TEXTS = ("txt", "text", "caption", "cls")
_KINDS = (*_PICTURES, *_TEXTS, "json")

_MAX_HEADER = 2**20
_MAX_HEADERS = 8
"""Bytes of a header that only names the member after it, and how many of these may follow another:
tarfile reads them whole, and one inside another.
"""

_NAMING = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class _Member(tarfile.TarInfo):
    """A member whose headers are bounded."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.type in _NAMING and not 0 <= member.size <= _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member

    @classmethod
    def fromtarfile(cls, archive: Any) -> "_Member":
        archive.headers = getattr(archive, "headers", 0) + 1
        if archive.headers > _MAX_HEADERS:
            raise tarfile.ReadError(f"more than {_MAX_HEADERS} headers of one member")
        member = super().fromtarfile(archive)
        archive.headers = 0
        return member


class _Shard(NamedTuple):
    """Where the samples of one tar lie; columns are numbered in `columns`."""

    columns: list[str]
    keys: list[str]
    starts: np.ndarray  # of each sample's members, and the end
    column: np.ndarray
    offset: np.ndarray
    size: np.ndarray


class TarTable:
    """Samples of all shards, in the order of the shards' names."""

    def __init__(self, pattern: str):
        """Reads the headers of all shards.

        Args:
          pattern: see `files.find_files`.

        Raises:
          SourceError: no shard; or one that is compressed, cut short, damaged or not a WebDataset.
        """
        self._paths = [str(path) for path in files.find_files(pattern, suffix=".tar")]
        with concurrent.futures.ThreadPoolExecutor(files.NUM_READERS) as pool:
            self._shards = list(pool.map(_scan, self._paths))
        self._ends = np.cumsum([len(shard.keys) for shard in self._shards])
        if not self._ends[-1]:
            raise SourceError(f"{pattern}: no members KEY.{{{','.join(_KINDS)}}} in the tars")
        columns = dict.fromkeys(name for shard in self._shards for name in shard.columns)
        if columns.pop("json", ...) is None:
            columns |= dict.fromkeys(self._first_json())
        self._columns = tuple(columns)

    @property
    def columns(self) -> tuple[str, ...]:
        return self._columns

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, index: int) -> str:
        shard, sample = self._find(index)
        return f"{self._paths[shard]} {self._shards[shard].keys[sample]}"

    def row(self, index: int, columns: Sequence[str]) -> dict[str, Any]:
        number, sample = self._find(index)
        shard = self._shards[number]
        members = range(shard.starts[sample], shard.starts[sample + 1])
        present = {shard.columns[shard.column[i]]: i for i in members}
        wanted = [column for column in columns if column in present]
        if len(wanted) < len(columns) and "json" in present:
            wanted.append("json")
        data = {}
        try:
            with epath.Path(self._paths[number]).open("rb") as file:
                for column in dict.fromkeys(wanted):
                    if (size := int(shard.size[present[column]])) > MAX_FILE:
                        raise SampleError(
                            f"{self.name(index)}.{column} has {size:,} bytes, at most "
                            f"{MAX_FILE:,} are read"
                        )
                    file.seek(int(shard.offset[present[column]]))
                    data[column] = file.read(size)
        except OSError as error:
            raise SampleError(f"{self.name(index)} cannot be read: {error}") from None
        for column, content in data.items():
            if len(content) < shard.size[present[column]]:
                raise SampleError(f"{self.name(index)}: the tar is shorter than when it was opened")
        row: dict[str, Any] = {}
        if "json" in data:
            record = data.pop("json")
            row |= flatten(files.decode_json(record, name=f"{self.name(index)}.json"))
        for column, content in data.items():
            row[column] = self._cell(content, column, index)
        return {column: row.get(column) for column in columns}

    def _cell(self, content: bytes, column: str, index: int) -> bytes | str:
        if column.rpartition(".")[2] in _PICTURES:
            return content
        return files.decode_text(content, name=f"{self.name(index)}.{column}")

    def _find(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _first_json(self) -> list[str]:
        for number, shard in enumerate(self._shards):
            if "json" not in shard.columns:
                continue
            member = int(np.argmax(shard.column == shard.columns.index("json")))
            with epath.Path(self._paths[number]).open("rb") as file:
                file.seek(int(shard.offset[member]))
                content = file.read(min(int(shard.size[member]), MAX_JSON + 1))
            try:
                return list(flatten(files.decode_json(content, name="the first .json member")))
            except SampleError as error:
                raise SourceError(f"{self._paths[number]}: {error}") from None
        return []


def _scan(path: str) -> _Shard:
    columns: dict[str, int] = {}
    keys: list[str] = []
    starts, column, offset, size = [], [], [], []
    seen: set[str] = set()
    last = -1
    try:
        with (
            epath.Path(path).open("rb") as file,
            tarfile.open(fileobj=file, mode="r:", tarinfo=_Member) as archive,
        ):
            while (member := archive.next()) is not None:
                if archive.offset <= last:  # a negative size
                    raise tarfile.ReadError("members overlap")
                last = archive.offset
                folder, slash, base = member.name.rpartition("/")
                stem, dot, extension = base.partition(".")
                usable = member.isreg() and not member.issparse()
                extension = extension.lower()
                if not (usable and stem and dot and extension.rpartition(".")[2] in _KINDS):
                    continue
                key = f"{folder}{slash}{stem}"
                if not keys or key != keys[-1]:
                    keys.append(key)
                    starts.append(len(column))
                    seen.clear()
                elif extension in seen:
                    raise SourceError(f"{path}: two members {key}.{extension} in a row")
                seen.add(extension)
                column.append(columns.setdefault(extension, len(columns)))
                offset.append(member.offset_data)
                size.append(member.size)
            # tarfile takes a cut header for the end; the true end is a block of zeros
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("the end of the archive is missing")
    except SourceError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        after = f" after {keys[-1]}" if keys else ""
        raise SourceError(f"{path} is compressed, cut short or damaged{after}: {error}") from None
    starts.append(len(column))
    return _Shard(
        columns=list(columns),
        keys=keys,
        starts=np.array(starts, np.int64),
        column=np.array(column, np.int32),
        offset=np.array(offset, np.int64),
        size=np.array(size, np.int64),
    )
