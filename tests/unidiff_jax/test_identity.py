"""Identity encoders: vectors of length 1, as the network and its preprocessing say."""

import json
import sys

import numpy as np
import onnx_files
import pytest
import tiny_clip
from PIL import Image

from unidiff_jax.config import ConfigError
from unidiff_jax.identity import (
    IDENTITY_ENCODERS,
    OnnxIdentity,
    PatchPictures,
    PixelIdentity,
    Preprocessing,
    make_identity_encoder,
    places_of,
)
from unidiff_jax.sample.clip import CLIPImages

HEIGHT, WIDTH, HIDDEN, CLASSES = 4, 6, 5, 7
MEAN, STD = (10.0, 100.0, 200.0), (50.0, 60.0, 70.0)
INSIDE = "stem/pool/" + "x" * 150  # a length of two bytes in the file
RNG = np.random.default_rng(0)
FIRST = RNG.normal(size=(HEIGHT * WIDTH * 3, HIDDEN)).astype(np.float32)
SECOND = RNG.normal(size=(HIDDEN, CLASSES)).astype(np.float32)


def write_classifier(path, *, layout="nchw", batch="n"):
    onnx_files.write_network(
        path,
        [
            ("Flatten", ["pictures"], "flat"),
            ("MatMul", ["flat", "first"], INSIDE),
            ("Relu", [INSIDE], "hidden"),
            ("MatMul", ["hidden", "second"], "logits"),
        ],
        shape=[batch, 3, HEIGHT, WIDTH] if layout == "nchw" else [batch, HEIGHT, WIDTH, 3],
        output="logits",
        weights={"first": FIRST, "second": SECOND},
    )


def pictures(count=3, seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, HEIGHT, WIDTH, 3)).astype(np.uint8)


def expected(batch, *, layout, colors, output):
    batch = batch[..., ::-1] if colors == "bgr" else batch
    values = (batch.astype(np.float64) - MEAN) / STD
    values = values.transpose(0, 3, 1, 2) if layout == "nchw" else values
    inside = values.reshape(len(values), -1) @ FIRST
    found = inside if output == INSIDE else np.maximum(inside, 0) @ SECOND
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("colors", ["rgb", "bgr"])
@pytest.mark.parametrize("output", ["", "logits", INSIDE], ids=["first", "named", "inside"])
@pytest.mark.parametrize("batch", ["n", 1])
def test_a_network_sees_what_its_preprocessing_says(tmp_path, layout, colors, output, batch):
    pytest.importorskip("onnxruntime", reason="needs the extra identity")
    write_classifier(tmp_path / "net.onnx", layout=layout, batch=batch)
    how = {"layout": layout, "colors": colors, "output": output}
    side = {"size": [HEIGHT, WIDTH], "mean": MEAN, "std": STD, **how}
    (tmp_path / "net.json").write_text(json.dumps(side))
    encoder = OnnxIdentity(tmp_path / "net.onnx")
    found = encoder(pictures())
    assert encoder.dim == (HIDDEN if output == INSIDE else CLASSES)
    assert found.dtype == np.float32 and found.shape == (3, encoder.dim)
    np.testing.assert_allclose(found, expected(pictures(), **how), atol=2e-5)
    np.testing.assert_allclose(encoder(pictures()[1:2]), found[1:2], atol=1e-6)
    assert encoder(pictures(0)).shape == (0, encoder.dim)


def test_pictures_are_resized_and_pooled_maps_are_vectors(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra identity")
    shape = ["n", 3, HEIGHT, WIDTH]
    path = tmp_path / "net.onnx"
    nodes = [("Relu", ["pictures"], "maps"), ("GlobalAveragePool", ["maps"], "pooled")]
    onnx_files.write_network(path, nodes, shape=shape, output="pooled")
    how = Preprocessing(size=(HEIGHT, WIDTH), mean=(0, 0, 0), std=(255, 255, 255))
    encoder = OnnxIdentity(path, how)
    large = np.random.default_rng(0).integers(0, 256, (2, 2 * HEIGHT, 3 * WIDTH, 3))
    mean = large.mean(axis=(1, 2))
    found = encoder(large.astype(np.uint8))
    wanted = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, atol=2e-3)  # resized pixels are rounded
    with pytest.raises(ConfigError, match=r"'maps' has shape \(1, 3, 4, 6\).* no vector; name"):
        OnnxIdentity(path, Preprocessing(size=(HEIGHT, WIDTH), output="maps"))


def test_networks_that_do_not_fit(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra identity")
    path = tmp_path / "net.onnx"
    size = Preprocessing(size=(HEIGHT, WIDTH))
    with pytest.raises(ConfigError, match=r"no such file: .*net.onnx"):
        OnnxIdentity(path, size)
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"net.onnx is no network that onnxruntime reads"):
        OnnxIdentity(path, size)
    write_classifier(path)
    with pytest.raises(ConfigError, match=r"net.onnx has no tensor 'embedding'"):
        OnnxIdentity(path, Preprocessing(size=(HEIGHT, WIDTH), output="embedding"))
    with pytest.raises(ConfigError, match=r"does not take the pictures of .*size=\(112, 112\)"):
        OnnxIdentity(path, Preprocessing(size=(112, 112)))
    onnx_files.write_network(path, [("Relu", ["pictures"], "y")], shape=["n", 4], output="y")
    with pytest.raises(ConfigError, match=r"must take one batch of float pictures, but takes \["):
        OnnxIdentity(path, size)
    with pytest.raises(ConfigError, match=r"net.json is missing; for a network like ArcFace: {"):
        OnnxIdentity(path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 112}, r"net.json: size=112; for example \[112, 112\]"),
        ({"size": [0, 5]}, r"size=\[0, 5\]; for example"),
        ({"size": [4, 4], "layout": "chw"}, "layout='chw'; for example nchw or nhwc"),
        ({"size": [4, 4], "colors": "grey"}, "colors='grey'; for example rgb or bgr"),
        ({"size": [4, 4], "mean": [1, 2]}, r"mean=\[1, 2\]; for example \[127.5, 127.5, 127.5\]"),
        ({"size": [4, 4], "std": [1, 0, 1]}, r"std=\[1, 0, 1\]; for example"),
        ({"size": [4, 4], "output": 3}, "output=3; for example embedding"),
        ({"size": [4, 4], "scale": 2}, "net.json: .*unexpected keyword argument 'scale'"),
        ({}, "net.json: .*missing 1 required keyword-only argument: 'size'"),
    ],
)
def test_preprocessing_that_cannot_be(tmp_path, fields, message):
    pytest.importorskip("onnxruntime", reason="needs the extra identity")
    (tmp_path / "net.json").write_text(json.dumps(fields))
    with pytest.raises(ConfigError, match=message):
        OnnxIdentity(tmp_path / "net.onnx")


def disk(color, at=(16, 16), radius=10, size=32):
    """A disk with a dark spot on white."""
    y, x = np.mgrid[:size, :size]
    picture = np.full((size, size, 3), 255, np.uint8)
    picture[(x - at[0]) ** 2 + (y - at[1]) ** 2 <= radius**2] = color
    picture[(x - at[0] + 3) ** 2 + (y - at[1] + 3) ** 2 <= 9] = np.array(color) // 4
    return picture


def test_pixels_know_colours_and_coarse_shapes():
    encoder = make_identity_encoder({"encoder": "pixels", "path": ""})
    assert isinstance(encoder, PixelIdentity)
    red, blue = (200, 40, 30), (30, 60, 200)
    base, moved, other = encoder(np.stack([disk(red), disk(red, (15, 17), 11), disk(blue)]))
    assert base.shape == (encoder.dim,) and base.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm([base, moved, other], axis=1), 1, atol=1e-6)
    assert base @ moved > 0.85 > 0.6 > base @ other
    (large,) = encoder(np.repeat(np.repeat(disk(red), 2, 0), 2, 1)[None])
    np.testing.assert_allclose(large, base, atol=1e-3)  # the size of a picture does not matter
    mirrored = encoder(disk(red)[None, :, ::-1])[0]
    half = 3 * 8**2
    np.testing.assert_allclose(mirrored[half:], base[half:], atol=1e-6)  # nor the place of colours
    assert mirrored[:half] @ base[:half] < base[:half] @ base[:half]  # in the histogram alone
    blank, plain = encoder(np.stack([np.full((32, 32, 3), v, np.uint8) for v in (255, 40)]))
    assert not blank.any() and np.isclose(np.linalg.norm(plain), 1)
    assert encoder(np.zeros((0, 8, 8, 3), np.uint8)).shape == (0, encoder.dim)


def test_settings_that_cannot_be(monkeypatch):
    with pytest.raises(ConfigError, match="encoder='arcface' is unknown; one of pixels, onnx"):
        make_identity_encoder({"encoder": "arcface", "path": ""})
    with pytest.raises(ConfigError, match=r"path='a.onnx': the encoder 'pixels' takes no path"):
        make_identity_encoder({"encoder": "pixels", "path": "a.onnx"})
    with pytest.raises(ConfigError, match="path='': the encoder 'onnx' needs a path; for example"):
        make_identity_encoder({"encoder": "onnx", "path": ""})
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"run: ./launch/environment.sh identity"):
        make_identity_encoder({"encoder": "onnx", "path": "a.onnx"})
    assert list(IDENTITY_ENCODERS)[:2] == ["pixels", "onnx"]


def test_clip_gives_the_towers_embeddings(tmp_path):
    folder = tiny_clip.write_tower(tmp_path / "clip", tiny_clip.VISION)
    encoder = make_identity_encoder({"encoder": "clip", "path": str(folder)})
    pictures = RNG.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    found = encoder(pictures)
    assert found.shape == (3, encoder.dim) == (3, tiny_clip.VISION.projection_dim)
    expected = CLIPImages.load(folder).embed([Image.fromarray(picture) for picture in pictures])
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        found, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6
    )
    assert encoder(pictures[:0]).shape == (0, encoder.dim)


# -------------------------------------------------------------------------------------- no identity


def test_patches_are_the_picture_and_its_quarters():
    encoder = PatchPictures()
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:16, 16:] = 255  # the second patch
    assert places_of(encoder) == (5, 5) and encoder.dim == 197
    found = encoder(picture[None]).reshape(5, 197)
    whole, *patches = found[:, :192].reshape(5, 8, 8, 3)
    assert [float(patch.mean()) for patch in patches] == [-1, 1, -1, -1]
    assert (whole[:4, 4:] == 1).all() and whole.mean() == -0.5
    np.testing.assert_array_equal(found[:, 192:], np.eye(5))
    assert encoder(np.zeros((0, 4, 4, 3), np.uint8)).shape == (0, 5 * 197)


def test_whole_pictures_have_the_size_of_a_folder(tmp_path):
    values = {"vision_config": {"image_size": 6}, "num_query_tokens": 4}
    (tmp_path / "config.json").write_text(json.dumps(values))
    encoder = make_identity_encoder({"encoder": "picture", "path": str(tmp_path)})
    assert encoder.dim == 108 and places_of(encoder) == (4, 1)
    found = encoder(pictures(2))
    assert found.shape == (2, 108) and found.dtype == np.uint8
    picture = Image.fromarray(pictures(2)[1]).resize((6, 6), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found[1].reshape(6, 6, 3), picture)
    assert places_of(PixelIdentity()) == (1, 1)
