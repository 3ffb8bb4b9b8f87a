"""The denoiser in the official layouts, against outputs and gradients of the official code."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from unidiff_jax import load_denoiser
from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import FolderError, open_tensors
from unidiff_jax.export.mapping import MappingError, dit_table, to_official
from unidiff_jax.models.dit import DiT
from unidiff_jax.sample.denoiser import (
    SOFTCAP,
    NextDiTConfig,
    abstract_dit,
    dense_batch,
    dense_noised,
    from_tokens,
    patch_times,
    to_tokens,
)

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden" / "onediffusion"
FOLDERS = ("tiny_qknorm", "tiny_gqa", "tiny_hot", "tiny_rott", "tiny_sigma_ffn")


def cases(kind):
    return [
        pytest.param(file, id=f"{name}-{file.name.split('.')[0]}")
        for name in FOLDERS
        for file in sorted((GOLDEN / name).glob(f"f*.{kind}.npz"))
        if "softcap" not in file.name
    ]


def read(file):
    with np.load(file, allow_pickle=False) as arrays:
        case = {key: arrays[key] for key in arrays.files}
    case["case"] = json.loads(str(case["case"]))
    return case


def call(denoiser, case):
    names = ("samples", "timesteps", "encoder_hidden_states", "encoder_attention_mask")
    scaling = {k: case["case"][k] for k in ("scale_factor", "scale_watershed")}
    return np.asarray(denoiser(*(case[f"in/{name}"] for name in names), **scaling))


@pytest.mark.parametrize("file", cases("float32"))
def test_float32_equals_the_official_network(file, parity):
    case = read(file)
    got = call(load_denoiser(file.parent), case)
    hot = file.parent.name == "tiny_hot"
    assert got.shape == case["out"].shape
    error = np.abs(got - case["out"]).max() / np.abs(case["out"]).max()
    name = "OneDiffusion network, float32"
    parity(f"{name}, hot scores" if hot else name, error, bound=2e-4 if hot else 1e-4)


@pytest.mark.parametrize("file", cases("bfloat16"))
def test_bfloat16_is_within_its_own_rounding(file, parity):
    """Both round every activation to 8 bits.

    Two layers of independent roundings of 2**-9 add to about a hundredth; large scores multiply it.
    """
    case = read(file)
    got = call(load_denoiser(file.parent, dtype="bfloat16"), case)
    error = np.sqrt(np.mean((got - case["out"]) ** 2) / np.mean(case["out"] ** 2))
    hot = file.parent.name == "tiny_hot"
    name = "OneDiffusion network, bfloat16, rms"
    parity(f"{name}, hot scores" if hot else name, error, bound=0.06 if hot else 0.02)


def loss_and_gradient(denoiser, case):
    """mean((out - target)**2) of a case and its gradient by official name."""
    softcap = SOFTCAP if case["case"]["softcap_fp32"] else 0.0
    config = dataclasses.replace(denoiser.dit, softcap=softcap)
    graphdef = nnx.split(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))[0]
    samples, text = case["in/samples"], case["in/encoder_hidden_states"]
    grid, patch = denoiser.check_samples(samples.shape), denoiser.config.patch
    sigma, per_token = patch_times(case["in/timesteps"], samples=samples.shape, patch=patch)

    def loss_fn(params):
        mask = jnp.asarray(case["in/encoder_attention_mask"], jnp.int32)
        tokens = to_tokens(jnp.asarray(samples), patch=patch)
        batch = dense_batch(tokens, text_states=jnp.asarray(text), text_mask=mask, grid=grid)
        noised = dense_noised(batch, sigma=jnp.asarray(sigma / 1000.0), per_token=per_token)
        out = nnx.merge(graphdef, params)(batch, noised, batch.text_states)
        return jnp.mean((from_tokens(out, grid=grid, patch=patch) - case["in/target"]) ** 2)

    loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(denoiser.params)
    return loss, to_official(jax.tree.map(np.asarray, gradient), table=dit_table(config))


@pytest.mark.parametrize(
    "file", sorted(GOLDEN.glob("tiny_*/grad_*.npz")), ids=lambda file: file.parent.name
)
def test_gradients_equal_the_official_ones(file, parity):
    """A bias of all text keys moves a query's scores alike: no gradient but rounding."""
    case = read(file)
    loss, got = loss_and_gradient(load_denoiser(file.parent), case)
    expected = {k.removeprefix("grad/"): v for k, v in case.items() if k.startswith("grad/")}
    hot = file.parent.name == "tiny_hot"
    errors = []
    assert got.keys() == expected.keys()
    assert loss == pytest.approx(float(case["loss"]), rel=1e-5)
    largest = max(np.abs(value).max() for value in expected.values())
    for name, value in expected.items():
        if name.endswith("ky_norm.bias"):
            assert max(np.abs(got[name]).max(), np.abs(value).max()) < 1e-6 * largest
        else:
            errors.append(np.abs(got[name] - value).max() / np.abs(value).max())
    name = "OneDiffusion gradients, float32"
    parity(f"{name}, hot scores" if hot else name, max(errors), bound=2e-4 if hot else 1e-4)


def test_softcap_tells_the_two_dtypes_apart():
    case = read(GOLDEN / "tiny_hot" / "f3_t5d.float32.npz")
    full, half = (
        call(load_denoiser(GOLDEN / "tiny_hot", dtype=d), case) for d in ("float32", "bfloat16")
    )
    assert np.sqrt(np.mean((full - half) ** 2) / np.mean(full**2)) > 0.2


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_round_trips_bit_for_bit(name):
    denoiser = load_denoiser(GOLDEN / name)
    again = to_official(jax.tree.map(np.asarray, denoiser.params), table=dit_table(denoiser.dit))
    tensors = load_file(GOLDEN / name / "diffusion_pytorch_model.safetensors")
    assert again.keys() == tensors.keys()
    for key, value in tensors.items():
        assert again[key].tobytes() == np.ascontiguousarray(value).tobytes(), key


def test_times_a_frame_a_pixel_and_a_token_agree():
    case = read(GOLDEN / "tiny_gqa" / "f3_t5d.float32.npz")
    denoiser = load_denoiser(GOLDEN / "tiny_gqa")
    rest = (case["in/encoder_hidden_states"], case["in/encoder_attention_mask"])
    samples, times = case["in/samples"], case["in/timesteps"]
    frames = times[:, :, 0, 0, 0]
    tokens = np.repeat(frames, samples.shape[3] * samples.shape[4] // 4, axis=1)
    results = [np.asarray(denoiser(samples, t, *rest)) for t in (times, frames, tokens)]
    np.testing.assert_allclose(results[1], results[0], atol=1e-5)
    np.testing.assert_allclose(results[2], results[0], atol=1e-5)


def test_layouts_are_inverse():
    x = jnp.arange(2 * 3 * 4 * 4 * 6.0).reshape(2, 3, 4, 4, 6)
    tokens = to_tokens(x, patch=2)
    assert tokens.shape == (2, 3 * 2 * 3, 16)
    np.testing.assert_array_equal(from_tokens(tokens, grid=(3, 2, 3), patch=2), x)


# --------------------------------------------------------------------------------- the released one


def test_the_released_config_has_its_parameters():
    values = json.loads((GOLDEN / "released_transformer_config.json").read_text())
    config = NextDiTConfig.from_json(values)
    shapes = abstract_dit(config.dit(softcap=30.0, dtype="bfloat16")).shapes
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes)) == 2_800_389_184
    assert config.dit(softcap=30.0, dtype="bfloat16").ffn_dim == 10240
    # every released tensor has its place and its shape
    lines = (GOLDEN / "released_keys.tsv").read_text().split("\n")
    released = {}
    for line in filter(None, lines):
        name, shape = line.split("\t")[:2]
        if name != "name":
            released[name] = tuple(int(n) for n in shape.strip("()[] ").split(",") if n.strip())
    table = dit_table(config.dit(softcap=30.0, dtype="bfloat16"))
    named = {name for entry in table.entries for name in entry.names(table.depth)}
    assert named == released.keys() and len(named) == 382
    flat = {"/".join(p.key for p in path): x for path, x in jax.tree.leaves_with_path(shapes)}
    for entry in table.entries:
        for name in entry.names(table.depth):
            ours = flat[entry.path].shape[1:] if entry.stacked else flat[entry.path].shape
            assert entry.shape(np.broadcast_to(np.float32(0), released[name])) == ours, name


# -------------------------------------------------------------------------------------- bad folders


@pytest.fixture
def folder(tmp_path):
    return pathlib.Path(shutil.copytree(GOLDEN / "tiny_gqa", tmp_path / "transformer"))


def rewrite(folder, change):
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def test_every_wrong_tensor_is_named(folder):
    def change(tensors):
        del tensors["x_embedder.bias"]
        tensors["more"] = np.zeros(3, np.float32)
        tensors["layers.0.attention.gate"] = np.zeros(7, np.float32)

    rewrite(folder, change)
    with pytest.raises(MappingError) as caught:
        load_denoiser(folder)
    assert sorted(str(caught.value).splitlines()) == [
        "layers.0.attention.gate gives (7,), blocks/attention/text_gate has (4,)",
        "no tensor x_embedder.bias",
        "tensor more has no place",
    ]


def test_a_truncated_file(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(FolderError, match=r"model\.safetensors is damaged"):
        load_denoiser(folder)


def test_sharded_files(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    expected = call(load_denoiser(folder), read(GOLDEN / "tiny_gqa" / "f2_padded.float32.npz"))
    file.unlink()
    names, weight_map = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        shard = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    got = call(load_denoiser(folder), read(GOLDEN / "tiny_gqa" / "f2_padded.float32.npz"))
    np.testing.assert_array_equal(got, expected)
    (folder / shard).unlink()
    with pytest.raises(FolderError, match=r"00002-of-00002\.safetensors is missing"):
        open_tensors(folder)
    index.write_text(json.dumps({"weight_map": {"x": "../secret.safetensors"}}))
    with pytest.raises(FolderError, match="is no plain file name"):
        open_tensors(folder)


def test_folders_that_are_no_model(folder, tmp_path):
    with pytest.raises(FolderError, match=r"holds no config.json"):
        load_denoiser(tmp_path)
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FolderError, match=r"holds no diffusion_pytorch_model.safetensors or model"):
        load_denoiser(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(FolderError, match="is not JSON"):
        load_denoiser(folder)
    with pytest.raises(ConfigError, match="one frame deep and square"):
        NextDiTConfig.from_json({"patch_size": [2, 2, 2]})


def test_calls_that_cannot_be():
    denoiser = load_denoiser(GOLDEN / "tiny_rott")
    channels, limit = denoiser.config.in_channels, denoiser.config.max_positions
    text, mask = np.zeros((1, 2, denoiser.config.caption_channels)), np.ones((1, 2), int)
    for shape, message in (
        ((1, 1, channels + 1, 4, 4), "samples must be"),
        ((1, 1, channels, 5, 4), "do not divide into patches of 2"),
        ((1, limit[0] + 1, channels, 4, 4), f"table of {limit[0]} frames"),
        ((1, 1, channels, 4, 2 * limit[1] + 2), "are more than the model's table"),
    ):
        with pytest.raises(ValueError, match=message):
            denoiser(np.zeros(shape), np.zeros(1), text, mask)
    with pytest.raises(ValueError, match="timesteps must be"):
        denoiser(np.zeros((1, 1, channels, 4, 4)), np.zeros((1, 3)), text, mask)
