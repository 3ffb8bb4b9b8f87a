"""Local paths and buckets behave alike where code relies on it."""

import contextlib
import json
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import (
    FolderError,
    open_tensors,
    read_config,
    weights_digest,
    write_model,
)
from unidiff_jax.paths import (
    as_path,
    bucket_fault,
    copy_tree,
    is_remote,
    local_folder,
    written_whole,
)
from unidiff_jax.train import metrics
from unidiff_jax.train.metrics import MetricWriter, read_metrics


@pytest.fixture
def remote(bucket):
    """A folder of the test's own."""
    return as_path(f"{bucket}/{uuid.uuid4().hex}")


@pytest.fixture(params=["local", "bucket"])
def folder(request, tmp_path):
    return as_path(tmp_path) if request.param == "local" else request.getfixturevalue("remote")


@pytest.mark.parametrize("text", ["gs://bucket/run", "runs/quickstart", "/tmp/run"])
def test_a_path_stays_what_it_was(text):
    path = as_path(text)
    assert str(path / "a") == f"{text}/a" and str(as_path(path)) == text
    assert is_remote(path / "a") == text.startswith("gs://")
    assert str((path / "a.json").with_name("b")) == f"{text}/b"


@pytest.mark.parametrize("text", ["gs:/bucket/run", "s3://bucket/run", "gs://"])
def test_other_addresses_are_refused(text):
    with pytest.raises(ConfigError, match="gs://bucket/folder"):
        as_path(text)


def test_a_missing_client_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"environment\.sh gcs"):
        as_path("gs://bucket/run")


def test_a_file_appears_whole_or_not_at_all(folder):
    path = folder / "new" / "picture.png"
    with contextlib.suppress(RuntimeError), written_whole(path) as file:
        file.write_bytes(b"half")
        raise RuntimeError
    assert not path.exists()
    for content in (b"first", b"second"):
        with written_whole(path) as file:
            assert file.suffix == ".png"  # PIL reads the format from it
            assert not path.exists() or path.read_bytes() != content
            file.write_bytes(content)
        assert path.read_bytes() == content


def test_a_local_folder_replaces_the_buckets(remote):
    for names in (("a/1", "b/2", "index"), ("a/3", "index")):
        with local_folder(remote) as folder:
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(name)
        found = {str(p) for part in remote.iterdir() for p in [part, *_inside(part)]}
        assert {str(remote / name) for name in names} <= found
    assert not (remote / "b").exists() and not (remote / "a/1").exists()
    with contextlib.suppress(RuntimeError), local_folder(remote):
        raise RuntimeError
    assert (remote / "index").read_text() == "index"


def _inside(path):
    return path.iterdir() if path.is_dir() else []


def test_copy_tree_between_places(remote, tmp_path):
    first = tmp_path / "first"
    (first / "vae" / "deep").mkdir(parents=True)
    (first / "vae" / "deep" / "config.json").write_text("{}")
    (first / "model_index.json").write_text("[]")
    copy_tree(first, remote)
    copy_tree(remote, tmp_path / "second")
    copy_tree(tmp_path / "second", remote / "third")
    assert (tmp_path / "second/vae/deep/config.json").read_text() == "{}"
    assert (remote / "third/model_index.json").read_text() == "[]"


def test_what_a_bucket_answers_reads_as_one_line(remote):
    with pytest.raises(FileNotFoundError) as caught:
        (remote / "no thing").read_text()
    assert bucket_fault(caught.value) == f"no such bucket or object: {remote}/no thing"
    with pytest.raises(FileNotFoundError) as caught:
        as_path("gs://missing-bucket/run/config.json").write_text("{}")
    message = "no such bucket or object: gs://missing-bucket/run/config.json"
    assert bucket_fault(caught.value) == message
    refused = bucket_fault(OSError("Forbidden: b/bucket/o/x\nno permission"))
    assert refused is not None and "gcloud auth" in refused and "\n" not in refused
    assert bucket_fault(FileNotFoundError(2, "No such file", "x")) is None
    assert bucket_fault(ValueError("b/bucket/o/x")) is None


# -------------------------------------------------------------------------------------- the log


def test_the_log_in_a_bucket_is_the_local_one(remote, tmp_path):
    def run(workdir, first_step, steps):
        writer = MetricWriter(workdir, first_step=first_step)
        for step in steps:
            writer.scalars(step, {"loss": step / 2})
            if step == 10:
                writer.flush()  # as at a checkpoint
        return writer

    for workdir in (tmp_path, remote):
        run(workdir, 0, (5, 10, 15))  # killed: 15 may be lost
        run(workdir, 10, (15, 20)).close()
    rows = read_metrics(tmp_path / metrics.ROWS)
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    assert read_metrics(remote / metrics.ROWS) == rows
    # two uploads of the first run and one of the second: none overwrites another
    assert len(list((remote / metrics.BOARD).iterdir())) == 2


def test_the_log_is_uploaded_after_a_while(remote, monkeypatch):
    monkeypatch.setattr(metrics, "UPLOAD_SECONDS", 0.0)
    writer = MetricWriter(remote, first_step=0)
    writer.scalars(1, {"loss": 1.0})
    assert [row["step"] for row in read_metrics(remote / metrics.ROWS)] == [1]
    with monkeypatch.context() as patch:
        patch.setattr(type(remote), "copy", _refuse)
        writer.scalars(2, {"loss": 2.0})  # a bucket that is away for a while stops no training
        with pytest.raises(OSError, match="away"):
            writer.flush()  # but no checkpoint is made without its rows
    writer.close()
    assert [row["step"] for row in read_metrics(remote / metrics.ROWS)] == [1, 2]
    assert len(list((remote / metrics.BOARD).iterdir())) == 4


def _refuse(*args, **kwargs):
    raise OSError("away")


# ------------------------------------------------------------------------------------- the weights

TENSORS = {
    "matrix": np.arange(12, dtype=np.float32).reshape(4, 3),
    "vector": np.arange(4, dtype=np.float16),
    "conv": np.arange(48, dtype=np.float32).reshape(2, 3, 2, 4),
    "narrow": np.arange(6).reshape(2, 3).astype(jnp.bfloat16),
    "scalar": np.array(7, np.float32),
    "empty": np.zeros((0, 3), np.float32),
}
INDICES = (
    slice(None),
    slice(1, 2),
    (slice(0, 2), slice(1, 3)),
    (slice(None), slice(1, None)),
    (slice(1, 1),),
    1,
    ...,
)


def test_tensors_of_a_bucket_are_those_of_the_file(remote, tmp_path):
    for place in (tmp_path, remote):
        write_model(place, TENSORS, config={"sizes": [1, 2]})
    local, far = open_tensors(tmp_path), open_tensors(remote)
    assert read_config(remote) == {"sizes": [1, 2]}
    assert set(far) == set(local) == set(TENSORS)
    for name, value in TENSORS.items():
        assert far[name].shape == value.shape
        for index in INDICES if value.ndim > 1 and len(value) > 1 else (...,):
            np.testing.assert_array_equal(far[name][index], value[index], err_msg=f"{name} {index}")
            assert far[name][index].dtype == value.dtype


def test_only_the_rows_asked_for_are_read(remote, monkeypatch):
    write_model(remote, TENSORS, config={})
    tensor = open_tensors(remote)["matrix"]
    asked = []
    monkeypatch.setattr(
        tensor._file, "read", lambda start, stop: asked.append(stop - start) or bytes(stop - start)
    )
    tensor[slice(1, 3), slice(0, 1)]
    assert asked == [2 * 3 * 4]


def test_damaged_and_missing_weights_in_a_bucket(remote, tmp_path):
    with pytest.raises(FolderError, match=r"holds no config\.json"):
        read_config(remote)
    with pytest.raises(FolderError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        open_tensors(remote)
    save_file({"a": TENSORS["matrix"]}, tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for damaged in (data[:-4], data[:20], b"", b"\xff" * 100):
        (remote / "model.safetensors").write_bytes(damaged)
        with pytest.raises(FolderError, match=r"model\.safetensors is damaged"):
            open_tensors(remote)
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (remote / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FolderError, match=r"model-1\.safetensors is missing"):
        open_tensors(remote)


def test_a_released_folder_loads_from_a_bucket(remote, released, tmp_path):
    from unidiff_jax import OneDiffusionPipeline

    copy_tree(released, remote)
    local = OneDiffusionPipeline.from_pretrained(released)
    far = OneDiffusionPipeline.from_pretrained(remote)
    for part in ("denoiser", "vae", "text"):
        first, second = (getattr(pipe, part).params for pipe in (local, far))
        jax.tree.map(np.testing.assert_array_equal, first, second)
    assert far.text.tokenizer.encode("a red cube") == local.text.tokenizer.encode("a red cube")
    assert weights_digest(remote / "vae") == weights_digest(released / "vae")
    local.save_pretrained(tmp_path)
    far.save_pretrained(remote / "again")
    for file in [file for file in tmp_path.rglob("*") if file.is_file()]:
        name = file.relative_to(tmp_path).as_posix()
        assert (remote / "again" / name).read_bytes() == file.read_bytes(), name
