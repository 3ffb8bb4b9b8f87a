"""Prompts in three parts: tags, base prompt and roles come from the task unless they are given."""

import numpy as np
import pytest

from data_pipelines.build import make_tokenizer
from unidiff_jax.config import load_config
from unidiff_jax.frames import FRAME_COLUMNS
from unidiff_jax.mesh import make_mesh
from unidiff_jax.sample.images import InputError
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.tasks import get_task
from unidiff_jax.text import MAX_NAMES
from unidiff_jax.train.workdir import model_parts
from unidiff_jax.types import Role

PICTURE = np.zeros((32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def config(miniworld):
    def config(arm="all"):
        data = f"data.folder={miniworld}"
        return load_config(f"configs/miniworld_unireal.py:tiny,arm={arm}", overrides=[data])

    return config


@pytest.fixture(scope="module")
def tokenizer(config, tmp_path_factory):
    return make_tokenizer(config(), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def made(config, tokenizer):
    """The example that a call of the pipeline would sample; nothing is computed."""

    def make(task, *, arm="all", sample_tags=(), **call):
        settings = config(arm).unlock()
        settings.sample.tags = sample_tags
        pipe = Pipeline(
            settings,
            model=model_parts(settings),
            params={},
            tokenizer=tokenizer,
            mesh=make_mesh(settings.mesh.axes),
        )
        seen = []

        def generate(examples, **settings):
            seen.extend(examples)
            ((spec, _),) = examples
            return [[{field: np.zeros((32, 32, 3)) for field in spec.generate}]]

        pipe.generate = generate
        pipe(task, **call)
        ((_, example),) = seen
        return example

    return make


@pytest.fixture(scope="module")
def says(tokenizer):
    return lambda example, text: list(example["text_ids"]) == tokenizer.encode_named(text).ids


def roles(example):
    return [Role(role) for role in example["frame_table"][:, 1]]


def test_the_task_fills_what_is_not_given(made, says):
    example = made("edit", source=PICTURE, instruction="make the red cube blue")
    assert says(example, "static scenario: make the red cube blue in IMG1")
    assert roles(example) == [Role.NONE, Role.CANVAS]
    assert sorted(set(example["text_name"].tolist())) == [0, 1]
    example = made("depth", image=PICTURE, sample_tags=("synthetic style",))
    assert says(example, "perception task, synthetic style: the depth map of IMG1")


def test_every_part_can_be_given(made, says):
    words = {"source": PICTURE, "instruction": "make the red cube blue"}
    example = made("edit", **words, tags=["dynamic scenario"], roles={"source": "asset"})
    assert says(example, "dynamic scenario: make the red cube blue in IMG1")
    assert roles(example) == [Role.NONE, Role.ASSET]
    example = made("edit", source=PICTURE, base_prompt="the cube of IMG1 in RES1", tags=())
    assert says(example, "the cube of IMG1 in RES1")
    example = made("edit", source=PICTURE, base_prompt="the cube of IMG1 in RES1")
    assert says(example, "static scenario: the cube of IMG1 in RES1")
    example = made("edit", source=PICTURE, prompt="a red cube")
    assert says(example, "a red cube")


def test_a_repeated_frame_takes_any_number_of_pictures(made, says):
    words = "the cube of IMG1 and the sphere of IMG2"
    example = made("customize", assets=[PICTURE, PICTURE], base_prompt=words)
    assert says(example, f"with reference object: {words}")
    assert roles(example) == [Role.NONE, Role.ASSET, Role.ASSET]
    assert list(example["frame_table"][:, 2]) == [MAX_NAMES + 1, 1, 2]
    example = made("insert", canvas=PICTURE, assets=PICTURE, references="the cube of IMG2")
    assert roles(example) == [Role.NONE, Role.CANVAS, Role.ASSET]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompt": "a cube", "tags": ()}, "give these alone"),
        ({"base_prompt": " "}, "the prompt is empty"),
        ({"base_prompt": "a", "roles": {"edited": "asset"}}, "is given source, not 'edited'"),
        ({"base_prompt": "a", "roles": {"source": "main"}}, "one of none, canvas, asset, control"),
        ({"base_prompt": "a", "arm": "no_roles", "roles": {"source": "asset"}}, "without roles"),
        ({"instruction": "a", "arm": "no_tags", "tags": ()}, "style 'base' have no tags"),
        ({"base_prompt": "a", "source": [PICTURE]}, "takes one source"),
    ],
)
def test_parts_that_cannot_be(made, call, message):
    with pytest.raises(InputError, match=message):
        made("edit", **{"source": PICTURE} | call)


def test_of_frames_without_end_those_are_made_that_are_none(made, says):
    example = made("identity", views=[None, PICTURE, PICTURE], captions="a cube, a red cube")
    table = example["frame_table"]
    assert table[:, FRAME_COLUMNS.index("given")].tolist() == [0, 1, 1]
    names = FRAME_COLUMNS.index("name")
    assert table[:, names].tolist() == [MAX_NAMES + 1, 1, 2]
    last = made("identity", views=[PICTURE, None], captions="a cube")["frame_table"]
    assert last[:, FRAME_COLUMNS.index("given")].tolist() == [1, 0]
    assert last[:, names].tolist() == [MAX_NAMES + 1, 1]  # as in training
    with pytest.raises(InputError, match=r"makes any number of frames: give None for each"):
        made("identity", views=[PICTURE], captions="a cube")


def test_the_rounds_of_a_task():
    task = get_task("multiview").unrolled([False, False, True, False])
    assert [frame.field for frame in task.frames] == [
        "views.0", "cameras.0", "views.1", "cameras.1",
    ]  # fmt: skip
    assert task.generate == ("views.1",) and task.given == ("views.0", "cameras.0", "cameras.1")
    edit = get_task("customize").unrolled([True, False, False])
    assert [frame.field for frame in edit.frames] == ["later", "assets.0", "assets.1"]
    assert get_task("multiview").makes_rounds and not get_task("customize").makes_rounds
