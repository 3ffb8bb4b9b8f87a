"""The PyTorch module of the unified layout against our transformer and our sampler."""

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import nnx
from unified_models import (
    ASSET_DIM,
    CHANNELS,
    PATCH,
    TEXT_DIM,
    VARIANTS,
    dit_config,
    flow_config,
    random_params,
)

from unidiff_jax import flow
from unidiff_jax.export.files import write_model
from unidiff_jax.export.mapping import t5_table, to_official
from unidiff_jax.export.unified import MODULE, unified_values, write_unified
from unidiff_jax.frames import patchify, unpatchify
from unidiff_jax.models.t5 import T5Encoder
from unidiff_jax.sample.denoiser import abstract_dit
from unidiff_jax.sample.encoders import t5_values
from unidiff_jax.sample.guidance import Guidance
from unidiff_jax.sample.pipeline import sample_tokens
from unidiff_jax.text import END
from unidiff_jax.train.state import abstract_model
from unidiff_jax.types import Batch

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
from unidiff_jax.export.torch_unified import UnifiedDiT, sample  # noqa: E402

SIZES = PATCH * np.array([[[2, 3], [1, 2], [3, 2]], [[3, 3], [2, 1], [0, 0]]])
"""Height and width of each frame of two rows; the second has two frames alone."""


def draw_inputs(seed=0):
    """Arguments of the PyTorch module. What lies outside the sizes and masks is not zero."""
    rng = np.random.default_rng(seed)
    (batch, frames, _), words, side = SIZES.shape, 5, 3 * PATCH

    def normal(*shape):
        return rng.standard_normal(shape, np.float32)

    return {
        "latents": normal(batch, frames, CHANNELS, side, side),
        "sigma": rng.uniform(0, 1, (batch, frames)).astype(np.float32),
        "text_states": normal(batch, words, TEXT_DIM),
        "text_mask": np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "roles": rng.integers(0, 4, (batch, frames)),
        "names": np.array([[1, 2, 11], [0, 20, 5]]),
        "text_names": np.array([[0, 1, 11, 0, 2], [20, 0, 0, 3, 3]]),
        "given": np.array([[1, 0, 0], [0, 1, 0]]),
        "visual": normal(batch, CHANNELS, side, side),
        "mask": rng.uniform(0, 1, (batch, side, side)).astype(np.float32),
        "asset_features": normal(batch, 2, ASSET_DIM),
        "text_asset": np.array([[0, 2, 0, 1, 0], [0, 0, 1, 2, 0]]),
        "sizes": SIZES,
    }


def read_by(config, inputs):
    """The arguments that a model reads."""
    unread = set() if config.fusion != "cross" else {"roles", "names", "text_names"}
    unread |= set() if config.guidance_dim else {"visual", "mask"}
    unread |= set() if config.asset_dim else {"asset_features", "text_asset"}
    return {key: value for key, value in inputs.items() if key not in unread}


def to_torch(inputs):
    return {key: torch.from_numpy(np.array(value)) for key, value in inputs.items()}


def pad_front(table):
    return np.pad(table, [(0, 0), (1, 0)] + [(0, 0)] * (table.ndim - 2))


def to_batch(inputs, **text):
    """The same rows as a `Batch`: frames of a row one after the other, padding behind."""
    count, frames = inputs["sigma"].shape
    length = (inputs["sizes"].prod(-1) // PATCH**2).sum(1).max() + 2
    tokens = np.zeros((count, length, PATCH**2 * CHANNELS), np.float32)
    visual, mask = np.zeros_like(tokens), np.zeros((count, length, PATCH**2), np.float32)
    frame = np.zeros((count, length), np.int32)
    position = np.zeros((count, length, 3), np.int32)
    for b in range(count):
        start = 0
        for f, (height, width) in enumerate(inputs["sizes"][b].tolist()):
            y, x = np.divmod(np.arange(height * width // PATCH**2), max(width // PATCH, 1))
            own, inside = np.s_[b, start : start + len(y)], np.s_[..., :height, :width]
            start += len(y)
            cut = functools.partial(patchify, patch=PATCH)
            tokens[own] = cut(inputs["latents"][b, f][inside].transpose(1, 2, 0))
            visual[own] = cut(inputs["visual"][b][inside].transpose(1, 2, 0))
            mask[own] = cut(inputs["mask"][b][inside][..., None])
            frame[own] = f + 1
            position[own] = np.stack([np.full_like(y, f), y, x], axis=1)
    present = (inputs["sizes"].prod(-1) > 0).astype(np.int32)
    integers = {
        "frame": frame,
        "position": position,
        "segment": pad_front(present),
        "kind": pad_front(present),
        "role": pad_front(inputs["roles"] * present),
        "name": pad_front(inputs["names"] * present),
        "given": pad_front(inputs["given"] * present),
        "time_group": pad_front(0 * present),
        "example_id": np.array([[0, 1 + b] for b in range(count)]),
        "task": np.array([[0, 1]] * count),
        "text_segment": inputs["text_mask"],
        "text_position": np.zeros_like(inputs["text_mask"]),
        "text_name": inputs["text_names"],
        "text_asset": inputs["text_asset"],
    }
    batch = Batch(
        tokens=tokens,
        loss_mask=np.ones(frame.shape, np.float32),
        shift=np.ones((count, frames + 1), np.float32),
        visual=visual,
        mask=mask,
        asset_features=pad_front(inputs["asset_features"]),
        **{key: value.astype(np.int32) for key, value in integers.items()},
        **(text or {"text_states": inputs["text_states"]}),
    )
    return tiny.on_device(batch)


def to_latents(batch, tokens, inputs):
    """Tokens of a batch back at their places; zeros elsewhere."""
    made = np.zeros_like(inputs["latents"])
    for (b, f), _ in np.ndenumerate(inputs["sigma"]):
        height, width = inputs["sizes"][b, f].tolist()
        own = np.asarray(tokens)[b][np.asarray(batch.frame)[b] == f + 1]
        if len(own):
            picture = unpatchify(own, patch=PATCH, grid=(height // PATCH, width // PATCH))
            made[b, f, :, :height, :width] = picture.transpose(2, 0, 1)
    return made


def write(folder, variant, *, prediction="v", config=None, params=None):
    """Writes the variant's folder and returns its sizes, weights and flow."""
    config = config or dit_config(variant)
    params = random_params(config) if params is None else params
    flow_settings = flow_config(variant, prediction)
    values = unified_values(
        config, patch=PATCH, flow=flow_settings, shift=3.0, autoencoder={"kind": "space_to_depth"}
    )
    write_unified(folder, params, dit=config, values=values)
    return config, params, flow_settings


def ours(config, params, flow_settings, inputs):
    graphdef = abstract_dit(config).graphdef
    batch = to_batch(inputs)
    noised = flow.at_levels(
        batch,
        tokens=batch.tokens,
        sigma=jnp.asarray(pad_front(inputs["sigma"])),
        config=flow_settings,
    )
    run = jax.jit(lambda params, *args: nnx.merge(graphdef, params)(*args))
    tokens = run(jax.tree.map(jnp.asarray, params), batch, noised, batch.text_states)
    return to_latents(batch, tokens, inputs)


def relative(got, expected):
    assert got.shape == expected.shape
    return np.abs(got - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_our_network(variant, tmp_path, parity):
    found = write(tmp_path, variant)
    model, inputs = UnifiedDiT.from_folder(tmp_path), draw_inputs()
    with torch.no_grad():
        got = model(**to_torch(read_by(found[0], inputs))).numpy()
    parity("unified PyTorch module", relative(got, ours(*found, inputs)), bound=1e-5)
    outside = np.ones(got.shape, bool)
    for (b, f), _ in np.ndenumerate(inputs["sigma"]):
        height, width = SIZES[b, f]
        outside[b, f, :, :height, :width] = False
    assert not got[outside].any()


@pytest.mark.parametrize("variant", ["joint_guided", "dual_guided", "cross_shared"])
def test_every_argument_matters(variant, tmp_path):
    config, *_ = write(tmp_path, variant)
    model, inputs = UnifiedDiT.from_folder(tmp_path), to_torch(read_by(config, draw_inputs()))
    if flow_config(variant).timed_conditions and config.fusion != "dual":
        del inputs["given"]  # nobody reads it
    with torch.no_grad():
        whole = model(**inputs)
        for name, value in inputs.items():
            row = 1 if name == "sizes" else 0
            other = value.clone()
            if name == "sizes":
                other[row, 0, 0] = PATCH
            elif value.is_floating_point():
                other[row] += 0.5
            elif name == "text_mask":
                other[row, -1] = 0
            elif name == "given":
                other[row] = torch.tensor([0, 1, 1])
            else:
                other[row] = value[row].roll(1)
            changed = model(**inputs | {name: other})
            difference = (changed - whole).abs().amax(dim=(1, 2, 3, 4))
            assert difference[row] > 1e-4, name
            assert difference[1 - row] < 1e-5, name


def test_left_out_is_none(tmp_path):
    config, *_ = write(tmp_path, "dual_guided")
    model, inputs = UnifiedDiT.from_folder(tmp_path), to_torch(read_by(config, draw_inputs()))
    optional = ("roles", "names", "text_names", "given", "text_asset")
    zeros = {name: torch.zeros_like(inputs[name]) for name in optional}
    full = {"sizes": torch.tensor(inputs["latents"].shape[-2:]).expand(2, 3, 2)}
    with torch.no_grad():
        expected = model(**inputs | zeros | full)
        short = {k: v for k, v in inputs.items() if k not in (*optional, "asset_features", "sizes")}
        torch.testing.assert_close(model(**short), expected, atol=1e-6, rtol=0)


TEXT = dataclasses.replace(tiny.TEXT, d_model=TEXT_DIM)
IDS = np.array([[5, 6, 7, 8, 1], [9, 10, 1, 0, 0]])
SAMPLING = {
    "joint": ("x", Guidance(3.0), {"given": [[1, 0, 0], [0, 1, 0]]}),
    "dual_guided": ("v", Guidance(3.0, 1.5), {"given": [[0, 0, 0], [0, 0, 0]]}),
    "cross": ("eps", Guidance(1.0, 2.0), {"given": [[1, 0, 0], [0, 0, 0]]}),
    "dual": ("v", Guidance(), {"given": [[1, 1, 0], [0, 1, 0]]}),
}


@pytest.mark.parametrize("variant", SAMPLING)
def test_samples_as_our_sampler(variant, tmp_path, parity):
    prediction, scales, given = SAMPLING[variant]
    config = dit_config(variant)
    model = abstract_model(config, TEXT)
    encoder = nnx.to_pure_dict(nnx.split(model.make(nnx.Rngs(params=1)).text_encoder)[1])
    params = {"dit": random_params(config), "text_encoder": encoder}
    params = jax.tree.map(jnp.asarray, params)
    _, _, flow_settings = write(
        tmp_path, variant, prediction=prediction, config=config, params=random_params(config)
    )
    inputs = draw_inputs() | {key: np.array(value) for key, value in given.items()}
    batch, key = to_batch(inputs, text_ids=IDS.astype(np.int32)), jax.random.key(0)
    expected = sample_tokens(
        params,
        batch,
        key,
        graphdef=model.graphdef,
        flow_config=flow_settings,
        num_steps=4,
        guidance=scales,
        shift=3.0,
    )

    def encode(ids, mask):
        text = nnx.merge(model.graphdef, params).text_encoder
        return np.asarray(text(jnp.asarray(ids), segment=jnp.asarray(mask)))

    noise = to_latents(batch, flow.draw_noise(key, batch), inputs)
    inputs["text_states"] = encode(IDS, inputs["text_mask"])
    inputs["latents"] = np.where(
        inputs["given"][..., None, None, None] == 1, inputs["latents"], noise
    )
    ones = np.ones((2, 1), np.int32)
    arguments = to_torch(read_by(config, inputs))
    del arguments["sigma"]
    made = sample(
        UnifiedDiT.from_folder(tmp_path),
        **arguments,
        empty_states=torch.from_numpy(np.array(encode(END * ones, ones))),
        empty_mask=torch.from_numpy(ones),
        num_steps=4,
        text_guidance=scales.text,
        image_guidance=scales.image,
    ).numpy()
    is_given = np.broadcast_to(inputs["given"][..., None, None, None] == 1, made.shape)
    np.testing.assert_array_equal(made[is_given], inputs["latents"][is_given])
    expected = np.where(is_given, made, to_latents(batch, expected, inputs))
    parity("unified PyTorch sampler", relative(made, expected), bound=1e-4)


SCRIPT = """
import sys
sys.modules["unidiff_jax"] = sys.modules["jax"] = sys.modules["flax"] = None
sys.path.insert(0, ".")
import numpy as np
import torch
from modeling_unidiff import UnifiedDiT, sample

model = UnifiedDiT.from_folder(".")
inputs = {key: torch.from_numpy(value) for key, value in np.load("inputs.npz").items()}
with torch.no_grad():
    np.save("output.npy", model(**inputs).numpy())
del inputs["sigma"]
assert torch.isfinite(sample(model, **inputs, num_steps=2)).all()
"""


def test_the_folder_needs_nothing_of_ours(tmp_path):
    config, *_ = write(tmp_path, "dual_guided")
    inputs = read_by(config, draw_inputs())
    np.savez(tmp_path / "inputs.npz", **inputs)
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCRIPT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / MODULE).is_file()
    with torch.no_grad():
        expected = UnifiedDiT.from_folder(tmp_path)(**to_torch(inputs)).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "output.npy"), expected, atol=1e-6)


def test_the_text_encoder_is_transformers(tmp_path, parity):
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(TEXT, num_layers=2, relative_attention_num_buckets=8)
    graphdef, state = nnx.split(T5Encoder(config, rngs=nnx.Rngs(2)))
    params = tiny.scaled(jax.tree.map(np.asarray, nnx.to_pure_dict(state)))
    tensors = to_official(params, table=t5_table(config))
    write_model(tmp_path, tensors, config=t5_values(config), stem="model")
    theirs = transformers.T5EncoderModel.from_pretrained(tmp_path).eval()
    mask = (IDS > 0).astype(np.int32)
    with torch.no_grad():
        states = theirs(torch.from_numpy(IDS), attention_mask=torch.from_numpy(mask))
    got = states.last_hidden_state.numpy()[mask > 0]
    ours = nnx.merge(graphdef, params)(jnp.asarray(IDS), segment=jnp.asarray(mask))
    parity("T5 encoder that was written", relative(got, np.asarray(ours)[mask > 0]), bound=1e-5)


def test_sixteen_bits(tmp_path):
    config, *_ = write(tmp_path, "joint")
    inputs = to_torch(read_by(config, draw_inputs()))
    exact = UnifiedDiT.from_folder(tmp_path)
    half = UnifiedDiT.from_folder(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        expected, got = exact(**inputs).numpy(), half(**inputs)
    assert got.dtype == torch.float32
    error = np.sqrt(np.mean((got.numpy() - expected) ** 2) / np.mean(expected**2))
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize(
    ("variant", "changes", "message"),
    [
        ("joint", {"latents": torch.zeros(2, 3, 4, 6, 6)}, r"latents must be \(B, F, 3, h, w\)"),
        ("joint", {"text_mask": torch.zeros(2, 5)}, "a row has no text"),
        ("joint", {"visual": torch.zeros(2, 3, 6, 6), "mask": torch.zeros(2, 6, 6)}, "no channels"),
        ("joint", {"text_asset": torch.ones(2, 5).long()}, "text_asset needs asset_features"),
        ("dual_guided", {"asset_features": None}, "text_asset needs asset_features"),
        ("joint", {"sizes": torch.full((2, 3, 2), 3)}, "multiples of the patch, 2"),
        ("dual_shared", {"visual": None}, "needs visual and mask"),
        ("dual", {"given": torch.tensor([[1, 1, 1], [0, 0, 0]])}, "a frame that is made"),
        ("cross", {"roles": torch.ones(2, 3, dtype=torch.long)}, "reads no roles"),
    ],
)
def test_inputs_that_are_refused(variant, changes, message, tmp_path):
    config, *_ = write(tmp_path, variant)
    inputs = to_torch(read_by(config, draw_inputs()))
    with pytest.raises(ValueError, match=message):
        UnifiedDiT.from_folder(tmp_path)(**inputs | changes)


def test_guidance_that_is_refused(tmp_path):
    config, *_ = write(tmp_path, "joint")
    inputs = to_torch(read_by(config, draw_inputs()))
    del inputs["sigma"]
    model = UnifiedDiT.from_folder(tmp_path)
    with pytest.raises(ValueError, match="guidance needs empty_states"):
        sample(model, **inputs, text_guidance=2.0)
    empty = {"empty_states": inputs["text_states"], "empty_mask": inputs["text_mask"]}
    with pytest.raises(ValueError, match="give visual and mask"):
        sample(model, **inputs, **empty, image_guidance=2.0)
