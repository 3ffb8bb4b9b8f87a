"""Mask trajectories by SAM 2 (arXiv:2408.00714), prompted with boxes as in UniReal section 3.2.

    tracker = Sam2Tracker("checkpoints/sam2.1-hiera-large")
    tracker.track(shot, description.entities).masks

Each entity's box is the prompt on its frame; from there its mask goes forward to the last frame,
then backward to the first, through the model's memory. Entities do not know of each other: where
masks overlap, a pixel belongs to the one with the higher logit.

Needs the extra `torch` and a folder of `facebook/sam2.1-hiera-*` or `facebook/sam2-hiera-*`. Frames
are prepared here, one at a time, because transformers' own processor needs torchvision and holds
all frames of a shot at the model's size: 12 MB each.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.curate.checkpoints import Pretrained, load_model, read_json
from data_pipelines.curate.clips import Shot
from data_pipelines.curate.describe import Entity
from data_pipelines.curate.track import Tracks

_MOST = 255  # ids are uint8, and 0 is none
# The labels of a box's corners among point prompts.
_LEFT_TOP, _RIGHT_BOTTOM = 2, 3
_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
# Where the processor's settings are: by releases of transformers before and since 5.
_SETTINGS = (
    ("video_preprocessor_config.json", None),
    ("processor_config.json", "video_processor"),
    ("preprocessor_config.json", None),
)


class Loaded(NamedTuple):
    """The model, and float32 (3, 1, 1) tensors of its pictures' colours, of values 0 to 255."""

    model: Any
    mean: Any
    deviation: Any


class Sam2Tracker(Pretrained):
    """Follows boxes through a shot."""

    def _load(self) -> Loaded:
        import torch
        from transformers import Sam2VideoModel

        model = load_model(
            Sam2VideoModel, self.folder, model_types=["sam2_video"], device=self.device
        )
        colors = [
            255 * torch.tensor(self._setting(key), dtype=torch.float32).view(3, 1, 1)
            for key in ("image_mean", "image_std")
        ]
        return Loaded(model, *colors)

    def _setting(self, key: str) -> Sequence[float]:
        """A setting of the processor's files; SAM 2's own where they do not say."""
        for name, part in _SETTINGS:
            settings = read_json(pathlib.Path(self.folder) / name) or {}
            settings = settings.get(part, {}) if part else settings
            if key in settings:
                return settings[key]
        return _IMAGENET[key]

    def track(self, shot: Shot, entities: Sequence[Entity]) -> Tracks:
        """Trajectories; entity n has id n + 1.

        Args:
          shot: the frames.
          entities: with their boxes, each on its frame; none gives empty masks.

        Raises:
          CheckpointError: the folder is no checkpoint of SAM 2 for video.
          ValueError: more than 255 entities, or one on a frame that the shot does not have.
        """
        num_frames, height, width = shot.frames.shape[:3]
        if len(entities) > _MOST:
            raise ValueError(f"{len(entities)} entities; ids are uint8, so at most {_MOST}")
        by_frame: dict[int, list[int]] = {}
        for n, entity in enumerate(entities):
            if not 0 <= entity.frame < num_frames:
                raise ValueError(
                    f"{entity.name!r} is on frame {entity.frame} of a shot of {num_frames}"
                )
            by_frame.setdefault(entity.frame, []).append(n)
        masks = np.zeros((num_frames, height, width), np.uint8)
        best = np.zeros((num_frames, height, width), np.float16)
        for start, members in by_frame.items():
            ids = np.array(members, np.uint8) + 1
            boxes = [entities[n].box for n in members]
            for frame, logits, which in self._follow(shot.frames, boxes, start=start):
                wins = logits > best[frame]
                best[frame][wins] = logits[wins]
                masks[frame][wins] = ids[which[wins]]
        return Tracks(masks, {n + 1: entity.name for n, entity in enumerate(entities)})

    def _follow(
        self, frames: np.ndarray, boxes: Sequence[Sequence[float]], *, start: int
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Follows boxes of one frame both ways.

        A session is of one frame's boxes: the model runs all objects of a session on every frame,
        and takes the first frame of an object for its prompt, whether that has a box or not.

        Yields:
          The frame, and of each of its pixels the highest logit, float16 (H, W), and the box that
          has it, int64 (H, W).
        """
        import torch
        import torch.nn.functional as F
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        model, mean, deviation = self.loaded
        height, width = frames.shape[1:3]
        session: Any = Sam2VideoInferenceSession(
            video_height=height,
            video_width=width,
            inference_device=model.device,
            inference_state_device=model.device,
            dtype=model.dtype,
        )
        session.processed_frames = _Prepared(
            frames, size=model.config.image_size, mean=mean, deviation=deviation
        )
        corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 1, 1, 2, 2)
        labels = torch.tensor([[[_LEFT_TOP, _RIGHT_BOTTOM]]], dtype=torch.int32)
        for n, box in enumerate(corners * model.config.image_size):
            session.add_point_inputs(
                session.obj_id_to_idx(n), start, {"point_coords": box, "point_labels": labels}
            )
        session.obj_with_new_inputs = list(range(len(boxes)))

        reach = max(model.config.num_maskmem, model.config.max_object_pointers_in_encoder)
        forward = [(frame, False) for frame in range(start, len(frames))]
        backward = [(frame, True) for frame in range(start - 1, -1, -1)]
        for frame, reverse in forward + backward:
            with torch.inference_mode():
                low = model(session, frame_idx=frame, reverse=reverse).pred_masks.float()
                full = F.interpolate(low, (height, width), mode="bilinear", align_corners=False)
                logits, which = full[:, 0].max(0)
            _forget(session, frame, start=start, reach=reach)
            yield frame, logits.half().cpu().numpy(), which.cpu().numpy()


class _Prepared(Mapping):
    """Frames as the model takes them, float32 (3, size, size), prepared when they are asked for."""

    def __init__(self, frames: np.ndarray, *, size: int, mean: Any, deviation: Any):
        self._frames, self._size = frames, size
        self._mean, self._deviation = mean, deviation

    def __getitem__(self, frame: int) -> Any:
        import torch
        import torch.nn.functional as F

        picture = torch.from_numpy(np.ascontiguousarray(self._frames[frame])).permute(2, 0, 1)
        # In uint8, and therefore on the CPU: as transformers' processor does.
        resized = F.interpolate(
            picture[None], (self._size, self._size), mode="bilinear", antialias=True
        )[0]
        return (resized.float() - self._mean) / self._deviation

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self._frames)))

    def __len__(self) -> int:
        return len(self._frames)


def _forget(session: Any, frame: int, *, start: int, reach: int) -> None:
    """Drops what no later frame will read.

    The session would keep 4 MB a frame and entity for masks at the model's size, and 2 MB for
    memories. A frame reads those of `reach` frames: the last ones, or on the way back the first
    ones too.
    """
    for outputs in session.output_dict_per_obj.values():
        tracked = outputs["non_cond_frame_outputs"]
        for kept in (tracked, outputs["cond_frame_outputs"]):
            kept.get(frame, {}).pop("high_res_masks", None)
        for old in (frame - reach, frame + reach):
            if abs(old - start) > reach:
                tracked.pop(old, None)
