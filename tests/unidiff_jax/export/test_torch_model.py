"""Our transformer against a second one in PyTorch, and that one against the official code."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unidiff_jax import load_denoiser
from unidiff_jax.export.files import write_model
from unidiff_jax.export.mapping import dit_table, to_official
from unidiff_jax.sample.denoiser import SOFTCAP, Denoiser, NextDiTConfig, abstract_dit

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
from unidiff_jax.export.torch_model import NextDiT, load_torch_denoiser  # noqa: E402

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden" / "onediffusion"
CASES = [
    pytest.param(file, id=f"{file.parent.name}-{file.name.removesuffix('.npz')}")
    for file in sorted(GOLDEN.glob("tiny_*/f*.npz"))
    if file.name.endswith(".float32.npz") or file.name == "f3_t5d.bfloat16.npz"
]
VALUES = {
    "input_size": [1, 8, 8],
    "patch_size": [1, 2, 2],
    "in_channels": 4,
    "hidden_size": 72,
    "depth": 3,
    "num_heads": 6,
    "num_kv_heads": 3,
    "multiple_of": 8,
    "caption_channels": 20,
    "qk_norm": True,
    "rotary_max_length": 16,
}
VARIANTS = {
    "grouped": {},
    "one_kv_head": {"num_kv_heads": 1, "qk_norm": False},
    "patch_4": {"patch_size": [1, 4, 4], "pred_sigma": True, "norm_eps": 1e-3},
}


def read(file):
    with np.load(file, allow_pickle=False) as arrays:
        case = {key: arrays[key] for key in arrays.files}
    case["case"] = json.loads(str(case["case"]))
    return case


def call_torch(model, *arrays, dtype="float32", **scaling):
    """Output as float32; the times and the mask keep their types."""
    samples, times, text, mask = map(torch.from_numpy, arrays)
    samples, text = (x.to(getattr(torch, dtype)) for x in (samples, text))
    with torch.no_grad():
        return model(samples, times, text, mask, **scaling).float().numpy()


def call_case(model, case):
    names = ("samples", "timesteps", "encoder_hidden_states", "encoder_attention_mask")
    settings = {key: case["case"][key] for key in ("scale_factor", "scale_watershed", "dtype")}
    return call_torch(model, *(case[f"in/{name}"] for name in names), **settings)


def difference(got, expected):
    assert got.shape == expected.shape
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("file", CASES)
def test_torch_equals_the_official_network(file, parity):
    case = read(file)
    dtype = case["case"]["dtype"]
    capped = case["case"]["softcap_fp32"]
    model = load_torch_denoiser(file.parent, dtype=dtype, softcap=SOFTCAP if capped else None)
    got = call_case(model, case)
    if dtype == "bfloat16":  # the order of roundings differs, see test_denoiser.py
        error = np.sqrt(np.mean((got - case["out"]) ** 2) / np.mean(case["out"] ** 2))
        assert error < (0.06 if file.parent.name == "tiny_hot" else 0.02)
    else:
        bound = 2e-4 if file.parent.name == "tiny_hot" else 1e-4
        hot = ", hot scores" if "hot" in file.parent.name else ""
        parity(f"PyTorch twin, float32{hot}", difference(got, case["out"]), bound=bound)


def random_params(config, seed):
    """Weights at which every part of the network matters, the text gates included."""
    rng = np.random.default_rng(seed)

    def draw(path, shape):
        name = path[-1].key
        scale = shape.shape[-2] ** -0.5 if name == "weight" and "norm" not in str(path) else 0.3
        offset = 1.0 if name == "weight" and "norm" in str(path) else 0.0
        return offset + scale * rng.standard_normal(shape.shape, np.float32)

    return jax.tree.map_with_path(draw, abstract_dit(config).shapes)


def inputs(values, seed, *, frames, times):
    """Samples, times, text and mask of two examples with 5 and 2 words; 3 x 5 patches a frame."""
    rng, patch = np.random.default_rng(seed), values["patch_size"][1]
    shape = (2, frames, values["in_channels"], 3 * patch, 5 * patch)
    samples = rng.standard_normal(shape, np.float32)
    text = rng.standard_normal((2, 5, values["caption_channels"]), np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    sizes = {"sample": (2,), "token": (2, frames * 15), "element": shape}
    levels = rng.uniform(0, 1000, sizes[times]).astype(np.float32)
    return samples, levels, text, mask


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("variant", VARIANTS)
def test_an_export_loads_and_gives_our_output(variant, softcap, tmp_path):
    values = VALUES | VARIANTS[variant]
    config = NextDiTConfig.from_json(values)
    dit = config.dit(softcap=softcap, dtype="float32", remat="none")
    params = random_params(dit, seed=1)
    write_model(tmp_path, to_official(params, table=dit_table(dit)), config=values)
    model = load_torch_denoiser(tmp_path, softcap=softcap)
    ours = Denoiser(config, dit, jax.tree.map(jnp.asarray, params))
    for seed, (frames, times) in enumerate([(1, "sample"), (4, "token"), (2, "element")]):
        arrays = inputs(values, seed, frames=frames, times=times)
        for scaling in ({}, {"scale_factor": 1.5, "scale_watershed": 400.0}):
            expected = call_torch(model, *arrays, **scaling)
            assert difference(np.asarray(ours(*arrays, **scaling)), expected) <= 1e-4


def test_the_softcap_of_a_dtype():
    folder = GOLDEN / "tiny_gqa"
    caps = {
        dtype: load_torch_denoiser(folder, dtype=dtype).layers[0].attention.softcap
        for dtype in ("float32", "bfloat16")
    }
    assert caps == {"float32": 0.0, "bfloat16": SOFTCAP}
    assert load_denoiser(folder).dit.softcap == 0.0


def test_the_twin_keeps_every_official_name_and_shape():
    values = json.loads((GOLDEN / "released_transformer_config.json").read_text())
    with torch.device("meta"):
        model = NextDiT(NextDiTConfig.from_json(values), softcap=SOFTCAP)
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    lines = (GOLDEN / "released_keys.tsv").read_text().splitlines()
    rows = [line.split("\t")[:2] for line in lines if line and not line.startswith("name\t")]
    sizes = {name: shape.strip("()[] ").split(",") for name, shape in rows}
    assert ours == {n: tuple(int(s) for s in shape if s.strip()) for n, shape in sizes.items()}


def test_tensors_that_do_not_fit_are_named(tmp_path):
    config = NextDiTConfig.from_json(VALUES)
    dit = dataclasses.replace(config.dit(softcap=0.0, dtype="float32"), depth=2)
    tensors = to_official(random_params(dit, seed=0), table=dit_table(dit))
    write_model(tmp_path, tensors, config=VALUES)
    with pytest.raises(RuntimeError, match=r"layers\.2\.attention\.gate"):
        load_torch_denoiser(tmp_path)
    with pytest.raises(ValueError, match="more than the model's table"):
        model = load_torch_denoiser(GOLDEN / "tiny_rott")
        call_torch(model, *inputs(VALUES | {"caption_channels": 24}, 0, frames=6, times="sample"))
