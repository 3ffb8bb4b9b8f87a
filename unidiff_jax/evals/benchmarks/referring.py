"""Referring segmentation: RefCOCO, RefCOCO+ and RefCOCOg, as `refer` or Hugging Face has them.

    refcoco/instances.json      COCO's annotations of the pictures
    refcoco/refs(unc).json      the expressions
    images/mscoco/images/train2014/ or train2014/     COCO's pictures

    data/val-*.parquet, ...     in place of the first two: `referring_parquet`

`refer` has the expressions as a pickle. A pickle runs what its maker put in, so none is loaded
here; whoever trusts the file converts it: `CONVERT`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from unidiff_jax.evals import metrics, segmentation, statistics
from unidiff_jax.evals.benchmarks.base import (
    Benchmark,
    BenchmarkError,
    Data,
    Item,
    Predictions,
    Score,
    fields_of,
    picture_file,
    read_json,
)
from unidiff_jax.evals.benchmarks.referring_parquet import find_table, read_table
from unidiff_jax.evals.benchmarks.rle import polygons_to_mask, runs_to_mask
from unidiff_jax.evals.benchmarks.scoring import Tools, split

CONVERT = (
    'python -c "import json, pickle, sys; '
    "json.dump(pickle.load(open(sys.argv[1], 'rb')), open(sys.argv[2], 'w'))\""
)
"""Turns a pickle of `refer` into the JSON that is read here."""

IMAGES = ("images/mscoco/images/train2014", "train2014", "coco/train2014")


def read_refs(folder: epath.Path, split_name: str, *, name: str, by: str) -> list[Item]:
    """One item a sentence of a split.

    Args:
      folder: of `refer`'s data, or with parquet files.
      split_name: such as `val`, `testA`.
      name: refcoco, refcoco+ or refcocog.
      by: who split it: unc, umd or google.

    Raises:
      BenchmarkError: a file is missing, or only the pickle is there.
    """
    place = folder / name
    refs = place / f"refs({by}).json"
    pickled = place / f"refs({by}).p"
    images = next((folder / place for place in IMAGES if (folder / place).is_dir()), None)
    if not refs.exists() and not pickled.exists() and by != "google":
        table = find_table(folder, split_name, name=name)
        if table is None:
            raise BenchmarkError(
                f"{folder} has neither {refs.relative_to(folder)} nor parquet files of Hugging "
                f"Face, such as data/{split_name}-00000-of-00001.parquet"
            )
        return read_table(table, split_name, name=name, images=images)
    if not refs.exists() and pickled.exists():
        raise BenchmarkError(
            f"{pickled} is a pickle, which can run code and is not loaded; if you trust it: "
            f"{CONVERT} '{pickled}' '{refs}'"
        )
    content = read_json(place / "instances.json")
    pictures, annotations = fields_of(content, "images", "annotations", where="instances.json")
    pictures = {picture["id"]: picture for picture in pictures}
    annotations = {annotation["id"]: annotation for annotation in annotations}
    if images is None:
        raise BenchmarkError(f"{folder} has neither {' nor '.join(IMAGES)}")
    items = []
    for ref in read_json(refs):
        where = f"{refs}: ref {ref.get('ref_id')}"
        own, picture_id, ann_id, sentences = fields_of(
            ref, "split", "image_id", "ann_id", "sentences", where=where
        )
        if own != split_name:
            continue
        try:
            picture, annotation = pictures[picture_id], annotations[ann_id]
        except KeyError as error:
            raise BenchmarkError(f"{where}: instances.json has no {error}") from None
        file_name, width, height = fields_of(picture, "file_name", "width", "height", where=where)
        for sentence in sentences:
            number, words = fields_of(sentence, "sent_id", "sent", where=where)
            items.append(
                Item(
                    id=f"{split_name}/{number}",
                    given={"image": picture_file(images, file_name)},
                    text={"expression": words},
                    size=(width, height),
                    truth={"segmentation": annotation["segmentation"]},
                )
            )
    if not items:
        raise BenchmarkError(f"{refs} has no split {split_name!r}")
    return items


def true_mask(item: Item) -> np.ndarray:
    """The object's mask (h, w), bool."""
    width, height = item.size
    found: Sequence[Any] | Mapping[str, Any] = item.truth["segmentation"]
    try:
        if isinstance(found, Mapping):
            return runs_to_mask(found["counts"], height=height, width=width)
        return polygons_to_mask(found, height=height, width=width)
    except (KeyError, ValueError) as error:
        raise BenchmarkError(f"{item.id}: the segmentation is damaged: {error}") from None


def _score(items: Sequence[Item], made: Predictions, tools: Tools) -> list[Score]:
    del tools
    there, counts = split(items, made)
    if not there:
        return []
    overlaps = []
    for item in there:
        mask = segmentation.read_mask(made(item), size=item.size)
        overlaps.append(metrics.mask_overlap(mask[None], target=true_mask(item)[None]))
    intersection = np.concatenate([overlap.intersection for overlap in overlaps]).astype(float)
    union = np.concatenate([overlap.union for overlap in overlaps]).astype(float)
    iou = segmentation.scores(intersection, union=union).iou
    common = {
        "ids": tuple(item.id for item in there),
        "reference": "gt",
        "deviations": tuple(there[0].truth.get("deviations", ())),
        **counts,
    }
    scores = [Score(metric="miou", values=iou, **common)]
    if union.sum():
        values = statistics.Ratio(intersection, union)
        scores.append(Score(metric="ciou", values=values, **common))
    for threshold in segmentation.THRESHOLDS:
        hit = (iou >= threshold).astype(float)
        scores.append(Score(metric=f"precision_{threshold}", values=hit, **common))
    return scores


def _all(item: Item) -> Image.Image:
    return Image.new("RGB", item.size, "white")


def _empty(item: Item) -> Image.Image:
    return Image.new("RGB", item.size, "black")


def make_referring_benchmark(
    name: str, *, by: str, splits: tuple[str, ...], counts: Mapping[str, int]
) -> Benchmark:
    """The benchmark of a set of expressions."""

    def read(folder: epath.Path, split_name: str) -> list[Item]:
        return read_refs(folder, split_name, name=name, by=by)

    return Benchmark(
        name=name if by != "google" else f"{name}_google",
        title=f"{name.replace('refcoco', 'RefCOCO')} ({by})",
        tables=(),
        tasks=("segment",),
        splits=splits,
        counts=counts,
        read=read,
        score=_score,
        description=(
            "One item a sentence. The painted mask is brought to the picture's size (bilinear) "
            "and read at one half; cIoU is the sum of intersections over the sum of unions, mIoU "
            "and precision are means over sentences."
        ),
        data=Data(
            where="github.com/lichengunc/refer, and COCO train2014 from cocodataset.org",
            licence="annotations Apache 2.0; pictures by Flickr's terms",
            size="13.5 GB of pictures",
            layout=f"{name}/instances.json, {name}/refs({by}).json, train2014/"
            + ("; or data/*.parquet of Hugging Face" if by != "google" else ""),
        ),
        rows={"whole picture": _all, "empty": _empty},
        shuffles=True,
    )


REFCOCO = make_referring_benchmark(
    "refcoco",
    by="unc",
    splits=("val", "testA", "testB"),
    counts={"val": 10834, "testA": 5657, "testB": 5095},
)
REFCOCO_PLUS = make_referring_benchmark(
    "refcoco+",
    by="unc",
    splits=("val", "testA", "testB"),
    counts={"val": 10758, "testA": 5726, "testB": 4889},
)
REFCOCOG = make_referring_benchmark(
    "refcocog", by="umd", splits=("val", "test"), counts={"val": 4896, "test": 9602}
)
REFCOCOG_GOOGLE = make_referring_benchmark("refcocog", by="google", splits=("val",), counts={})
