"""Small raw data for tests: pictures of one grey, and how to tell them apart."""

import io
import json
import tarfile

import numpy as np
from PIL import Image

from unidiff_jax.cameras import look_at_origin

SCENE_SIZE = (48, 30)


def picture(value=100, *, size=(24, 16)):
    """A grey picture of one value."""
    return Image.new("RGB", size, (value, value, value))


def encode(image, *, format="PNG", **options):
    """The bytes of a picture's file."""
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def png(value=100, *, size=(24, 16)):
    return encode(picture(value, size=size))


def value_of(image):
    """The value that `picture` was made with."""
    assert isinstance(image, Image.Image) and image.mode == "RGB"
    return int(np.asarray(image)[0, 0, 0])


def write_tar(path, members):
    """Writes (name, bytes) pairs."""
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_scene(folder, *, count=6, downscales=(1,), size=SCENE_SIZE, seed=0, **changes):
    """Rolled cameras around a point that is not the origin; frame i is grey of value i."""
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(count):
        pose = look_at_origin(40.0 * i, rng.uniform(-30, 60), rng.uniform(2, 4))
        angle = rng.uniform(-0.5, 0.5)
        pose[:3, :2] = pose[:3, :2] @ [
            [np.cos(angle), -np.sin(angle)],
            [np.sin(angle), np.cos(angle)],
        ]
        pose[:3, 3] += [3.0, -1.0, 0.5]
        frames.append({"file_path": f"images/{i}.png", "transform_matrix": pose.tolist()})
    for downscale in downscales:
        images = folder / ("images" if downscale == 1 else f"images_{downscale}")
        images.mkdir(parents=True)
        for i in range(count):
            picture = Image.new("RGB", (size[0] // downscale, size[1] // downscale), (i, i, i))
            (images / f"{i}.png").write_bytes(encode(picture))
    record = {
        **{"w": size[0], "h": size[1], "fl_x": 41.3, "fl_y": 43.7, "cx": 1.0, "cy": 2.0, "k1": 0.5},
        "frames": frames,
    }
    (folder / "transforms.json").write_text(json.dumps(record | changes))
    return folder


def same_sample(first, second):
    """Whether two samples hold the same."""
    assert first.keys() == second.keys()
    return all(_same(first[key], second[key]) for key in first)


def _same(first, second):
    if isinstance(first, Image.Image):
        return np.array_equal(np.asarray(first), np.asarray(second))
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    return np.array_equal(first, second)
