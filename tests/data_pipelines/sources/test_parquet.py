"""Parquet files: cells of every kind, row groups, and files that are damaged."""

import concurrent.futures
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from raw_data import png, value_of

from data_pipelines.sources import parquet
from data_pipelines.sources.base import SampleError, SourceError
from data_pipelines.sources.parquet import ParquetTable
from data_pipelines.sources.tables import TableSource


def write(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return str(path)


def hugging_face(value):
    return {"bytes": png(value), "path": f"{value}.png"}


@pytest.fixture
def folder(tmp_path):
    """Three files of 10 rows in row groups of 4, 4 and 2."""
    for file in range(3):
        rows = [
            {
                "image": hugging_face(10 * file + i),
                "plain": png(100 + i),
                "views": [hugging_face(i), hugging_face(i + 1)],
                "caption": f"caption {10 * file + i}",
                "texts": ["a", "b"],
                "score": 0.5,
                "description": {"item": "a cup", "valid": True},
            }
            for i in range(10)
        ]
        write(tmp_path / f"train-{file}.parquet", rows, row_group_size=4)
    return str(tmp_path)


def rng():
    return np.random.default_rng(0)


def test_cells(folder):
    table = ParquetTable(folder)
    assert len(table) == 30
    assert set(table.columns) == {
        *("image", "plain", "views", "caption", "texts", "score"),
        *("description.item", "description.valid"),
    }
    fields = [column for column in table.columns if column != "description.valid"]
    source = TableSource(table, fields=fields)
    for index in (29, 0, 14, 13, 7):
        found = source.sample(index, rng())
        assert value_of(found["image"]) == index
        assert value_of(found["plain"]) == 100 + index % 10
        assert [value_of(view) for view in found["views"]] == [index % 10, index % 10 + 1]
        assert found["caption"] == f"caption {index}"
        assert found["texts"] in "ab" and found["score"] == "0.5"
        assert found["description.item"] == "a cup"


def test_only_what_is_asked_for_is_read(folder):
    table = ParquetTable(folder)
    assert table.row(3, ("description.item",)) == {"description.item": "a cup"}
    (kept,) = table._kept.values()
    assert kept[2].nbytes < 1000


def test_row_groups_are_kept(folder, monkeypatch):
    table = ParquetTable(folder, num_kept=2)
    loads = []
    load = table._load
    monkeypatch.setattr(table, "_load", lambda *place: loads.append(place[:2]) or load(*place))
    order = [0, 3, 1, 4, 0, 10, 5, 0, 20, 10, 0]
    for index in order:
        table.row(index, ("caption",))
    assert loads == [(0, 0), (0, 1), (0, 0), (1, 0), (0, 1), (0, 0), (2, 0), (1, 0), (0, 0)]
    assert len(table._kept) == 2


def test_threads_and_processes(folder):
    table = pickle.loads(pickle.dumps(ParquetTable(folder, num_kept=1)))
    order = np.random.default_rng(0).integers(30, size=60).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda index: table.row(index, ("caption",)), order))
    assert [row["caption"] for row in rows] == [f"caption {index}" for index in order]


def test_pictures_that_lie_elsewhere(tmp_path):
    path = write(tmp_path / "a.parquet", [{"image": {"bytes": None, "path": "/etc/passwd"}}])
    with pytest.raises(SampleError, match="image names a file, '/etc/passwd', and does not hold"):
        TableSource(ParquetTable(path)).sample(0, rng())


def test_empty_cells(tmp_path):
    rows = [{"caption": "a", "part": {"x": "b"}}, {"caption": None, "part": None}]
    source = TableSource(ParquetTable(write(tmp_path / "a.parquet", rows)))
    assert source.sample(0, rng()) == {"caption": "a", "part.x": "b"}
    with pytest.raises(SampleError, match="row 1 of row group 0: caption is missing"):
        source.sample(1, rng())


def test_only_common_columns(tmp_path):
    write(tmp_path / "a.parquet", [{"caption": "a", "more": "b"}])
    write(tmp_path / "b.parquet", [{"caption": "a"}])
    table = ParquetTable(str(tmp_path))
    assert table.columns == ("caption",)
    with pytest.raises(SourceError, match=r"no column 'more'.*columns are: caption"):
        TableSource(table, fields=("more",))
    write(tmp_path / "b.parquet", [{"other": "a"}])
    with pytest.raises(SourceError, match="no column in common"):
        ParquetTable(str(tmp_path))


def test_files_that_are_damaged(folder, tmp_path):
    path = tmp_path / "train-1.parquet"
    whole = path.read_bytes()
    for data in (b"", b"PAR1", whole[:-20], whole[: len(whole) // 2], b"x" * 100):
        path.write_bytes(data)
        with pytest.raises(SourceError, match=r"train-1.parquet is no parquet file or is damaged"):
            ParquetTable(folder)
    path.write_bytes(b"PAR1" + b"\xff" * (len(whole) // 4) + whole[4 + len(whole) // 4 :])
    table = ParquetTable(folder)  # the footer is whole
    with pytest.raises(SampleError, match=r"train-1.parquet row group 0 cannot be read"):
        table.row(10, table.columns)
    assert table.row(0, ("caption",)) == {"caption": "caption 0"}
    path.unlink()
    with pytest.raises(SampleError, match=r"train-1.parquet row group 2 cannot be read"):
        table.row(19, ("caption",))


def test_a_table_without_rows(tmp_path):
    schema = pa.schema([("caption", pa.string())])
    pq.write_table(pa.table({"caption": []}, schema=schema), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="have no rows"):
        ParquetTable(str(tmp_path))


def test_footers_name_columns():
    field = pa.field("a", pa.struct([("b", pa.struct([("bytes", pa.binary())])), ("c", pa.int8())]))
    assert list(parquet._columns(field, "")) == ["a.b", "a.c"]
