"""Three-axis rotary position embedding (Lumina-Next; OneDiffusion).

The head dimension is cut into three equal parts for the axes (frame, y, x). Axis positions are
integers from 0, not centred and not scaled by resolution. Angle i of an axis turns by
scale * position * theta ** (-6 i / k); adjacent pairs (2i, 2i + 1) of the head are rotated.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def rotation_angles(
    position: Int[Array, "b t 3"], *, head_dim: int, theta: float = 10000.0, scale: float = 1.0
) -> Float[Array, "b t pairs"]:
    """Rotation angle of each pair, in radians.

    Raises:
      ValueError: the head dimension is not divisible by 6.
    """
    if head_dim % 6:
        raise ValueError(f"3-D rotary embedding needs a head dimension divisible by 6: {head_dim}")
    frequency = theta ** (-jnp.arange(0, head_dim, 6, dtype=jnp.float32) / head_dim)
    angles = position[..., None].astype(jnp.float32) * (scale * frequency)  # (b, t, 3, k/6)
    return angles.reshape(*position.shape[:-1], head_dim // 2)


def rotate(
    x: Float[Array, "b t h k"], angles: Float[Array, "b t pairs"]
) -> Float[Array, "b t h k"]:
    """Rotates adjacent pairs of every head, in float32."""
    cos, sin = (f(angles)[:, :, None, :, None] for f in (jnp.cos, jnp.sin))
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    # a reversed pair and not its two halves: the gradient of a strided slice is a slow padding
    turned = pairs * cos + pairs[..., ::-1] * jnp.concatenate([-sin, sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
