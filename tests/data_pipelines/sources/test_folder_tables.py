"""Folders as tables: three layouts, and what people get wrong in them."""

import json
import pickle

import numpy as np
import pytest
from raw_data import png, value_of

from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.folders import open_folder
from data_pipelines.sources.tables import TableSource


def write(folder, **contents):
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder)


def lines(*records):
    return "\n".join(map(json.dumps, records)) + "\n"


def sample(folder, index=0, **settings):
    source = TableSource(open_folder(folder), **settings)
    return source.sample(index, np.random.default_rng(0))


def test_metadata_lines(tmp_path):
    rows = (
        {"file_name": "a/1.png", "caption": "one \u2028 two", "edited_file_name": "2.png"},
        {"file_name": "2.png", "caption": "two", "views_file_names": ["2.png", "a/1.png"]},
    )
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    folder = write(tmp_path, **{"metadata.jsonl": text, "a/1.png": png(1), "2.png": png(2)})
    table = open_folder(folder)
    assert table.columns == ("image", "caption", "edited", "views") and len(table) == 2
    fields = ("image", "caption")
    found = sample(folder, fields=(*fields, "edited"))
    assert (value_of(found["image"]), value_of(found["edited"])) == (1, 2)
    assert found["caption"] == "one \u2028 two"
    found = sample(folder, 1, fields=(*fields, "views"))
    assert [value_of(view) for view in found["views"]] == [2, 1]
    with pytest.raises(SampleError, match=r"metadata.jsonl row 1: edited is missing"):
        sample(folder, 1, fields=("edited",))
    again = pickle.loads(pickle.dumps(table))
    assert again.row(1, ("caption",)) == {"caption": "two"}


def test_metadata_commas(tmp_path):
    text = '\ufefffile_name,caption\r\n1.png,"a cat, a ""dog""\r\nand more"\r\n2.png,\r\n\r\n'
    folder = write(tmp_path, **{"metadata.csv": text, "1.png": png(1), "2.png": png(2)})
    assert len(open_folder(folder)) == 2
    found = sample(folder)
    assert value_of(found["image"]) == 1
    assert found["caption"] == 'a cat, a "dog"\r\nand more'
    assert sample(folder, 1, optional_texts=("caption",))["caption"] == ""
    with pytest.raises(SampleError, match="row 1: caption is missing or empty"):
        sample(folder, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file_name": "../secret.png"}, "row 0: .*'../secret.png' leaves the folder"),
        ({"file_name": "/etc/passwd"}, "leaves the folder"),
        ({"file_names": ["1.png", "../secret.png"]}, "leaves the folder"),
        ({"file_name": "none.png"}, "none.png cannot be read"),
        ({"file_name": "."}, "is not the name of a file"),
        ({"file_name": 5}, "is not the name of a file"),
        ({"file_name": "text.png"}, "row 0: image is no PNG"),
    ],
)
def test_metadata_names_what_is_wrong(tmp_path, row, message):
    (tmp_path / "secret.png").write_bytes(png())
    folder = write(
        tmp_path / "set", **{"metadata.jsonl": lines(row), "1.png": png(), "text.png": "x"}
    )
    with pytest.raises(SampleError, match=message):
        sample(folder)


def test_metadata_rows_that_are_damaged(tmp_path):
    good = json.dumps({"file_name": "1.png"})
    many = "\n".join([good] * 150) + "\nnot json\n"
    folder = write(tmp_path / "a", **{"metadata.jsonl": many, "1.png": png()})
    assert value_of(sample(folder, 149)["image"]) == 100
    with pytest.raises(SampleError, match="row 150 is not JSON"):
        sample(folder, 150)
    for text, message in (("not json", "row 0 is not JSON"), ("", "has no rows")):
        with pytest.raises(SourceError, match=message):
            open_folder(write(tmp_path / "b", **{"metadata.jsonl": text}))
    wide = write(tmp_path / "c", **{"metadata.csv": "file_name\n1.png,more\n"})
    with pytest.raises(SourceError, match="2 cells, the head has 1"):
        open_folder(wide)
    with pytest.raises(SourceError, match="not UTF-8"):
        open_folder(write(tmp_path / "d", **{"metadata.csv": b"\xff\xff"}))


def test_subfolders(tmp_path):
    folder = write(
        tmp_path,
        **{
            "source/0001.png": png(1),
            "edited/0001.JPG": png(2),
            "instruction/0001.txt": "make it red\n",
            "source/0002.png": png(3),
            "instruction/0002.txt": "",
            "instruction/readme.md": "passed over",
            "unused/readme.md": "",
        },
    )
    table = open_folder(folder)
    assert set(table.columns) == {"source", "edited", "instruction"} and len(table) == 2
    found = sample(folder)
    assert (value_of(found["source"]), value_of(found["edited"])) == (1, 2)
    assert found["instruction"] == "make it red"
    with pytest.raises(SampleError, match="0002: edited is missing"):
        sample(folder, 1)
    write(tmp_path, **{"source/0001.webp": png()})
    with pytest.raises(SourceError, match=r"has both 0001.png and 0001.webp"):
        open_folder(folder)


def test_side_files(tmp_path):
    folder = write(
        tmp_path,
        **{
            "b.jpg": png(2),
            "a.png": png(1),
            "a.txt": "a cat",
            "b.json": json.dumps({"caption": "a dog", "scores": {"beauty": 5}}),
            "alone.txt": "no picture",
        },
    )
    assert open_folder(folder).columns == ("image", "caption", "scores.beauty")
    assert sample(folder, fields=("caption",)) == {"caption": "a cat"}
    found = sample(folder, 1)
    assert found["caption"] == "a dog" and found["scores.beauty"] == "5"
    assert value_of(found["image"]) == 2
    with pytest.raises(SampleError, match=r"a.png: scores.beauty is missing"):
        sample(folder)


def test_folders_without_a_layout(tmp_path):
    with pytest.raises(SourceError, match="no such folder"):
        open_folder(str(tmp_path / "none"))
    with pytest.raises(SourceError, match="no metadata file, no pictures and no subfolders"):
        open_folder(str(tmp_path))
    write(tmp_path, **{"1.png": png(), "source/1.png": png(3)})
    assert open_folder(str(tmp_path)).columns == ("image",)
    assert open_folder(str(tmp_path), layout="subfolders").columns == ("source",)
    with pytest.raises(SourceError, match=r"has no metadata.jsonl"):
        open_folder(str(tmp_path), layout="metadata")
    with pytest.raises(SourceError, match="layout is one of metadata, subfolders, side_files"):
        open_folder(str(tmp_path), layout="flat")


def test_opening_reads_no_picture(tmp_path):
    for i in range(500):
        (tmp_path / f"{i}.png").touch()
    assert len(open_folder(str(tmp_path))) == 500
