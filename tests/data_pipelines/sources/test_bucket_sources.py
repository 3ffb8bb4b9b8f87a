"""Raw data in a bucket give the samples that they give on a disk."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import raw_data

from data_pipelines.sources.make import make_source
from unidiff_jax.config import ConfigError
from unidiff_jax.paths import as_path, copy_tree


def write_tars(folder):
    for shard in range(2):
        members = []
        for i in range(3):
            value = 10 * shard + i
            members += [(f"{value:03d}.png", raw_data.png(value)), (f"{value:03d}.txt", b"a text")]
        raw_data.write_tar(folder / f"shard-{shard}.tar", members)
    return {"format": "tar", "path": "*.tar", "fields": {"image": "png", "caption": "txt"}}


def write_parquet(folder):
    table = pa.table({"image": [raw_data.png(i) for i in range(5)], "caption": ["a text"] * 5})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=2)
    (folder / "part.parquet").write_bytes(file.getvalue())
    return {"format": "parquet", "path": "*.parquet"}


def write_folder(folder):
    for i in range(4):
        (folder / f"{i}.png").write_bytes(raw_data.png(i))
        (folder / f"{i}.txt").write_text("a text")
    return {"format": "folder", "path": ""}


def write_subjects(folder):
    for name in ("a_dog", "a_cat"):
        (folder / name).mkdir()
        for i in range(3):
            (folder / name / f"{i}.png").write_bytes(raw_data.png(i))
    return {"format": "subjects", "path": "", "num_views": (2, 3)}


def write_scenes(folder):
    for name in ("one", "two"):
        raw_data.write_scene(folder / name)
    return {"format": "scenes", "path": "*", "num_views": 2}


@pytest.mark.slow
@pytest.mark.parametrize(
    "write", [write_tars, write_parquet, write_folder, write_subjects, write_scenes]
)
def test_equal_to_the_disk(bucket, tmp_path, write):
    settings = write(tmp_path)
    far = f"{bucket}/raw/{write.__name__}"
    copy_tree(tmp_path, as_path(far))
    name = settings.pop("path")
    sources = [
        make_source(settings | {"path": f"{folder}/{name}".rstrip("/")})
        for folder in (tmp_path, far)
    ]
    assert len(sources[0]) == len(sources[1]) > 1
    for index in range(len(sources[0])):
        local, remote = (s.sample(index, np.random.default_rng(index)) for s in sources)
        assert raw_data.same_sample(local, remote)


@pytest.mark.slow
def test_nothing_there(bucket):
    with pytest.raises(ConfigError, match=r"source\.path.*gs://bucket/none"):
        make_source({"format": "tar", "path": f"{bucket}/none/*.tar"})
