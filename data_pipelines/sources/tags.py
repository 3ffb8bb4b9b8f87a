"""Context tags that hold for a whole data set (UniReal section 3.1), such as "realistic style"."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.sources.base import RawSource


class AddedTags:
    """A source whose samples have tags beside those that another source gives them."""

    def __init__(self, source: RawSource, tags: Sequence[str]):
        """Adds `tags` after the samples' own."""
        self._source, self._tags = source, tuple(tags)

    @property
    def fields(self) -> tuple[str, ...]:
        """Those of the source."""
        return self._source.fields

    def __len__(self) -> int:
        return len(self._source)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """A sample of the source with the tags; see `RawSource.sample`."""
        sample = dict(self._source.sample(index, rng))
        return sample | {"tags": (*sample.get("tags", ()), *self._tags)}
