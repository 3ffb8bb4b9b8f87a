"""Predictions on disk: made where they are missing, read where they are whole.

    predictions/<id>.png      in the suite's own layout, for its own script too
    made/<id>.json            what was asked, and the digest of what was written
    failed/<id>.json          what was asked, and why there is nothing

A prediction counts when its note fits what would be asked now (item, model, settings, and the
earlier prediction that it starts from) and its file has the digest that the note says. So a run
that was stopped makes what is missing and torn, and nothing else.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from unidiff_jax.cameras import Cameras
from unidiff_jax.evals.benchmarks.base import (
    PICTURE_SUFFIXES,
    Benchmark,
    BenchmarkError,
    Earlier,
    Item,
    Kind,
    MissingError,
    Picture,
    Predictions,
    chains,
    read_array,
)
from unidiff_jax.evals.benchmarks.generate import Generator, Request
from unidiff_jax.frames import CODECS
from unidiff_jax.paths import AnyPath, as_path, write_json, written_whole
from unidiff_jax.processes import own_pieces
from unidiff_jax.sample.images import InputError, open_picture

_SUFFIX: dict[Kind, str] = {"picture": ".png", "depth": ".npy", "cameras": ".npy"}


@dataclasses.dataclass(frozen=True)
class Store:
    """The folder of a run's predictions."""

    folder: epath.Path
    kind: Kind
    settings: Mapping[str, Any]

    @property
    def predictions(self) -> epath.Path:
        return self.folder / "predictions"

    def path(self, item_id: str) -> epath.Path:
        return self.predictions / f"{item_id}{_SUFFIX[self.kind]}"

    def digest(self, item: Item) -> str:
        """Of what is asked; an earlier prediction by its bytes, empty if it is not there."""
        earlier = [_sha256(self.path(value.id)) for value in _earlier(item)]
        asked = [item.digest, dict(self.settings), earlier]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def is_made(self, item: Item) -> bool:
        """Whether the prediction is there, whole, and what would be made now."""
        note = self._note("made", item)
        if note is None or note.get("asked") != self.digest(item):
            return False
        return bool(note.get("sha256")) and _sha256(self.path(item.id)) == note["sha256"]

    def write(self, item: Item, made: Any) -> None:
        """Writes a prediction, then its note."""
        path = self.path(item.id)
        with written_whole(path) as file:
            if isinstance(made, Image.Image):
                made.save(file)
            else:
                with file.open("wb") as opened:
                    np.save(opened, made, allow_pickle=False)
        note = {"asked": self.digest(item), "sha256": _sha256(path)}
        write_json(self.folder / "made" / f"{item.id}.json", note)
        failed = self.folder / "failed" / f"{item.id}.json"
        if failed.exists():
            failed.unlink()

    def content(self, item: Item) -> str:
        """sha256 of the prediction that was written last, "" if none was."""
        note = self._note("made", item)
        return "" if note is None else str(note.get("sha256", ""))

    def fail(self, item: Item, reason: str) -> None:
        """Notes that an item has no prediction."""
        note = {"asked": self.digest(item), "reason": reason}
        write_json(self.folder / "failed" / f"{item.id}.json", note)

    def reason(self, item: Item) -> str:
        """Why an item has none."""
        note = self._note("failed", item)
        return "not made" if note is None else str(note.get("reason", "not made"))

    def _note(self, kind: str, item: Item) -> dict[str, Any] | None:
        path = self.folder / kind / f"{item.id}.json"
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text())
        except ValueError:  # torn: as if it were not there
            return None


def _earlier(item: Item) -> list[Earlier]:
    return [value for value in item.given.values() if isinstance(value, Earlier)]


def _sha256(path: epath.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


# -------------------------------------------------------------------------------------------- make


def make_predictions(
    benchmark: Benchmark,
    items: Sequence[Item],
    *,
    generator: Generator,
    task: str,
    store: Store,
    batch: int,
) -> int:
    """Makes what this process's part of the items lacks.

    Args:
      benchmark: says what kind of thing is made.
      items: all of them, in order.
      generator: the model.
      task: that it is asked for.
      store: where they go.
      batch: requests at a time.

    Returns:
      How many were made or failed now.
    """
    own = [item for chain in own_pieces(list(chains(items))) for item in chain]
    depth: dict[str, int] = {}
    for item in own:
        depth[item.id] = max((1 + depth[value.id] for value in _earlier(item)), default=0)
    count = 0
    with tqdm(
        total=len(own),
        unit="item",
        desc=f"make {benchmark.name}",
        mininterval=1.0,
        disable=jax.process_index() != 0,
    ) as bar:
        for level in range(1 + max(depth.values(), default=0)):
            wave = [item for item in own if depth[item.id] == level]
            todo = [item for item in wave if not store.is_made(item)]
            bar.update(len(wave) - len(todo))
            for start in range(0, len(todo), batch):
                part = todo[start : start + batch]
                _make(benchmark, part, generator, task, store)
                bar.update(len(part))
                count += len(part)
    return count


def _make(
    benchmark: Benchmark, items: Sequence[Item], generator: Generator, task: str, store: Store
) -> None:
    requests, asked = [], []
    for item in items:
        try:
            requests.append(_request(item, _task(item, generator) or task, store))
            asked.append(item)
        except (InputError, MissingError) as error:
            store.fail(item, str(error))
    if not asked:
        return
    try:
        found = generator.generate(requests)
    except InputError as error:
        if len(asked) == 1:
            store.fail(asked[0], str(error))
        else:  # find whose fault it is
            for item in asked:
                _make(benchmark, [item], generator, task, store)
        return
    for item, made in zip(asked, found, strict=True):
        values = _to_matrices(made) if isinstance(made, Cameras) else np.asarray(made)
        if not np.isfinite(values).all():
            store.fail(item, "the model's output is not finite")
        else:
            store.write(item, _finish(values, kind=benchmark.kind, size=item.size))


def _task(item: Item, generator: Generator) -> str:
    """The item's own task, "" where it is the benchmark's; raises InputError without a model's."""
    known = [name for name in item.tasks if name in generator.tasks]
    if item.tasks and not known:
        raise InputError(
            f"it needs the task {' or '.join(item.tasks)}; {generator.name} was trained on "
            f"{', '.join(generator.tasks)}"
        )
    return next(iter(known), "")


def _request(item: Item, task: str, store: Store) -> Request:
    given = {name: _open(value, store) for name, value in item.given.items()}
    cameras = given.pop("cameras", None) or {}
    return Request(task, item.id, given=given, text=item.text, seed=item.seed, **cameras)


def _open(value: Any, store: Store) -> Any:
    if isinstance(value, Picture):
        return value.open()
    if isinstance(value, Earlier):
        path = store.path(value.id)
        if not path.exists():
            raise MissingError(f"the prediction that it starts from, {value.id}, is not there")
        return open_picture(path)
    if isinstance(value, list | tuple):
        return [_open(inner, store) for inner in value]
    return value


def _finish(values: np.ndarray, *, kind: Kind, size: tuple[int, int] | None) -> Any:
    """What is written: RGB in [-1, 1] as a picture or as depth, at the item's size."""
    if kind == "cameras":
        return values
    if kind == "depth":
        near = CODECS["depth"].read(values.astype(np.float32))
        if size is not None and near.shape[::-1] != size:
            near = cv2.resize(near, size, interpolation=cv2.INTER_LINEAR)
        return near.astype(np.float32)
    picture = Image.fromarray(CODECS["rgb"].read(values.astype(np.float32)))
    if size is None or picture.size == size:
        return picture
    return picture.resize(size, Image.Resampling.BICUBIC)


def _to_matrices(found: Cameras) -> np.ndarray:
    """World to camera (n, 3, 4)."""
    rotation = found.rotation.swapaxes(1, 2)  # rows to columns
    return np.concatenate([rotation, found.translation[..., None]], axis=2)


def to_cameras(matrices: np.ndarray) -> Cameras:
    """Inverse of how cameras are written; focal lengths are not known."""
    ones = np.ones((len(matrices), 2))
    return Cameras(matrices[:, :, :3].swapaxes(1, 2), matrices[:, :, 3], ones, 0 * ones)


# -------------------------------------------------------------------------------------------- read


def own_predictions(items: Sequence[Item], *, store: Store, name: str) -> Predictions:
    """What a run has made."""
    missing = {item.id: store.reason(item) for item in items if not store.is_made(item)}
    return Predictions(name, lambda item: _read(store.path(item.id), store.kind), missing)


def foreign_predictions(
    benchmark: Benchmark, items: Sequence[Item], *, folder: AnyPath
) -> Predictions:
    """What another program has made, in the suite's layout; pictures of any `PICTURE_SUFFIXES`.

    Raises:
      BenchmarkError: no such folder, or none of the items is in it.
    """
    place = as_path(folder)
    if not place.is_dir():
        raise BenchmarkError(f"--predictions {folder}: no such folder")
    kind = benchmark.kind

    def read(item: Item) -> Any:
        if benchmark.find is not None:
            found = benchmark.find(place, item)
            if found is not None:
                return found
        suffixes = PICTURE_SUFFIXES if kind == "picture" else (_SUFFIX[kind],)
        for suffix in suffixes:
            path = place / f"{item.id}{suffix}"
            if path.exists():
                return _read(path, kind)
        raise MissingError(f"there is no {place / item.id}{suffixes[0]}")

    missing = {}
    for item in tqdm(items, unit="item", desc="look at predictions", mininterval=1.0):
        try:
            read(item)
        except MissingError as error:
            missing[item.id] = str(error)
    if len(missing) == len(items):
        first = next(iter(missing.values()))
        raise BenchmarkError(f"--predictions {folder} has nothing of {benchmark.name}: {first}")
    return Predictions(place.name, read, missing)


def _read(path: epath.Path, kind: Kind) -> Any:
    try:
        if kind == "picture":
            return open_picture(path)
        values = np.asarray(read_array(path), np.float64)
    except (InputError, BenchmarkError) as error:
        raise MissingError(str(error)) from None
    if kind == "depth":
        values = values.squeeze()
    wanted = values.ndim == 2 if kind == "depth" else values.shape[1:] == (3, 4)
    if not wanted or not np.isfinite(values).all():
        raise MissingError(f"{path} is no {kind} ({values.shape}), or not finite")
    return values
