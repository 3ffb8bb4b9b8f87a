"""From columns to fields: what cells become, and columns that are not there."""

import ast
import re

import numpy as np
import pytest
from PIL import Image
from raw_data import encode, picture, png, same_sample, value_of

from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.tables import TableSource, cut_halves, flatten


class Rows:
    """A table in memory."""

    def __init__(self, *rows):
        self._rows = rows
        self.columns = tuple(dict.fromkeys(column for row in rows for column in row))

    def __len__(self):
        return len(self._rows)

    def name(self, index):
        return f"rows {index}"

    def row(self, index, columns):
        return {column: self._rows[index].get(column) for column in columns}


def sample(row, index=0, seed=0, **settings):
    source = TableSource(Rows(row), **settings)
    found = source.sample(index, np.random.default_rng(seed))
    assert source.fields == tuple(found)
    return found


def test_cells():
    found = sample({"image": png(7), "caption": " a cat ", "number": 3, "views": [png(1), png(2)]})
    assert value_of(found["image"]) == 7
    assert found["caption"] == "a cat"
    assert found["number"] == "3"
    assert [value_of(view) for view in found["views"]] == [1, 2]


def test_fields_name_their_columns():
    rows = {"input": png(1), "output": png(2), "prompt": "make it red", "other": b"no picture"}
    found = sample(rows, fields={"edited": "output", "source": "input", "instruction": "prompt"})
    assert list(found) == ["edited", "source", "instruction"]
    assert value_of(found["edited"]) == 2
    assert list(sample(rows, fields=("prompt",))) == ["prompt"]


def test_the_first_column_that_a_row_has():
    table = Rows({"jpg": png(1)}, {"png": png(2)}, {"txt": "neither"})
    source = TableSource(table, fields={"image": "jpg;png"})
    rng = np.random.default_rng(0)
    assert [value_of(source.sample(i, rng)["image"]) for i in range(2)] == [1, 2]
    with pytest.raises(SampleError, match="rows 2: jpg;png is missing or empty"):
        source.sample(2, rng)


def test_one_of_several_texts():
    row = {"captions": ["a", "b", "c"]}
    drawn = [sample(row, seed=seed)["captions"] for seed in range(30)]
    assert set(drawn) == {"a", "b", "c"}
    assert drawn == [sample(row, seed=seed)["captions"] for seed in range(30)]


@pytest.mark.parametrize(
    "cell", [None, "", " \n", [], float("nan"), True, {"a": 1}, [{"a": 1}], b"", b"no picture"]
)
def test_cells_that_cannot_be_used(cell):
    with pytest.raises(SampleError, match=r"^rows 0: caption "):
        sample({"caption": cell, "image": png()})


def test_optional_texts():
    for cell in (None, "", []):
        assert sample({"caption": cell}, optional_texts=["caption"]) == {"caption": ""}
    with pytest.raises(SampleError):
        sample({"caption": b"damaged"}, optional_texts=["caption"])
    with pytest.raises(SourceError, match="optional_texts: no field 'text'; there are: caption"):
        TableSource(Rows({"caption": "a"}), optional_texts=["text"])


def test_damaged_pictures_are_named():
    whole = encode(Image.effect_noise((64, 64), 90))
    with pytest.raises(SampleError, match=r"rows 0: views\[1\] is damaged"):
        sample({"views": [whole, whole[: len(whole) // 2]]})


@pytest.mark.parametrize("index", [-1, 1])
def test_no_such_sample(index):
    with pytest.raises(IndexError, match=f"no sample {index}: there are 1"):
        sample({"caption": "a"}, index=index)


@pytest.mark.parametrize(
    ("columns", "fields", "expected"),
    [
        (("jpg", "txt"), ["image", "caption"], {"image": "jpg", "caption": "txt"}),
        (
            ("edit_prompt", "edited_image", "input_image"),
            ["source", "edited", "instruction"],
            {"source": "input_image", "edited": "edited_image", "instruction": "edit_prompt"},
        ),
        (("image", "capton"), {"image": "image", "caption": "caption"}, {"caption": "capton"}),
        (("image",), {"image": "image", "caption": "caption"}, {"image": "image"}),
    ],
)
def test_missing_columns(columns, fields, expected):
    table = Rows(dict.fromkeys(columns, "text"))
    with pytest.raises(SourceError) as caught:
        TableSource(table, fields=fields)
    message = str(caught.value)
    assert f"columns are: {', '.join(columns)}" in message
    proposed = ast.literal_eval(re.search(r"fields=(\{.*\})", message).group(1))
    assert expected.items() <= proposed.items()
    TableSource(table, fields=proposed)  # works


def test_halves():
    both = Image.new("RGB", (2 * 20 + 3 * 4, 10 + 2 * 4), "white")
    both.paste(picture(1, size=(20, 10)), (4, 4))
    both.paste(picture(2, size=(20, 10)), (28, 4))
    settings = {"halves": {"pair": ("edited", "source")}, "border": 4}
    found = sample({"pair": encode(both), "item": "a cup"}, **settings)
    assert list(found) == ["edited", "source", "item"]
    for field, value in (("edited", 1), ("source", 2)):
        assert found[field].size == (20, 10)
        assert (np.asarray(found[field]) == value).all()
    with pytest.raises(SampleError, match="rows 0: pair is 24x16 pixels: no two halves"):
        sample({"pair": png()}, halves={"pair": ("a", "b")}, border=5)
    with pytest.raises(SampleError, match="is no picture of two halves"):
        sample({"pair": "text"}, halves={"pair": ("a", "b")})
    with pytest.raises(SourceError, match="halves: no field 'both'"):
        sample({"pair": png()}, halves={"both": ("a", "b")})
    with pytest.raises(SourceError, match="filled twice"):
        sample({"pair": png(), "a": "text"}, halves={"pair": ("a", "b")})


@pytest.mark.parametrize("border", [0, 1, 7])
def test_halves_have_all_pixels(border):
    picture = Image.effect_noise((40 + 3 * border, 20 + 2 * border), 50).convert("RGB")
    left, right = cut_halves(picture, border=border)
    assert left.size == right.size == (20, 20)
    whole = np.asarray(picture)
    inner = whole[border : border + 20]
    np.testing.assert_array_equal(left, inner[:, border : border + 20])
    np.testing.assert_array_equal(right, inner[:, 2 * border + 20 : 2 * border + 40])


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [2],
        "e": None,
    }


def test_same_sample_tells_samples_apart():
    first = {"image": picture(1), "caption": "a"}
    assert same_sample(first, dict(first))
    assert not same_sample(first, first | {"image": picture(2)})
