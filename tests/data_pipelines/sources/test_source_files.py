"""Files by pattern, and names from data that must not leave their folder."""

import os
import pathlib

import pytest
from etils import epath
from etils.epath import testing
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.sources import files
from data_pipelines.sources.base import SampleError, SourceError


@pytest.fixture
def shards(tmp_path):
    for i in (1, 0, 2, 10):
        (tmp_path / f"s-{i:02}.tar").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "set[1].zip").touch()
    (tmp_path / ".hidden.tar").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("", ["s-00.tar", "s-01.tar", "s-02.tar", "s-10.tar"]),
        ("/s-0*.tar", ["s-00.tar", "s-01.tar", "s-02.tar"]),
        ("/s-{00..02}.tar", ["s-00.tar", "s-01.tar", "s-02.tar"]),
        ("/s-{1..2}.tar", None),
        ("/s-01.tar", ["s-01.tar"]),
        ("/set[1].zip", ["set[1].zip"]),
        ("/s-[12]?.tar", ["s-10.tar"]),
    ],
)
def test_patterns(shards, pattern, expected, monkeypatch):
    monkeypatch.chdir(shards.parent)
    for start in (str(shards), shards.name):
        if expected is None:
            with pytest.raises(SourceError, match=r"2 files are missing, first .*s-1.tar"):
                files.find_files(start + pattern, suffix=".tar")
        else:
            found = files.find_files(start + pattern, suffix=".tar")
            assert [path.name for path in found] == expected
            assert all(path.exists() for path in found)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("none-*.tar", "no .tar file matches"),
        ("**/*.tar", "Recursive"),
        ("s-{00..03}.tar", "1 files are missing, first .*s-03.tar"),
        ("s-{00..01}*.tar", "one range and no"),
    ],
)
def test_patterns_without_files(shards, pattern, message):
    with pytest.raises(SourceError, match=message):
        files.find_files(f"{shards}/{pattern}", suffix=".tar")


def test_buckets(shards):
    def local(function):
        def call(original, path, *rest):
            return function(original, str(path).replace("gs://bucket", str(shards)), *rest)

        return call

    def there(original, path):
        return [p.replace(str(shards), "gs://bucket") for p in original(path)]

    plain = local(lambda original, path, *rest: original(path, *rest))
    with testing.mock_epath(
        open=plain, isdir=plain, exists=plain, listdir=plain, glob=local(there)
    ):
        for pattern in ("gs://bucket", "gs://bucket/s-*.tar", "gs://bucket/s-{00..02}.tar"):
            found = files.find_files(pattern, suffix=".tar")
            assert str(found[0]) == "gs://bucket/s-00.tar"
            assert files.read_bytes(found[0]) == b""


def test_folders_of_folders(tmp_path):
    for name in ("a", "b [x]/c", "d"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "transforms.json").touch()
    (tmp_path / "empty").mkdir()

    def found(pattern):
        folders = files.find_folders(f"{tmp_path}{pattern}", holding="transforms.json")
        return [str(folder.relative_to(tmp_path)) for folder in folders]

    assert found("") == found("/*") == found("/") == ["a", "d"]
    assert found("/a") == found("/a/") == ["a"]
    assert found("/b [x]") == ["b [x]/c"]
    for pattern in ("/empty", "/none", "/e*"):
        with pytest.raises(SourceError, match=r"no folder with a transforms.json matches"):
            found(pattern)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.png",
        "a/../../secret.png",
        "a/..",
        "/etc/passwd",
        "gs://bucket/x.png",
        "file:///etc/passwd",
        "C:/windows/x.png",
        "..\\secret.png",
        "a\0b",
    ],
)
def test_names_that_leave_their_folder(tmp_path, name):
    with pytest.raises(SampleError, match="leaves the folder"):
        files.inside(epath.Path(tmp_path), name)


@pytest.mark.parametrize("name", [None, "", ".", "./", 3, ["a.png"], {}])
def test_names_that_are_none(tmp_path, name):
    with pytest.raises(SampleError, match="is not the name of a file"):
        files.inside(epath.Path(tmp_path), name)


@given(st.text(alphabet="./\\ab:~ \0", max_size=12))
def test_no_name_leaves_its_folder(name):
    folder = pathlib.Path("/data/set")
    try:
        path = files.inside(epath.Path(folder), name)
    except SampleError:
        return
    inner = os.path.normpath(str(path))
    assert inner.startswith("/data/set/") and "\0" not in inner


def test_texts_and_json(tmp_path):
    path = epath.Path(tmp_path / "a.txt")
    path.write_text("\ufeff  a cat\n")
    assert files.read_text(path) == "a cat"
    with pytest.raises(SampleError, match=r"b.txt cannot be read"):
        files.read_text(path.parent / "b.txt")
    for data, message in (
        (b"[1]", "x holds a list, not a JSON object"),
        (b"{", "x is not JSON"),
        (b"\xff\xfe{", "x is not JSON"),
        (b'{"a":' * 100_000, "x nests JSON deeper than 64"),
    ):
        with pytest.raises(SampleError, match=message):
            files.decode_json(data, name="x")
    with pytest.raises(SampleError, match="x is not UTF-8"):
        files.decode_text(b"\xff", name="x")
