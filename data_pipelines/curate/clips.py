"""Clips: where video comes from. Every source of them gives shots: single camera takes.

Here are video files; `formats` has the sources whose clips come with masks.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from etils import epath

from data_pipelines.sources import files
from data_pipelines.sources.base import SampleError, SourceError
from unidiff_jax.outside import MAX_PIXELS
from unidiff_jax.paths import AnyPath, as_path

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".m4v", ".ogv", ".gif")


class ClipError(ValueError):
    """A clip, or a part of one, that cannot be used.

    Attributes:
      reason: one of a few words to count by, such as `corrupt` or `too short`.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.reason, str(self))


class StoppedError(ValueError):
    """A job stopped at a clip that cannot be used, as it was told to."""


@dataclasses.dataclass(frozen=True)
class Shot:
    """One take: frames of a clip without a cut between them.

    Attributes:
      frames: uint8 (T, H, W, 3), RGB: an array, or `LazyFrames` that become one by `np.asarray`.
      times: float (T,), seconds from the clip's start, increasing; not always evenly.
      masks: uint8 (T, H, W), ids of the things that the data know, 0 for none; None without.
      names: what the id is called, where the data know.
      depth: float32 (T, H, W), z-depth in the data's units; None without.
      sidecar: what was written beside the clip, see `describe.SidecarDescriber`.
    """

    frames: "np.ndarray | LazyFrames"
    times: np.ndarray
    masks: np.ndarray | None = None
    names: Mapping[int, str] = dataclasses.field(default_factory=dict)
    depth: np.ndarray | None = None
    sidecar: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class LazyFrames:
    """Frames as the decoder gave them, turned into RGB of the stored size where they are asked for.

    Most frames of a clip end in no pair, and turning one into RGB costs more than decoding it.
    """

    def __init__(self, pictures: Sequence[Callable[[], np.ndarray]]):
        self._pictures = pictures
        self._made: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> np.ndarray:
        """Frame of one index, uint8 (H, W, 3)."""
        index = range(len(self))[index]
        if index not in self._made:
            self._made[index] = self._pictures[index]()
        return self._made[index]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # always a new array
        return np.stack([self[i] for i in range(len(self))]).astype(dtype or np.uint8, copy=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self[0].shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadSettings:
    """How clips are read.

    Attributes:
      size: pixels of the shorter side; larger frames are scaled down, smaller ones stay.
      min_side: clips with fewer pixels on the shorter side are left out.
      fps: frames a second that are kept, at most.
      cut: score from which FFmpeg's `scdet` sees a cut, of 100.
      max_frames: a longer take is divided into shots of so many kept frames.
    """

    size: int = 256
    min_side: int = 64
    fps: float = 8.0
    cut: float = 10.0
    max_frames: int = 64


class ClipSource(Protocol):
    """Clips by name. Sources can be pickled."""

    def names(self) -> Sequence[str]: ...

    def fingerprint(self, name: str) -> str:
        """Hexadecimal, the same for clips of the same content; raises OSError."""
        ...

    def shots(self, name: str) -> Iterator[Shot]:
        """The shots in order.

        Raises:
          ClipError: the clip cannot be read.
        """
        ...


class VideoClips:
    """Video files of a folder (and those below it), or of a pattern such as `clips/*.mp4`.

    A clip that breaks off gives the shots before the damage, and is named as corrupt.
    """

    def __init__(self, path: AnyPath, *, settings: ReadSettings):
        self._path, self._settings = as_path(path).expanduser(), settings
        self._folder = self._path if self._path.is_dir() else self._path.parent

    def names(self) -> list[str]:
        """Paths of the files below the folder.

        Raises:
          SourceError: there are none.
        """
        if self._path == self._folder:
            places = (folder / name for folder, _, names in self._path.walk() for name in names)
            found = [path for path in places if path.suffix.lower() in VIDEOS]
        else:
            found = list(self._folder.glob(self._path.name))
        if not found:
            raise SourceError(f"{self._path} has no video files ({', '.join(VIDEOS)})")
        return sorted(path.relative_to(self._folder).as_posix() for path in found)

    def fingerprint(self, name: str) -> str:
        with (self._folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]

    def shots(self, name: str) -> Iterator[Shot]:
        try:
            path = files.inside(self._folder, name)
        except SampleError as error:
            raise ClipError("corrupt", str(error)) from None
        if not path.stat().length:
            raise ClipError("empty", f"{name} has 0 bytes")
        sidecar = read_sidecar(path)
        for number, take in enumerate(_takes(path, self._settings)):
            described = {**sidecar, "shot": number} if sidecar else {}
            yield Shot(LazyFrames(take.frames), np.asarray(take.times), sidecar=described)


def read_sidecar(path: epath.Path) -> dict[str, Any]:
    """What `NAME.json` or `NAME.txt` beside a clip says; {} without either.

    Raises:
      ClipError: the file is no JSON object, or not UTF-8.
    """
    try:
        described, caption = (
            files.inside(path.parent, path.with_suffix(suffix).name) for suffix in (".json", ".txt")
        )
        if described.exists():
            return files.read_json(described)
        return {"caption": files.read_text(caption)} if caption.exists() else {}
    except SampleError as error:
        raise ClipError("bad sidecar", str(error)) from None


# ------------------------------------------------------------------------------------------- video


_OPTIONS = {"protocol_whitelist": ""}  # playlists open no other files and no addresses


class _Take(NamedTuple):
    """Kept frames of one take, not yet RGB, and their times."""

    frames: list[Callable[[], np.ndarray]]
    times: list[float]


def _takes(path: epath.Path, settings: ReadSettings) -> Iterator[_Take]:
    """The takes of a file."""
    import av  # of the extra `curate`

    take = _Take([], [])
    start = None
    try:
        with (
            path.open("rb") as file,
            av.open(file, metadata_errors="ignore", options=_OPTIONS) as container,
        ):
            if not container.streams.video:
                raise ClipError("no video", f"{path} has no video stream")
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # workers share the machine, a clip each
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            if stream.width * stream.height > MAX_PIXELS:
                raise ClipError("too large", f"{path} is {stream.width}x{stream.height} pixels")
            aspect = float(stream.sample_aspect_ratio or 1)
            cuts, due = _CutFinder(settings.cut), -np.inf
            for number, frame in enumerate(container.decode(stream)):
                if min(frame.width, frame.height) < settings.min_side:
                    raise ClipError("too small", f"{path} is {frame.width}x{frame.height} pixels")
                rate = float(stream.average_rate or 25)
                time = number / rate if frame.time is None else frame.time
                start = time if start is None else start
                cut = cuts.is_cut(frame)
                if take.frames and (cut or len(take.frames) == settings.max_frames):
                    yield take
                    take = _Take([], [])
                if cut or time >= due or time < due - 1.5 / settings.fps:
                    # the next one is counted from this one's place in the grid, so that a rate
                    # which does not divide the video's is kept on average
                    late = time - due
                    due = time + 1 / settings.fps - (late if 0 <= late < 1 / settings.fps else 0)
                    take.frames.append(functools.partial(_picture, frame, aspect, settings.size))
                    take.times.append(time - start)
    except (av.FFmpegError, EOFError) as error:
        raise ClipError("corrupt", f"{path}: {error}") from None
    if start is None:
        raise ClipError("no video", f"{path} has no frame")
    if take.frames:
        yield take


class _CutFinder:
    """FFmpeg's scene change detector, run on small pictures."""

    def __init__(self, threshold: float):
        self._threshold, self._graph, self._shape = threshold, None, None

    def is_cut(self, frame: Any) -> bool:
        shape = (frame.width, frame.height, frame.format.name)
        if shape != self._shape:
            # another size within a stream is a cut too
            first, self._shape = self._shape is None, shape
            self._graph = _cut_graph(frame)
            self._score(frame)
            return not first
        return self._score(frame) >= self._threshold

    def _score(self, frame: Any) -> float:
        assert self._graph is not None
        self._graph.push(frame)
        return float(self._graph.pull().metadata["lavfi.scd.score"])


def _cut_graph(frame: Any) -> Any:
    import av.filter

    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width,
        height=frame.height,
        format=frame.format,
        time_base=frame.time_base,
    )
    scale = graph.add("scale", "160:90:flags=fast_bilinear")
    found = graph.add("scdet", "threshold=100")
    sink = graph.add("buffersink")
    source.link_to(scale)
    scale.link_to(found)
    found.link_to(sink)
    graph.configure()
    return graph


def _picture(frame: Any, aspect: float, size: int) -> np.ndarray:
    """RGB as it is shown: square pixels, upright, the shorter side at most `size`."""
    width, height = frame.width * aspect, float(frame.height)
    scale = min(1.0, size / min(width, height))
    picture = frame.reformat(
        width=round(width * scale),
        height=round(height * scale),
        format="rgb24",
        interpolation="AREA",
    ).to_ndarray()
    return np.ascontiguousarray(np.rot90(picture, (frame.rotation // 90) % 4))
