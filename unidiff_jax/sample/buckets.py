"""Picture sizes of about equal area, one an aspect ratio."""

# height: width, for an area of about 512 x 512 (PixArt's table, used by the released code)
_SIZES_512 = (
    (256, 1024), (256, 992), (256, 960), (256, 928), (288, 896), (288, 864), (288, 832), (320, 800),
    (320, 768), (352, 736), (352, 704), (352, 672), (384, 672), (384, 640), (416, 608), (416, 576),
    (448, 576), (448, 544), (480, 544), (480, 512), (512, 512), (512, 480), (544, 480), (544, 448),
    (576, 448), (576, 416), (608, 416), (640, 384), (672, 384), (704, 352), (736, 352), (768, 320),
    (800, 320), (832, 288), (864, 288), (896, 288), (928, 256), (960, 256), (992, 256), (1024, 256),
)  # fmt: skip


def nearest_bucket(height: int, width: int, *, side: int = 512) -> tuple[int, int]:
    """The bucket whose aspect ratio is nearest; of equals, the flattest.

    Args:
      height: of a picture.
      width: of a picture.
      side: of the square bucket: 256, 512 or 1024.

    Raises:
      ValueError: another side.
    """
    if side not in (256, 512, 1024):
        raise ValueError(f"buckets exist for sides of 256, 512 and 1024, not {side}")
    wanted = height / width
    # the table's keys are rounded to two places
    found = min(_SIZES_512, key=lambda size: abs(round(size[0] / size[1], 2) - wanted))
    return found[0] * side // 512, found[1] * side // 512
