"""Folders of videos whose things have masks, as shots.

DAVIS (Pont-Tuset et al. 2017): pictures, and palette PNGs of ids.

    JPEGImages/480p/bear/00000.jpg  Annotations/480p/bear/00000.png
    ImageSets/2017/train.txt        names of videos; need not be there
    davis_semantics.json            {"bear": {"1": "bear"}}, names of ids; need not be there

YouTube-VIS (Yang et al. 2019): pictures of every fifth frame, and masks as run lengths.

    JPEGImages/0043f083b5/00000.jpg  instances.json

Frames are made smaller while they are read: the shorter side gets `size` pixels, pictures by the
mean of areas, masks by the nearest pixel at the same places.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from etils import epath

from data_pipelines.curate.clips import ClipError, Shot
from data_pipelines.curate.run_lengths import RunLengthError, decode_mask
from data_pipelines.sources import files
from data_pipelines.sources.base import SampleError, SourceError
from unidiff_jax.outside import InputError, decode_picture, decode_values, fits

DAVIS_RATE = 24.0
YOUTUBE_VIS_RATE = 6.0
"""Frames a second."""

MAX_INSTANCES = 2**32
"""Bytes of `instances.json`, which holds the masks of all videos."""

_INSTANCES = {"videos": [{"id": (int, str), "file_names": [str]}]}

MAX_IDS = 255
"""An id is a byte, and 0 is nothing."""


@dataclasses.dataclass(frozen=True)
class Track:
    """One thing in a video.

    Attributes:
      name: its category.
      masks: run lengths of each frame (`run_lengths`); None where the thing is not seen.
    """

    name: str
    masks: Sequence[Mapping[str, Any] | None]


@dataclasses.dataclass(frozen=True)
class YoutubeVisClip:
    """A video of YouTube-VIS.

    Attributes:
      name: its folder.
      frames: names of its pictures in `JPEGImages`.
      tracks: its things; None where nobody marked them, as in the splits for validation and test.
    """

    name: str
    frames: Sequence[str]
    tracks: Sequence[Track] | None


def list_davis(
    root: str | epath.Path, *, image_set: str | None = None, resolution: str = "480p"
) -> list[str]:
    """Names of the videos, sorted or in the order of the set.

    Args:
      root: folder of DAVIS.
      image_set: file of `ImageSets` without its ending, such as `2017/train`; None takes all.
      resolution: folder of `JPEGImages`.

    Raises:
      SourceError: no such folder or set, no videos, or a video of the set is missing.
    """
    root = epath.Path(root).expanduser()
    folder = root / "JPEGImages" / resolution
    names = files.list_folders(folder)
    if image_set is not None:
        present = set(names)
        try:
            path = files.inside(root / "ImageSets", f"{image_set}.txt")
            names = files.read_text(path).split()
        except SampleError as error:
            raise SourceError(str(error)) from None
        missing = [name for name in names if name not in present]
        if missing:
            raise SourceError(f"{folder} lacks {len(missing)} videos of {path}, first {missing[0]}")
    if not names:
        raise SourceError(f"{folder} holds no folders: one folder a video")
    return names


def read_davis_names(root: str | epath.Path) -> dict[str, dict[int, str]]:
    """Names of the ids of each video, from `davis_semantics.json`; empty where that is not there.

    Raises:
      SourceError: the file holds something else.
    """
    path = epath.Path(root).expanduser() / "davis_semantics.json"
    if not path.exists():
        return {}
    try:
        record = files.read_json(path)
        return {
            video: {int(i): str(name) for i, name in names.items()}
            for video, names in record.items()
        }
    except (SampleError, AttributeError, ValueError) as error:
        raise SourceError(f"{path}: not names by video and id: {error}") from None


def davis_frames(
    root: str | epath.Path, name: str, *, resolution: str = "480p"
) -> list[tuple[epath.Path, epath.Path | None]]:
    """Each picture of a video with its ids, or None where nobody marked the frame.

    Raises:
      ClipError: no pictures, or ids without a picture.
    """
    root = epath.Path(root).expanduser()
    pictures, marked = (
        {epath.Path(file).stem: _listed(folder, file) for file in _list(folder, suffix)}
        for folder, suffix in (
            (root / "JPEGImages" / resolution / name, ".jpg"),
            (root / "Annotations" / resolution / name, ".png"),
        )
    )
    if not pictures:
        raise ClipError("empty", f"{root}: the video {name} has no pictures")
    alone = sorted(marked.keys() - pictures.keys())
    if alone:
        raise ClipError("missing frame", f"{root}: the video {name} has no picture {alone[0]}.jpg")
    return [(pictures[stem], marked.get(stem)) for stem in sorted(pictures)]


def davis_shot(
    root: str | epath.Path,
    name: str,
    *,
    size: int,
    names: Mapping[int, str] | None = None,
    resolution: str = "480p",
    rate: float = DAVIS_RATE,
) -> Shot:
    """A video of DAVIS. Where only some frames are marked the others are left out, and where none
    is the shot has no masks.

    Args:
      root: folder of DAVIS.
      name: see `list_davis`.
      size: pixels of the shorter side.
      names: of ids, see `read_davis_names`.
      resolution: folder of `JPEGImages`.
      rate: frames a second.

    Raises:
      ClipError: pictures are missing, damaged or of different sizes, masks have another size, or
        ids are above 255.
    """
    frames = davis_frames(root, name, resolution=resolution)
    marked = [(number, ids) for number, (_, ids) in enumerate(frames) if ids is not None]
    numbers = [number for number, _ in marked] or list(range(len(frames)))
    shot = _make_shot(
        [frames[number][0] for number in numbers],
        size=size,
        read_ids=(lambda place, _: read_ids(marked[place][1])) if marked else None,
        names=names or {},
    )
    return dataclasses.replace(shot, times=np.array(numbers) / rate)


def list_youtube_vis(root: str | epath.Path) -> list[YoutubeVisClip]:
    """All videos of `instances.json`, which is read once and large.

    Raises:
      SourceError: no such file, or it is not what YouTube-VIS has.
    """
    path = epath.Path(root).expanduser() / "instances.json"
    try:
        record = files.read_json(path, limit=MAX_INSTANCES)
        if not fits(record, _INSTANCES):
            raise TypeError(f"no {', '.join(_INSTANCES)}, or of other types")
        names = {entry["id"]: str(entry["name"]) for entry in record.get("categories", ())}
        tracks: dict[Any, list[Track]] = {entry["id"]: [] for entry in record["videos"]}
        for entry in record.get("annotations") or ():
            if not fits(entry, {"segmentations": list}):
                raise TypeError("an annotation without its segmentations")
            track = Track(names[entry["category_id"]], entry["segmentations"])
            tracks[entry["video_id"]].append(track)
        is_marked = record.get("annotations") is not None
        return [
            YoutubeVisClip(
                name=entry["file_names"][0].partition("/")[0],
                frames=entry["file_names"],
                tracks=tracks[entry["id"]] if is_marked else None,
            )
            for entry in record["videos"]
        ]
    except (SampleError, LookupError, TypeError, AttributeError) as error:
        raise SourceError(f"{path}: not the instances of YouTube-VIS: {error}") from None


def youtube_vis_shot(
    root: str | epath.Path, clip: YoutubeVisClip, *, size: int, rate: float = YOUTUBE_VIS_RATE
) -> Shot:
    """A video of YouTube-VIS; ids are the places of `clip.tracks`, from 1.

    Args:
      root: folder of YouTube-VIS.
      clip: see `list_youtube_vis`.
      size: pixels of the shorter side.
      rate: frames a second.

    Raises:
      ClipError: as `davis_shot`, or run lengths that are no mask.
    """
    folder = epath.Path(root).expanduser() / "JPEGImages"
    tracks = clip.tracks
    if tracks is not None and len(tracks) > MAX_IDS:
        raise ClipError("too many ids", f"{clip.name} has {len(tracks)} things, at most {MAX_IDS}")
    if any(len(track.masks) != len(clip.frames) for track in tracks or ()):
        raise ClipError("corrupt", f"{clip.name}: a thing has not one mask for each frame")
    try:
        pictures = [files.inside(folder, name) for name in clip.frames]
    except SampleError as error:
        raise ClipError("missing frame", str(error)) from None

    def draw_ids(number: int, shape: tuple[int, int]) -> np.ndarray:
        ids = np.zeros(shape, np.uint8)
        for i, track in enumerate(tracks or (), start=1):
            mask = track.masks[number]
            if mask is None:
                continue
            try:
                found = decode_mask(mask)
            except RunLengthError as error:
                raise ClipError("corrupt", f"{clip.frames[number]}, thing {i}: {error}") from None
            if found.shape != shape:
                raise ClipError(
                    "mask size",
                    f"{clip.frames[number]} has {shape} pixels, the mask of thing {i} "
                    f"{found.shape}",
                )
            ids[found] = i
        return ids

    shot = _make_shot(
        pictures,
        size=size,
        read_ids=None if tracks is None else draw_ids,
        names={i: track.name for i, track in enumerate(tracks or (), start=1)},
    )
    return dataclasses.replace(shot, times=np.arange(len(pictures)) / rate)


def read_ids(path: epath.Path) -> np.ndarray:
    """Ids (h, w) of a picture with a palette or in grey.

    Raises:
      ClipError: no such picture, or an id above 255.
    """
    try:
        ids = decode_values(files.read_bytes(path), name=str(path))
    except (SampleError, InputError) as error:
        raise ClipError("corrupt", f"no picture of ids: {error}") from None
    if ids.ndim != 2:
        raise ClipError("corrupt", f"{path} is in colour, without a palette: no ids")
    if ids.max(initial=0) > MAX_IDS:
        raise ClipError("too many ids", f"{path} has the id {ids.max()}, at most {MAX_IDS}")
    return ids.astype(np.uint8)


def _make_shot(
    pictures: Sequence[epath.Path],
    *,
    size: int,
    read_ids: Callable[[int, tuple[int, int]], np.ndarray] | None,
    names: Mapping[int, str],
) -> Shot:
    """A shot without times; `read_ids` takes the number of a picture and its (h, w)."""
    frames, masks = [], []
    for number, picture in enumerate(_read_pictures(pictures)):
        shape = picture.shape[:2]
        frames.append(_resize(picture, size=size, is_mask=False))
        if read_ids is None:
            continue
        ids = read_ids(number, shape)
        if ids.shape != shape:
            raise ClipError(
                "mask size", f"{pictures[number]} has {shape} pixels, its mask {ids.shape}"
            )
        masks.append(_resize(ids, size=size, is_mask=True))
    if not frames:
        raise ClipError("empty", "the video has no pictures")
    return Shot(
        frames=np.stack(frames),
        times=np.zeros(len(frames)),
        masks=np.stack(masks) if masks else None,
        names=dict(names),
    )


def _read_pictures(paths: Sequence[epath.Path]) -> Iterator[np.ndarray]:
    first = None
    for path in paths:
        try:
            data = files.read_bytes(path)
        except SampleError as error:
            raise ClipError("missing frame", str(error)) from None
        try:
            rgb = np.asarray(decode_picture(data, name=str(path)))
        except InputError as error:
            raise ClipError("corrupt", str(error)) from None
        first = first or rgb.shape
        if rgb.shape != first:
            raise ClipError("frame size", f"{path} has {rgb.shape[:2]} pixels, others {first[:2]}")
        yield rgb


def _resize(picture: np.ndarray, *, size: int, is_mask: bool) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = size / min(height, width)
    if is_mask:
        how = cv2.INTER_NEAREST_EXACT  # at pixels' centres, as the others
    else:
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return cv2.resize(picture, (round(width * factor), round(height * factor)), interpolation=how)


def _listed(folder: epath.Path, file: str) -> epath.Path:
    try:
        return files.inside(folder, file)
    except SampleError as error:
        raise ClipError("missing frame", str(error)) from None


def _list(folder: epath.Path, suffix: str) -> list[str]:
    if not folder.is_dir():
        return []
    return [name for name in files.list_names(folder) if name.endswith(suffix)]
