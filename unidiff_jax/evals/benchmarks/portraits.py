"""Identity of faces: portraits of the user's folder in new scenes, such as Unsplash-50.

    portraits/<name>.jpg    one person each
    prompts.txt             a line each, such as `a person in a garden`

Unsplash-50 itself has no official download. Two numbers stand beside the similarity: how many
outputs show no face (they count as 0), and what a copy of the portrait scores.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from unidiff_jax.evals import similarity
from unidiff_jax.evals.benchmarks.base import (
    Benchmark,
    Data,
    Item,
    Predictions,
    Score,
    picture_file,
    pictures_in,
    read_lines,
)
from unidiff_jax.evals.benchmarks.faces import YuNet, align_face
from unidiff_jax.evals.benchmarks.scoring import Tools, identity, split, substitute
from unidiff_jax.evals.benchmarks.subject_driven import subject_fields
from unidiff_jax.identity import OnnxIdentity

SUBJECT = "person"
FACE, DETECTOR = "face", "face-detector"


def read_portraits(folder: epath.Path, split_name: str) -> list[Item]:
    """Every portrait with every prompt; raises BenchmarkError where a file is missing."""
    del split_name
    prompts = read_lines(folder / "prompts.txt")
    items = []
    for name in pictures_in(folder / "portraits"):
        portrait = picture_file(folder / "portraits", name)
        for number, words in enumerate(prompts):
            items.append(
                Item(
                    id=f"{epath.Path(name).stem}/{number:02d}",
                    group=epath.Path(name).stem,
                    truth={"prompt": words, "input": portrait},
                    **subject_fields(words, [SUBJECT], [portrait]),
                )
            )
    return items


def face_tools(tools: Tools) -> tuple[Any, Any, dict[str, str]] | None:
    """The detector, the network, and what the report says of it; None where a file is missing."""
    paths = [tools.path(kind) for kind in (DETECTOR, FACE)]
    if None in paths:
        return None
    with paths[1].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    encoder = {"name": FACE, "sha256": digest, "preprocess": "five points, 112 x 112"}
    return YuNet(paths[0]), OnnxIdentity(paths[1]), encoder


def face_vector(picture: Image.Image, finder: Any, network: Any) -> np.ndarray | None:
    """The identity vector of the largest face; None without one."""
    pixels = np.asarray(picture.convert("RGB"))
    points = finder(pixels)
    return None if points is None else network(align_face(pixels, points)[None])[0]


def score_portraits(
    items: Sequence[Item], made: Predictions, tools: Tools, *, faces: tuple[Any, Any, dict] | None
) -> list[Score]:
    """Cosine of the faces' vectors, share of outputs without a face, and CLIP-T.

    Args:
      items: of `read_portraits`.
      made: their predictions.
      tools: extractors.
      faces: of `face_tools`; None leaves identities out.
    """
    there, counts = split(items, made)
    found: list[Score] = []
    ids = tuple(item.id for item in there)
    if faces is not None and there:
        finder, network, encoder = faces
        known: dict[str, np.ndarray | None] = {}
        values, faceless = [], []
        for item in there:
            if item.group not in known:
                known[item.group] = face_vector(item.truth["input"].open(), finder, network)
            pair = known[item.group], face_vector(made(item), finder, network)
            faceless.append(float(pair[1] is None))
            none = pair[0] is None or pair[1] is None
            values.append(0.0 if none else float(np.dot(*pair)))
        common = {"ids": ids, "reference": "input", "encoder": encoder, **counts}
        found += [
            Score(metric="identity", values=np.asarray(values), **common),
            Score(metric="no_face", values=np.asarray(faceless), higher_is_better=False, **common),
        ]
    for kind in ("clip-b32", "clip-l14"):
        clip = tools.get(kind)
        if clip is None or not there:
            continue
        text = tools.text_features(kind, [item.truth["prompt"] for item in there])
        found.append(
            Score(
                metric="clip_t",
                values=similarity.clip_text(tools.made_features(kind, there, made), text=text),
                ids=ids,
                reference="text",
                encoder=identity(clip),
                deviations=substitute(clip),
                **counts,
            )
        )
    return found


def _score(items: Sequence[Item], made: Predictions, tools: Tools) -> list[Score]:
    return score_portraits(items, made, tools, faces=face_tools(tools))


UNSPLASH50 = Benchmark(
    name="unsplash50",
    title="Identity of portraits (Unsplash-50)",
    tables=("OneDiffusion Table 3", "UniVG, identity"),
    tasks=("identity", "personalize", "customize", "subject", "interleave"),
    read=read_portraits,
    score=_score,
    extractors=(DETECTOR, FACE, "clip-b32", "clip-l14"),
    description=(
        "Portraits in new scenes. Identity: cosine of a face network's vectors of the largest "
        "faces, 0 where an output shows none; the share of those stands beside it. Means over "
        "pictures."
    ),
    data=Data(
        where="the user's own portraits; Unsplash-50 has no official download",
        licence="Unsplash's, or the user's",
        size="50 portraits",
        layout="portraits/*.jpg, prompts.txt",
    ),
    deviations=("Set, prompts and face networks of the papers are not public: these are others.",),
    rows={"copy input": lambda item: item.truth["input"].open()},
    shuffles=True,
)
