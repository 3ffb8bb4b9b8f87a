"""Zero-shot depth on NYUv2, KITTI, ETH3D, ScanNet and DIODE, in the layout of Marigold's code.

A folder holds the pictures, the depth and the official list of file names, one item a line. Both
alignments are scored: our models draw inverse depth, near bright, so `disparity` is their own;
OneDiffusion's paper does not say which it used. A fit with a negative scale lets an inverted map
pass, so the share of those is a number of its own.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from etils import epath
from PIL import Image

from unidiff_jax.evals import depth_protocol
from unidiff_jax.evals.benchmarks.base import (
    Benchmark,
    BenchmarkError,
    Data,
    Item,
    Picture,
    Predictions,
    Score,
    data_file,
    read_array,
    read_lines,
    read_values,
)
from unidiff_jax.evals.benchmarks.scoring import Tools, split
from unidiff_jax.paths import as_path
from unidiff_jax.sample.images import open_picture

ETH3D_SHAPE = (4032, 6048)

Map = np.ndarray


class Layout(NamedTuple):
    """How a set lies on disk.

    Attributes:
      list_name: of the official list in the folder.
      columns: of its lines.
      decode: a depth file to metres, 0 or not finite where there is none.
      count: items with ground truth.
      crop: of pictures and maps; None for none.
      name: file name of a picture to that of its prediction, without suffix.
    """

    list_name: str
    columns: int
    decode: Callable[[epath.Path], Map]
    count: int
    crop: Callable[[np.ndarray], np.ndarray] | None = None
    name: Callable[[str], str] = lambda stem: f"pred_{stem}"


def read_eth3d(path: epath.Path) -> Map:
    """Raw float32 of `ETH3D_SHAPE`, infinite where there is none.

    Raises:
      BenchmarkError: another number of bytes.
    """
    if not path.exists():
        raise BenchmarkError(f"no such file: {path}")
    values = np.frombuffer(path.read_bytes(), np.float32)
    if len(values) != ETH3D_SHAPE[0] * ETH3D_SHAPE[1]:
        raise BenchmarkError(f"{path} has {len(values)} numbers, not those of {ETH3D_SHAPE}")
    depth = values.reshape(ETH3D_SHAPE).astype(np.float64)
    return np.where(np.isinf(depth), 0.0, depth)


LAYOUTS = {
    "nyuv2": Layout(
        "filename_list_test.txt",
        3,
        lambda path: read_values(path) / 1000,
        654,
        name=lambda stem: f"pred_{stem.split('_')[1]}",  # rgb_0649
    ),
    "kitti": Layout(
        "eigen_test_files_with_gt.txt",
        3,
        lambda path: read_values(path) / 256,
        652,
        crop=depth_protocol.kitti_benchmark_crop,
    ),
    "eth3d": Layout("eth3d_filename_list.txt", 2, read_eth3d, 454),
    "scannet": Layout(
        "scannet_val_sampled_list_800_1.txt", 2, lambda path: read_values(path) / 1000, 800
    ),
    "diode": Layout(
        "diode_val_all_filename_list.txt", 3, lambda path: read_array(path).squeeze(), 771
    ),
}
"""Marigold's `data_split` and `src/dataset`."""


def read_depth_set(folder: epath.Path, name: str) -> list[Item]:
    """Items of a set; KITTI's lines without ground truth ("None") are left out.

    Raises:
      BenchmarkError: the list is missing, or a line has too few columns.
    """
    layout = LAYOUTS[name]
    path = folder / layout.list_name
    brings_masks = depth_protocol.SETS[name].brings_masks
    items = []
    for number, line in enumerate(read_lines(path), start=1):
        columns = line.split()
        if len(columns) < layout.columns:
            raise BenchmarkError(f"{path}:{number} has {len(columns)} names, not {layout.columns}")
        rgb, depth = columns[:2]
        if depth == "None":
            continue
        image = _picture(folder, rgb, layout)
        place = pathlib.PurePosixPath(rgb)
        truth = {"depth": depth, "folder": str(folder)}
        items.append(
            Item(
                id=str(place.with_name(layout.name(place.stem))),
                given={"image": image},
                size=image.open().size,
                truth=truth | ({"mask": columns[2]} if brings_masks else {}),
            )
        )
    return items


def _picture(folder: epath.Path, name: str, layout: Layout) -> Picture:
    path = data_file(folder, name)

    def read() -> Image.Image:
        picture = open_picture(path)
        if layout.crop is None:
            return picture
        try:
            return Image.fromarray(layout.crop(np.asarray(picture)))
        except ValueError as error:
            raise BenchmarkError(f"{path}: {error}") from None

    return Picture(name, read)


def true_depth(item: Item, name: str) -> tuple[Map, Map | None]:
    """Depth in metres, and the set's own mask where it brings one."""
    layout, folder = LAYOUTS[name], as_path(item.truth["folder"])
    depth = layout.decode(data_file(folder, item.truth["depth"]))
    depth = depth if layout.crop is None else layout.crop(depth)
    if "mask" not in item.truth:
        return depth, None
    return depth, read_array(data_file(folder, item.truth["mask"])).squeeze().astype(bool)


def _score(items: Sequence[Item], made: Predictions, name: str) -> list[Score]:
    there, counts = split(items, made)
    found: dict[str, list[depth_protocol.DepthScore]] = {}
    for item in there:
        depth, mask = true_depth(item, name)
        for alignment in depth_protocol.ALIGNMENTS:
            try:
                score = depth_protocol.evaluate(
                    _prediction(item, made),
                    target=depth,
                    depth_set=depth_protocol.SETS[name],
                    mask=mask,
                    alignment=alignment,
                )
            except ValueError as error:
                raise BenchmarkError(f"{item.id}: {error}") from None
            found.setdefault(alignment, []).append(score)
    ids = tuple(item.id for item in there)
    scores = []
    for alignment, values in found.items():
        columns = {
            "delta1": [value.delta1 for value in values],
            "absrel": [value.absrel for value in values],
            "inverted_fits": [float(value.scale < 0) for value in values],
        }
        scores += [
            Score(
                metric=metric,
                values=np.asarray(column),
                ids=ids,
                protocol=alignment,
                reference="gt",
                higher_is_better=metric == "delta1",
                **counts,
            )
            for metric, column in columns.items()
        ]
    return scores


def _prediction(item: Item, made: Predictions) -> Map:
    """An item's map; one of another item, whose picture may be of another size, is stretched."""
    found = made(item)
    if item.id not in made.partner or found.shape[::-1] == item.size:
        return found
    return cv2.resize(found, item.size, interpolation=cv2.INTER_LINEAR)


def _ramp(item: Item) -> Map:
    """Near at the bottom: what a picture's rows alone tell."""
    width, height = item.size
    return np.repeat(np.linspace(0.0, 1.0, height)[:, None], width, axis=1) + 1e-3


def _constant(item: Item) -> Map:
    width, height = item.size
    return np.ones((height, width))


def make_depth_benchmark(
    name: str, *, title: str, data: Data, tables: tuple[str, ...]
) -> Benchmark:
    """The benchmark of a depth set."""

    def score(items: Sequence[Item], made: Predictions, tools: Tools) -> list[Score]:
        del tools
        return _score(items, made, name)

    def read(folder: epath.Path, split_name: str) -> list[Item]:
        del split_name
        return read_depth_set(folder, name)

    return Benchmark(
        name=name,
        title=title,
        tables=tables,
        tasks=("depth",),
        counts={"test": LAYOUTS[name].count},
        read=read,
        score=score,
        kind="depth",
        description=(
            "Zero-shot depth. Scale and shift are fitted to the true depth (affine) or to its "
            "inverse (disparity) of each picture on valid pixels; clipping to the set's range; "
            "means over pictures. Inverted fits: the share of pictures whose scale is negative."
        ),
        data=data,
        rows={"ramp": _ramp, "constant": _constant},
        shuffles=True,
    )


_MARIGOLD = "github.com/prs-eth/Marigold, its prepared archive and list of file names"

NYUV2 = make_depth_benchmark(
    "nyuv2",
    title="NYUv2 depth",
    tables=("OneDiffusion Table 4",),
    data=Data(
        where=_MARIGOLD,
        licence="see NYU Depth V2",
        size="654 pictures of 640 x 480",
        layout="filename_list_test.txt, test/<scene>/{rgb,depth,filled}_<number>.png",
    ),
)
KITTI = make_depth_benchmark(
    "kitti",
    title="KITTI depth, Eigen split",
    tables=(),
    data=Data(
        where=_MARIGOLD,
        licence="CC BY-NC-SA 3.0",
        size="652 pictures of some 1242 x 375",
        layout="eigen_test_files_with_gt.txt, pictures and PNGs of 1/256 m",
    ),
)
ETH3D = make_depth_benchmark(
    "eth3d",
    title="ETH3D depth",
    tables=(),
    data=Data(
        where=_MARIGOLD,
        licence="CC BY-NC-SA 4.0",
        size="454 pictures; depth is 44 GB",
        layout="eth3d_filename_list.txt, rgb/..., depth/... (raw float32)",
    ),
)
SCANNET = make_depth_benchmark(
    "scannet",
    title="ScanNet depth",
    tables=("Jodi's test of OneDiffusion",),
    data=Data(
        where=_MARIGOLD,
        licence="ScanNet's terms of use",
        size="800 pictures",
        layout="scannet_val_sampled_list_800_1.txt, <scene>/color/*.jpg, <scene>/depth/*.png",
    ),
)
DIODE = make_depth_benchmark(
    "diode",
    title="DIODE depth, validation",
    tables=("OneDiffusion Table 4",),
    data=Data(
        where=_MARIGOLD,
        licence="MIT",
        size="771 pictures of 1024 x 768",
        layout="diode_val_all_filename_list.txt, indoors/..., outdoor/... (.png, _depth.npy, "
        "_depth_mask.npy)",
    ),
)
