"""The config layer: typed overrides, the arg parser, checks, hashes and the wording of errors."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_dict

from unidiff_jax.config import (
    ABSENT,
    Check,
    ConfigError,
    Difference,
    config_error,
    config_hash,
    differences,
    flatten,
    load_config,
    parse_arg,
    to_dict,
    to_json,
    validate,
)

RECIPE = """
from ml_collections import ConfigDict, config_dict
from unidiff_jax.config import parse_arg

def get_config(arg=None):
    arg = parse_arg(arg, tiny=False, steps=1000)
    config = ConfigDict()
    config.name = "recipe"
    config.train = ConfigDict(dict(num_steps=10 if arg.tiny else arg.steps, rate=1e-3, ema=True))
    config.mesh = ConfigDict(dict(shape=(1, 8), axes=("data", "fsdp"), scales=(0.5, 1.0), empty=()))
    config.seed = config_dict.placeholder(int)
    config.note = None
    config.softcap = 30.0
    config.hook = print
    config.width = config_dict.FieldReference(64)
    config.hidden = config.get_ref("width") * 4
    return config
"""


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    (tmp_path / "recipe.py").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return "recipe.py"


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.num_steps=100", "train.num_steps", 100),
        ("train.num_steps=1e6", "train.num_steps", 1_000_000),
        ("train.num_steps=1_000", "train.num_steps", 1000),
        ("train.num_steps=9007199254740993", "train.num_steps", 9007199254740993),
        ("train.rate=1", "train.rate", 1.0),
        ("train.rate=3e-4", "train.rate", 3e-4),
        ("train.ema=false", "train.ema", False),
        ("train.ema=True", "train.ema", True),
        ("name=12", "name", "12"),
        ("name=a=b", "name", "a=b"),
        ("name='None'", "name", "None"),
        ('name=""', "name", ""),
        ("mesh.shape=2,4", "mesh.shape", (2, 4)),
        ("mesh.shape=(2, 4, 1)", "mesh.shape", (2, 4, 1)),
        ("mesh.shape=[2,4]", "mesh.shape", (2, 4)),
        ("mesh.shape=8", "mesh.shape", (8,)),
        ("mesh.shape=()", "mesh.shape", ()),
        ("mesh.axes=fsdp,tensor", "mesh.axes", ("fsdp", "tensor")),
        ("mesh.axes=('fsdp', 'tensor')", "mesh.axes", ("fsdp", "tensor")),
        ("mesh.scales=1,2", "mesh.scales", (1.0, 2.0)),
        ("mesh.empty=1,a", "mesh.empty", ("1", "a")),
        ("seed=7", "seed", 7),
        ("note=text", "note", "text"),
        ("note=1.5", "note", 1.5),
        ("softcap=None", "softcap", None),
    ],
)
def test_override_takes_the_type_of_the_value_it_replaces(recipe, override, key, value):
    config = load_config(recipe, overrides=[override])
    got = config
    for part in key.split("."):
        got = got[part]
    assert got == value and type(got) is type(value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.num_step=5",
            "config.train.num_step: no such key, the nearest is train.num_steps; "
            "for example train.num_steps=1000",
        ),
        (
            "num_steps=5",
            "config.num_steps: no such key, the nearest is train.num_steps; "
            "for example train.num_steps=1000",
        ),
        (
            "train.num_steps=1.5",
            "config.train.num_steps: takes a whole number, got '1.5'; "
            "for example train.num_steps=1000",
        ),
        (
            "train.num_steps=",
            "config.train.num_steps: takes a whole number, got ''; "
            "for example train.num_steps=1000",
        ),
        (
            "train.num_steps",
            "config.train.num_steps: no value given; for example train.num_steps=1000",
        ),
        (
            "train.rate=fast",
            "config.train.rate: takes a number, got 'fast'; for example train.rate=0.001",
        ),
        (
            "train.ema=None",
            "config.train.ema: takes true or false, got 'None'; for example train.ema=true",
        ),
        ("seed=x", "config.seed: takes a whole number, got 'x'; for example seed=1"),
        (
            "mesh.shape=1,a",
            "config.mesh.shape: takes a tuple like (1,8), got '1,a'; for example mesh.shape=(1,8)",
        ),
        (
            "train=5",
            "config.train: is a group of keys, not a value; for example train.ema=true",
        ),
    ],
)
def test_wrong_override_is_one_line_with_a_value_that_works(recipe, override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, overrides=[override])
    assert str(caught.value) == message
    load_config(recipe, overrides=[message.partition("for example ")[2]])


def test_functions_cannot_be_overridden(recipe):
    with pytest.raises(ConfigError, match=r"config\.hook: takes a builtin"):
        load_config(recipe, overrides=["hook=len"])


def test_arg_last_override_and_references(recipe):
    assert load_config(f"{recipe}:tiny").train.num_steps == 10
    config = load_config(f"{recipe}:steps=7", overrides=["width=8", "width=16"])
    assert (config.train.num_steps, config.width, config.hidden) == (7, 16, 64)
    with pytest.raises(AttributeError):
        config.train.num_stepz = 1


def test_load_config_names_what_is_wrong_with_the_file(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"no file recipy.py; for example --config=.*recipe\.py"):
        load_config("recipy.py:tiny")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ConfigError, match="no function get_config"):
        load_config("empty.py")
    (tmp_path / "bare.py").write_text("def get_config():\n    return 3\n")
    with pytest.raises(ConfigError, match=r"takes no argument; for example --config=bare\.py"):
        load_config("bare.py:tiny")
    with pytest.raises(ConfigError, match="must return a ConfigDict, got 3"):
        load_config("bare.py")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_config("broken.py")


def test_parse_arg():
    spec = dict(tiny=False, steps=0, mesh="", shape=(1, 2), rate=0.1)
    assert parse_arg(None, **spec).to_dict() == parse_arg("", **spec).to_dict() == spec
    arg = parse_arg("tiny, steps=100,mesh=fsdp8,shape=(4,2),rate=2", **spec)
    assert (arg.tiny, arg.steps, arg.mesh, arg.shape, arg.rate) == (True, 100, "fsdp8", (4, 2), 2.0)
    assert parse_arg("tiny=false", tiny=True).tiny is False


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        ("tiney", "config.tiney: no such key, the nearest is tiny; for example tiny=false"),
        ("steps", "config.steps: no value given; for example steps=0"),
        ("steps=x", "config.steps: takes a whole number, got 'x'; for example steps=0"),
        ("mesj=a", "config.mesj: no such key, the nearest is mesh; for example mesh=''"),
    ],
)
def test_parse_arg_errors(arg, message):
    with pytest.raises(ConfigError) as caught:
        parse_arg(arg, tiny=False, steps=0, mesh="")
    assert str(caught.value) == message
    parse_arg(message.partition("for example ")[2], tiny=False, steps=0, mesh="")


def test_parse_arg_of_a_file_without_arguments():
    with pytest.raises(ConfigError, match=r"config\.tiny: no such key; none can be set here"):
        parse_arg("tiny")


_CHECKS = [
    Check("train.num_steps", lambda n: n > 0, "must be positive", 100),
    Check(("width", "heads"), lambda w, h: w % h == 0, "must be a multiple of heads", 64),
]


def test_validate_reports_all_failures_together():
    good = ConfigDict({"train": {"num_steps": 1}, "width": 64, "heads": 4})
    validate(good, _CHECKS)
    bad = ConfigDict({"train": {"num_steps": 0}, "width": 65, "heads": 4})
    with pytest.raises(ConfigError) as caught:
        validate(bad, _CHECKS * 2)
    assert str(caught.value).splitlines() == [
        "config.train.num_steps: is 0, must be positive; for example train.num_steps=100",
        "config.width: is 65 with heads=4, must be a multiple of heads; for example width=64",
    ]


def test_validate_names_missing_keys_and_takes_none_for_a_failure():
    config = ConfigDict({"train": {"num_steps": config_dict.placeholder(int)}, "width": 64})
    with pytest.raises(ConfigError) as caught:
        validate(config, _CHECKS)
    assert str(caught.value).splitlines() == [
        "config.train.num_steps: is None, must be positive; for example train.num_steps=100",
        "config.heads: is missing",
    ]


def test_plain_values():
    config = ConfigDict({"a": {"t": (1, (2.5, "x"))}, "n": np.float64(0.5), "i": np.int32(3)})
    assert to_dict(config) == {"a": {"t": [1, [2.5, "x"]]}, "n": 0.5, "i": 3}
    assert flatten(config) == {"a.t": [1, [2.5, "x"]], "i": 3, "n": 0.5}
    assert list(flatten(config)) == ["a.t", "i", "n"]
    with pytest.raises(ConfigError, match=r"config\.a\.f: is a type, but must be"):
        to_json(ConfigDict({"a": {"f": int}}))


_PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abc", min_size=1), _PLAIN, max_size=4))
def test_json_round_trip_keeps_the_hash_and_differs_nowhere(tree):
    back = json.loads(to_json(tree))
    assert config_hash(back) == config_hash(tree)
    assert config_hash(dict(reversed(tree.items()))) == config_hash(tree)
    assert differences(tree, back) == {}


@given(st.integers() | st.floats(allow_nan=False) | st.booleans() | st.text())
def test_the_example_of_an_error_reads_back(value):
    if isinstance(value, str) and (value != value.strip() or not value.isprintable()):
        return  # a terminal does not pass these on either
    if isinstance(value, str) and (set(value) & set("'\"\\,=()[]") or value == "None"):
        return  # quoted in the message for the shell's sake
    example = str(config_error("key", "is wrong", value)).partition("for example ")[2]
    assert parse_arg(example, key=value).key == value


def test_hash_is_the_same_in_another_process():
    config = {"b": 0.1 + 0.2, "a": (1, 1e-300), "c": None}
    code = f"from unidiff_jax.config import config_hash; print(config_hash({config!r}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == config_hash(config)
    # Pinned: a change here means that workdirs made before will look like another config's.
    assert config_hash({"a": 1, "b": [0.1]}).startswith("551d2109")


def test_differences():
    left = ConfigDict({"a": {"b": 1, "c": (1, 2)}, "only": True, "nan": float("nan"), "one": 1})
    right = {"a": {"b": 2, "c": [1, 2]}, "new": "x", "nan": float("nan"), "one": True}
    assert differences(left, right) == {
        "a.b": Difference(1, 2),
        "new": Difference(ABSENT, "x"),
        "one": Difference(1, True),
        "only": Difference(True, ABSENT),
    }


def test_config_needs_no_jax():
    code = "import sys, unidiff_jax.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
