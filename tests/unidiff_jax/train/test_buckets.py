"""A run whose workdir and data lie in a bucket is the run that lies on the disk, bit by bit."""

import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny
import tiny_run
from PIL import Image
from test_finetune import ADAPTERS, LAYOUT, write_transformer
from test_resume import ROOT, TIMED, Runs, assert_equal, plain, restored, shapes, wait_for

from data_pipelines.build import check_data
from data_pipelines.miniworld.generate import GenerateError, generate
from data_pipelines.miniworld.manifest import RecordsError, read
from data_pipelines.miniworld.records import open_records
from launch.evaluate import evaluate_workdir
from unidiff_jax.config import ConfigError
from unidiff_jax.evals.miniworld import EvalSettings
from unidiff_jax.export.run import export_run
from unidiff_jax.paths import as_path, copy_tree, written_whole
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.train.checkpoint import Checkpoints, abstract_state
from unidiff_jax.train.lock import FILE
from unidiff_jax.train.loop import train
from unidiff_jax.train.metrics import read_metrics
from unidiff_jax.train.workdir import load_workdir_config


@pytest.fixture(scope="module")
def data(bucket, miniworld):
    """The rendered folder in a bucket."""
    folder = as_path(bucket) / "data" / "miniworld-32"
    copy_tree(miniworld, folder)
    return folder


def test_records_of_a_bucket_are_those_of_the_folder(data, miniworld):
    far, local = open_records(data, "train"), open_records(miniworld, "train")
    assert len(far) == len(local)
    for index in (39, 0, 21):
        assert far[index] == local[index]
    check_data(tiny_run.config(data))


def test_faults_of_data_in_a_bucket_say_how_to_mend_them(data, bucket):
    command = r"launch\.miniworld --out data/\S+ .*&& gcloud storage cp -r data/\S+ gs://bucket/"
    with pytest.raises(RecordsError, match=r"manifest\.json is missing.*gcloud storage cp -r"):
        open_records(f"{bucket}/data/none", "train")
    damaged = as_path(bucket) / "data" / "damaged"
    copy_tree(data, damaged)
    name = min(read(damaged).settings.shards_of("validation"))
    (damaged / name).write_bytes(b"short")
    with pytest.raises(RecordsError, match=f"5 bytes instead of .*{command}"):
        open_records(damaged, "validation")
    (damaged / name).unlink()
    with pytest.raises(RecordsError, match=f"is missing.*{command}"):
        open_records(damaged, "validation")
    with pytest.raises(GenerateError, match=f"render locally and copy: .*{command}"):
        generate(damaged, read(data).settings)


def test_old_checkpoints_are_removed_and_unfinished_ones_passed_over(bucket):
    folder = as_path(bucket) / "kept" / "checkpoints"
    _, _, state, _ = tiny.make_state()
    checkpoints = Checkpoints(folder, keep=1)
    for step in (1, 2, 3):
        checkpoints.save(state, step=step, loader={"0": step}, clock={"train_seconds": 0.0})
        checkpoints.wait()
    checkpoints.close()
    assert [path.name for path in folder.iterdir()] == ["3"]
    copy_tree(folder / "3", folder / "4")
    (folder / "4" / "commit_success.txt").unlink()  # killed before the last object
    checkpoints = Checkpoints(folder, keep=1)
    assert checkpoints.latest_step() == 3
    assert checkpoints.restore_newest(abstract_state(state)).loader == {"0": 3}
    checkpoints.close()


@pytest.mark.parametrize("harm", ["other", "short", "missing"])
def test_damage_in_a_bucket_is_found(bucket, harm):
    """The manifest has what the store says of its objects; here one is written anew, or removed."""
    folder = as_path(bucket) / f"damaged-{harm}"
    _, _, state, _ = tiny.make_state()
    checkpoints = Checkpoints(folder)
    for step in (1, 2):
        checkpoints.save(state, step=step, loader={"0": step}, clock={})
    checkpoints.close()
    manifest = json.loads((folder / "2" / "manifest-0-of-1.json").read_text())["files"]
    assert all(digest.startswith("crc32c:") for _, digest in manifest.values())
    victim = folder / "2" / max(manifest, key=lambda name: manifest[name][0])
    blob = victim.read_bytes()
    if harm == "missing":
        victim.unlink()
    else:
        victim.write_bytes(blob[:-1] + (b"" if harm == "short" else bytes([blob[-1] ^ 1])))
    checkpoints = Checkpoints(folder)
    assert checkpoints.newest_whole() == 1
    assert checkpoints.restore_newest(abstract_state(state)).loader == {"0": 1}
    checkpoints.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, miniworld):
    return Runs(tmp_path_factory.mktemp("runs"), miniworld)


@pytest.fixture(scope="module")
def whole(runs):
    """Thirty steps in one go, on the disk."""
    return runs.finish(runs.folder / "whole")


@pytest.fixture(scope="module")
def workdir(runs, bucket, data):
    """In a bucket, killed after step 15 was saved, and continued to 30."""
    workdir = as_path(bucket) / "runs" / "killed"
    process = runs.start(workdir, f"data.folder={data}")
    wait_for(lambda: (workdir / "checkpoints/15/commit_success.txt").exists(), process)
    process.kill()  # SIGKILL: nothing can be tidied up
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "checkpoints/30/commit_success.txt").exists()
    return as_path(runs.finish(workdir, f"data.folder={data}"))


@pytest.mark.slow
def test_the_final_state_is_bit_identical(whole, workdir, miniworld):
    target = shapes(tiny_run.config(miniworld))
    first, second = restored(whole, target), restored(workdir, target)
    assert int(second.state.step) == 30
    assert_equal(plain(first.state), plain(second.state))
    assert first.loader == second.loader


@pytest.mark.slow
def test_the_workdir_holds_what_a_local_one_holds(whole, workdir):
    def names(folder):
        return sorted(path.name for path in as_path(folder).iterdir())

    # A lease is given back; a file that was locked stays.
    assert names(workdir) == [name for name in names(whole) if name != FILE]
    for part in ("samples", "tokenizer"):
        assert names(workdir / part) == names(whole / part)
        for name in names(whole / part):
            assert (workdir / part / name).read_bytes() == (whole / part / name).read_bytes()

    def rows(folder):
        found = read_metrics(folder / "metrics.jsonl")
        return [{k: v for k, v in row.items() if k not in TIMED} for row in found]

    assert rows(workdir) == rows(whole)


@pytest.mark.slow
def test_sampling_and_report(whole, workdir):
    pictures = [
        np.asarray(Pipeline.from_workdir(run)("depth", image=Image.new("RGB", (64, 48)))["depth"])
        for run in (whole, workdir)
    ]
    np.testing.assert_array_equal(*pictures)
    for _ in range(2):  # the second replaces the first
        results = evaluate_workdir(
            workdir,
            config=load_workdir_config(workdir),
            settings=EvalSettings(num_items=2, seeds=1, num_steps=1),
            tasks=["depth"],
            split="validation",
        )
    assert results["steps"] == 30 and results["run_id"] == "killed"
    report = workdir / "report-validation"
    assert json.loads((report / "results.json").read_text())["tasks"][0]["task"] == "depth"
    assert "depth" in (report / "index.html").read_text()
    assert list((report / "img" / "depth").iterdir())


@pytest.mark.slow
def test_the_command_samples_from_and_into_the_bucket(workdir, bucket):
    photo, out = f"{bucket}/pictures/photo.png", f"{bucket}/pictures/depth.png"
    with written_whole(photo) as file:
        Image.new("RGB", (64, 48)).save(file)
    command = [sys.executable, "-m", "launch.sample", "--task=depth", f"--out={out}"]
    done = subprocess.run(
        [*command, f"--workdir={workdir}", f"--image={photo}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n"
    with as_path(out).open("rb") as file, Image.open(file) as picture:
        assert picture.size == (32, 32)


@pytest.mark.slow
def test_fine_tuning_from_and_export_to_a_bucket(bucket, data, miniworld, released, tmp_path):
    """Adapters over weights in the bucket; the export's other parts come from beside them."""
    settings = (*LAYOUT, *ADAPTERS, "data.row.tokens=512", "model.rope_theta=10000.0")
    settings += ("model.rope_scale=1.0", "flow.prediction=v", "flow.loss=v", "train.num_steps=2")
    settings += ("train.eval_every=2", "train.sample_every=2", "optim.warmup_steps=1")
    write_transformer(tmp_path / "base" / "transformer", tiny_run.config(miniworld, *settings))
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        copy_tree(released / part, tmp_path / "base" / part)
    shutil.copy(released / "model_index.json", tmp_path / "base")
    far = as_path(bucket) / "finetune"
    copy_tree(tmp_path / "base", far / "base")
    for place, records in ((as_path(tmp_path), miniworld), (far, data)):
        config = tiny_run.config(records, *settings, f"init.transformer={place}/base/transformer")
        train(config, place / "run")
        export_run(place / "run", place / "out")
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(files) > 8
    for file in files:
        name = file.relative_to(tmp_path / "out").as_posix()
        assert (far / "out" / name).read_bytes() == file.read_bytes(), name
    with pytest.raises(FileExistsError, match="transformer exists"):
        export_run(far / "run", far / "out")


@pytest.mark.slow
def test_another_config_is_refused(workdir, data):
    with pytest.raises(ConfigError, match=r"optim\.learning_rate was 0\.005, now 0\.5"):
        train(tiny_run.config(data, "optim.learning_rate=0.5"), workdir)
