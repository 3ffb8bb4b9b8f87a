"""What a report says of an extractor."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from unidiff_jax.config import ConfigError


class Identity(TypedDict):
    """What decides an extractor's numbers.

    Attributes:
      name: the kind.
      sha256: of the weights' file; of the digests of its files in order of their names, where there
        are several.
      preprocess: name of the pictures' preprocessing.
      substitute: empty, or in words how the network differs from the released one of this kind.
    """

    name: str
    sha256: str
    preprocess: str
    substitute: str


def choose(preprocess: str, *, kind: str, known: Sequence[str]) -> str:
    """The preprocessing that is asked for, or a kind's own, the first.

    Raises:
      ConfigError: the kind does not have it.
    """
    if preprocess and preprocess not in known:
        raise ConfigError(
            f"extractor {kind} has no preprocess={preprocess!r}; it has {', '.join(known)}"
        )
    return preprocess or known[0]


def differences(config: Any, released: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """Fields of a config that are not the released network's."""
    return [
        f"{prefix}{name}={getattr(config, name)!r} (released: {value!r})"
        for name, value in released.items()
        if getattr(config, name) != value
    ]
