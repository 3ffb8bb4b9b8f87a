"""Stand-ins for the networks and models of benchmarks: their answers are known."""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from unidiff_jax.evals.benchmarks.scoring import Tools

SIDE = 4


class FakeExtractor:
    """A picture's small version, or random numbers of a text, as features."""

    def __init__(self, name: str, *, substitute: str = ""):
        self.identity = {
            "name": name,
            "sha256": f"{zlib.crc32(name.encode()):064x}",
            "preprocess": "small",
            "substitute": substitute,
        }
        self.seen = 0

    def images(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        self.seen += len(pictures)
        small = [np.asarray(p.convert("RGB").resize((SIDE, SIDE)), np.float32) for p in pictures]
        return np.stack(small).reshape(len(pictures), -1) / 255 + 0.01

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [zlib.crc32(text.encode()) for text in texts]
        found = [np.random.default_rng(seed).standard_normal(3 * SIDE**2) for seed in seeds]
        return np.stack(found).astype(np.float32)

    def distance(self, a: Sequence[Image.Image], b: Sequence[Image.Image]) -> np.ndarray:
        assert [p.size for p in a] == [p.size for p in b]
        return np.abs(self.images(a) - self.images(b)).mean(axis=1)


KINDS = ("clip-b32", "clip-l14", "dino-s16", "inception", "dino-b8")
KINDS += ("lpips-alex", "lpips-squeeze", "lpips-vgg")


def fake_tools(*, substitute: str = "") -> Tools:
    """All extractors."""
    found = {kind: FakeExtractor(kind, substitute=substitute) for kind in KINDS}
    return Tools(loaded=found | {"inception/legacy_pytorch": found["inception"]})


class FakeGenerator:
    """Answers a request by a function; says what it was asked."""

    name, steps, params = "fake", 0, 0
    tasks = (
        "edit",
        "depth",
        "segment",
        "customize",
        "text_to_image",
        "multiview",
    )

    def __init__(self, answer: Callable, **settings):
        self.answer, self.settings = answer, {"model": "fake", **settings}
        self.asked: list[str] = []

    def generate(self, requests):
        self.asked += [request.id for request in requests]
        return [self.answer(request) for request in requests]


def as_rgb(picture: Image.Image) -> np.ndarray:
    """As a model gives it: RGB in [-1, 1]."""
    return np.asarray(picture.convert("RGB"), np.float32) / 127.5 - 1


def copy_source(request) -> np.ndarray:
    """The given picture, unchanged."""
    return as_rgb(request.given["source"])


def scores_of(results: dict, **wanted) -> list[dict]:
    """Entries with these values; `encoder` by its name."""

    def fits(score: dict) -> bool:
        flat = score | {"encoder": score["encoder"] and score["encoder"]["name"]}
        return all(flat[key] == value for key, value in wanted.items())

    return [score for score in results["scores"] if fits(score)]


def score_of(results: dict, **wanted) -> dict:
    """The one entry with these values."""
    (found,) = scores_of(results, **wanted)
    return found
