"""Extractors without PyTorch: loading, identities, batches, and what they refuse."""

import hashlib
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_clip
from PIL import Image
from safetensors.numpy import save_file
from tiny_extractors import write_extractors

from unidiff_jax.config import ConfigError
from unidiff_jax.evals.extractors import KINDS, load_extractor
from unidiff_jax.evals.extractors.batches import in_batches
from unidiff_jax.evals.extractors.inception import fold_batch_norms
from unidiff_jax.evals.extractors.lpips import lpips_table
from unidiff_jax.evals.extractors.weights import read_weights
from unidiff_jax.export.files import FolderError, open_tensors
from unidiff_jax.export.mapping import MappingError
from unidiff_jax.models import convnet, inception, lpips


def pictures(*sizes):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tiny_clip.write_whole(tmp_path_factory.mktemp("clip"))
    tiny_clip.write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def alex_folder(tmp_path_factory):
    """Heads and backbone in two files."""
    folder, rng = tmp_path_factory.mktemp("alex"), np.random.default_rng(0)
    shapes, tensors = lpips.lpips_shapes("alex"), {}
    for entry in lpips_table("alex").entries:
        name, part = entry.path.split("/")
        shape = shapes[name][part].shape
        shape = shape if part == "bias" else [shape[i] for i in (3, 2, 0, 1)]
        values = rng.random(shape) if "lin" in name else 0.1 * rng.standard_normal(shape)
        tensors[entry.official] = values.astype(np.float32)
    heads = {k: v for k, v in tensors.items() if k.startswith("lin")}
    save_file(heads, folder / "alex.safetensors")
    save_file({k: v for k, v in tensors.items() if k not in heads}, folder / "alexnet.safetensors")
    return folder


def test_unknown_names_are_refused_with_the_known_ones(clip_folder):
    with pytest.raises(ConfigError, match=f"one of {', '.join(KINDS)}"):
        load_extractor("clip-h14", clip_folder)
    with pytest.raises(ConfigError, match="it has clip, instruct_pix2pix"):
        load_extractor("clip-b32", clip_folder, preprocess="clean")


def test_clip_says_what_it_is(clip_folder):
    extractor = load_extractor("clip-b32", clip_folder, preprocess="instruct_pix2pix")
    file = (clip_folder / "model.safetensors").read_bytes()
    identity = dict(extractor.identity)
    substitute = identity.pop("substitute")
    assert identity == {
        "name": "clip-b32",
        "sha256": hashlib.sha256(file).hexdigest(),
        "preprocess": "instruct_pix2pix",
    }
    assert "vision hidden_size=16 (released: 768)" in substitute
    assert "text num_hidden_layers=3 (released: 12)" in substitute
    json.dumps(extractor.identity)


def test_features_do_not_depend_on_what_else_is_asked_for(clip_folder):
    extractor, items = load_extractor("clip-l14", clip_folder), pictures((30, 20), (20, 33), (9, 9))
    together = extractor.images(items)
    assert together.shape == (3, 6) and together.dtype == np.float32
    for item, row in zip(items, together, strict=True):
        np.testing.assert_allclose(extractor.images([item])[0], row, atol=5e-6)
    assert np.abs(np.linalg.norm(together, axis=1) - 1).max() > 0.01  # not normalised
    assert extractor.images([]).shape == extractor.texts([]).shape == (0, 6)


def test_batches_are_cut_filled_and_joined():
    seen = []

    def run(batch):
        seen.append(len(batch))
        return batch.sum(axis=1, keepdims=True)

    found = in_batches(range(70), prepare=lambda n: np.full(2, n), run=run, empty=(0, 1))
    np.testing.assert_array_equal(found[:, 0], 2.0 * np.arange(70))
    assert seen == [32, 32, 8]


def test_lpips_of_pairs_of_several_sizes(alex_folder):
    extractor = load_extractor("lpips-alex", alex_folder)
    first, second = pictures((33, 40), (48, 32), (33, 40)), pictures((33, 40), (48, 32), (33, 40))
    second[2] = second[0]
    found = extractor.distance(first, second)
    np.testing.assert_allclose(found[:2], 0, atol=1e-12)
    assert found[2] > 0.01
    np.testing.assert_allclose(extractor.distance(second, first), found, rtol=1e-5)
    with pytest.raises(ValueError, match="pair 0 has"):
        extractor.distance(first[:1], second[1:2])
    with pytest.raises(ValueError, match="at least 31 pixels"):
        extractor.distance(pictures((30, 40)), pictures((30, 40)))
    files = sorted(alex_folder.iterdir())
    digests = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    assert extractor.identity["sha256"] == hashlib.sha256(digests).hexdigest()
    assert extractor.identity["substitute"] == ""


@pytest.mark.parametrize("net", sorted(lpips.LAYERS))
def test_every_layer_has_a_place_of_the_smallest_picture(net):
    def places(side):
        picture = jax.ShapeDtypeStruct((1, side, side, 3), "float32")
        weights = lpips.lpips_shapes(net)
        layers = lpips.LAYERS[net]
        found = jax.eval_shape(lambda p, x: convnet.run(layers, x, params=p), weights, picture)
        return [(maps.shape[1], maps.shape[3]) for maps in found.kept]

    least = lpips.MIN_SIZE[net]
    assert [width for _, width in places(least)] == list(lpips.WIDTHS[net])
    assert min(side for side, _ in places(least)) > 0
    with pytest.raises((AssertionError, TypeError, ValueError)):
        assert min(side for side, _ in places(least - 1)) > 0


def test_structure_is_of_squares(tmp_path):
    extractor = load_extractor("dino-b8", write_extractors(tmp_path) / "dino-b8")
    first = pictures((40, 40), (64, 64))
    found = extractor.distance(first, [first[1].resize((40, 40)), first[1]])
    assert found[0] > 1e-5 and found[1] == pytest.approx(0, abs=1e-12)
    flipped = [picture.transpose(Image.Transpose.ROTATE_180) for picture in first]
    assert extractor.distance(first, flipped).min() > 1e-5
    assert extractor.distance([], []).shape == (0,)
    with pytest.raises(ValueError, match=r"pair 0 has \(40, 40\) and \(33, 40\) pixels"):
        extractor.distance(first[:1], pictures((33, 40)))
    assert "hidden_size=16 (released: 768)" in extractor.identity["substitute"]


def test_lpips_misses_its_heads(alex_folder):
    with pytest.raises(MappingError, match=r"no tensor lin0\.model\.1\.weight"):
        load_extractor("lpips-alex", alex_folder / "alexnet.safetensors")


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(FolderError, match="is missing"):
        read_weights(tmp_path / "none.safetensors")
    with pytest.raises(FolderError, match=r"holds no \.safetensors"):
        read_weights(tmp_path)
    for name in "ab":
        save_file({"x": np.zeros(1, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(FolderError, match="more than one file holds x"):
        read_weights(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "old.pth").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"(?s)environment.sh torch.*weights_only=True"):
        read_weights(tmp_path / "old.pth")
    assert read_weights(tmp_path / "a.safetensors").tensors["x"].shape == (1,)


@pytest.mark.torch
def test_what_is_no_state_dict(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("text")
    for name in ("list", "text"):
        with pytest.raises(FolderError, match="no state dict"):
            read_weights(tmp_path / f"{name}.pth")


@pytest.mark.torch
def test_a_folder_of_pytorchs_weights(clip_folder, tmp_path):
    torch = pytest.importorskip("torch")
    for name in ("config.json", "vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
    tensors = {k: torch.from_numpy(t[...].copy()) for k, t in open_tensors(clip_folder).items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    first, second = (load_extractor("clip-b32", folder) for folder in (clip_folder, tmp_path))
    items = pictures((20, 20))
    np.testing.assert_array_equal(first.images(items), second.images(items))
    assert first.identity["sha256"] != second.identity["sha256"]


# ------------------------------------------------------------------------------ networks as data


def test_layers_equal_loops():
    rng = np.random.default_rng(0)
    layers = (
        convnet.Conv("first", 3, (1, 3), stride=2, padding=(0, 1)),
        convnet.Keep(),
        convnet.Split(((convnet.MeanPool(3),), (convnet.MaxPool(3, 1, padding=1),))),
    )
    shapes = convnet.shapes(layers, channels=2)
    weight, bias = rng.standard_normal((1, 3, 2, 3)), rng.standard_normal(3)
    assert {k: v.shape for k, v in shapes["first"].items()} == {
        "weight": weight.shape,
        "bias": bias.shape,
    }
    x = rng.standard_normal((1, 5, 7, 2)).astype(np.float32)
    params = jax.tree.map(jnp.float32, {"first": {"weight": weight, "bias": bias}})
    found = convnet.run(layers, jnp.asarray(x), params=params)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    y = np.zeros((3, 4, 3))
    for r in range(3):
        for c in range(4):
            window = padded[0, 2 * r : 2 * r + 1, 2 * c : 2 * c + 3]
            y[r, c] = np.maximum(np.einsum("ijc,ijcd->d", window, weight) + bias, 0)
    np.testing.assert_allclose(found.kept[0][0], y, atol=1e-5)
    for r in range(3):
        for c in range(4):
            window = y[max(r - 1, 0) : r + 2, max(c - 1, 0) : c + 2].reshape(-1, 3)
            expected = np.concatenate([window.mean(axis=0), window.max(axis=0)])
            np.testing.assert_allclose(found.last[0, r, c], expected, atol=1e-5)


def inception_tensors():
    """The released names and shapes, with values that take no memory."""
    rows = (line.split("\t") for line in KEYS.read_text().splitlines())
    return {
        name: np.broadcast_to(np.float32(2), [int(n) for n in shape.split(",")])
        for name, shape in rows
    }


KEYS = tiny_clip.GOLDEN.parent / "inception" / "keys.tsv"


def test_inception_has_the_released_names_and_shapes():
    tensors = inception_tensors()
    used = {f"{n}.{p}" for n in inception.SHAPES for p in ("conv.weight", "bn.bias")}
    names = {name for name in tensors if name.endswith(("conv.weight", "bn.bias"))}
    assert used == names and len(inception.SHAPES) == 94
    for name, parts in inception.SHAPES.items():
        shape = tensors[f"{name}.conv.weight"].shape
        assert parts["weight"].shape == tuple(shape[i] for i in (2, 3, 1, 0)), name


def test_batch_norms_are_folded():
    tensors = inception_tensors()
    folded = fold_batch_norms(tensors)
    scale = 2 / np.sqrt(2 + 1e-3)
    np.testing.assert_allclose(folded["Mixed_7c.branch1x1.weight"], 2 * scale)
    np.testing.assert_allclose(folded["Mixed_7c.branch1x1.bias"], 2 - 2 * scale)
    del tensors["Mixed_5b.branch1x1.bn.bias"]
    with pytest.raises(MappingError, match=r"^no tensor Mixed_5b\.branch1x1\.bn\.bias$"):
        fold_batch_norms(tensors)
    with pytest.raises(MappingError, match="torchvision's own"):
        fold_batch_norms({"fc.weight": np.zeros((1000, 2048))})
