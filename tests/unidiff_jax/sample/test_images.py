"""Pictures from outside: every format reads alike, and what is none is said in one line."""

import re

import numpy as np
import pytest
from PIL import Image

from unidiff_jax.outside import InputError, decode_picture
from unidiff_jax.sample.images import load_image, open_picture, to_picture, write_values

SIDE = 16


def picture(side=64):
    """Red left, blue right, and darker downwards."""
    y, x = np.mgrid[:side, :side]
    light = 255 - 100 * y // side
    rgb = np.stack(
        [np.where(x < side // 2, light, 0), 0 * x, np.where(x < side // 2, 0, light)], -1
    )
    return Image.fromarray(rgb.astype(np.uint8))


def read(source, codec="rgb", size=SIDE):
    return load_image(source, codec=codec, size=size)


@pytest.fixture
def saved(tmp_path):
    def saved(image, name, **options):
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return saved


@pytest.mark.parametrize(
    ("name", "options"), [("a.png", {}), ("a.jpg", {"quality": 95}), ("a.webp", {"lossless": True})]
)
def test_formats_paths_and_arrays_read_alike(saved, name, options):
    path = saved(picture(), name, **options)
    expected = read(picture()).astype(int)
    assert expected.shape == (SIDE, SIDE, 3)
    for source in (path, str(path), Image.open(path), np.asarray(Image.open(path).convert("RGB"))):
        got = read(source)
        assert got.dtype == np.uint8
        assert np.abs(got - expected).mean() < 4


def test_the_extension_does_not_matter(saved, tmp_path):
    saved(picture(), "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read(tmp_path / "a.jpg"), read(picture()))


def test_exif_rotation_is_applied(saved):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    path = saved(picture(), "a.png", exif=exif)
    expected = picture().transpose(Image.Transpose.ROTATE_270)
    np.testing.assert_array_equal(read(path), read(expected))


def test_transparency_is_laid_on_white(saved):
    clear = picture().convert("RGBA")
    clear.putalpha(0)
    assert (read(saved(clear, "a.png")) == 255).all()
    grey = Image.new("LA", (32, 32), (0, 128))
    assert np.abs(read(saved(grey, "b.png")).astype(int) - 127).max() <= 1
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([10, 20, 30])
    assert (read(saved(palette, "c.png", transparency=0)) == 255).all()


def test_palette_grey_and_bilevel(saved):
    palette = picture().quantize(32)
    assert np.abs(read(saved(palette, "a.png")) - read(picture()).astype(int)).mean() < 8
    grey = picture().convert("L")
    got = read(saved(grey, "b.png"))
    np.testing.assert_array_equal(got[..., 0], got[..., 2])
    bits = Image.new("1", (32, 32), 1)
    assert (read(saved(bits, "c.png")) == 255).all()


def test_cmyk(saved):
    path = saved(picture().convert("CMYK"), "a.jpg", quality=95)
    assert np.abs(read(path) - read(picture()).astype(int)).mean() < 8


def test_sixteen_bits_are_scaled_not_cut(saved):
    ramp = np.linspace(0, 65535, 64).astype(np.uint16)
    path = saved(Image.fromarray(np.tile(ramp, (64, 1))), "a.png")
    got = read(path)[0, :, 0].astype(int)
    expected = (np.arange(SIDE) + 0.5) / SIDE * 255
    assert np.abs(got - expected).max() < 8
    depth = read(path, codec="depth")
    assert depth[0, 0] < 0.1 and depth[0, -1] > 0.9


def test_the_centre_is_cropped():
    wide = Image.new("RGB", (300, 100), "green")
    wide.paste(picture(100), (100, 0))
    np.testing.assert_allclose(read(wide).astype(int), read(picture(100)), atol=30)
    assert read(Image.new("RGB", (1, 7)), size=8).shape == (8, 8, 3)


def test_codecs_read_their_own_kind():
    half = Image.fromarray((np.arange(64 * 64).reshape(64, 64) % 64 < 32) * np.uint8(255))
    mask = read(half, codec="mask")
    assert mask.dtype == bool and mask[:, :7].all() and not mask[:, 9:].any()
    depth = read(half, codec="depth")
    assert depth.dtype == np.float32 and depth.min() >= 0 and depth.max() <= 1


def test_pictures_out_are_those_that_went_in():
    rgb = np.asarray(picture(SIDE), np.float32) / 127.5 - 1
    out = to_picture(rgb, codec="rgb", size=(SIDE, SIDE))
    np.testing.assert_array_equal(np.asarray(out), np.asarray(picture(SIDE)))
    mask = to_picture(rgb, codec="mask", size=(2 * SIDE, SIDE))
    assert mask.size == (2 * SIDE, SIDE)
    far = to_picture(np.full((4, 4, 3), 7.0, np.float32), codec="rgb", size=(4, 4))
    assert (np.asarray(far) == 255).all()


def refused(source, *words):
    with pytest.raises(InputError) as caught:
        read(source)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert re.search(word, message), message


def test_what_is_no_picture(tmp_path, saved):
    refused(tmp_path / "none.png", "no such picture: .*none.png")
    refused(tmp_path, "no such picture")
    (tmp_path / "text.png").write_text("hello")
    refused(tmp_path / "text.png", "text.png is no PNG, JPEG or WebP picture")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "is no PNG")
    refused(saved(picture(), "a.gif"), "a.gif is no PNG, JPEG or WebP picture")
    refused(None, "a path, a PIL image or an array, got NoneType")
    refused(np.zeros((4, 4)), r"uint8 \(h, w, 3\), got float64 \(4, 4\)")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_truncated_files(saved, name):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    path = saved(noise, name)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(path, name, "damaged|no PNG")
    if name != "a.webp":  # WebP refuses to open half a file
        refused(Image.open(path), "damaged")


def test_pictures_that_are_too_large(saved):
    wide = saved(Image.new("1", (50_000, 20)), "wide.png")
    refused(wide, "50000x20 pixels; at most 16384 a side")
    many = saved(Image.new("1", (9_000, 9_000)), "many.png")
    refused(many, "9000x9000 pixels.*67108864 in all")
    bomb = saved(Image.new("1", (16_000, 16_000)), "bomb.png")
    refused(bomb, "too large|16000x16000")
    refused(np.zeros((1, 20_000, 3), np.uint8), "20000x1 pixels")
    refused(Image.new("1", (50_000, 20)), "50000x20 pixels")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_bytes_read_as_files_do(saved, name):
    path = saved(picture(), name)
    np.testing.assert_array_equal(decode_picture(path.read_bytes()), open_picture(path))
    with pytest.raises(InputError, match="row 3: image is no PNG"):
        decode_picture(b"hello", name="row 3: image")
    many = saved(Image.new("1", (9_000, 9_000)), "many.png")
    with pytest.raises(InputError, match="the picture is 9000x9000 pixels"):
        decode_picture(many.read_bytes())


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL on damaged EXIF
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_damaged_bytes_give_a_picture_or_one_error(saved, name):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "text"
    whole = saved(picture(24), name, exif=exif).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = np.frombuffer(whole, np.uint8).copy()
        data[rng.integers(len(data), size=rng.integers(1, 6))] = rng.integers(256)
        try:
            assert decode_picture(data.tobytes()).mode == "RGB"
        except InputError:
            pass


def test_values_are_kept_to_the_last_bit_of_the_file(tmp_path):
    rng = np.random.default_rng(0)
    depth = rng.uniform(0, 1, (5, 7)).astype(np.float32)
    picture, array = write_values(depth, tmp_path / "depth.png")
    with Image.open(picture) as opened:
        assert opened.mode.startswith("I;16") or opened.mode == "I"
        np.testing.assert_allclose(np.asarray(opened) / 65535.0, depth, atol=0.5 / 65535 + 1e-7)
    np.testing.assert_array_equal(np.load(array), depth)
    mask = rng.uniform(size=(5, 7)) > 0.5
    picture, array = write_values(mask, tmp_path / "mask.png")
    with Image.open(picture) as opened:
        assert opened.mode == "L"
        np.testing.assert_array_equal(np.asarray(opened), mask * 255)
    np.testing.assert_array_equal(np.load(array), mask)
    rgb = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert [p.name for p in write_values(rgb, tmp_path / "rgb.png")] == ["rgb.png"]
    with pytest.raises(InputError, match=r"\.png alone"):
        write_values(depth, tmp_path / "depth.jpg")
