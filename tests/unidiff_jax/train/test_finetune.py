"""Fine-tuning: released weights, adapters, and what is frozen stays where it came from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from flax import nnx

from unidiff_jax.config import ConfigError
from unidiff_jax.export.mapping import flatten
from unidiff_jax.export.run import released_config
from unidiff_jax.models.dit import DiT
from unidiff_jax.sample.denoiser import Denoiser, load_denoiser
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.train.checkpoint import Checkpoints
from unidiff_jax.train.loop import train
from unidiff_jax.train.workdir import model_configs, model_parts

SHORT = ("train.num_steps=6", "train.eval_every=6", "train.save_every=3", "train.sample_every=6")
# the released layout has patches of 2 x 2 latent pixels
LAYOUT = ("patch=2",)
ADAPTERS = ("train.trainable=.*/lora_[ab]", "lora.rank=2")


@pytest.fixture(scope="module")
def folder(miniworld, tmp_path_factory):
    """A transformer in the released layout, of the tiny run's sizes."""
    folder = tmp_path_factory.mktemp("released") / "transformer"
    write_transformer(folder, tiny_run.config(miniworld, *LAYOUT))
    return folder


def write_transformer(folder, config):
    """A released transformer of a config's sizes."""
    dit, _ = model_configs(config)
    official = released_config(config, dit)
    plain = official.dit(softcap=0.0, dtype="float32", remat="none")
    params = nnx.to_pure_dict(nnx.split(DiT(plain, rngs=nnx.Rngs(7)))[1])
    params = jax.tree.map(lambda x: x + 0.01, params)
    Denoiser(official, plain, params).save_pretrained(folder)


@pytest.fixture(scope="module")
def config(miniworld, folder):
    def config(*more):
        rope = ("model.rope_theta=10000.0", "model.rope_scale=1.0")
        row = ("data.row.tokens=512",)
        init = (f"init.transformer={folder}", "init.frozen_dtype=float32")
        return tiny_run.config(miniworld, *SHORT, *LAYOUT, *rope, *row, *init, *more)

    return config


@pytest.fixture(scope="module")
def adapted(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("adapted")
    return workdir, train(config(*ADAPTERS), workdir)


def leaves(params):
    return {
        k: v if isinstance(v, jax.ShapeDtypeStruct) else np.asarray(v)
        for k, v in flatten(params).items()
    }


def test_adapters_alone_are_trained(adapted, folder):
    _, state = adapted
    assert set(leaves(state.params)) == {
        f"dit/blocks/attention/{name}/lora_{x}" for name in ("q", "k", "v", "out") for x in "ab"
    }
    assert all(np.abs(v).max() > 0 for v in leaves(state.params).values())
    released = leaves({"dit": load_denoiser(folder).params})
    frozen = leaves(state.frozen)
    for path, value in released.items():
        np.testing.assert_array_equal(frozen[path], value, err_msg=path)
    assert any(path.startswith("text_encoder/") for path in frozen)  # random, and never trained


def test_the_checkpoint_holds_no_frozen_weight(adapted):
    workdir, _ = adapted
    files = (p for p in (workdir / "checkpoints" / "6").rglob("*") if p.is_file())
    written = b"".join(file.read_bytes() for file in files)
    assert b"lora_a" in written and b"patch_embed" not in written


def test_the_workdir_samples_with_base_and_adapters(adapted):
    workdir, state = adapted
    pipeline = Pipeline.from_workdir(workdir)
    found, expected = leaves(pipeline.params), leaves(state.frozen) | leaves(state.ema)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    image = np.zeros((32, 32, 3), np.uint8)
    assert pipeline("depth", image=image, num_steps=1)["depth"].size == (32, 32)


def test_a_run_with_adapters_resumes_bit_for_bit(config, adapted, tmp_path, monkeypatch):
    real, count = Checkpoints.save, []

    def save(self, state, *, step, **rest):
        real(self, state, step=step, **rest)
        count.append(step)
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save)
    with pytest.raises(KeyboardInterrupt):
        train(config(*ADAPTERS), tmp_path)
    state = train(config(*ADAPTERS), tmp_path)
    assert count == [3, 6]
    for path, value in leaves(adapted[1].params).items():
        np.testing.assert_array_equal(leaves(state.params)[path], value, err_msg=path)


def test_full_fine_tuning_starts_from_the_released_weights(config, folder, tmp_path):
    state = train(config("optim.learning_rate=1e-12", "optim.weight_decay=0.0"), tmp_path)
    assert not state.frozen
    params = leaves(state.params)
    for path, value in leaves({"dit": load_denoiser(folder).params}).items():
        np.testing.assert_allclose(params[path], value, atol=1e-6, err_msg=path)


def test_frozen_weights_may_be_half_as_wide(config, tmp_path):
    state = train(config(*ADAPTERS, "init.frozen_dtype=bfloat16", "train.num_steps=1"), tmp_path)
    assert state.frozen["dit"]["patch_embed"]["weight"].dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("train.trainable=nothing",), "train.trainable='nothing' matches no parameter"),
        (("train.trainable=(",), "is no pattern"),
        (("model.num_heads=1",), "model.num_heads is 1, the folder's 2"),
        (("model.rope_theta=20.0",), r"model.rope_theta is 20.0, the folder's 10000.0"),
    ],
)
def test_settings_that_cannot_be(config, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train(config(*changes), tmp_path)


def test_everything_is_trained_by_default(miniworld):
    model = model_parts(tiny_run.config(miniworld))
    trained, frozen = model.split(model.shapes)
    assert not frozen and leaves(trained).keys() == leaves(model.shapes).keys()


def test_released_weights_are_of_cross_fusion(config, tmp_path):
    joint = config().unlock()
    joint.model.fusion = "joint"
    with pytest.raises(ConfigError, match=r"model\.fusion is 'joint', the folder's 'cross'"):
        train(joint.lock(), tmp_path)
