"""Distances between sets of pictures: FID (Heusel et al. 2017) and KID (Binkowski et al. 2018).

Features are those of the extractor `inception`. FID needs their mean and covariance alone, which
`Moments` gathers in float64 a batch at a time; processes gather their own and `merge` them. Every
sample counts, the last, smaller batch too.

FID is biased upwards by few samples, and scores of different numbers of samples do not compare;
below 2048 samples the covariance is singular. KID is not biased.
"""

import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from unidiff_jax.paths import AnyPath, as_path, written_whole

KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
"""Of the usual code (clean-fid)."""


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of features.

    Attributes:
      count: number of samples.
      mean: of the features.
      scatter: sum of the outer products of what differs from the mean.

    Example:
      >>> real = Moments.of(inception.images(first)).merge(Moments.of(inception.images(second)))
      >>> fid(real, Moments.of(generated))
    """

    count: int
    mean: Float[np.ndarray, "d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        """Moments of a batch.

        Raises:
          ValueError: another shape, no samples, or features that are not finite.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or not len(features) or not np.isfinite(features).all():
            raise ValueError(f"features must be finite, of shape (n, d), got {features.shape}")
        mean = features.mean(axis=0)
        centered = features - mean
        return cls(len(features), mean, centered.T @ centered)

    def merge(self, other: "Moments") -> "Moments":
        """Moments of both sets together (Chan et al. 1979)."""
        count = self.count + other.count
        step = other.mean - self.mean
        between = np.outer(step, step) * (self.count * other.count / count)
        return Moments(
            count, self.mean + step * (other.count / count), self.scatter + other.scatter + between
        )

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Unbiased, as `numpy.cov`.

        Raises:
          ValueError: fewer than two samples.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, got {self.count}")
        return self.scatter / (self.count - 1)

    def save(self, path: AnyPath) -> None:
        """Writes an `.npz` with `mu` and `sigma`, as the usual code does, and `count`."""
        with written_whole(path) as file, file.open("wb") as stream:
            np.savez(stream, mu=self.mean, sigma=self.covariance, count=self.count)

    @classmethod
    def load(cls, path: AnyPath, *, count: int = 0) -> "Moments":
        """Reads an `.npz` with `mu` and `sigma`.

        Args:
          path: of `save`, or published statistics.
          count: of samples, for files that do not say it.

        Raises:
          ValueError: neither the file nor `count` says it.
        """
        with as_path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            number = int(arrays["count"]) if "count" in arrays else count
            if number < 2:
                raise ValueError(f"{path} does not say how many samples it is of; give count=30000")
            return cls(number, arrays["mu"], arrays["sigma"] * (number - 1))


def merge(parts: Iterable[Moments]) -> Moments:
    """Moments of all parts together, such as the processes'."""
    return functools.reduce(Moments.merge, parts)


def fid(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)), the squared Frechet distance.

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which
    is symmetric: no root of a matrix that is not, no small number added to singular ones.
    """
    a, b = first.covariance, second.covariance
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    shared = np.linalg.eigvalsh(root @ b @ root)
    cross = np.sqrt(np.maximum(shared, 0.0)).sum()
    distance = np.square(first.mean - second.mean).sum() + np.trace(a) + np.trace(b) - 2 * cross
    return float(max(distance, 0.0))


class Kid(NamedTuple):
    """Mean over the subsets, and their standard deviation."""

    mean: float
    std: float


def kid(
    first: Float[np.ndarray, "n d"],
    second: Float[np.ndarray, "m d"],
    *,
    num_subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = 0,
) -> Kid:
    """Mean of `squared_mmd` over random subsets, drawn without replacement inside a subset.

    Args:
      first: features of a set of pictures.
      second: of the other.
      num_subsets: how many pairs of subsets.
      subset_size: samples of each; the smaller set's number if that is less.
      seed: of the drawing.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    size = min(subset_size, len(first), len(second))
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_subsets):
        chosen = [rng.choice(len(x), size, replace=False) for x in (first, second)]
        found.append(squared_mmd(first[chosen[0]], second[chosen[1]]))
    return Kid(float(np.mean(found)), float(np.std(found)))


def squared_mmd(first: Float[np.ndarray, "n d"], second: Float[np.ndarray, "m d"]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x y / d + 1)^3 (Binkowski et al.
    2018, equation 4). It can be negative.

    Raises:
      ValueError: fewer than two samples.
    """
    n, m = len(first), len(second)
    if min(n, m) < 2:
        raise ValueError(f"each set needs at least 2 samples, got {n} and {m}")
    within = sum(
        (gram.sum() - np.trace(gram)) / (len(gram) * (len(gram) - 1))
        for gram in (_kernel(first, first), _kernel(second, second))
    )
    return float(within - 2 * _kernel(first, second).mean())


def _kernel(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "n m"]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a @ b.T / a.shape[1] + 1.0) ** 3
