"""MiniWorld's drawn scenes in the layouts of the published suites.

    write_layout("magicbrush", "data/drawn/magicbrush", count=8)

The same readers read them, so every step of an official protocol runs on real generations of a
small model, in minutes and without a download. Their numbers are nobody's: a mark in the folder
(`base.MINIWORLD_MARK`) keeps the badge from being an official one.
"""

import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from PIL import Image

from data_pipelines import objects
from data_pipelines.miniworld import edits, language
from data_pipelines.miniworld.render import Rendering, render
from data_pipelines.miniworld.scene import Object, Scene, sample_azimuth, sample_scene
from unidiff_jax.config import ConfigError
from unidiff_jax.evals.benchmarks import depth, editing, multibench, views
from unidiff_jax.evals.benchmarks.base import MINIWORLD_MARK
from unidiff_jax.paths import AnyPath, as_path, write_json

SIZE = 64
"""Pixels a side of what is drawn; layouts of one fixed size get it enlarged."""

SPLIT = "test"


def write_layout(name: str, folder: AnyPath, *, count: int = 8, seed: int = 0) -> None:
    """Writes drawn items in a suite's layout.

    Args:
      name: of a benchmark that `LAYOUTS` has.
      folder: to write, for `--data`.
      count: sessions, pictures, objects or subjects; of MultiBench objects a category.
      seed: of the drawing.

    Raises:
      ConfigError: a benchmark without such a layout.
    """
    if name not in LAYOUTS:
        raise ConfigError(f"{name!r} has no drawn layout; there are {', '.join(LAYOUTS)}")
    place = as_path(folder)
    LAYOUTS[name](place, count, np.random.default_rng(seed))
    write_json(place / MINIWORLD_MARK, {"benchmark": name, "count": count, "seed": seed})


# ----------------------------------------------------------------------------------------- drawing


@dataclasses.dataclass(frozen=True)
class _Turn:
    """A scene, and the instruction that led to it; empty for the first."""

    drawing: Rendering
    caption: str
    instruction: str = ""


def _session(rng: np.random.Generator, *, turns: int) -> list[_Turn]:
    """A scene and what edits make of it, one after the other."""
    while True:
        scene = sample_scene(rng, split=SPLIT)
        found = [_turn(scene, rng)]
        for _ in range(turns):
            kind = edits.KINDS[rng.integers(len(edits.KINDS))]
            edit = edits.sample_edit(scene, rng, kind=kind) if scene.objects else None
            if edit is None or not edit.after.objects:
                break
            scene = edit.after
            found.append(_turn(scene, rng, edit.instruction))
        if len(found) == turns + 1:
            return found


def _turn(scene: Scene, rng: np.random.Generator, instruction: str = "") -> _Turn:
    return _Turn(render(scene, SIZE), language.captions(scene, rng)[0], instruction)


def _alone(rng: np.random.Generator) -> Scene:
    """A scene of one object."""
    scene = sample_scene(rng, split=SPLIT)
    body = dataclasses.replace(scene.objects[0], x=0.0, z=0.0)
    return dataclasses.replace(scene, objects=(body,))


def _from(scene: Scene, rng: np.random.Generator) -> Scene:
    """Seen from somewhere else."""
    camera = dataclasses.replace(
        scene.camera, azimuth=sample_azimuth(rng), elevation=float(rng.uniform(20, 40))
    )
    return dataclasses.replace(scene, camera=camera)


def _save(pixels: np.ndarray, path: epath.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png(pixels))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def _enlarged(values: np.ndarray, *, height: int, width: int) -> np.ndarray:
    return cv2.resize(values, (width, height), interpolation=cv2.INTER_NEAREST)


# ----------------------------------------------------------------------------------------- editing


def _magicbrush(folder: epath.Path, count: int, rng: np.random.Generator) -> None:
    sessions: dict[str, Any] = {}
    captions: dict[str, Any] = {}
    for number in range(count):
        key = f"{1000 + number}"
        turns = _session(rng, turns=1 + number % 2)
        names = [f"{key}-input.png", *(f"{key}-output{i}.png" for i in range(1, len(turns)))]
        for name, turn in zip(names, turns, strict=True):
            _save(turn.drawing.rgb, folder / "images" / key / name)
        sessions[key] = [
            {
                "input": names[i],
                "mask": f"{key}-mask{i + 1}.png",
                "output": names[i + 1],
                "instruction": turns[i + 1].instruction,
            }
            for i in range(len(turns) - 1)
        ]
        for i in range(1, len(turns)):
            pair = [turn.drawing.rgb for turn in turns[i - 1 : i + 1]]
            changed = np.uint8(255) * (pair[0] != pair[1]).any(axis=2)
            _save(changed.astype(np.uint8), folder / "images" / key / f"{key}-mask{i}.png")
        captions[key] = {name: turn.caption for name, turn in zip(names, turns, strict=True)}
    _json(folder / "edit_sessions.json", sessions)
    _json(folder / "edit_turns.json", [turn for turns in sessions.values() for turn in turns])
    _json(folder / "local_descriptions.json", captions)


def _emu_edit(folder: epath.Path, count: int, rng: np.random.Generator) -> None:
    rows = []
    for number in range(count):
        before, after = _session(rng, turns=1)
        rows.append(
            {
                "instruction": after.instruction,
                "image": {"bytes": _png(before.drawing.rgb), "path": None},
                "task": ("global", "local")[number % 2],
                "split": SPLIT,
                "idx": number,
                "hash": f"{number:08x}",
                "input_caption": before.caption,
                # as in the true set, some pairs do not differ
                "output_caption": before.caption if number % 4 == 3 else after.caption,
            }
        )
    path = folder / "data" / f"{SPLIT}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=100)


def _pie_bench(folder: epath.Path, count: int, rng: np.random.Generator) -> None:
    mapping, side = {}, editing.PIE_SIDE
    for number in range(count):
        before, after = _session(rng, turns=1)
        name = f"0_random_140/{number:012d}.jpg"
        pair = [_enlarged(turn.drawing.rgb, height=side, width=side) for turn in (before, after)]
        path = folder / "annotation_images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            Image.fromarray(pair[0]).save(file, format="JPEG", quality=95)
        mapping[f"{number:012d}"] = {
            "image_path": name,
            "original_prompt": before.caption,
            "editing_prompt": f"[{after.caption}]",
            "editing_instruction": after.instruction,
            "editing_type_id": "0",
            "blended_word": "",
            "mask": _runs((pair[0] != pair[1]).any(axis=2)),
        }
    _json(folder / "mapping_file.json", mapping)


def _runs(mask: np.ndarray) -> list[int]:
    """Pairs of start and length over the rows."""
    flat = np.concatenate([[False], mask.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    starts, ends = edges[::2], edges[1::2]
    return np.stack([starts, ends - starts], axis=1).ravel().tolist()


# ------------------------------------------------------------------------------------ depth, masks


def _depth(
    name: str, names: Callable[[int], list[str]], shape: tuple[int, int] | None = None
) -> Callable:
    """A writer of a depth set: file names of a line, and height and width of its pictures, for
    which None is ETH3D's.
    """

    def write(folder: epath.Path, count: int, rng: np.random.Generator) -> None:
        lines = []
        height, width = shape or depth.ETH3D_SHAPE
        for number in range(count):
            drawing = render(sample_scene(rng, split=SPLIT), SIZE)
            rgb, *maps = names(number)
            metres = _enlarged(drawing.depth, height=height, width=width) / 2  # indoors
            picture = _enlarged(drawing.rgb, height=height, width=width)
            _save(picture, folder / rgb)
            for path in maps:
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                if name == "diode":
                    mask = path.endswith("_mask.npy")
                    values = np.ones_like(metres) if mask else metres[..., None]
                    with target.open("wb") as file:
                        np.save(file, values.astype(np.float32))
                elif name == "eth3d":
                    target.write_bytes(metres.astype("<f4").tobytes())
                elif path.endswith(".png"):
                    scale = 256 if name == "kitti" else 1000
                    _save(np.round(metres * scale).astype(np.uint16), target)
            lines.append(" ".join([rgb, *maps]))
        if name == "kitti":
            lines = [f"{line} 721.5377" for line in lines]
            lines.append("2011_09_26/none/image_02/data/0000000000.png None 721.5377")
        (folder / depth.LAYOUTS[name].list_name).write_text("\n".join(lines) + "\n")

    return write


def _nyu_names(number: int) -> list[str]:
    return [f"test/kitchen/{kind}_{number:04d}.png" for kind in ("rgb", "depth", "filled")]


def _kitti_names(number: int) -> list[str]:
    drive = "2011_09_26_drive_0002_sync"
    return [
        f"2011_09_26/{drive}/image_02/data/{number:010d}.png",
        f"{drive}/proj_depth/groundtruth/image_02/{number:010d}.png",
    ]


def _scannet_names(number: int) -> list[str]:
    return [f"scene0011_00/{kind}/{number:06d}.png" for kind in ("color", "depth")]


def _diode_names(number: int) -> list[str]:
    stem = f"indoors/scene_00019/scan_00183/{number:05d}_indoors"
    return [f"{stem}.png", f"{stem}_depth.npy", f"{stem}_depth_mask.npy"]


def _eth3d_names(number: int) -> list[str]:
    return [f"rgb/courtyard/DSC_{number:04d}.JPG.png", f"depth/DSC_{number:04d}.bin"]


def _referring(name: str, *, by: str) -> Callable:
    """A writer of a set of expressions."""

    def write(folder: epath.Path, count: int, rng: np.random.Generator) -> None:
        _refer(folder, count, rng, name=name, by=by)

    return write


def _refer(folder: epath.Path, count: int, rng: np.random.Generator, *, name: str, by: str) -> None:
    refs, pictures, annotations = [], [], []
    while len(refs) < count:
        scene = sample_scene(rng, split=SPLIT)
        body = scene.objects[rng.integers(len(scene.objects))]
        words = language.refer(scene, body.id, rng)
        drawing = render(scene, SIZE)
        mask = drawing.instance == body.id
        if words is None or not mask.any():
            continue
        number = len(refs)
        file_name = f"COCO_train2014_{number:012d}.jpg"
        path = folder / "train2014" / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            Image.fromarray(drawing.rgb).save(file, format="JPEG", quality=95)
        pictures.append({"id": number, "file_name": file_name, "width": SIZE, "height": SIZE})
        outlines, _ = cv2.findContours(
            mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        polygons = [outline.ravel().tolist() for outline in outlines if len(outline) >= 3]
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "segmentation": polygons}
        )
        refs.append(
            {
                "ref_id": number,
                "ann_id": number,
                "category_id": 1,
                "file_name": f"COCO_train2014_{number:012d}_{number}.jpg",
                "image_id": number,
                "split": "val",
                "sent_ids": [number],
                "sentences": [
                    {"raw": words, "sent": words, "sent_id": number, "tokens": words.split()}
                ],
            }
        )
    _json(folder / name / "instances.json", {"images": pictures, "annotations": annotations})
    _json(folder / name / f"refs({by}).json", refs)


# ------------------------------------------------------------------- subjects, words, views, faces

_PROMPTS = {
    "Object Prompts": ("a {0} {1} on a grey floor", "a {0} {1} beside a red sphere"),
    "Live Subject Prompts": ("a {0} {1} on a tan floor", "a {0} {1} beside a blue cube"),
}


def _subject(rng: np.random.Generator, *, pictures: int) -> tuple[Object, list[np.ndarray]]:
    """A body, and it alone on white from several sides."""
    scene = _alone(rng)
    found = []
    for _ in range(pictures):
        drawing = render(_from(scene, rng), SIZE)
        found.append(objects.cut_out(drawing.rgb, drawing.instance > 0))
    return scene.objects[0], found


def _dreambench(folder: epath.Path, count: int, rng: np.random.Generator) -> None:
    lines = ["Classes", "", "subject_name,class"]
    for number in range(count):
        body, pictures = _subject(rng, pictures=3)
        lines.append(f"thing{number},{body.shape}")
        for place, picture in enumerate(pictures):
            _save(picture, folder / "dataset" / f"thing{number}" / f"{place:02d}.png")
    lines += ["", "Prompts"]
    for title, prompts in _PROMPTS.items():
        lines += ["", title, "", "prompt_list = ["]
        lines += [f"'{text}'.format(unique_token, class_token)," for text in prompts]
        lines += ["]"]
    (folder / "dataset/prompts_and_classes.txt").write_text("\n".join(lines) + "\n")


def _multibench(folder: epath.Path, count: int, rng: np.random.Generator) -> None:
    """`count` objects a category, each called by its colour and shape."""
    for category in multibench.CATEGORIES:
        names: set[str] = set()
        while len(names) < count:
            body, pictures = _subject(rng, pictures=2)
            name = f"{body.color} {body.shape}"
            if name in names:
                continue
            names.add(name)
            for place, picture in enumerate(pictures):
                _save(picture, folder / category / name / f"{place:02d}.png")


def _coco(folder: epath.Path, count: int, rng: np.random.Generator) -> None:
    annotations = []
    for number in range(count):
        turn = _turn(sample_scene(rng, split=SPLIT), rng)
        path = folder / "val2014" / f"COCO_val2014_{number:012d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            Image.fromarray(turn.drawing.rgb).save(file, format="JPEG", quality=95)
        for further in range(2):
            annotations.append(
                {"id": 10 * number + further, "image_id": number, "caption": turn.caption}
            )
    _json(folder / "annotations/captions_val2014.json", {"annotations": annotations})


def _gso(folder: epath.Path, count: int, rng: np.random.Generator) -> None:
    for number in range(count):
        scene = _alone(rng)
        for place in range(views.VIEWS):
            drawing = render(_from(scene, rng), SIZE)
            alpha = np.where(drawing.instance > 0, 255, 0).astype(np.uint8)
            model = folder / f"thing{number}" / views.MODEL
            # what a wider lens sees around it is empty
            edge = round(SIZE * (drawing.intrinsics[0, 0] / views.FOCAL - 1) / 2)
            rgba = np.pad(np.dstack([drawing.rgb, alpha]), ((edge, edge), (edge, edge), (0, 0)))
            _save(rgba, model / f"{place:03d}.png")
            world_to_camera = np.linalg.inv(drawing.camera_to_world.astype(np.float64))
            with (model / f"{place:03d}.npy").open("wb") as file:
                np.save(file, world_to_camera[:3])


def _portraits(folder: epath.Path, count: int, rng: np.random.Generator) -> None:
    """Bodies in the place of persons; no network finds a face in them."""
    for number in range(count):
        _, (picture,) = _subject(rng, pictures=1)
        _save(picture, folder / f"portraits/{number:02d}.png")
    (folder / "prompts.txt").write_text("a person on a grey floor\na person beside a red sphere\n")


def _json(path: epath.Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


LAYOUTS: dict[str, Callable[[epath.Path, int, np.random.Generator], None]] = {
    "emu_edit": _emu_edit,
    "magicbrush": _magicbrush,
    "pie_bench": _pie_bench,
    "dreambench": _dreambench,
    "multibench": _multibench,
    "nyuv2": _depth("nyuv2", _nyu_names, (480, 640)),
    "kitti": _depth("kitti", _kitti_names, (375, 1242)),
    "scannet": _depth("scannet", _scannet_names, (96, 128)),
    "diode": _depth("diode", _diode_names, (96, 128)),
    "eth3d": _depth("eth3d", _eth3d_names),
    "refcoco": _referring("refcoco", by="unc"),
    "refcoco+": _referring("refcoco+", by="unc"),
    "refcocog": _referring("refcocog", by="umd"),
    "refcocog_google": _referring("refcocog", by="google"),
    "gso_views": _gso,
    "gso_pose": _gso,
    "coco_fid": _coco,
    "unsplash50": _portraits,
}
"""Writers by benchmark. ETH3D's pictures have 24 million pixels each: a few are enough."""
