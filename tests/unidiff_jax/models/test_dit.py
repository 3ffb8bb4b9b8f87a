"""The transformer: equal to the official OneDiffusion network, and blind to what is not its own."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tiny
from flax import nnx

from unidiff_jax import flow
from unidiff_jax.export.mapping import (
    MappingError,
    dit_table,
    flatten,
    from_official,
    to_official,
)
from unidiff_jax.frames import patchify
from unidiff_jax.models.dit import FUSIONS, DiT, DiTConfig, made_frame, pool_text, spread
from unidiff_jax.models.layers import abstract
from unidiff_jax.text import MAX_NAMES
from unidiff_jax.types import Batch, Noised

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden" / "onediffusion"


# ------------------------------------------------------------------------------------------ golden


def official(name):
    """Config, tensors and parameters of one official checkpoint."""
    folder = GOLDEN / name
    theirs = json.loads((folder / "config.json").read_text())
    config = DiTConfig(
        patch_dim=theirs["in_channels"] * theirs["patch_size"][1] * theirs["patch_size"][2],
        hidden_dim=theirs["hidden_size"],
        depth=theirs["depth"],
        num_heads=theirs["num_heads"],
        num_kv_heads=theirs["num_kv_heads"] or theirs["num_heads"],
        text_dim=theirs["caption_channels"],
        ffn_multiple_of=theirs["multiple_of"],
        qk_norm=theirs["qk_norm"],
        norm_eps=theirs["norm_eps"],
        softcap=0.0,  # their float32 path has none
        remat="none",
    )
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors.numpy.load_file(file)
    shapes = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))[1])
    return config, tensors, from_official(tensors, shapes, table=dit_table(config))


def one_example_a_row(case):
    """A golden case as `Batch` and `Noised`: row b holds sample b."""
    samples = case["in/samples"]
    samples = samples[:, None] if samples.ndim == 4 else samples
    count, frames, _, height, width = samples.shape
    rows, columns = height // 2, width // 2
    tokens = np.stack(
        [
            np.concatenate([patchify(frame.transpose(1, 2, 0), patch=2) for frame in sample])
            for sample in samples
        ]
    )
    place = np.stack(np.meshgrid(*map(np.arange, (frames, rows, columns)), indexing="ij"), -1)
    place = np.broadcast_to(place.reshape(-1, 3), (count, frames * rows * columns, 3))
    times = case["in/timesteps"]
    times = times.reshape(count, *[1] * 4) if times.ndim == 1 else times
    times = np.broadcast_to(times, samples.shape) / 1000
    if np.ptp(times, axis=(2, 3, 4)).max() == 0:  # one level a frame
        sigma = np.concatenate([np.zeros((count, 1)), times[:, :, 0, 0, 0]], axis=1)
        sigma_index = place[..., 0] + 1
    else:  # one level a token: the mean over its pixels
        sigma = times.reshape(count, frames, -1, rows, 2, columns, 2).mean((2, 4, 6))
        sigma = sigma.reshape(count, -1)
        sigma_index = np.broadcast_to(np.arange(sigma.shape[1]), sigma.shape)
    zeros = np.zeros((count, frames + 1), np.int32)
    table = zeros + np.minimum(np.arange(frames + 1), 1)
    text_segment = case["in/encoder_attention_mask"].astype(np.int32)
    batch = Batch(
        tokens=tokens,
        frame=place[..., 0] + 1,
        position=place,
        loss_mask=np.ones(tokens.shape[:2], np.float32),
        segment=table,
        kind=table,
        role=zeros,
        name=zeros,
        given=zeros,
        time_group=zeros,
        shift=np.ones(zeros.shape, np.float32),
        example_id=np.asarray([[0, 1 + b] for b in range(count)]),
        task=np.asarray([[0, 1]] * count),
        text_states=case["in/encoder_hidden_states"],
        text_segment=text_segment,
        text_position=np.zeros_like(text_segment),
    )
    noised = Noised(
        tokens=tokens,
        sigma=sigma.astype(np.float32),
        timed=np.ones(sigma.shape, bool),
        sigma_index=sigma_index,
    )
    return tiny.on_device(batch), tiny.on_device(noised)


def expected_tokens(case):
    return np.stack(
        [
            np.concatenate([patchify(frame.transpose(1, 2, 0), patch=2) for frame in sample])
            for sample in case["out"]
        ]
    )


@pytest.mark.parametrize(
    ("name", "case", "softcap"),
    [
        ("tiny_qknorm", "f1_4d_tB", 0.0),
        ("tiny_qknorm", "f2_padded", 0.0),
        ("tiny_qknorm", "f3_t5d", 0.0),
        ("tiny_qknorm", "f3_t5d_pixel", 0.0),
        ("tiny_gqa", "f1_4d_tB", 0.0),
        ("tiny_gqa", "f2_padded", 0.0),
        ("tiny_gqa", "f3_t5d", 0.0),
        ("tiny_hot", "f1_4d_tB", 0.0),
        ("tiny_hot", "f2_padded", 0.0),
        ("tiny_hot", "f3_t5d", 0.0),
        ("tiny_hot", "f3_softcap_fp32", 30.0),
    ],
)
def test_equals_the_official_network(name, case, softcap):
    config, _, params = official(name)
    config = dataclasses.replace(config, softcap=softcap)
    graphdef = nnx.split(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))[0]
    with np.load(GOLDEN / name / f"{case}.float32.npz", allow_pickle=False) as arrays:
        arrays = dict(arrays)
    batch, noised = one_example_a_row(arrays)
    model = nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))
    got = model(batch, noised, batch.text_states)
    expected = expected_tokens(arrays)
    tolerance = 2e-4 if name == "tiny_hot" else 1e-4
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", ["tiny_qknorm", "tiny_gqa", "tiny_hot"])
def test_official_names_round_trip(name):
    config, tensors, params = official(name)
    again = to_official(params, table=dit_table(config))
    assert again.keys() == tensors.keys()
    for key, value in tensors.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


def test_tensors_that_do_not_fit_are_all_named():
    config, tensors, params = official("tiny_gqa")
    wrong = dict(tensors)
    del wrong["x_embedder.weight"]
    wrong["layers.1.attention.gate"] = np.zeros(5, np.float32)
    wrong["layers.2.attention.gate"] = np.zeros(4, np.float32)
    with pytest.raises(MappingError) as caught:
        from_official(wrong, params, table=dit_table(config))
    assert str(caught.value).splitlines() == [
        "no tensor x_embedder.weight",
        "layers.1.attention.gate gives (5,), blocks/attention/text_gate has (4,)",
        "tensor layers.2.attention.gate has no place",
    ]
    with pytest.raises(MappingError, match="parameter more has no official name"):
        to_official(params | {"more": np.zeros(1)}, table=dit_table(config))


# --------------------------------------------------------------------------------------- isolation


@pytest.fixture(scope="module", params=FUSIONS)
def model(request):
    return compiled(fusion=request.param)


def compiled(**changes):
    config = dataclasses.replace(tiny.DIT, text_dim=tiny.TEXT.d_model, **changes)
    graphdef, state = nnx.split(DiT(config, rngs=nnx.Rngs(0)))
    params = tiny.scaled(jax.tree.map(np.asarray, nnx.to_pure_dict(state)))

    @jax.jit
    def run(batch, noised, text):
        return nnx.merge(graphdef, params)(batch, noised, text)

    return run


def with_text(batch, seed=0):
    """The batch with random text states, and noise drawn for it; both belong to the example."""
    states = np.zeros((*batch.text_ids.shape, tiny.TEXT.d_model), np.float32)
    for b, s in np.ndindex(batch.text_ids.shape):
        segment = batch.text_segment[b, s]
        if segment:
            identity = [seed, int(batch.example_id[b, segment]), int(batch.text_position[b, s])]
            states[b, s] = np.random.default_rng(identity).standard_normal(tiny.TEXT.d_model)
    batch = tiny.on_device(batch)
    key = jax.random.key(0)
    sigma = flow.draw_sigma(key, batch, tiny.FLOW)
    noised = flow.add_noise(batch, noise=flow.draw_noise(key, batch), sigma=sigma, config=tiny.FLOW)
    return batch, noised, jnp.asarray(states)


def outputs(model, batch, noised, text):
    return tiny.by_token(batch, model(batch, noised, text))


def test_packed_equals_alone(model):
    examples = tiny.mixed_examples()
    packed = outputs(model, *with_text(tiny.packed(examples)))
    alone = outputs(model, *with_text(tiny.alone(examples)))
    tiny.assert_same_tokens(packed, alone, atol=1e-5)


def test_an_example_never_reaches_its_neighbours(model):
    batch, noised, text = with_text(tiny.packed(tiny.mixed_examples()))
    before = outputs(model, batch, noised, text)
    own = np.asarray(batch.token_segment) == 2
    own_text = np.asarray(batch.text_segment) == 2
    own_frames = np.asarray(batch.segment) == 2
    changes = {
        "tokens": (noised.tokens + 3.0 * own[..., None], noised.sigma, text),
        "noise level": (noised.tokens, jnp.where(own_frames, 0.123, noised.sigma), text),
        "text": (noised.tokens, noised.sigma, text + 2.0 * own_text[..., None]),
    }
    changed_ids = set(np.asarray(batch.example_id)[:, 2].tolist()) - {0}
    assert len(before) > own.sum() > 0
    for what, (tokens, sigma, states) in changes.items():
        moved = dataclasses.replace(noised, tokens=tokens, sigma=sigma)
        after = outputs(model, batch, moved, states)
        for key, value in before.items():
            if key[0] in changed_ids:
                assert np.abs(value - after[key]).max() > 1e-3, (what, key)
            else:
                np.testing.assert_array_equal(value, after[key], err_msg=f"{what} {key}")


def test_padding_reaches_nobody(model):
    batch, noised, text = with_text(tiny.packed(tiny.mixed_examples(2)))
    before = outputs(model, batch, noised, text)
    padding = np.asarray(batch.frame) == 0
    assert padding.any()
    moved = dataclasses.replace(
        noised,
        tokens=noised.tokens + 1e3 * padding[..., None],
        sigma=jnp.where(batch.segment == 0, 0.777, noised.sigma),
    )
    states = text + 1e3 * (np.asarray(batch.text_segment) == 0)[..., None]
    tiny.assert_same_tokens(before, outputs(model, batch, moved, states))


def test_every_frame_of_an_example_sees_the_others(model):
    batch, noised, text = with_text(tiny.packed([tiny.example(1)]))
    before = outputs(model, batch, noised, text)
    first = np.asarray(batch.frame) == 1
    moved = dataclasses.replace(noised, tokens=noised.tokens + first[..., None])
    after = outputs(model, batch, moved, text)
    assert all(np.abs(before[k] - after[k]).max() > 1e-4 for k in before if k[1] == 1)


@pytest.mark.parametrize("fusion", [f for f in FUSIONS if f != "dual"])
def test_a_level_a_token_equals_a_level_a_frame(fusion):
    model = compiled(fusion=fusion)
    batch, noised, text = with_text(tiny.packed(tiny.mixed_examples()))
    per_token = Noised(
        tokens=noised.tokens,
        sigma=noised.token_sigma,
        timed=jnp.ones(noised.token_sigma.shape, bool),
        sigma_index=jnp.broadcast_to(jnp.arange(batch.frame.shape[1]), batch.frame.shape),
    )
    frames = outputs(model, batch, noised, text)
    tiny.assert_same_tokens(frames, outputs(model, batch, per_token, text), atol=1e-5)


def test_dual_takes_no_level_a_token():
    batch, noised, text = with_text(tiny.packed(tiny.mixed_examples(1)))
    per_token = Noised(
        tokens=noised.tokens,
        sigma=noised.token_sigma,
        timed=jnp.ones(noised.token_sigma.shape, bool),
        sigma_index=batch.frame,
    )
    with pytest.raises(ValueError, match="one noise level a frame"):
        compiled(fusion="dual")(batch, per_token, text)


def test_untimed_frames_do_not_see_their_level(model):
    batch, noised, text = with_text(tiny.packed(tiny.mixed_examples(2)))
    untimed = dataclasses.replace(noised, timed=jnp.zeros(noised.timed.shape, bool))
    other = dataclasses.replace(untimed, sigma=noised.sigma / 2)
    tiny.assert_same_tokens(
        outputs(model, batch, untimed, text), outputs(model, batch, other, text)
    )


@pytest.fixture(scope="module", params=["joint", "dual"])
def joint(request):
    return compiled(fusion=request.param)


@pytest.mark.parametrize("field", ["role", "name", "text_name"])
def test_joint_frames_carry_role_and_name(joint, field):
    batch, noised, text = with_text(tiny.packed(tiny.mixed_examples()))
    before = outputs(joint, batch, noised, text)
    values = getattr(batch, field)
    # a frame or word of the second example of each row is given another number
    own = (batch.text_segment if field == "text_name" else batch.segment) == 2
    moved = dataclasses.replace(batch, **{field: jnp.where(own, (values + 1) % 4, values)})
    after = outputs(joint, moved, noised, text)
    changed_ids = set(np.asarray(batch.example_id)[:, 2].tolist()) - {0}
    for key, value in before.items():
        if key[0] in changed_ids:
            assert np.abs(value - after[key]).max() > 1e-5, key
        else:
            np.testing.assert_array_equal(value, after[key], err_msg=str(key))


def test_a_word_and_its_frame_share_the_name_embedding():
    config = dataclasses.replace(tiny.DIT, text_dim=tiny.TEXT.d_model, fusion="joint")
    shapes = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: DiT(config, rngs=nnx.Rngs(0))))[1])
    assert shapes["name_embed"]["weight"].shape == (2 * MAX_NAMES, config.hidden_dim)
    assert shapes["role_embed"]["weight"].shape == (3, config.hidden_dim)
    assert not {"text_k", "text_v", "text_gate"} & set(shapes["blocks"]["attention"])


def test_dual_has_weights_of_its_own_for_text():
    config = dataclasses.replace(tiny.DIT, text_dim=tiny.TEXT.d_model, fusion="dual")
    shapes = abstract(lambda rngs: DiT(config, rngs=rngs)).shapes
    text = shapes["blocks"].pop("text")
    assert jax.tree.map(lambda x: x.shape, text) == jax.tree.map(
        lambda x: x.shape, shapes["blocks"]
    )


def test_the_frame_that_is_made():
    batch = tiny.packed([tiny.example(1, "depth"), tiny.example(2, "depth_to_image")])
    # the depth map behind the picture; the picture of the second example, its third frame
    assert made_frame(tiny.on_device(batch))[0].tolist()[:3] == [0, 2, 3]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_scanned_equals_unrolled(fusion, shared):
    batch, noised, text = with_text(tiny.packed(tiny.mixed_examples()))
    changes = {"fusion": fusion, "shared_modulation": shared}
    unrolled = outputs(compiled(**changes), batch, noised, text)
    scanned = compiled(**changes, scan_layers=True, remat="full")
    tiny.assert_same_tokens(unrolled, outputs(scanned, batch, noised, text), atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_shared_modulation_is_one_layer_a_stream(fusion):
    config = dataclasses.replace(
        tiny.DIT, text_dim=tiny.TEXT.d_model, fusion=fusion, shared_modulation=True
    )
    flat = flatten(abstract(lambda rngs: DiT(config, rngs=rngs)).shapes)
    found = {k.split("/")[0] for k in flat if "modulation" in k}
    assert found == {"modulation"} | ({"text_modulation"} if fusion == "dual" else set())


# ---------------------------------------------------------------------------- channels and assets


def guided(fusion="dual"):
    """A model that reads channels and assets, and two examples with both in one row."""
    model = compiled(fusion=fusion, guidance_dim=tiny.TOKEN_DIM + tiny.PATCH**2, asset_dim=5)
    batch, noised, text = with_text(tiny.packed([tiny.guided_example(1), tiny.guided_example(2)]))
    return model, batch, noised, text


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("field", ["visual", "mask", "asset_features", "text_asset"])
def test_channels_and_assets_reach_their_own_example_alone(fusion, field):
    model, batch, noised, text = guided(fusion)
    before = outputs(model, batch, noised, text)
    values = getattr(batch, field)
    own = {
        "text_asset": batch.text_segment == 2,
        "asset_features": jnp.arange(values.shape[1])[None, :, None] == batch.text_asset.max(),
    }.get(field, (batch.token_segment == 2)[..., None])
    moved = jnp.where(own, 0, values) if field == "text_asset" else values + 0.5 * own
    after = outputs(model, dataclasses.replace(batch, **{field: moved}), noised, text)
    changed = {k[0] for k in before if np.abs(before[k] - after[k]).max() > 1e-5}
    assert changed == {2}


def test_an_asset_takes_the_place_of_its_word():
    model, batch, noised, text = guided()
    before = outputs(model, batch, noised, text)
    placed = (batch.text_asset > 0)[..., None]
    assert placed.sum() == 2
    # what the encoder said of the word is not read
    tiny.assert_same_tokens(before, outputs(model, batch, noised, text + 3.0 * placed))


def test_packed_equals_alone_with_channels_and_assets():
    examples = [tiny.guided_example(n) for n in (1, 2, 3)]
    model = compiled(fusion="dual", guidance_dim=tiny.TOKEN_DIM + tiny.PATCH**2, asset_dim=5)
    packed = outputs(model, *with_text(tiny.packed(examples)))
    alone = outputs(model, *with_text(tiny.alone(examples)))
    tiny.assert_same_tokens(packed, alone, atol=1e-5)


def test_a_batch_without_what_the_model_reads():
    batch, noised, text = with_text(tiny.packed([tiny.example(1)]))
    with pytest.raises(ValueError, match="channels"):
        compiled(guidance_dim=16)(batch, noised, text)
    with pytest.raises(ValueError, match="identity"):
        compiled(asset_dim=5)(batch, noised, text)


def test_text_is_pooled_by_example_over_its_own_tokens():
    text = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    segment = np.asarray([[1, 1, 2, 0, 0], [2, 2, 2, 1, 0]], np.int32)
    pooled = pool_text(jnp.asarray(text), jnp.asarray(segment), num_segments=4)
    for b in range(2):
        for g in (1, 2):
            np.testing.assert_allclose(
                pooled[b, g], text[b, segment[b] == g].mean(0), rtol=1e-5, atol=1e-6
            )
    assert not pooled[:, 3].any()


def test_spread_looks_rows_up():
    table = jax.random.normal(jax.random.key(0), (2, 3, 4))
    index = jnp.asarray([[2, 0, 1, 1], [0, 0, 2, 1]])
    expected = np.stack([np.asarray(table)[b, np.asarray(index)[b]] for b in range(2)])
    np.testing.assert_array_equal(spread(table, index), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_heads": 3},
            r"num_heads=3 must cut model.hidden_dim=24.*for example \[1, 2, 4\]",
        ),
        ({"num_kv_heads": 3}, "model.num_kv_heads=3 must divide model.num_heads=2"),
        ({"fusion": "none"}, "model.fusion='none' is unknown; one of cross"),
        ({"remat": "some"}, "model.remat='some' is unknown; one of none, full, dots"),
    ],
)
def test_sizes_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny.DIT, **change)
