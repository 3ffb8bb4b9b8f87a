"""Arrays to pictures: sample grids, error maps, depth in colour, masks over images.

Images are uint8 in [0, 255] or floating point in [0, 1]; everything returned as an array is uint8
RGB. Scales are fixed (error) or given (depth), never fitted to one picture: two error maps that
look alike are alike.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

RGBImage = UInt8[np.ndarray, "h w 3"]
AnyImage = UInt8[np.ndarray, "h w *c"] | Float[np.ndarray, "h w *c"] | Bool[np.ndarray, "h w"]

# Anchors of two perceptually ordered colour maps, light to dark so that they read in grey print.
_ERROR_ANCHORS = np.array(
    [(255, 255, 255), (254, 224, 139), (253, 141, 60), (215, 25, 45), (84, 0, 32)], dtype=float
)
_DEPTH_ANCHORS = np.array(
    [(253, 231, 37), (94, 201, 98), (33, 145, 140), (59, 82, 139), (68, 1, 84)], dtype=float
)


def to_rgb(image: AnyImage) -> RGBImage:
    """uint8 RGB from uint8, [0, 1] floating point (clipped) or bool, with 1, 3 or no channels."""
    image = np.asarray(image)
    if image.dtype == bool:
        image = image.astype(np.uint8) * 255
    elif np.issubdtype(image.dtype, np.floating):
        # NaN shows as black rather than as whatever the cast would make of it.
        image = np.rint(np.clip(np.nan_to_num(image, nan=0.0), 0.0, 1.0) * 255).astype(np.uint8)
    elif image.dtype != np.uint8:
        raise ValueError(f"a picture must be uint8, floating point or bool, got {image.dtype}")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"a picture must have shape (h, w), (h, w, 1) or (h, w, 3): {image.shape}")
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _colorize(values: Float[np.ndarray, "h w"], *, anchors: Float[np.ndarray, "n 3"]) -> RGBImage:
    """Piecewise-linear colour map; values in [0, 1] are clipped, NaN is mid grey."""
    finite = np.isfinite(values)
    position = np.clip(np.where(finite, values, 0.0), 0.0, 1.0) * (len(anchors) - 1)
    knots = np.arange(len(anchors))
    rgb = np.stack([np.interp(position, knots, channel) for channel in anchors.T], axis=-1)
    return np.rint(np.where(finite[..., None], rgb, 128.0)).astype(np.uint8)


def error_map(output: AnyImage, *, target: AnyImage, maximum: float = 0.5) -> RGBImage:
    """Mean over channels of |output - target|, white (0) to dark red (`maximum` and above, [0, 1]).

    The scale is the same for every picture.
    """
    output, target = to_rgb(output), to_rgb(target)
    if output.shape != target.shape:
        raise ValueError(f"output {output.shape} and target {target.shape} differ in shape")
    error = np.abs(output / 255.0 - target / 255.0).mean(axis=-1)
    return _colorize(error / maximum, anchors=_ERROR_ANCHORS)


def depth_to_rgb(depth: Float[np.ndarray, "h w"], *, near: float, far: float) -> RGBImage:
    """Depth in scene units in colour: yellow at `near`, violet at `far`; not finite is grey.

    Use one range for the output and the target, or the comparison is void.
    """
    if not far > near:
        raise ValueError(f"far ({far}) must exceed near ({near}), e.g. near=2.0, far=8.0")
    depth = np.asarray(depth, dtype=np.float64)
    return _colorize((depth - near) / (far - near), anchors=_DEPTH_ANCHORS)


def mask_overlay(
    image: AnyImage,
    *,
    mask: Bool[np.ndarray, "h w"],
    color: tuple[int, int, int] = (255, 0, 128),
    opacity: float = 0.6,
) -> RGBImage:
    """The image with `color` laid over the mask; outside it the picture is dimmed towards grey."""
    rgb = to_rgb(image).astype(np.float64)
    grey = rgb.mean(axis=-1, keepdims=True)
    outside = 0.5 * rgb + 0.5 * grey
    inside = (1.0 - opacity) * rgb + opacity * np.asarray(color, dtype=np.float64)
    mixed = np.where(np.asarray(mask, dtype=bool)[..., None], inside, outside)
    return np.rint(mixed).astype(np.uint8)


def _enlarge(image: RGBImage, *, side: int) -> Image.Image:
    factor = -(-side // max(image.shape[:2]))
    size = (image.shape[1] * factor, image.shape[0] * factor)
    return Image.fromarray(image).resize(size, Image.Resampling.NEAREST)


def _fit(text: str, *, font, width: int) -> str:
    """The text, cut with three dots when it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def grid(
    images: Sequence[Sequence[AnyImage | None]],
    *,
    columns: Sequence[str] = (),
    captions: Sequence[str] = (),
    cell: int = 96,
    gap: int = 6,
) -> Image.Image:
    """Rows of images on white, enlarged with nearest neighbour so that pixels stay visible.

    Args:
        images: one sequence a row; None leaves a cell empty. Rows may differ in length.
        columns: titles above the columns.
        captions: one line above each row, e.g. its prompt; cut to the width of the grid.
        cell: images are enlarged by the smallest whole factor that makes their longer side at
            least this many pixels; the largest result sets the size of all cells.
        gap: pixels between cells.

    >>> grid([[np.zeros((32, 32, 3)), np.ones((32, 32))]], columns=["output", "target"]).size
    (210, 127)
    """
    rows = [[None if image is None else to_rgb(image) for image in row] for row in images]
    present = [image for row in rows for image in row if image is not None]
    if not present:
        raise ValueError("a grid needs at least one image")
    if captions and len(captions) != len(rows):
        raise ValueError(f"{len(captions)} captions for {len(rows)} rows")
    num_columns = max(len(row) for row in rows)
    if columns and len(columns) != num_columns:
        raise ValueError(f"{len(columns)} column titles for {num_columns} columns")

    scaled = [[None if image is None else _enlarge(image, side=cell) for image in r] for r in rows]
    cell = max(max(image.size) for row in scaled for image in row if image is not None)
    font = ImageFont.load_default(size=12)
    line = 19
    width = num_columns * (cell + gap) + gap
    header = line if columns else 0
    row_height = (line if captions else 0) + cell + gap
    canvas = Image.new("RGB", (width, header + gap + len(rows) * row_height), "white")
    pen = ImageDraw.Draw(canvas)

    for c, title in enumerate(columns):
        position = (gap + c * (cell + gap), gap)
        pen.text(position, _fit(title, font=font, width=cell), fill="#555555", font=font)
    for r, row in enumerate(scaled):
        top = header + gap + r * row_height
        if captions:
            text = _fit(captions[r], font=font, width=width - 2 * gap)
            pen.text((gap, top), text, fill="#111111", font=font)
            top += line
        for c, image in enumerate(row):
            if image is not None:
                canvas.paste(image, (gap + c * (cell + gap), top))
    return canvas
