"""Sampling from the command line and from Python, and what is said when the input is wrong."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from launch.command import describe
from launch.sample import given_fields, given_roles, output_paths, text_fields
from unidiff_jax.sample.images import InputError
from unidiff_jax.tasks import FrameSpec, Task, get_task

TWO_PICTURES = Task(
    id=60,
    name="two",
    title="Two",
    frames=(FrameSpec(field="a"), FrameSpec(field="b"), FrameSpec(field="c")),
    generate=("c",),
    prompt="[[two]]",
    base="IMG1 and IMG2",
    metric="none",
)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def pipeline(quickstart):
    from unidiff_jax import Pipeline

    return Pipeline.from_workdir(quickstart.workdir)


def test_a_picture_is_written(quickstart, run_command, photo, tmp_path):
    out = tmp_path / "made" / "depth.png"
    done = run_command(
        "sample",
        f"--workdir={quickstart.workdir}",
        "--task=depth",
        f"--image={photo}",
        f"--out={out}",
        "--num_steps=2",
        "--solver=heun",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    assert Image.open(out).size == (32, 32)


def test_an_unknown_task_is_one_line(run_command):
    done = run_command("sample", "--task=nonsense")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no task 'nonsense'; tasks are: text_to_image, depth")
    assert done.stderr.count("\n") == 1


def test_python_entry(pipeline, photo):
    made = pipeline("depth", image=photo)
    assert set(made) == {"depth"} and made["depth"].size == (32, 32)
    again = pipeline("depth", image=Image.open(photo))
    assert made["depth"].tobytes() == again["depth"].tobytes()
    text = pipeline("text_to_image", prompt="a red cube", num_steps=1)
    assert set(text) == {"image"}


def test_the_package_itself_loads_no_jax():
    code = "import sys, unidiff_jax; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "task, fields, message",
    [
        ("depth", {}, "needs 'image'"),
        ("depth", {"image": "absent.png"}, "no such picture"),
        ("edit", {"source": None, "instruction": "  "}, "instruction is empty"),
        ("edit", {"source": None, "instruction": "red cube " * 60}, "the model reads 48"),
        ("text_to_image", {"caption": "a cube", "image": None}, "has no field 'image'"),
    ],
)
def test_what_cannot_be_used_is_an_input_error(pipeline, photo, task, fields, message):
    fields = {key: photo if value is None else value for key, value in fields.items()}
    with pytest.raises(InputError, match=message) as caught:
        pipeline(task, **fields)
    assert describe(caught.value) == str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_picture_too_wide_is_refused(pipeline, tmp_path):
    Image.new("L", (50000, 2)).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match="50000x2 pixels; at most"):
        pipeline("depth", image=tmp_path / "wide.png")


def test_an_empty_prompt_is_refused(pipeline):
    with pytest.raises(InputError, match="the prompt is empty"):
        pipeline("text_to_image", prompt=" ")


def test_given_fields():
    depth, two = get_task("depth"), TWO_PICTURES
    insert = given_fields(get_task("insert"), image="x.png", given=["assets=a.png", "assets=b.png"])
    assert insert == {"canvas": "x.png", "assets": ["a.png", "b.png"]}
    assert given_fields(depth, image="x.png", given=[]) == {"image": "x.png"}
    assert given_fields(two, image="x.png", given=["a=y=z.png"]) == {"a": "y=z.png", "b": "x.png"}
    for task, image, given, message in (
        (two, "x.png", [], "name them: --given a=PATH, --given b=PATH"),
        (depth, None, ["image"], "is not FIELD=PATH"),
        (depth, None, ["mask=x.png"], "is given image, not 'mask'"),
        (depth, None, ["image=x.png", "image=y.png"], "twice"),
        (depth, "x.png", ["image=y.png"], "no further picture"),
        (get_task("text_to_image"), "x.png", [], "no further picture"),
        (get_task("insert"), None, ["canvas=x.png", "canvas=y.png"], "twice"),
    ):
        with pytest.raises(InputError, match=message):
            given_fields(task, image=image, given=given)


def test_given_roles():
    assert given_roles(["source=asset"]) == {"source": "asset"}
    for texts, message in ((["source"], "is not FIELD=ROLE"), (["a=none", "a=asset"], "twice")):
        with pytest.raises(InputError, match=message):
            given_roles(texts)


def test_text_fields():
    assert text_fields(get_task("edit"), prompt="go") == {"instruction": "go"}
    assert text_fields(get_task("depth"), prompt=None) == {}
    with pytest.raises(InputError, match="needs --prompt, its expression"):
        text_fields(get_task("segment"), prompt=None)
    with pytest.raises(InputError, match="reads no text"):
        text_fields(get_task("depth"), prompt="a cube")


def test_output_paths():
    assert str(output_paths("a/b.png", fields=("depth",))["depth"]) == "a/b.png"
    paths = output_paths("a/b.png", fields=("image", "depth"))
    assert {k: str(v) for k, v in paths.items()} == {
        "image": "a/b_image.png",
        "depth": "a/b_depth.png",
    }
    with pytest.raises(InputError, match=r"must end in \.png"):
        output_paths("picture.tiff", fields=("image",))
