"""Depth of frames whose data have none, by a pretrained model.

    DepthModel("checkpoints/Depth-Anything-V2-Large-hf").depth(frames)

Depth Anything tells inverse depth up to an unknown scale and shift. It is stored as the z-depth of
the same order whose inverse runs from 1, the nearest, to 1 / FARTHEST: drawn as nearness
(`sources.pairs`) it is the model's map again. UniReal (section 3.2) uses Depth Anything V2.

Needs the extra `torch`; folders as in `checkpoints`.
"""

import os
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from data_pipelines.curate.checkpoints import Pretrained, load_model, read_json

FARTHEST = 20.0
"""Depth of the farthest point, where the nearest is at 1."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Loaded(NamedTuple):
    model: Any
    side: int
    mean: np.ndarray
    std: np.ndarray


class DepthModel(Pretrained):
    """Depth Anything, either version (arXiv:2406.09414)."""

    def _load(self) -> _Loaded:
        from transformers import DepthAnythingForDepthEstimation

        model = load_model(
            DepthAnythingForDepthEstimation,
            self.folder,
            model_types=("depth_anything",),
            device=self.device,
        )
        path = pathlib.Path(os.fspath(self.folder)) / "preprocessor_config.json"
        options = read_json(path) or {}
        size = options.get("size", {})
        return _Loaded(
            model,
            int(size.get("height", 518)),
            np.asarray(options.get("image_mean", _MEAN), np.float32),
            np.asarray(options.get("image_std", _STD), np.float32),
        )

    def depth(self, frames: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h w"]:
        """Relative z-depth of each frame, from 1 to `FARTHEST`; a flat map is all 1.

        Raises:
          CheckpointError: the folder has no such checkpoint.
        """
        return np.stack([self._one(frame) for frame in frames])

    def _one(self, frame: np.ndarray) -> np.ndarray:
        import torch

        loaded = self.loaded
        height, width = frame.shape[:2]
        unit = loaded.model.config.patch_size
        scale = loaded.side / min(height, width)
        size = tuple(max(1, round(side * scale / unit)) * unit for side in (width, height))
        small = Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)
        values = (np.asarray(small, np.float32) / 255 - loaded.mean) / loaded.std
        pixels = torch.from_numpy(values.transpose(2, 0, 1)[None]).to(loaded.model.device)
        with torch.inference_mode():
            found = loaded.model(pixel_values=pixels).predicted_depth[0].float().cpu().numpy()
        whole = Image.fromarray(found).resize((width, height), Image.Resampling.BILINEAR)
        inverse = np.asarray(whole, np.float32)
        low, high = inverse.min(), inverse.max()
        nearness = (inverse - low) / (high - low) if high > low else np.ones_like(inverse)
        return 1 / (1 / FARTHEST + nearness * (1 - 1 / FARTHEST))
