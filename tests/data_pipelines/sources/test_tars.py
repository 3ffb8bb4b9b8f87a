"""WebDataset tars: samples by seeking, and archives that are cut, damaged or hostile."""

import gzip
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from raw_data import png, same_sample, value_of, write_tar

from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.tables import TableSource
from data_pipelines.sources.tars import TarTable


@pytest.fixture
def shards(tmp_path):
    for shard in range(3):
        members = []
        for i in range(4):
            number = 10 * shard + i
            key = f"part.0/{number:04}"
            members += [
                (f"{key}.input.PNG", png(number)),
                (f"{key}.txt", f"caption {number}\n".encode()),
                (f"{key}.json", json.dumps({"n": number, "size": {"w": 24}}).encode()),
                (f"{key}.npy", b"passed over"),
            ]
        write_tar(tmp_path / f"s-{shard}.tar", members)
    return tmp_path


def open_source(pattern, **settings):
    return TableSource(TarTable(str(pattern)), **settings)


def rng():
    return np.random.default_rng(0)


def test_samples_of_all_shards(shards):
    source = open_source(shards / "s-*.tar")
    assert source.fields == ("input.png", "txt", "n", "size.w") and len(source) == 12
    for index in (11, 0, 5, 4, 3):  # any order
        number = 10 * (index // 4) + index % 4
        found = source.sample(index, rng())
        assert value_of(found["input.png"]) == number
        assert found["txt"] == f"caption {number}"
        assert (found["n"], found["size.w"]) == (str(number), "24")
    again = pickle.loads(pickle.dumps(source))
    assert same_sample(again.sample(7, rng()), source.sample(7, rng()))


def test_keys_and_columns(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("./x/1.jpg", png(1)),
            ("./x/1.seg.png", png(2)),
            ("./y/1.jpg", png(3)),
            (".hidden.jpg", png(9)),
            ("no_extension", b""),
            ("./y/2.JPG", png(4)),
        ],
    )
    table = TarTable(str(path))
    assert table.columns == ("jpg", "seg.png") and len(table) == 3
    assert [table.name(i).split()[1] for i in range(3)] == ["./x/1", "./y/1", "./y/2"]
    source = TableSource(table, fields={"image": "jpg"})
    assert [value_of(source.sample(i, rng())["image"]) for i in range(3)] == [1, 3, 4]


def test_long_names_and_links(tmp_path):
    path = tmp_path / "a.tar"
    long = "é" * 300
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../x")):
            link = tarfile.TarInfo("1.jpg")
            link.type, link.linkname = kind, target
            archive.addfile(link)
        info = tarfile.TarInfo(f"../../{long}.txt")
        info.size = 5
        archive.addfile(info, io.BytesIO(b"a cat"))
    table = TarTable(str(path))
    assert table.columns == ("txt",) and len(table) == 1
    assert table.row(0, ("txt",)) == {"txt": "a cat"}


def test_a_row_without_a_column(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("1.jpg", png()), ("1.txt", b"a"), ("2.jpg", png())])
    source = open_source(path, fields={"image": "jpg", "caption": "txt"})
    with pytest.raises(SampleError, match=r"a.tar 2: txt is missing"):
        source.sample(1, rng())


@pytest.mark.parametrize(
    ("member", "data", "message"),
    [
        ("1.jpg", b"no picture", "a.tar 1: jpg is no PNG"),
        ("1.txt", b"\xff\xfe", "a.tar 1.txt is not UTF-8"),
        ("1.json", b"[1", "is not JSON"),
        ("1.json", b"[1]", "holds a list"),
    ],
)
def test_damaged_members(tmp_path, member, data, message):
    good = [("0.jpg", png()), ("0.txt", b"a"), ("0.json", b'{"n": 1}')]
    rest = [pair for pair in [("1.jpg", png()), ("1.txt", b"a"), ("1.json", b"{}")]]
    members = [(name, data if name == member else content) for name, content in rest]
    source = open_source(write_tar(tmp_path / "a.tar", good + members))
    with pytest.raises(SampleError, match=message):
        source.sample(1, rng())


def test_tars_that_are_cut_short(shards):
    path = shards / "s-1.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        cuts = [members[5].offset, members[5].offset + 100, members[5].offset_data + 3]
        end = members[-1].offset_data + 512
    for cut in (*cuts, 512 * 7, 10, end):
        path.write_bytes(whole[:cut])
        with pytest.raises(SourceError, match=r"s-1.tar is compressed, cut short or damaged"):
            TarTable(str(shards))
    path.write_bytes(whole[: end + 512])  # one block of zeros is an end
    assert len(TarTable(str(shards))) == 12


def test_tars_that_are_none(tmp_path):
    path = tmp_path / "a.tar"
    for data in (b"", b"x" * 2000, gzip.compress(b"x" * 20_000)):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"a.tar is compressed, cut short or damaged"):
            TarTable(str(path))
    write_tar(path, [])
    with pytest.raises(SourceError, match=r"no members KEY.{jpg,"):
        TarTable(str(path))
    write_tar(path, [("1.jpg", png()), ("1.jpg", png())])
    with pytest.raises(SourceError, match=r"two members 1.jpg in a row"):
        TarTable(str(path))
    with pytest.raises(SourceError, match=r"no .tar file matches"):
        TarTable(str(tmp_path / "b.tar"))


def test_a_negative_size_does_not_loop(tmp_path):
    info = tarfile.TarInfo("1.jpg")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + (-1024 & 0xFFFF).to_bytes(2, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    path = tmp_path / "a.tar"
    path.write_bytes(write_tar(path, [("0.jpg", png())]).read_bytes()[:1024] + bytes(header) * 3)
    with pytest.raises(SourceError, match="damaged"):
        TarTable(str(path))


def test_damaged_headers_give_samples_or_one_error(shards):
    path = shards / "s-0.tar"
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        place = 512 * int(random.integers(4)) + int(random.integers(512))
        data[place] = random.integers(256)
        path.write_bytes(data)
        try:
            table = TarTable(str(path))
            table.row(0, table.columns)
        except (SourceError, SampleError):
            pass


def test_a_shard_that_shrinks_after_it_was_opened(shards):
    source = open_source(shards)
    path = shards / "s-2.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(SampleError, match="shorter than when it was opened"):
        source.sample(11, rng())
    path.unlink()
    with pytest.raises(SampleError, match="0023 cannot be read"):
        source.sample(11, rng())
