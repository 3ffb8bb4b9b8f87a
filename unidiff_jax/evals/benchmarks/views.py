"""Novel views and camera poses of GSO's objects, in the layout of EscherNet's data.

    <object>/render_mvs_25/model/%03d.png    RGBA, 25 views
    <object>/render_mvs_25/model/%03d.npy    world to camera (3, 4), Blender's axes

A whole picture's PSNR flatters the white background, so that of the object's pixels stands beside
it. Pose scores stand beside what random cameras get.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from unidiff_jax import cameras
from unidiff_jax.evals import camera_protocol, image_distance
from unidiff_jax.evals.benchmarks.base import (
    Benchmark,
    BenchmarkError,
    Data,
    Item,
    Picture,
    Predictions,
    Score,
    read_array,
)
from unidiff_jax.evals.benchmarks.predictions import to_cameras
from unidiff_jax.evals.benchmarks.scoring import Tools, array, identity, split, substitute
from unidiff_jax.outside import decode_values, read_file
from unidiff_jax.paths import as_path
from unidiff_jax.sample.images import open_picture

VIEWS, FIRST_TEST, SIDE = 25, 10, 256
FOCAL = 35 / 32
"""In picture widths: Blender's lens of 35 mm before a sensor of 32 mm."""

POSE_VIEWS, POSE_DRAWS = 6, 5
"""Views of a set (OneDiffusion), and sets of an object, which are ours."""

SETTINGS = ((1, True), (2, True), (2, False), (3, True), (3, False))
"""Numbers of given views, and whether the cameras of the second and third are given."""

MODEL = "render_mvs_25/model"


def find_objects(folder: epath.Path) -> list[str]:
    """Names of the objects, sorted; raises BenchmarkError where there is none."""
    if not folder.is_dir():
        raise BenchmarkError(f"no such folder: {folder}")
    found = sorted(path.name for path in folder.iterdir() if (path / MODEL).is_dir())
    if not found:
        raise BenchmarkError(f"{folder} has no <object>/{MODEL}")
    return found


def view(folder: epath.Path, name: str, number: int) -> Picture:
    """A view at `SIDE` pixels, white where its alpha is 0 and nowhere else (EscherNet's code)."""
    path = folder / name / MODEL / f"{number:03d}.png"

    def read() -> Image.Image:
        rgba = np.asarray(_rgba(path))
        rgb = np.where(rgba[..., 3:] == 0, np.uint8(255), rgba[..., :3])
        return Image.fromarray(rgb).resize((SIDE, SIDE))

    return Picture(f"{name}/{number:03d}", read)


def _rgba(path: epath.Path) -> Image.Image:
    return Image.fromarray(decode_values(read_file(path), name=str(path))).convert("RGBA")


def poses(folder: epath.Path, name: str) -> np.ndarray:
    """Camera to world (25, 4, 4), OpenGL's axes; raises BenchmarkError for another shape."""
    found = []
    for number in range(VIEWS):
        path = folder / name / MODEL / f"{number:03d}.npy"
        matrix = read_array(path)
        if matrix.shape not in ((3, 4), (4, 4)):
            raise BenchmarkError(f"{path} has shape {matrix.shape}, not (3, 4)")
        found.append(np.concatenate([matrix[:3], [[0.0, 0.0, 0.0, 1.0]]]))
    return np.linalg.inv(np.asarray(found, np.float64))


def _intrinsics(count: int) -> np.ndarray:
    matrix = np.array([[FOCAL, 0, 0.5], [0, FOCAL, 0.5], [0, 0, 1]])
    return np.broadcast_to(matrix, (count, 3, 3)).copy()


# ------------------------------------------------------------------------------------- novel views


def protocol_of(count: int, known: bool) -> str:
    """Id of a setting, such as `inputs2_unknown`."""
    return f"inputs{count}" + ("" if known else "_unknown")


def read_gso_views(folder: epath.Path, split_name: str) -> list[Item]:
    """Views 10 to 24 of every object from the first one, two and three; see `SETTINGS`.

    Raises:
      BenchmarkError: no objects, or a camera that cannot be read.
    """
    del split_name
    items = []
    for name in find_objects(folder):
        every = poses(folder, name)
        for count, known in SETTINGS:
            for target in range(FIRST_TEST, VIEWS):
                chosen = [*range(count), target]
                given = [view(folder, name, number) for number in range(count)]
                # the first camera is the world; of the others it depends
                asked = (False, *[not known] * (count - 1), False)
                items.append(
                    Item(
                        id=f"{protocol_of(count, known)}/{name}/{target:03d}",
                        given={
                            "views": [*given, None],
                            "cameras": {
                                "made_cameras": asked,
                                "poses": every[chosen],
                                "intrinsics": _intrinsics(count + 1),
                            },
                        },
                        text={"caption": ""},
                        size=(SIDE, SIDE),
                        group=name,
                        truth={
                            "input": given[0],
                            "target": view(folder, name, target),
                            "protocol": protocol_of(count, known),
                            "number": target,
                            "folder": str(folder),
                        },
                    )
                )
    return items


def _object_mask(item: Item) -> np.ndarray:
    path = as_path(item.truth["folder"]) / item.group / MODEL / f"{item.truth['number']:03d}.png"
    alpha = _rgba(path).getchannel("A").resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return np.asarray(alpha)[None] > 0


def _score_views(items: Sequence[Item], made: Predictions, tools: Tools) -> list[Score]:
    found = []
    for protocol in dict.fromkeys(item.truth["protocol"] for item in items):
        own = [item for item in items if item.truth["protocol"] == protocol]
        there, counts = split(own, made)
        lpips = tools.get("lpips-alex")
        columns: dict[str, list[float]] = {}
        for item in there:
            target = item.truth["target"].open()
            output = image_distance.match_size(made(item), reference=target)
            x, y, mask = array(output), array(target), _object_mask(item)
            inside = [image_distance.l2(x, target=y, mask=mask)[0]]
            row = {
                "psnr": image_distance.psnr(x, target=y)[0],
                "ssim": image_distance.ssim(x, target=y)[0],
                "psnr_object": -10 * np.log10(max(inside[0], 1e-6)),
            }
            if lpips is not None:
                row["lpips"] = lpips.distance([output], [target])[0]
            for name, value in row.items():
                columns.setdefault(name, []).append(float(value))
        for metric, values in columns.items():
            own_deviation = ("Of the object's pixels alone.",) if metric == "psnr_object" else ()
            is_lpips = metric == "lpips"
            found.append(
                Score(
                    metric=metric,
                    values=_object_means(np.asarray(values), there),
                    protocol=protocol,
                    reference="gt",
                    higher_is_better=not is_lpips,
                    encoder=identity(lpips) if is_lpips else None,
                    deviations=own_deviation + (substitute(lpips) if is_lpips else ()),
                    **counts,
                )
            )
    return found


def _object_means(values: np.ndarray, items: Sequence[Item]) -> np.ndarray:
    names = [item.group for item in items]
    kept = [np.array(names) == name for name in dict.fromkeys(names)]
    defined = [values[rows][np.isfinite(values[rows])] for rows in kept]
    return np.array([part.mean() for part in defined if len(part)])


def write_strips(folder: epath.Path, items: Sequence[Item]) -> None:
    """The official script's pictures: `logs/GSO25/N<inputs>M25/<object>/0.png`, 25 views in a row.

    Views that are not scored are black.
    """
    strips: dict[tuple[str, str], list[Item]] = {}
    for item in items:
        strips.setdefault((item.truth["protocol"], item.group), []).append(item)
    for (protocol, name), own in strips.items():
        strip = Image.new("RGB", (SIDE * VIEWS, SIDE))
        for item in own:
            path = folder / f"{item.id}.png"
            if path.exists():
                strip.paste(open_picture(path), (SIDE * item.truth["number"], 0))
        place = folder / "logs/GSO25" / f"N{protocol.removeprefix('inputs')}M25" / name
        place.mkdir(parents=True, exist_ok=True)
        with (place / "0.png").open("wb") as file:
            strip.save(file, format="PNG")


def find_in_strip(folder: epath.Path, item: Item) -> Image.Image | None:
    """A view of the official script's strips, below a folder `N<inputs>M25`."""
    inputs = item.truth["protocol"].removeprefix("inputs")
    for place in (folder, folder / "logs/GSO25", folder / "GSO25"):
        path = place / f"N{inputs}M25" / item.group / "0.png"
        if path.exists():
            left = SIDE * item.truth["number"]
            return open_picture(path).crop((left, 0, left + SIDE, SIDE))
    return None


_DATA = Data(
    where="huggingface.co/datasets/kxic/EscherNet-Dataset (GSO30)",
    licence="Google Scanned Objects: CC BY 4.0",
    size="30 objects, 25 views each",
    layout=f"<object>/{MODEL}/000.png, 000.npy, ...",
)

GSO_VIEWS = Benchmark(
    name="gso_views",
    title="Novel views of Google Scanned Objects",
    tables=("OneDiffusion, novel views",),
    tasks=("multiview",),
    counts={"test": 30 * (VIEWS - FIRST_TEST) * len(SETTINGS)},
    read=read_gso_views,
    score=_score_views,
    extractors=("lpips-alex",),
    description=(
        "Views 10 to 24 of 30 objects from the first one, two or three, at 256 x 256 on white; "
        "unknown: only the first given view's camera is known. Means over objects of their means."
    ),
    data=_DATA,
    rows={"copy input": lambda item: item.truth["input"].open()},
    shuffles=True,
    finish=write_strips,
    find=find_in_strip,
)


# ------------------------------------------------------------------------------------ camera poses


def read_gso_pose(folder: epath.Path, split_name: str) -> list[Item]:
    """Sets of six views of every object, whose cameras are asked for.

    Raises:
      BenchmarkError: no objects, or a camera that cannot be read.
    """
    del split_name
    items = []
    for name in find_objects(folder):
        every = poses(folder, name)
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        for draw in range(POSE_DRAWS):
            chosen = np.sort(rng.choice(VIEWS, POSE_VIEWS, replace=False))
            given: dict[str, Any] = {
                "views": [view(folder, name, int(number)) for number in chosen],
                "cameras": {"made_cameras": (True,) * POSE_VIEWS},
            }
            items.append(
                Item(
                    id=f"{name}/{draw}",
                    given=given,
                    text={"caption": ""},
                    seed=draw,
                    group=name,
                    truth={"poses": every[chosen], "every": every},
                )
            )
    return items


def _true_cameras(matrices: np.ndarray) -> cameras.Cameras:
    count = len(matrices)
    return cameras.from_opengl(
        matrices, focal=np.full((count, 2), FOCAL), principal=np.full((count, 2), 0.5)
    )


def _score_pose(items: Sequence[Item], made: Predictions, tools: Tools) -> list[Score]:
    del tools
    there, counts = split(items, made)
    columns: dict[str, list[float]] = {}
    for item in there:
        found, true = to_cameras(made(item)), _true_cameras(item.truth["poses"])
        scores = camera_protocol.evaluate(
            found.rotation,
            centers=found.centers,
            target_rotations=true.rotation,
            target_centers=true.centers,
            scale=camera_protocol.scene_scale(_true_cameras(item.truth["every"]).centers),
        )
        row = {f"r_{limit:.0f}": v for limit, v in scores.rotation_accuracy.items()}
        row |= {f"cc_{limit}": v for limit, v in scores.center_accuracy.items()}
        for metric, value in row.items():
            columns.setdefault(metric, []).append(value)
    ids = tuple(item.id for item in there)
    return [
        Score(metric=metric, values=np.asarray(values), ids=ids, reference="gt", **counts)
        for metric, values in columns.items()
    ]


def _random_cameras(item: Item) -> np.ndarray:
    """Cameras of the upper half of a sphere, that look at its centre."""
    rng = np.random.default_rng(zlib.crc32(item.id.encode()))
    azimuth = rng.uniform(0, 360, POSE_VIEWS)
    elevation = np.rad2deg(np.arcsin(rng.uniform(0, 1, POSE_VIEWS)))
    c2w = [cameras.look_at_origin(a, e, 1.0) for a, e in zip(azimuth, elevation, strict=True)]
    found = _true_cameras(np.stack(c2w))
    rotation = found.rotation.swapaxes(1, 2)
    return np.concatenate([rotation, found.translation[..., None]], axis=2)


GSO_POSE = Benchmark(
    name="gso_pose",
    title="Camera poses of Google Scanned Objects",
    tables=("OneDiffusion, camera pose",),
    tasks=("multiview",),
    read=read_gso_pose,
    score=_score_pose,
    kind="cameras",
    description=(
        "Cameras of six views of an object. r: share of the ordered pairs whose relative rotation "
        "is within so many degrees; cc: share of the centres within so many scales of the scene, "
        "after the best similarity transform. Means over sets."
    ),
    data=_DATA,
    deviations=("OneDiffusion does not say which six views: these are five draws of ours.",),
    rows={"random cameras": _random_cameras},
    shuffles=True,
    samples="r_15",
)
