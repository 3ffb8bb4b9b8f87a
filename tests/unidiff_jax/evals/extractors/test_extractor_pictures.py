"""Preprocessing against plain restatements of what the official code does."""

import numpy as np
import pytest
from PIL import Image

from unidiff_jax.evals.extractors.pictures import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    preprocess,
    resample,
)
from unidiff_jax.sample.clip import MEAN, STD
from unidiff_jax.sample.clip import preprocess as preprocess_as_transformers


def picture(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def test_clip_is_transformers_preprocessing_where_the_rest_is_even():
    item = picture(300, 260)  # 258 x 224, so 17 columns on each side
    ours, theirs = preprocess(item, name="clip", size=224), preprocess_as_transformers([item])
    np.testing.assert_allclose(ours, theirs[0], atol=1e-6)


@pytest.mark.parametrize(("rest", "left"), [(1, 0), (3, 2), (5, 2), (7, 4)])
def test_the_crop_rounds_as_torchvision(rest, left):
    """An odd rest is halved to the even neighbour."""
    item = picture(224 + rest, 224)
    values = preprocess(item, name="clip", size=224) * np.asarray(STD) + np.asarray(MEAN)
    expected = np.asarray(item)[:, left : left + 224] / 255
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_imagenet_resizes_to_256_and_cuts_224():
    item = picture(300, 512)
    values = preprocess(item, name="imagenet", size=224)
    small = item.resize((256, 436), Image.Resampling.BICUBIC).crop((16, 106, 240, 330))
    expected = (np.asarray(small) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_clean_does_not_round():
    item = picture(500, 400).point(lambda value: 96 + value // 4)  # no filter leaves [0, 255]
    values = preprocess(item, name="clean", size=299) * 128 + 128
    rounded = np.asarray(item.resize((299, 299), Image.Resampling.BICUBIC), np.float64)
    error = np.abs(values - rounded)
    assert 0.4 < error.max() < 1.5  # both passes round
    assert np.abs(values - np.round(values)).max() > 0.4


def test_clean_is_clipped():
    values = preprocess(picture(500, 400), name="clean", size=299)
    assert values.min() == -1 and values.max() == 127 / 128


def test_legacy_resizing_aliases_and_clean_does_not():
    """A board of single pixels is grey to whoever looks at all of them."""
    board = np.indices((897, 897)).sum(axis=0) % 2 * 255
    item = Image.fromarray(np.repeat(board[..., None], 3, axis=-1).astype(np.uint8))
    spread = {
        name: preprocess(item, name=name, size=299).std()
        for name in ("clean", "legacy_pytorch", "legacy_tensorflow")
    }
    assert spread["clean"] < 0.05
    assert min(spread["legacy_pytorch"], spread["legacy_tensorflow"]) > 0.9


def test_legacy_values_at_the_same_size():
    item = picture(299, 299)
    rgb = np.asarray(item, np.float64)
    pytorch, tensorflow = (
        preprocess(item, name=f"legacy_{name}", size=299) for name in ("pytorch", "tensorflow")
    )
    np.testing.assert_allclose(pytorch, rgb / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(tensorflow, (rgb - 128) / 128, atol=1e-6)


def test_tensorflow_reads_from_the_corners():
    values = np.arange(4, dtype=np.float64)[:, None, None]
    found = resample(values, size=(8, 1), kind="tensorflow_bilinear")[:, 0, 0]
    np.testing.assert_allclose(found, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    found = resample(values, size=(8, 1), kind="torch_bilinear")[:, 0, 0]
    np.testing.assert_allclose(found, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


def test_instruct_pix2pix_squeezes():
    item = picture(64, 448)
    values = preprocess(item, name="instruct_pix2pix", size=224)
    rgb = resample(np.asarray(item, np.float32) / 255, size=(224, 224), kind="torch_bicubic")
    np.testing.assert_allclose(values * np.asarray(STD) + np.asarray(MEAN), rgb, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P"])
def test_other_modes_become_rgb(mode):
    item = picture(40, 40).convert(mode)
    values = preprocess(item, name="lpips", size=0)
    np.testing.assert_allclose(values, np.asarray(item.convert("RGB")) / 127.5 - 1, atol=1e-6)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'cleaner' is unknown"):
        preprocess(picture(4, 4), name="cleaner", size=4)
