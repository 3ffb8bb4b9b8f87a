"""Files by pattern and by name, on a disk or in a bucket.

All paths are `etils.epath` paths, so `gs://bucket/...` works where a local path does. Names that
come from data cannot leave their folder. What is read is bounded by `unidiff_jax.outside`.
"""

import concurrent.futures
import glob
import re
from typing import Any

from etils import epath

from data_pipelines.sources.base import SampleError, SourceError
from unidiff_jax import outside
from unidiff_jax.outside import MAX_FILE, MAX_JSON, InputError

PICTURES = (".jpg", ".jpeg", ".png", ".webp")

NUM_READERS = 16
"""Files that are opened at a time when a source is opened."""

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def find_files(pattern: str, *, suffix: str) -> list[epath.Path]:
    """Files of a folder or a pattern, sorted.

    Args:
      pattern: a file; a folder, of which all files with the suffix are taken; or a pattern with
        `*`, `?`, `[...]` and ranges as `shard-{000..099}.tar`, of which every file must be there.
      suffix: such as `.tar`.

    Raises:
      SourceError: nothing matches, or files of a range are missing.
    """
    path = epath.Path(pattern).expanduser()
    if path.is_dir():
        files = [path / name for name in list_names(path) if name.endswith(suffix)]
    else:
        files = [path] if path.exists() else _glob(pattern)
    if not files:
        raise SourceError(f"no {suffix} file matches {pattern}")
    return sorted(files, key=str)


def find_folders(pattern: str, *, holding: str) -> list[epath.Path]:
    """Folders of a pattern that hold a file of the name `holding`, sorted.

    Args:
      pattern: such a folder; the folder of such folders; or a pattern of such folders.
      holding: name of a file.

    Raises:
      SourceError: there is none.
    """
    path = epath.Path(pattern).expanduser()
    if (path / holding).exists():
        return [path]
    inner = f"{glob.escape(str(path))}/*" if path.is_dir() else pattern.rstrip("/")
    folders = sorted((file.parent for file in _glob(f"{inner}/{holding}")), key=str)
    if not folders:
        raise SourceError(f"no folder with a {holding} matches {pattern}")
    return folders


def list_names(folder: epath.Path) -> list[str]:
    """Names in a folder, sorted, without hidden ones.

    Raises:
      SourceError: no such folder.
    """
    try:
        names = (path.name for path in folder.iterdir())
        return sorted(name for name in names if name and not name.startswith("."))
    except (OSError, NotImplementedError) as error:
        raise SourceError(f"{folder} cannot be listed: {error}") from None


def list_folders(folder: epath.Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones; errors as `list_names`."""
    names = list_names(folder)
    with concurrent.futures.ThreadPoolExecutor(NUM_READERS) as pool:  # buckets answer slowly
        kept = list(pool.map(lambda name: (folder / name).is_dir(), names))
    return [name for name, is_folder in zip(names, kept, strict=True) if is_folder]


def inside(folder: epath.Path, name: Any) -> epath.Path:
    """The path of a name that comes from data or lies in the folder; see `outside.inside`.

    Raises:
      SampleError: no text, a path that leaves the folder, or a link that leads out of it.
    """
    try:
        return outside.inside(folder, name)
    except InputError as error:
        raise SampleError(str(error)) from None


def read_bytes(path: epath.Path, *, limit: int = MAX_FILE) -> bytes:
    """A file's bytes.

    Raises:
      SampleError: it cannot be read, is no regular file, or has more than `limit` bytes.
    """
    try:
        return outside.read_file(path, limit=limit)
    except InputError as error:
        raise SampleError(str(error)) from None
    except (OSError, ValueError) as error:
        raise SampleError(f"{path} cannot be read: {error}") from None


def read_text(path: epath.Path) -> str:
    """A file's text, UTF-8, without white space around it.

    Raises:
      SampleError: it cannot be read or is not UTF-8.
    """
    return decode_text(read_bytes(path), name=str(path))


def decode_text(data: bytes, *, name: str) -> str:
    """UTF-8 text without white space around it.

    Raises:
      SampleError: not UTF-8.
    """
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise SampleError(f"{name} is not UTF-8 text: {error}") from None


def read_json(path: epath.Path, *, limit: int = MAX_JSON) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      SampleError: it cannot be read, holds something else, or has more than `limit` bytes.
    """
    return decode_json(read_bytes(path, limit=limit), name=str(path), limit=limit)


def decode_json(data: bytes | str, *, name: str, limit: int = MAX_JSON) -> dict[str, Any]:
    """A JSON object.

    Raises:
      SampleError: something else, too long or nested too deep; see `outside.decode_object`.
    """
    try:
        return outside.decode_object(data, name=name, limit=limit)
    except InputError as error:
        raise SampleError(str(error)) from None


def _glob(pattern: str) -> list[epath.Path]:
    """Existing paths of a pattern; all of a range, or an error."""
    ranges = _BRACES.findall(pattern)
    if len(ranges) > 1 or (ranges and glob.has_magic(_BRACES.sub("", pattern))):
        raise SourceError(f"{pattern}: a pattern has one range and no * beside it")
    wild = _BRACES.sub("*", pattern)
    parts = wild.split("/")
    first = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    root = "/".join(parts[:first]) or ("/" if wild.startswith("/") else ".")
    try:
        found = list(epath.Path(root).expanduser().glob("/".join(parts[first:])))
    except NotImplementedError as error:
        raise SourceError(f"{pattern}: {error}") from None
    if not ranges:
        return found
    (low, high), before, after = ranges[0], *_BRACES.split(pattern)[::3]
    numbers = [f"{i:0{len(low)}}" for i in range(int(low), int(high) + 1)]
    wanted = {epath.Path(f"{before}{number}{after}").expanduser() for number in numbers}
    missing = sorted(map(str, wanted - set(found)))
    if missing:
        raise SourceError(f"{pattern}: {len(missing)} files are missing, first {missing[0]}")
    return list(wanted)
