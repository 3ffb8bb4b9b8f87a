"""Measures how fast items are made, and how well an identity encoder tells subjects apart.

taskset -c 0 env OMP_NUM_THREADS=1 python -m data_pipelines.subjects.benchmark \
    data/subjects-32 32 [network.onnx]
"""

import sys
import time
from typing import NamedTuple

import cv2
import numpy as np

from data_pipelines import objects
from data_pipelines.subjects.items import TASK_NAMES, SubjectScenes
from data_pipelines.subjects.names import has_side
from data_pipelines.subjects.records import Subject
from data_pipelines.subjects.scenes import draw_asset, draw_scene
from unidiff_jax.identity import IdentityEncoder, make_identity_encoder
from unidiff_jax.paths import AnyPath
from unidiff_jax.tasks import get_task


def measure_speed(source: SubjectScenes, *, count: int = 400) -> dict[str, float]:
    """Items a second of each task, reading with them."""
    rates = {}
    for name in TASK_NAMES:
        task, made, start = get_task(name), 0, time.perf_counter()
        for index in np.random.default_rng(0).permutation(len(source))[:count].tolist():
            item = source.item(source[index], task, np.random.default_rng(index))
            made += item is not None
        rates[name] = made / (time.perf_counter() - start)
    return rates


class Retrieval(NamedTuple):
    """Shares of queries whose own picture in the gallery is the nearest, or of the five nearest.

    Attributes:
      references: queries are references, as those of the gallery.
      scenes: queries are cut out of scenes, on white.
      family: as `scenes`, of subjects of several looks, each among these alone; top-1.
      chance: of top-1, as in the first two.
    """

    references: tuple[float, float]
    scenes: tuple[float, float]
    family: float
    chance: float


def measure_retrieval(
    folder: AnyPath, encoder: IdentityEncoder, *, size: int, split: str = "test", seed: int = 0
) -> Retrieval:
    """Draws every look of a split three times: for the gallery, as a reference and in a scene."""
    source = SubjectScenes(folder, split=split, size=size)
    rng = np.random.default_rng(seed)
    subjects = {source[i].emoji: source[i] for i in range(len(source))}.values()
    looks = [(subject, look) for subject in subjects for look in range(len(subject.looks))]
    gallery, again, cut = (
        encoder(np.stack([draw(subject, look, size, rng) for subject, look in looks]))
        for draw in (_reference, _reference, _cut_out)
    )
    family = np.array([subject.emoji for subject, _ in looks])
    likeness = cut @ gallery.T
    own = np.where(family[:, None] == family, likeness, -np.inf).argmax(axis=1)
    several = np.array([len(subject.looks) > 1 for subject, _ in looks])
    return Retrieval(
        references=_ranks(again @ gallery.T),
        scenes=_ranks(likeness),
        family=float((own == np.arange(len(looks)))[several].mean()),
        chance=1 / len(looks),
    )


def _reference(subject: Subject, look: int, size: int, rng: np.random.Generator) -> np.ndarray:
    sided = has_side(subject.words)
    return draw_asset(subject.looks[look], size=size, sided=sided, rng=rng)


def _cut_out(subject: Subject, look: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """The look in a scene, cut out by its mask, in the middle of a white square."""
    sided = [has_side(subject.words)]
    scene = draw_scene([subject.looks[look]], size=size, sided=sided, rng=rng)
    alone = objects.cut_out(scene.picture, scene.instance == 1)
    side = max(alone.shape[:2])
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - alone.shape[0]) // 2, (side - alone.shape[1]) // 2
    square[top : top + alone.shape[0], left : left + alone.shape[1]] = alone
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_LINEAR)


def _ranks(likeness: np.ndarray) -> tuple[float, float]:
    rank = (likeness > np.diag(likeness)[:, None]).sum(axis=1)
    return float((rank < 1).mean()), float((rank < 5).mean())


def main(argv: list[str]) -> None:
    folder, size = argv[1], int(argv[2])
    for name, rate in measure_speed(SubjectScenes(folder, split="train", size=size)).items():
        print(f"{name:14s} {rate:6.0f} items a second")
    settings = {"encoder": "onnx" if argv[3:] else "pixels", "path": "".join(argv[3:4])}
    encoder = make_identity_encoder(settings)
    print(settings["encoder"], encoder.dim, measure_retrieval(folder, encoder, size=size))


if __name__ == "__main__":
    main(sys.argv)
