"""Paths of workdirs, weights and data: local folders, and buckets written `gs://bucket/folder`.

`as_path` makes an `etils.epath.Path` of both, which has pathlib's methods; `pathlib.Path` itself
would turn `gs://bucket` into the local folder `gs:/bucket`. What is behind a path differs in two
ways that code has to know:

- A bucket has no rename; but an object appears when its upload ends, and whole. So what a reader
  must never see half is written through `written_whole`, which renames locally and uploads to a
  bucket.
- A bucket has no append. What grows is written locally and uploaded (`train/metrics.py`).
"""

import contextlib
import errno
import importlib.util
import json
import os
import pathlib
import re
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging
from etils import epath

from unidiff_jax.config import ConfigError

AnyPath = str | os.PathLike[str]
"""A local path, or `gs://bucket/...`; as text, pathlib's or epath's."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def as_path(path: AnyPath) -> epath.Path:
    """The path, local or in a bucket.

    Raises:
      ConfigError: another kind of address, or a bucket where nothing is installed to reach it.

    Example:
      >>> as_path("gs://bucket/run") / "config.json"
      PosixGPath('gs://bucket/run/config.json')
    """
    text = os.fspath(path)
    if not is_remote(text):
        if _SCHEME.match(text):
            raise ConfigError(
                f"{text} is no local path and no bucket; a bucket reads gs://bucket/folder"
            )
        return epath.Path(text)
    if not text.removeprefix("gs://").strip("/"):
        raise ConfigError(f"{text} names no bucket; for example gs://bucket/folder")
    if not importlib.util.find_spec("gcsfs"):
        raise ConfigError(
            f"{text}: nothing is installed that reaches buckets; ./launch/environment.sh gcs, or "
            'pip install -c constraints.txt -e ".[gcs]"'
        )
    return epath.Path(text)


def is_remote(path: AnyPath) -> bool:
    """Whether the path lies in a bucket."""
    return os.fspath(path).startswith("gs://")


@contextlib.contextmanager
def written_whole(path: AnyPath) -> Iterator[pathlib.Path]:
    """A local file to write, which becomes `path` in one step.

    An error leaves `path` as it was, and so does a block that makes no file. Folders on the way are
    made. A bucket's file lies in the folder for temporary files (`TMPDIR`)
    until it is whole.

    Example:
      >>> with written_whole("gs://bucket/run/picture.png") as file:
      ...     picture.save(file)
    """
    path = as_path(path)
    if is_remote(path):
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / path.name
            yield file
            if file.exists():
                epath.Path(file).copy(path, overwrite=True)
        return
    local = pathlib.Path(path)
    local.parent.mkdir(parents=True, exist_ok=True)
    partial = local.with_name(f"{local.stem}.partial{local.suffix}")
    yield partial
    if partial.exists():
        partial.replace(local)


@contextlib.contextmanager
def full_disk_borne(what: str) -> Iterator[None]:
    """Logs that the disk is full and goes on: for records that a run can do without.

    Example:
      >>> with full_disk_borne("the log"):
      ...     file.write(line)
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        logging.error("disk full: %s could not be written; free some space", what)


def append_line(path: AnyPath, line: str) -> None:
    """Adds a line to a text file; a bucket's is written anew."""
    path = as_path(path)
    if is_remote(path):  # no append in a bucket
        before = path.read_text() if path.exists() else ""
        path.write_text(f"{before}{line}\n")
        return
    with path.open("a") as file:
        file.write(f"{line}\n")


def write_json(path: AnyPath, values: Mapping[str, Any]) -> None:
    """Writes settings in one step, making the folder: a reader sees the old file or the new one."""
    with written_whole(path) as file:
        file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def local_folder(path: AnyPath) -> Iterator[pathlib.Path]:
    """A local folder to write; a bucket's folder is replaced by it at the end, if no error came.

    Files are uploaded in the order in which they were written, so that the last one, as it does
    locally, tells that the others are there.
    """
    path = as_path(path)
    if not is_remote(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        yield folder
        if path.exists():
            path.rmtree()
        files = [file for file in folder.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: file.stat().st_mtime_ns):
            epath.Path(file).copy(path / file.relative_to(folder).as_posix(), overwrite=True)


def copy_tree(source: AnyPath, target: AnyPath) -> None:
    """Copies a folder's files and folders, over what is there."""
    source, target = as_path(source), as_path(target)
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()):
        if entry.is_dir():
            copy_tree(entry, target / entry.name)
        else:
            entry.copy(target / entry.name, overwrite=True)


def bucket_fault(error: Exception) -> str | None:
    """One line for what a bucket answered: no login, no permission, not there. Else None."""
    text = str(error).strip()
    found = re.fullmatch(r"(?:https?://\S*/)?b/([^/]+)/o(?:/|\?name=|$)(\S*)", text)
    if isinstance(error, FileNotFoundError) and found:
        return f"no such bucket or object: gs://{found[1]}/{urllib.parse.unquote(found[2])}"
    denied = isinstance(error, OSError) and text.startswith("Forbidden:")
    if denied or type(error).__module__.startswith(("gcsfs", "google.auth", "google.api_core")):
        return (
            f"the bucket refused: {' '.join(text.split())}; log in with: gcloud auth "
            "application-default login, or give this machine's service account the roles Storage "
            "Object User and Storage Legacy Bucket Reader on the bucket"
        )
    return None
