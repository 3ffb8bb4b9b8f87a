"""Captions of shots, and boxes of the things that they name.

Here is what is said of a shot without a model: in a file beside the clip (`Sidecar`), or by the
masks that the data have. `describe_models` has the describers that look at the picture.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypedDict, get_args

import numpy as np

from data_pipelines.curate.clips import ClipError, Shot

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

OnBadBox = Literal["clip", "skip", "error"]

_ROUNDING = 1e-6
_LIKE_PIXELS = 2.0
_SAME_TIME = 1e-3


class SidecarEntity(TypedDict, total=False):
    """A thing in a sidecar file. It is in the first frame of its shot unless that is said.

    Attributes:
      name: words that mean it, such as "a red ball", in any script.
      box: left, top, right, bottom: shares of the picture, or pixels where the file has a size.
      frame: which of the shot's frames, from 0, the box is of.
      time: the same in seconds from the clip's start: the nearest frame of the shot that was then.
      shot: which of the clip's shots, from 0, where no time says so; 0 without.
    """

    name: str
    box: Sequence[float]
    frame: int
    time: float
    shot: int


class Sidecar(TypedDict, total=False):
    """What is written beside a clip, as JSON in UTF-8; all keys may be missing.

        {"caption": "a dog runs after a ball", "width": 1280, "height": 720,
         "entities": [{"name": "a dog", "box": [64, 200, 420, 610], "time": 0.5}]}

    Attributes:
      caption: what happens: in the clip, or in each of its shots.
      shot: which of the clip's shots this is, from 0; written by the code that cuts clips.
      width: of the picture that boxes in pixels are of, whatever size the clip is read at.
      height: the same.
      entities: the things in it.
    """

    caption: str | Sequence[str | None]
    shot: int
    width: float
    height: float
    entities: Sequence[SidecarEntity]


@dataclasses.dataclass(frozen=True)
class Entity:
    """A thing in a shot.

    Attributes:
      name: words that mean it, such as "a red ball".
      box: left, top, right, bottom as shares of the picture, in [0, 1].
      frame: of which frame of the shot.
    """

    name: str
    box: tuple[float, float, float, float]
    frame: int = 0


@dataclasses.dataclass(frozen=True)
class Description:
    """What is said of a shot.

    Attributes:
      caption: of the shot as a video; what happens.
      entities: the things in it.
    """

    caption: str
    entities: Sequence[Entity] = ()


class Describer(Protocol):
    """Describes shots; can be pickled, and loads its weights when first called."""

    def describe(self, shot: Shot) -> Description: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class SidecarDescriber:
    """Says what the file beside the clip says (`Sidecar`).

        SidecarDescriber(on_bad_box="skip").describe(shot)

    Attributes:
      on_bad_box: what becomes of a box that reaches out of the picture: `clip` cuts it to the
        picture and drops what is wholly outside, `skip` drops it, `error` refuses the clip.
    """

    on_bad_box: OnBadBox = "clip"

    def __post_init__(self):
        if self.on_bad_box not in get_args(OnBadBox):
            raise ValueError(f"on_bad_box is {self.on_bad_box!r}; use one of {get_args(OnBadBox)}")

    def describe(self, shot: Shot) -> Description:
        """The caption and entities of the file.

        Raises:
          ClipError: `no caption`, or `bad sidecar` with the key that is wrong.
        """
        caption = given_caption(shot.sidecar)
        if caption is None:
            raise ClipError("no caption", "the sidecar file has no caption for this shot")
        return Description(caption, self._entities(shot))

    def _entities(self, shot: Shot) -> list[Entity]:
        size = _picture_size(shot.sidecar)
        found = []
        for key, entity in _listed(shot.sidecar):
            frame = _frame_of(entity, shot, key=key)
            if frame is None:
                continue
            box = _box_of(entity, size, key=key)
            inside = clip_box(box)
            if (
                inside is None
                or max(abs(a - b) for a, b in zip(box, inside, strict=True)) > _ROUNDING
            ):
                if self.on_bad_box == "error":
                    raise _bad(f"{key}.box", f"{list(entity['box'])} reaches out of the picture")
                if self.on_bad_box == "skip":
                    continue
            if inside is not None:
                found.append(Entity(_name_of(entity, key=key), inside, frame))
        return found


@dataclasses.dataclass(frozen=True)
class GivenDescriber:
    """Says what the data's own masks say, as in DAVIS or YouTube-VIS.

    Each named thing has the bounding box of its mask in the first frame that shows it. The caption
    is the sidecar file's; without one it is made of the names: "a video of a dog and a ball".
    """

    def describe(self, shot: Shot) -> Description:
        """The caption and the named things, in the order of their ids.

        Raises:
          ClipError: `no caption`: there is none, and no named thing to make one of; or
            `bad sidecar`.
        """
        entities = _entities_of_masks(shot)
        caption = given_caption(shot.sidecar) or caption_from_names(e.name for e in entities)
        if caption is None:
            raise ClipError("no caption", "the shot has neither a caption nor a mask with a name")
        return Description(caption, entities)


def given_caption(sidecar: Mapping[str, Any]) -> str | None:
    """The shot's caption in a sidecar file; None without.

    Raises:
      ClipError: `bad sidecar`: it is no text.
    """
    caption, key = sidecar.get("caption"), "caption"
    if isinstance(caption, Sequence) and not isinstance(caption, str):
        shot = _whole(sidecar.get("shot", 0), key="shot")
        caption, key = (caption[shot] if shot < len(caption) else None), f"caption[{shot}]"
    if caption is None:
        return None
    if not isinstance(caption, str):
        raise _bad(key, f"{caption!r} is no text")
    return caption.strip() or None


def given_names(sidecar: Mapping[str, Any]) -> list[str]:
    """Names of the entities in a sidecar file, with or without boxes, each once.

    Raises:
      ClipError: `bad sidecar`: one is no text.
    """
    return list(dict.fromkeys(_name_of(entity, key=key) for key, entity in _listed(sidecar)))


def caption_from_names(names: Iterable[str]) -> str | None:
    """`a video of a dog, a cat and a ball`: each name once; None without names."""
    listed = list(dict.fromkeys(names))
    if len(listed) < 2:
        return f"a video of {listed[0]}" if listed else None
    return f"a video of {', '.join(listed[:-1])} and {listed[-1]}"


def clip_box(box: Sequence[float]) -> Box | None:
    """The part of a box that is in the picture, in shares; None where it has no area."""
    left, top, right, bottom = (min(max(float(x), 0.0), 1.0) for x in box)
    return (left, top, right, bottom) if left < right and top < bottom else None


def _entities_of_masks(shot: Shot) -> list[Entity]:
    if shot.masks is None:
        return []
    found: dict[int, Entity] = {}
    height, width = shot.masks.shape[1:]
    for frame, mask in enumerate(shot.masks):
        present = np.flatnonzero(np.bincount(mask.ravel()))
        for i in set(present.tolist()) & set(shot.names) - set(found):
            rows, columns = np.nonzero(mask == i)
            left, right = columns.min() / width, (columns.max() + 1) / width
            top, bottom = rows.min() / height, (rows.max() + 1) / height
            box = (float(left), float(top), float(right), float(bottom))
            found[i] = Entity(shot.names[i], box, frame)
        if len(found) == len(shot.names):
            break
    return [found[i] for i in sorted(found)]


def _bad(key: str, message: str) -> ClipError:
    return ClipError("bad sidecar", f"the sidecar file's {key}: {message}")


def _listed(sidecar: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The entities with their keys in the file, for messages."""
    entities = sidecar.get("entities", ())
    if isinstance(entities, str) or not isinstance(entities, Sequence):
        raise _bad("entities", "not a list")
    for n, entity in enumerate(entities):
        if not isinstance(entity, Mapping):
            raise _bad(f"entities[{n}]", f'{entity!r} is not {{"name": ..., "box": ...}}')
    return [(f"entities[{n}]", entity) for n, entity in enumerate(entities)]


def _name_of(entity: Mapping[str, Any], *, key: str) -> str:
    name = entity.get("name")
    if not isinstance(name, str) or not name.strip():
        raise _bad(f"{key}.name", f"{name!r} is no name")
    return name.strip()


def _picture_size(sidecar: Mapping[str, Any]) -> tuple[float, float] | None:
    size = [sidecar.get(key) for key in ("width", "height")]
    if size == [None, None]:
        return None
    width, height = (
        _number(value, key=key) for value, key in zip(size, ("width", "height"), strict=True)
    )
    if width <= 0 or height <= 0:
        raise _bad("width and height", f"{width:g} and {height:g} must be above 0")
    return width, height


def _box_of(entity: Mapping[str, Any], size: tuple[float, float] | None, *, key: str) -> Box:
    """The box in shares of the picture; it may reach out of it."""
    key, box = f"{key}.box", entity.get("box")
    if isinstance(box, str) or not isinstance(box, Sequence) or len(box) != 4:
        raise _bad(key, f"{box!r} is not [left, top, right, bottom]")
    left, top, right, bottom = (_number(x, key=f"{key}[{n}]") for n, x in enumerate(box))
    if left >= right or top >= bottom:
        raise _bad(key, f"{list(box)} must have left < right and top < bottom")
    if size is None:
        if max(map(abs, (left, top, right, bottom))) > _LIKE_PIXELS:
            raise _bad(key, f"{list(box)} looks like pixels: give width and height in the file")
        return left, top, right, bottom
    width, height = size
    return left / width, top / height, right / width, bottom / height


def _frame_of(entity: Mapping[str, Any], shot: Shot, *, key: str) -> int | None:
    """Which frame of this shot an entity is in; None where it is in another shot."""
    if "shot" in entity or "time" not in entity:
        number = _whole(entity.get("shot", 0), key=f"{key}.shot")
        if number != _whole(shot.sidecar.get("shot", 0), key="shot"):
            return None
    if "time" in entity:
        time, times = _number(entity["time"], key=f"{key}.time"), np.asarray(shot.times)
        half = (times[-1] - times[0]) / max(len(times) - 1, 1) / 2
        near = max(half, _SAME_TIME)
        if not times[0] - near <= time <= times[-1] + near:
            return None
        return int(np.argmin(np.abs(times - time)))
    frame = _whole(entity.get("frame", 0), key=f"{key}.frame")
    if frame >= len(shot.frames):
        raise _bad(f"{key}.frame", f"{frame}, but the shot has {len(shot.frames)} frames")
    return frame


def _number(value: Any, *, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _bad(key, f"{value!r} is not a finite number")
    return float(value)


def _whole(value: Any, *, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _bad(key, f"{value!r} is not 0, 1, 2, ...")
    return value
