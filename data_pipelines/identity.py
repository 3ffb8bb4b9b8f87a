"""What a reference object looks like, as one vector (UniVG: f = H(C))."""

from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8


class IdentityEncoder(Protocol):
    """Features of pictures of `dim` numbers each."""

    dim: int

    def __call__(self, pictures: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n dim"]: ...
