"""What a benchmark is: items read from its true files, what is asked of a model, how it is scored.

A benchmark is data. `read` gives `Item`s; an item has the fields that tasks name
(`unidiff_jax.tasks`), the place of its prediction in the suite's own layout, and the truth that the
score needs. `score` takes items and what was made of them, whoever made it: a model, another
program, or a row that needs no model, such as a copy of the input.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
from etils import epath
from PIL import Image

from unidiff_jax.evals.judged.suite import Suite
from unidiff_jax.evals.statistics import Ratio
from unidiff_jax.outside import (
    MAX_FILE,
    InputError,
    decode_json,
    decode_values,
    inside,
    read_file,
)
from unidiff_jax.paths import AnyPath
from unidiff_jax.sample.images import open_picture

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

MINIWORLD_MARK = "miniworld.json"
"""In a data folder that `miniworld_layouts` wrote: its pictures are no suite's."""

Kind = Literal["picture", "depth", "cameras"]
"""What is made: a picture (PNG), a depth map (`.npy`, float32 (h, w)), or cameras (`.npy`, float64
(n, 3, 4), world to camera with axes to the left, up and forward)."""


class BenchmarkError(ValueError):
    """Files that are not in a suite's format; the message names file and key, and what fits."""


class MissingError(Exception):
    """An item has no prediction that can be read; the message says why. Scores count it."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the suite, opened when it is needed.

    Attributes:
      name: unique in the data; part of what makes a prediction belong to its item.
      read: opens it, RGB.
    """

    name: str
    read: Callable[[], Image.Image] = dataclasses.field(compare=False)

    def open(self) -> Image.Image:
        """The picture; raises BenchmarkError where it cannot be read."""
        try:
            return self.read()
        except InputError as error:
            raise BenchmarkError(str(error)) from None


def picture_file(folder: AnyPath, name: Any) -> Picture:
    """A picture file; `name` is relative to the folder and cannot leave it.

    Raises:
      BenchmarkError: a name that leaves the folder.
    """
    path = data_file(folder, name)
    return Picture(str(name), lambda: open_picture(path))


@dataclasses.dataclass(frozen=True)
class Earlier:
    """A given picture that is the prediction of another item, which is made first."""

    id: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to make.

    Attributes:
      id: unique; the path of its prediction without suffix, in the suite's layout.
      given: pictures by field, `Earlier` ones too, or lists of them; cameras as the field says.
      text: words by field. Fields that a task does not have are not asked for.
      size: (width, height) of the prediction; None is the model's own.
      seed: of the noise.
      chain: items of one chain are made by one process, in order; empty is the item's own.
      group: what the suite averages over first, such as a subject; empty is none.
      part: of the suite, such as a kind of edit; each part is also scored alone. Empty is none.
      tasks: where the benchmark's do not fit this item: the first that the model knows is asked
        for; a model that knows none fails it.
      truth: what the score needs.
    """

    id: str
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: Mapping[str, str] = dataclasses.field(default_factory=dict)
    size: tuple[int, int] | None = None
    seed: int = 0
    chain: str = ""
    group: str = ""
    part: str = ""
    tasks: tuple[str, ...] = ()
    truth: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of what is asked: sha256 of names and texts, not of pixels."""
        return _sha256([self.id, self.given, self.text, self.size, self.seed])

    @property
    def manifest(self) -> str:
        """The same, of the truth too."""
        return _sha256([self.digest, self.group, self.truth])


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(_names(value), sort_keys=True).encode()).hexdigest()


def _names(value: Any) -> Any:
    """JSON of what an item holds: pictures by name, arrays by their bytes."""
    if isinstance(value, Picture):
        return {"picture": value.name}
    if isinstance(value, Earlier):
        return {"earlier": value.id}
    if isinstance(value, Mapping):
        return {str(key): _names(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_names(inner) for inner in value]
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value)
        return {"array": hashlib.sha256(data.tobytes()).hexdigest(), "shape": list(data.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if callable(value):
        return None
    return value


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What was made of items, whoever made it.

    Attributes:
      name: of who made it.
      read: an item's RGB picture, depth map or cameras; raises MissingError.
      missing: reasons by id of the items that have none.
      partner: by id, the item whose prediction stands for an item's own; empty is its own.
    """

    name: str
    read: Callable[[Item], Any]
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    partner: Mapping[str, Item] = dataclasses.field(default_factory=dict)

    def __call__(self, item: Item) -> Any:
        return self.read(self.partner.get(item.id, item))

    def key(self, item: Item) -> str:
        """The same for the same prediction."""
        return f"{self.name}/{self.partner.get(item.id, item).id}"


LEFT_OUT = "left out of the mean"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one protocol.

    Attributes:
      metric: id, such as `clip_i`.
      values: one an item (or group of items), a `Ratio` of them, or one number for a whole set.
      items: ids of the protocol's items, those that failed with them.
      ids: the items of `values`; empty where these are of groups or of a set.
      higher_is_better: False for errors.
      protocol: what makes numbers of one name incomparable, below the benchmark's own.
      reference: what an output is compared with: input, gt, text or none.
      encoder: the extractor's `identity`.
      captions: filter of the captions.
      n_failed: items without a prediction, or not to be scored, such as pictures without a face.
      failures: how they enter the value.
      deviations: from the official protocol, of this score alone.
    """

    metric: str
    values: np.ndarray | Ratio | float
    items: tuple[str, ...]
    ids: tuple[str, ...] = ()
    higher_is_better: bool = True
    protocol: str = ""
    reference: str = "none"
    encoder: Mapping[str, str] | None = None
    captions: str | None = None
    n_failed: int = 0
    failures: str = LEFT_OUT
    deviations: tuple[str, ...] = ()

    @property
    def key(self) -> tuple:
        """What tells it from the other scores of a benchmark."""
        encoder = self.encoder and self.encoder["name"]
        return (self.metric, self.protocol, self.reference, self.captions, encoder)


class Scorer(Protocol):
    """Scores items by what was made of them; `tools` has the extractors (`scoring.Tools`)."""

    def __call__(self, items: Sequence[Item], made: Predictions, tools: Any) -> list[Score]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What a user fetches.

    Attributes:
      where: from.
      licence: of the data.
      size: on disk, or how many pictures.
      layout: of `--data`.
    """

    where: str
    licence: str
    size: str
    layout: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A suite.

    Attributes:
      name: of `--benchmark`, and of the entries in results.json.
      title: what a reader sees.
      tables: the papers' tables that it makes.
      tasks: of the registry, the first that the model knows is asked for.
      splits: names; the first is the default.
      counts: items of each split; a run of fewer is no official one. Empty where none is official.
      read: (folder, split) to items.
      score: see `Scorer`; None where `suite` says who judges.
      suite: that is judged elsewhere: pictures are written in its layout, and nothing is scored.
      extractors: kinds that the score asks for.
      description: items, inputs, scoring, for the report.
      data: what a user fetches.
      kind: what is made.
      rows: by name, what needs no model: an item to a prediction.
      shuffles: whether the predictions are also scored against other items.
      deviations: from the official protocol, whatever the model.
      finish: (predictions' folder, items), once all are made: writes what the suite's own script
        reads besides.
      find: (predictions' folder, item) to what is made, where another program wrote it in a place
        that is not the item's id; None where it did not.
      samples: the id of the metric that picks the worst samples; empty is the first score's.
    """

    name: str
    title: str
    tables: tuple[str, ...]
    tasks: tuple[str, ...]
    splits: tuple[str, ...] = ("test",)
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    read: Callable[[epath.Path, str], Sequence[Item]]
    score: Scorer | None = None
    suite: Suite | None = None
    extractors: tuple[str, ...] = ()
    description: str
    data: Data
    kind: Kind = "picture"
    rows: Mapping[str, Callable[[Item], Any]] = dataclasses.field(default_factory=dict)
    shuffles: bool = False
    deviations: tuple[str, ...] = ()
    finish: Callable[[epath.Path, Sequence[Item]], None] | None = None
    find: Callable[[epath.Path, Item], Any] | None = None
    samples: str = ""


# ------------------------------------------------------------------------------------ reading files


def data_file(folder: AnyPath, name: Any) -> epath.Path:
    """A file's path; raises BenchmarkError for a name that leaves the folder."""
    try:
        return inside(folder, name)
    except ValueError as error:
        raise BenchmarkError(str(error)) from None


def read_json(path: epath.Path) -> Any:
    """JSON of a suite's file; raises BenchmarkError where it is missing or damaged."""
    try:
        return decode_json(read_file(path), name=str(path), limit=MAX_FILE)
    except FileNotFoundError:
        raise BenchmarkError(f"no such file: {path}") from None
    except InputError as error:
        raise BenchmarkError(str(error)) from None


def read_lines(path: epath.Path) -> list[str]:
    """Lines that are not empty; raises BenchmarkError where the file is missing."""
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        raise BenchmarkError(f"no such file: {path}") from None
    return [line.strip() for line in lines if line.strip()]


def read_array(path: epath.Path) -> np.ndarray:
    """An `.npy` without objects; raises BenchmarkError where it is missing or damaged."""
    try:
        return np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from None


def read_values(path: epath.Path) -> np.ndarray:
    """Numbers of a PNG of one channel, such as millimetres; raises BenchmarkError for others."""
    try:
        values = decode_values(read_file(path), name=str(path))
    except (OSError, InputError) as error:
        raise BenchmarkError(f"{path} cannot be read: {error}") from None
    if values.ndim != 2:
        raise BenchmarkError(f"{path} must have one channel, has shape {values.shape}")
    return values.astype(np.float64)


def fields_of(record: Any, *names: str, where: str) -> list[Any]:
    """Values of a JSON object; raises BenchmarkError that names a missing one."""
    if not isinstance(record, Mapping):
        raise BenchmarkError(f"{where} must be an object, is {type(record).__name__}")
    for name in names:
        if name not in record:
            raise BenchmarkError(f"{where} has no {name!r}; it has {', '.join(map(str, record))}")
    return [record[name] for name in names]


def first_folder(folder: epath.Path, *places: str, holding: str) -> epath.Path:
    """The first of the places in a folder that holds a file or folder; "" is the folder itself.

    Raises:
      BenchmarkError: none does.
    """
    for place in places:
        if (folder / place / holding).exists():
            return folder / place
    tried = ", ".join(str(folder / place / holding) for place in places)
    raise BenchmarkError(f"there is no {tried}")


def pictures_in(folder: epath.Path) -> list[str]:
    """Names of a folder's pictures, sorted; raises BenchmarkError where there is none."""
    if not folder.is_dir():
        raise BenchmarkError(f"no such folder: {folder}")
    names = [path.name for path in folder.iterdir()]
    found = sorted(n for n in names if n.lower().endswith(PICTURE_SUFFIXES) and n[0] != ".")
    if not found:
        raise BenchmarkError(f"{folder} has no pictures ({', '.join(PICTURE_SUFFIXES)})")
    return found


def chains(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Items by chain, in order."""
    found: dict[str, list[Item]] = {}
    for item in items:
        found.setdefault(item.chain or item.id, []).append(item)
    yield from found.values()
