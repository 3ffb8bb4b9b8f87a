"""Tiny data sets as TFDS prepares them, with the features of the true ones; without TensorFlow."""

import contextlib
import io
import types
from unittest import mock

import numpy as np
import tensorflow_datasets.public_api as tfds
from PIL import Image
from raw_data import encode
from tensorflow_datasets.core.features import feature, video_feature

FRAMES, SIZE = 5, (16, 16)
FOCAL, SENSOR = 35.0, 32.0
DEPTH_RANGE = (2.0, 30.0)

BOX = tfds.features.BBox(ymin=0.1, xmin=0.2, ymax=0.5, xmax=0.75)


def prepare(folder, name, *, features, examples, split="train", config=None, format="array_record"):
    """Writes a data set with the library's own builder.

    Args:
      folder: of all data sets.
      name: of the data set.
      features: by name.
      examples: as builders yield them; pictures are the bytes of their files.
      split: of all examples.
      config: name of a config, or None.
      format: of the files.
    """
    configs = [tfds.core.BuilderConfig(name=config)] if config else []

    class Writer(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = configs

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {split: self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(examples)

    Writer.name = name
    builder = Writer(data_dir=folder, config=config)
    with without_tensorflow():
        builder.download_and_prepare(file_format=format)


@contextlib.contextmanager
def without_tensorflow():
    """Videos and nested sequences ask TensorFlow for the name of a dtype and for nothing else."""
    stand_in = types.SimpleNamespace(dtypes=types.SimpleNamespace(as_dtype=np.dtype))
    with (
        mock.patch.object(video_feature, "tf", stand_in),
        mock.patch.object(feature, "tf", stand_in),
    ):
        yield


def captions_features():
    return {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "image/filename": tfds.features.Text(),
        "image/id": np.int64,
        "objects": tfds.features.Sequence(
            {
                "id": np.int64,
                "area": np.int64,
                "bbox": tfds.features.BBoxFeature(),
                "label": tfds.features.ClassLabel(num_classes=80),
                "is_crowd": np.bool_,
            }
        ),
        "captions": tfds.features.Sequence({"text": np.str_, "id": np.int64}),
    }


def captions_example(value, texts):
    picture = Image.new("L" if value % 2 else "RGB", (24, 16), value if value % 2 else (value,) * 3)
    return {
        "image": encode(picture, format="JPEG", quality=95),
        "image/filename": f"{value}.jpg",
        "image/id": value,
        "objects": [{"id": 1, "area": 9, "bbox": BOX, "label": 3, "is_crowd": False}],
        "captions": [{"text": text, "id": i} for i, text in enumerate(texts)],
    }


def referring_features():
    annotation = {
        "id": np.int64,
        "area": np.int64,
        "bbox": tfds.features.BBoxFeature(),
        "label": np.int64,
    }
    return {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "image/id": np.int64,
        "objects": tfds.features.Sequence(
            {
                **annotation,
                "gt_box_index": np.int64,
                "mask": tfds.features.Image(encoding_format="png"),
                "refexp": tfds.features.Sequence(
                    {"refexp_id": np.int64, "raw": tfds.features.Text()}
                ),
            }
        ),
        "coco_annotations": tfds.features.Sequence(dict(annotation)),
    }


def referring_example(value, expressions, *, size=(24, 16)):
    """Object i has a mask of i + 1 columns."""
    objects = []
    for i, texts in enumerate(expressions):
        mask = np.zeros((16, 24), bool)
        mask[:, : i + 1] = True
        objects.append(
            {
                **{"id": i, "area": 16 * (i + 1), "bbox": BOX, "label": 1, "gt_box_index": 0},
                "mask": io.BytesIO(encode(Image.fromarray(mask))),
                "refexp": [{"refexp_id": n, "raw": text} for n, text in enumerate(texts)],
            }
        )
    return {
        "image": encode(Image.new("RGB", size, (value,) * 3), format="JPEG", quality=95),
        "image/id": value,
        "objects": objects,
        "coco_annotations": [{"id": 0, "area": 5, "bbox": BOX, "label": 1}],
    }


def depth_features():
    return {
        "image": tfds.features.Image(shape=(48, 64, 3)),
        "depth": tfds.features.Tensor(shape=(48, 64), dtype=np.float16),
    }


def depth_example(value, depth):
    return {
        "image": encode(Image.new("RGB", (64, 48), (value,) * 3)),
        "depth": depth.astype(np.float16),
    }


def movi_features(variant="a"):
    """Of MOVi-A, or those that B to F have instead."""
    height, width = SIZE
    image, tensor = tfds.features.Image, tfds.features.Tensor

    def track(*shape):
        return tensor(shape=(FRAMES, *shape), dtype=np.float32)

    instances = {
        **{"mass": np.float32, "friction": np.float32, "restitution": np.float32},
        **{"positions": track(3), "quaternions": track(4), "velocities": track(3)},
        **{"angular_velocities": track(3), "bboxes_3d": track(8, 3), "image_positions": track(2)},
        "bboxes": tfds.features.Sequence(tfds.features.BBoxFeature()),
        "bbox_frames": tfds.features.Sequence(tensor(shape=(), dtype=np.int32)),
        "visibility": tensor(shape=(FRAMES,), dtype=np.uint16),
    }
    label = tfds.features.ClassLabel
    if variant == "a":
        instances |= {
            "shape_label": label(names=["cube", "cylinder", "sphere"]),
            "size_label": label(names=["small", "large"]),
            "color": tensor(shape=(3,), dtype=np.float32),
            "color_label": label(names=["blue", "brown", "red"]),
            "material_label": label(names=["metal", "rubber"]),
        }
    else:
        instances |= {
            "asset_id": tfds.features.Text(),
            "category": label(names=["Action Figures", "None", "Shoe"]),
            "scale": np.float32,
            "is_dynamic": np.bool_,
        }
    with without_tensorflow():
        video = tfds.features.Video(shape=(FRAMES, height, width, 3))
        normal, coordinates = (
            tfds.features.Video(shape=(FRAMES, height, width, 3), dtype=np.uint16) for _ in "ab"
        )
    pair = tensor(shape=(2,), dtype=np.float32)
    flow = tfds.features.Sequence(tensor(shape=(height, width, 2), dtype=np.uint16), length=FRAMES)
    return {
        "metadata": {
            "video_name": tfds.features.Text(),
            **{"width": np.int32, "height": np.int32, "num_frames": np.int32},
            "num_instances": np.uint16,
            "depth_range": pair,
            "forward_flow_range": pair,
            "backward_flow_range": pair,
        },
        "instances": tfds.features.Sequence(instances),
        "camera": {
            **{"focal_length": np.float32, "sensor_width": np.float32, "field_of_view": np.float32},
            "positions": track(3),
            "quaternions": track(4),
        },
        "events": {
            "collisions": tfds.features.Sequence(
                {
                    "instances": tensor(shape=(2,), dtype=np.uint16),
                    **{"frame": np.int32, "force": np.float32},
                    "position": tensor(shape=(3,), dtype=np.float32),
                    "image_position": pair,
                    "contact_normal": tensor(shape=(3,), dtype=np.float32),
                }
            )
        },
        "video": video,
        "segmentations": tfds.features.Sequence(
            image(shape=(height, width, 1), dtype=np.uint8), length=FRAMES
        ),
        "forward_flow": flow,
        "backward_flow": flow,
        "depth": tfds.features.Sequence(
            image(shape=(height, width, 1), dtype=np.uint16), length=FRAMES
        ),
        "normal": normal,
        "object_coordinates": coordinates,
    }


def movi_example(labels, *, seed=0, moves=True):
    """A video and what it shows: ids by frame, distances, cameras as matrices.

    Frame t is of value (10 t, 1, 2). Instance i has the id i + 1 and hides a column of 4 pixels
    that moves by a pixel a frame; the last instance is hidden in the last frame.

    Args:
      labels: of each instance.
      seed: of cameras and distances.
      moves: whether the camera does.
    """
    rng = np.random.default_rng(seed)
    height, width = SIZE
    ids = np.zeros((FRAMES, height, width), np.uint8)
    for t in range(FRAMES):
        for i in range(len(labels) - (t == FRAMES - 1)):
            ids[t, :, 4 * i + t % 2 : 4 * i + t % 2 + 4] = i + 1
    stored = rng.integers(0, 65536, ids.shape).astype(np.uint16)
    poses = [_pose(rng) for _ in range(FRAMES)]
    if not moves:
        poses = poses[:1] * FRAMES
    black = encode(Image.fromarray(np.zeros((height, width, 3), np.uint8)))
    frame = np.zeros((height, width, 3), np.uint8)

    def track(*shape):
        return np.zeros((FRAMES, *shape), np.float32)

    instances = [
        {
            **{"mass": 1.0, "friction": 0.5, "restitution": 0.5, **words},
            **{"positions": track(3), "quaternions": track(4), "velocities": track(3)},
            **{"angular_velocities": track(3), "bboxes_3d": track(8, 3)},
            "image_positions": track(2),
            "bboxes": [BOX] * (FRAMES - i),
            "bbox_frames": np.arange(FRAMES - i, dtype=np.int32),
            "visibility": (ids == i + 1).sum(axis=(1, 2)).astype(np.uint16),
        }
        for i, words in enumerate(labels)
    ]
    flow = np.zeros((FRAMES, height, width, 2), np.uint16)
    example = {
        "metadata": {
            "video_name": str(seed),
            **{"width": width, "height": height, "num_frames": FRAMES},
            "num_instances": len(labels),
            "depth_range": np.array(DEPTH_RANGE, np.float32),
            "forward_flow_range": np.zeros(2, np.float32),
            "backward_flow_range": np.zeros(2, np.float32),
        },
        "instances": instances,
        "camera": {
            **{"focal_length": FOCAL, "sensor_width": SENSOR, "field_of_view": 0.85},
            "positions": np.array([place for _, place in poses], np.float32),
            "quaternions": np.array([turn for turn, _ in poses], np.float32),
        },
        "events": {"collisions": []},
        "video": [encode(Image.fromarray(frame + np.uint8([10 * t, 1, 2]))) for t in range(FRAMES)],
        "segmentations": [encode(Image.fromarray(layer)) for layer in ids],
        "forward_flow": flow,
        "backward_flow": flow,
        "depth": [encode(Image.fromarray(layer)) for layer in stored],
        "normal": [black] * FRAMES,
        "object_coordinates": [black] * FRAMES,
    }
    truth = types.SimpleNamespace(ids=ids, stored=stored, poses=poses)
    return example, truth


def _pose(rng):
    """Quaternion (w, x, y, z) and place of a camera above the ground that looks at the origin."""
    place = np.array([*rng.uniform(-8, 8, 2), rng.uniform(3, 8)])
    back = place / np.linalg.norm(place)
    right = np.cross([0, 0, 1], back)
    right /= np.linalg.norm(right)
    m = np.stack([right, np.cross(back, right), back], axis=1)
    w = np.sqrt(1 + np.trace(m)) / 2
    x, y, z = (m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]) / (4 * w)
    return np.array([w, x, y, z]), place
