"""Scenes: rays against a restatement in the camera's own axes, and folders that are wrong."""

import json

import numpy as np
import pytest
from PIL import Image
from raw_data import SCENE_SIZE, encode, same_sample, value_of, write_scene

from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.scenes import SceneSource
from unidiff_jax.cameras import look_at_origin, to_rays


def draw(folder, seed=0, **settings):
    source = SceneSource(str(folder), **settings)
    return source.sample(0, np.random.default_rng(seed))


def expected_rays(record, places, *, grid, downscale=1, turn=None):
    """Rays of the middle square, seen from the first camera at a distance of 1.7.

    Each ray is built in the axes of its own OpenGL camera (x right, y up, looking along -z), moved
    to the first camera by plain matrices, and only then written with x to the left and z forward.
    """
    poses = [np.array(record["frames"][i]["transform_matrix"]) for i in places]
    if turn is not None:
        poses = [turn @ pose for pose in poses]
    cut = (lambda x: x) if downscale == 1 else (lambda x: int(x / downscale))
    width, height, fl_x, fl_y = (cut(record[key]) for key in ("w", "h", "fl_x", "fl_y"))
    # the point nearest to all optical axes, from its normal equations
    across = [np.eye(3) - np.outer(pose[:3, 2], pose[:3, 2]) for pose in poses]
    target = np.linalg.solve(
        sum(across), sum(a @ pose[:3, 3] for a, pose in zip(across, poses, strict=True))
    )
    scale = 1.7 / np.linalg.norm(target - poses[0][:3, 3])
    side = min(width, height)
    flip = np.array([-1.0, 1.0, -1.0])
    rays = np.zeros((len(poses), grid, grid, 6))
    for n, pose in enumerate(poses):
        relative = poses[0][:3, :3].T @ pose[:3, :3]
        origin = flip * (poses[0][:3, :3].T @ (pose[:3, 3] - poses[0][:3, 3])) * scale
        for row in range(grid):
            for column in range(grid):
                # pixels of the whole picture, from its left and top
                x = width / 2 + ((column + 0.5) / grid - 0.5) * side
                y = height / 2 + ((row + 0.5) / grid - 0.5) * side
                seen = np.array([(x - width // 2) / fl_x, -(y - height // 2) / fl_y, -1.0])
                direction = flip * (relative @ seen)
                direction /= np.linalg.norm(direction)
                rays[n, row, column] = [*direction, *np.cross(origin, direction)]
    return rays


SWAP = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("size", [SCENE_SIZE, (30, 48), (31, 47)])
@pytest.mark.parametrize("downscale", [1, 4, 8])
@pytest.mark.parametrize("swap", [False, True])
def test_rays_equal_their_definition(tmp_path, size, downscale, swap):
    folder = write_scene(tmp_path / "scene", size=size, downscales=(downscale,))
    found = draw(folder, num_views=4, downscale=downscale, swap_xz=swap)
    places = [value_of(view) for view in found["views"]]
    assert len(set(places)) == 4
    record = json.loads((folder / "transforms.json").read_text())
    expected = expected_rays(
        record, places, grid=5, downscale=downscale, turn=SWAP if swap else None
    )
    rays = to_rays(found["cameras"], size=5)
    np.testing.assert_allclose(rays, expected, atol=1e-9)
    np.testing.assert_allclose(rays[0, ..., 3:], 0, atol=1e-12)
    # a turn of the whole world is seen by nobody
    plain = expected_rays(record, places, grid=5, downscale=downscale)
    np.testing.assert_allclose(expected, plain, atol=1e-9)


def test_the_largest_pictures_are_taken(tmp_path):
    small = write_scene(tmp_path / "small", downscales=(4, 8))
    assert draw(small)["views"][0].size == (12, 7)
    both = write_scene(tmp_path / "both", downscales=(1, 4))
    assert draw(both)["views"][0].size == SCENE_SIZE
    assert draw(both, downscale=4)["views"][0].size == (12, 7)
    with pytest.raises(SampleError, match=r"images_8/.* cannot be read"):
        draw(both, downscale=8)


def test_numbers_of_views_and_windows(tmp_path):
    folder = write_scene(tmp_path / "scene", count=12)
    counts, starts = set(), set()
    for seed in range(60):
        found = draw(folder, seed, num_views=(2, 4), window=4)
        places = [value_of(view) for view in found["views"]]
        assert len(found["cameras"].focal) == len(places)
        assert max(places) - min(places) < 4
        counts.add(len(places))
        if len(places) == 4:
            starts.add(min(places))
    assert counts == {2, 3, 4} and len(starts) > 4
    assert len(draw(folder, num_views=3, window=50)["views"]) == 3
    assert same_sample(draw(folder, 5), draw(folder, 5))
    few = write_scene(tmp_path / "few", count=3)
    assert len(draw(few, num_views=(3, 8))["views"]) == 3
    with pytest.raises(SampleError, match=r"transforms.json: frames: 3 usable, 4 needed"):
        draw(few, num_views=(4, 8))


def test_captions(tmp_path):
    folder = write_scene(tmp_path / "scene")
    assert draw(folder)["caption"] == ""
    (folder / "caption.json").write_text(json.dumps({"short": "a", "long": " b ", "n": 1}))
    assert draw(folder)["caption"] == ""
    keys = ("short", "long", "none")
    assert {draw(folder, seed, caption_keys=keys)["caption"] for seed in range(20)} == {"a", "b"}
    with pytest.raises(SampleError, match=r"caption.json: n are not all texts"):
        draw(folder, caption_keys=("n",))
    (folder / "caption.json").write_text("[")
    with pytest.raises(SampleError, match=r"caption.json is not JSON"):
        draw(folder)


def test_transparent_pictures_lie_on_white(tmp_path):
    folder = write_scene(tmp_path / "scene")
    for i in range(6):
        clear = Image.new("RGBA", SCENE_SIZE, (i, i, i, 0))
        (folder / "images" / f"{i}.png").write_bytes(encode(clear))
    assert {value_of(view) for view in draw(folder)["views"]} == {255}


def test_intrinsics_of_a_frame_come_first(tmp_path):
    folder = write_scene(tmp_path / "scene")
    record = json.loads((folder / "transforms.json").read_text())
    record["frames"][2]["fl_x"] = 30.0
    (folder / "transforms.json").write_text(json.dumps(record))
    found = draw(folder, num_views=6)
    places = np.array([value_of(view) for view in found["views"]])
    np.testing.assert_allclose(found["cameras"].focal[:, 0] * 15, np.where(places == 2, 30.0, 41.3))


def frames(**changes):
    good = {"file_path": "images/0.png", "transform_matrix": look_at_origin(0, 0, 1).tolist()}
    other = {"file_path": "images/1.png", "transform_matrix": look_at_origin(90, 0, 1).tolist()}
    return [good | changes, other]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": frames(file_path="../secret.png")}, "leaves the folder"),
        ({"frames": frames(file_path="/etc/passwd")}, "leaves the folder"),
        ({"frames": frames(file_path=None)}, "None is not the name of a file"),
        ({"frames": frames(file_path="images/none.png")}, r"none.png cannot be read"),
        ({"frames": frames(transform_matrix=None)}, "no invertible 4 x 4 matrix"),
        ({"frames": frames(transform_matrix=[[1, 2], [3]])}, "no invertible 4 x 4 matrix"),
        ({"frames": frames(transform_matrix=np.zeros((4, 4)).tolist())}, "no invertible"),
        ({"frames": frames(transform_matrix=[["a"] * 4] * 4)}, "no invertible"),
        ({"frames": frames(transform_matrix=np.full((4, 4), np.nan).tolist())}, "no invertible"),
        ({"frames": {"a": 1}}, "frames is not a list of objects"),
        ({"frames": [1, 2, 3]}, "frames is not a list of objects"),
        ({"w": None}, "w is None, not a number of pixels"),
        ({"fl_x": 0.0}, "fl_x is 0.0, not a number of pixels"),
        ({"fl_y": "41"}, "fl_y is '41', not a number of pixels"),
        ({"h": float("inf")}, "h is inf, not a number of pixels"),
        ({"w": 30, "h": 48}, "is 48x30 pixels, but its camera sees 30x48"),
        ({"frames": frames(transform_matrix=np.eye(4).tolist())[:1] * 2}, "no scale can be"),
    ],
)
def test_scenes_that_cannot_be_used(tmp_path, changes, message):
    (tmp_path / "secret.png").write_bytes(encode(Image.new("RGB", SCENE_SIZE)))
    folder = write_scene(tmp_path / "scene", **changes)
    with pytest.raises(SampleError, match=message):
        draw(folder, num_views=2 if "frames" in changes else (2, 6))


def test_damaged_files(tmp_path):
    folder = write_scene(tmp_path / "scene", downscales=(1, 4))
    record = json.loads((folder / "transforms.json").read_text())
    for frame in record["frames"]:
        frame["file_path"] = "train/0.png"
    (folder / "transforms.json").write_text(json.dumps(record))
    with pytest.raises(SampleError, match="does not lie in images"):
        draw(folder, downscale=4)
    (folder / "transforms.json").write_text("{")
    with pytest.raises(SampleError, match=r"transforms.json is not JSON"):
        draw(folder)
    whole = write_scene(tmp_path / "whole", count=2)
    path = whole / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(SampleError, match=r"whole/images/1.png is "):
        draw(whole, num_views=2)


def test_which_scenes(tmp_path):
    for name in ("a", "b"):
        write_scene(tmp_path / name)
    assert len(SceneSource(str(tmp_path))) == len(SceneSource(f"{tmp_path}/[ab]")) == 2
    source = SceneSource(str(tmp_path / "a"))
    assert tuple(source.sample(0, np.random.default_rng(0))) == source.fields
    with pytest.raises(IndexError):
        source.sample(1, np.random.default_rng(0))
    with pytest.raises(SourceError, match=r"no folder with a transforms.json"):
        SceneSource(str(tmp_path / "a" / "images"))
    for settings, message in (
        ({"window": 3}, "a window of 3 frames has no 6 views"),
        ({"downscale": 2}, "downscale is None or one of"),
        ({"scale": 0.0}, "scale is a length"),
    ):
        with pytest.raises(ValueError, match=message):
            SceneSource(str(tmp_path), **settings)
