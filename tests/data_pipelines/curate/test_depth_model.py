"""Depth Anything with tiny random weights in its true format."""

import json
import pickle

import numpy as np
import pytest

from data_pipelines.curate.checkpoints import CheckpointError
from data_pipelines.curate.depth_model import FARTHEST, DepthModel
from data_pipelines.sources.pairs import relative_nearness

pytestmark = pytest.mark.torch
torch = pytest.importorskip("torch")
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth")
    backbone = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
        apply_layernorm=True,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=14,
        reassemble_hidden_size=16,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DepthAnythingForDepthEstimation(config).eval().save_pretrained(folder)
    options = {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(options))
    return folder


def test_depth_is_the_models_inverse_depth(folder):
    frames = np.random.default_rng(0).integers(0, 256, (2, 30, 60, 3), np.uint8)
    model = pickle.loads(pickle.dumps(DepthModel(folder)))
    depth = model.depth(frames)
    assert depth.shape == (2, 30, 60) and np.isfinite(depth).all()
    assert depth.min() == pytest.approx(1) and depth.max() == pytest.approx(FARTHEST)
    theirs = DepthAnythingForDepthEstimation.from_pretrained(folder).eval()
    for frame, found in zip(frames, depth, strict=True):
        # 28 pixels on the shorter side, both sides in patches of 14
        small = Image.fromarray(frame).resize((56, 28), Image.Resampling.BICUBIC)
        pixels = (np.asarray(small, np.float32) / 255 - 0.5) / 0.5
        with torch.inference_mode():
            raw = theirs(torch.from_numpy(pixels.transpose(2, 0, 1)[None])).predicted_depth[0]
        whole = Image.fromarray(raw.numpy()).resize((60, 30), Image.Resampling.BILINEAR)
        inverse = np.asarray(whole)
        nearness = (inverse - inverse.min()) / (inverse.max() - inverse.min())
        expected = 1 / (1 / FARTHEST + nearness * (1 - 1 / FARTHEST))
        np.testing.assert_allclose(found, expected, rtol=1e-3)
        # drawn as nearness, order and spacing are the model's again
        drawn = relative_nearness(found.astype(np.float16))
        inner = (drawn > 0.02) & (drawn < 0.98)
        slope = np.polyfit(nearness[inner], drawn[inner], 1)
        np.testing.assert_allclose(drawn[inner], np.polyval(slope, nearness[inner]), atol=5e-3)


def test_another_folder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dpt"}')
    with pytest.raises(CheckpointError, match="model_type 'dpt'; expected a checkpoint of depth_a"):
        DepthModel(tmp_path).depth(np.zeros((1, 28, 28, 3), np.uint8))
