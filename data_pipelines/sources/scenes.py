"""Posed views of scenes: folders in nerfstudio's layout, as DL3DV and others come.

    scene/transforms.json  images/frame_00001.png  images_4/...  images_8/...  caption.json

`transforms.json` has `w`, `h`, `fl_x`, `fl_y` and `frames`, each with `file_path` and a
`transform_matrix`: camera to world, the camera looks along -z. A frame may have intrinsics of its
own. The principal point is the picture's middle in whole pixels and there is no distortion, as in
the code that OneDiffusion was trained with, whatever the file says of them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.sources import files
from data_pipelines.sources.base import (
    SampleError,
    check_bounds,
    check_index,
    draw_some,
    read_picture,
)
from unidiff_jax import cameras
from unidiff_jax.cameras import Cameras
from unidiff_jax.outside import MAX_PIXELS, shown

DOWNSCALES = (1, 4, 8)
"""Pictures of 1/4 of the size lie in `images_4`."""

SCALE = 1.7
"""Distance of the first camera from what all look at, in the world that rays are in."""

_SWAP_XZ = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]], np.float64)

_ASPECT_TOLERANCE = 0.02


class SceneSource:
    """Samples of several views of one scene.

    | field | what |
    |---|---|
    | `views` | the pictures, not cropped |
    | `cameras` | one a view, seen from the first, at the scale that rays have |
    | `caption` | "" where there is none |

    Rays of a square crop from the middle are `unidiff_jax.cameras.to_rays(cameras, size=n)`: image
    coordinates run over the picture's shorter side.
    """

    fields = ("views", "cameras", "caption")

    def __init__(
        self,
        pattern: str,
        *,
        num_views: int | tuple[int, int] = (2, 6),
        window: int | None = None,
        downscale: int | None = None,
        caption_keys: Sequence[str] = ("caption",),
        swap_xz: bool = False,
        scale: float = SCALE,
    ):
        """Lists the scenes; reads none.

        Args:
          pattern: a scene, a folder of scenes, or a pattern of scenes.
          num_views: how many views, or the least and the largest number; a scene with fewer than
            the largest gives at most all that it has.
          window: views are taken from so many consecutive frames; None takes them from all.
          downscale: one of `DOWNSCALES`; None takes the largest pictures that a scene has.
          caption_keys: keys of `caption.json`, of which one that is there is drawn.
          swap_xz: turns the world about its y axis first: x to -z and z to x.
          scale: see `unidiff_jax.cameras.normalize`.

        Raises:
          SourceError: no scenes.
          ValueError: a value out of range.
        """
        self._num_views = check_bounds(num_views)
        if window is not None and window < self._num_views[1]:
            raise ValueError(f"a window of {window} frames has no {self._num_views[1]} views")
        if downscale not in (None, *DOWNSCALES):
            raise ValueError(f"downscale is None or one of {DOWNSCALES}, got {downscale}")
        if not 0 < scale < math.inf:
            raise ValueError(f"scale is a length above 0, got {scale}")
        self._scenes = files.find_folders(pattern, holding="transforms.json")
        self._window, self._downscale, self._scale = window, downscale, scale
        self._caption_keys, self._swap_xz = tuple(caption_keys), swap_xz

    def __len__(self) -> int:
        return len(self._scenes)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Views of one scene; see `RawSource.sample`."""
        check_index(index, len(self))
        scene = self._scenes[index]
        path = files.inside(scene, "transforms.json")
        record = files.read_json(path)
        frames = record.get("frames")
        if not isinstance(frames, list) or not all(isinstance(f, Mapping) for f in frames):
            raise SampleError(f"{path}: frames is not a list of objects")
        if self._window is not None and len(frames) > self._window:
            start = int(rng.integers(len(frames) - self._window + 1))
            frames = frames[start : start + self._window]
        chosen = [
            frames[i] for i in draw_some(len(frames), self._num_views, rng, name=f"{path}: frames")
        ]
        downscale = self._downscale or _largest(scene)
        posed, views = [], []
        for frame in chosen:
            camera, size = read_camera(
                {**record, **frame}, downscale=downscale, swap_xz=self._swap_xz, name=str(path)
            )
            picture = _picture_path(scene, frame.get("file_path"), downscale)
            view = read_picture(files.read_bytes(picture), name=str(picture))
            aspect = (view.width / view.height) / (size[0] / size[1])
            if abs(math.log(aspect)) > _ASPECT_TOLERANCE:
                raise SampleError(
                    f"{picture} is {view.width}x{view.height} pixels, but its camera sees "
                    f"{size[0]}x{size[1]}"
                )
            posed.append(camera)
            views.append(view)
        joined = Cameras(*(np.concatenate(parts) for parts in zip(*posed, strict=True)))
        return {
            "views": views,
            "cameras": seen_from_first(joined, scale=self._scale, name=str(path)),
            "caption": self._caption(scene, rng),
        }

    def _caption(self, scene: epath.Path, rng: np.random.Generator) -> str:
        path = files.inside(scene, "caption.json")
        if not path.exists():
            return ""
        record = files.read_json(path)
        texts = [record[key] for key in self._caption_keys if key in record]
        if not all(isinstance(text, str) for text in texts):
            raise SampleError(f"{path}: {', '.join(self._caption_keys)} are not all texts")
        return texts[int(rng.integers(len(texts)))].strip() if texts else ""


def read_camera(
    record: Mapping[str, Any], *, downscale: int, swap_xz: bool, name: str
) -> tuple[Cameras, tuple[int, int]]:
    """The camera of a frame, in its scene's world, and its picture's width and height in pixels.

    Sizes and focal lengths of smaller pictures are cut to whole pixels.

    Args:
      record: `w`, `h`, `fl_x`, `fl_y` in pixels of the full size, and `transform_matrix`.
      downscale: of the pictures.
      swap_xz: turns the world about its y axis.
      name: what messages call it.

    Raises:
      SampleError: something is missing or no sensible number.
    """
    values = []
    for key in ("w", "h", "fl_x", "fl_y"):
        value = record.get(key)
        if not isinstance(value, int | float) or not 0 < value <= MAX_PIXELS:
            raise SampleError(f"{name}: {key} is {shown(value)}, not a number of pixels")
        value = value if downscale == 1 else int(value / downscale)
        if value < 1:
            raise SampleError(f"{name}: {key} is less than a pixel at 1/{downscale} of the size")
        values.append(value)
    width, height = int(values[0]), int(values[1])
    try:
        c2w = np.array(record.get("transform_matrix"), np.float64)
    except (TypeError, ValueError, OverflowError):
        c2w = np.zeros(())
    if c2w.shape == (3, 4):
        c2w = np.concatenate([c2w, [[0.0, 0.0, 0.0, 1.0]]])
    if c2w.shape != (4, 4) or not np.isfinite(c2w).all() or abs(np.linalg.det(c2w)) < 1e-9:
        raise SampleError(f"{name}: a transform_matrix is no invertible 4 x 4 matrix")
    camera = cameras.from_opengl(
        (_SWAP_XZ @ c2w if swap_xz else c2w)[None],
        focal=np.array([values[2:]]),
        principal=np.array([[width // 2, height // 2]]),
        size=(width, height),
    )
    return camera, (width, height)


def seen_from_first(posed: Cameras, *, scale: float, name: str) -> Cameras:
    """The world at `scale` (`cameras.normalize`), as the first camera sees it.

    Raises:
      SampleError: no scale can be chosen.
    """
    try:
        found = cameras.normalize(posed, scale=scale)
    except ValueError as error:
        raise SampleError(f"{name}: {error}") from None
    return cameras.relative_to_first(found)


def _largest(scene: epath.Path) -> int:
    found = (d for d in DOWNSCALES if (scene / _images_folder(d)).is_dir())
    return next(found, 1)


def _images_folder(downscale: int) -> str:
    return "images" if downscale == 1 else f"images_{downscale}"


def _picture_path(scene: epath.Path, name: Any, downscale: int) -> epath.Path:
    path = files.inside(scene, name)
    if downscale == 1:
        return path
    parts = path.relative_to(scene).parts
    if parts[0] != "images":
        raise SampleError(
            f"{scene}: {shown(name)} does not lie in images, so it has no smaller one"
        )
    return files.inside(scene, "/".join((_images_folder(downscale), *parts[1:])))
