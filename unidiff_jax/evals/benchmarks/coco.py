"""Text to image on COCO: FID and KID of pictures made for captions of val2014.

There is no official list of the 30,000 captions, and papers resize, crop and compress in different
ways. The captions here are the first of 30,000 pictures that a fixed seed draws, or those of the
user's `captions.json`; both resizes are scored.
"""

from collections.abc import Sequence

import numpy as np
from etils import epath

from unidiff_jax.evals import distribution, similarity
from unidiff_jax.evals.benchmarks.base import (
    Benchmark,
    BenchmarkError,
    Data,
    Item,
    Predictions,
    Score,
    fields_of,
    picture_file,
    pictures_in,
    read_json,
)
from unidiff_jax.evals.benchmarks.scoring import Tools, identity, split, substitute
from unidiff_jax.paths import as_path

NUM_CAPTIONS = 30_000
RESIZES = {"clean": "", "legacy_pytorch": "legacy_pytorch"}
"""Protocol and the extractor's preprocessing."""

OWN_LIST = "captions.json"


def read_coco(folder: epath.Path, split_name: str) -> list[Item]:
    """`annotations/captions_val2014.json` and `val2014/`; or `captions.json` in place of the first,
    a list of {"id", "caption"}.

    Raises:
      BenchmarkError: a file or key is missing, or two captions have one id.
    """
    pictures = folder / split_name
    if (folder / OWN_LIST).exists():
        path = folder / OWN_LIST
        rows = [fields_of(row, "id", "caption", where=str(path)) for row in read_json(path)]
    else:
        path = folder / "annotations" / f"captions_{split_name}.json"
        (annotations,) = fields_of(read_json(path), "annotations", where=str(path))
        first: dict[int, tuple[int, str]] = {}
        for annotation in annotations:
            number, image, caption = fields_of(
                annotation, "id", "image_id", "caption", where=str(path)
            )
            if image not in first or number < first[image][0]:
                first[image] = (number, caption)
        order = np.random.default_rng(0).permutation(sorted(first))[:NUM_CAPTIONS]
        rows = [[int(image), first[int(image)][1]] for image in order]
    if len({number for number, _ in rows}) < len(rows):
        raise BenchmarkError(f"{path} has an id twice")
    return [
        Item(
            id=str(number),
            text={"caption": caption.strip()},
            truth={"caption": caption.strip(), "reference": str(pictures)},
        )
        for number, caption in rows
    ]


def _score(items: Sequence[Item], made: Predictions, tools: Tools) -> list[Score]:
    there, counts = split(items, made)
    found: list[Score] = []
    if not there:
        return found
    reference = as_path(there[0].truth["reference"])
    real = [picture_file(reference, name) for name in pictures_in(reference)]
    for protocol, preprocess in RESIZES.items():
        inception = tools.get("inception", preprocess=preprocess)
        if inception is None or min(len(there), len(real)) < 2:
            continue
        outputs = tools.made_features("inception", there, made, preprocess=preprocess)
        truth = tools.features("inception", real, preprocess=preprocess)
        moments = [distribution.Moments.of(features) for features in (outputs, truth)]
        values = {
            "fid": distribution.fid(*moments),
            "kid": distribution.kid(outputs, truth).mean,
        }
        found += [
            Score(
                metric=metric,
                values=value,
                protocol=protocol,
                higher_is_better=False,
                encoder=identity(inception),
                deviations=substitute(inception),
                failures="left out of the set",
                **counts,
            )
            for metric, value in values.items()
        ]
    for kind in ("clip-b32", "clip-l14"):
        clip = tools.get(kind)
        if clip is None:
            continue
        text = tools.text_features(kind, [item.truth["caption"] for item in there])
        found.append(
            Score(
                metric="clip_t",
                values=similarity.clip_text(tools.made_features(kind, there, made), text=text),
                ids=tuple(item.id for item in there),
                reference="text",
                encoder=identity(clip),
                deviations=substitute(clip),
                **counts,
            )
        )
    return found


COCO_FID = Benchmark(
    name="coco_fid",
    title="MS-COCO FID-30K",
    tables=("UNIMO-G, MS-COCO FID-30K",),
    tasks=("text_to_image",),
    splits=("val2014",),
    counts={"val2014": NUM_CAPTIONS},
    read=read_coco,
    score=_score,
    extractors=("inception", "clip-b32", "clip-l14"),
    description=(
        "Pictures for 30,000 captions against all pictures of val2014. FID and KID of Inception's "
        "features, resized as clean-fid does (clean) or inside of PyTorch (legacy_pytorch)."
    ),
    data=Data(
        where="cocodataset.org (val2014, annotations of 2014)",
        licence="annotations CC BY 4.0; pictures by Flickr's terms",
        size="6.5 GB",
        layout="annotations/captions_val2014.json, val2014/*.jpg; or captions.json, val2014/",
    ),
    deviations=(
        "No list of captions is official: these are drawn with a fixed seed, or the user's.",
    ),
)
