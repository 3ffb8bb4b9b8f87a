"""Encoding by a job of two processes."""

import re

import pytest
from jobs import start_job, wait_for

from data_pipelines.miniworld.generate import generate
from data_pipelines.miniworld.manifest import Settings

CONFIG = "configs/onediffusion.py:tiny,stage=finetune"


@pytest.mark.slow
def test_two_processes_write_what_one_writes(released, tmp_path):
    pictures = tmp_path / "pictures"
    counts = {"train": 40}
    generate(pictures, Settings(size=64, counts=counts, shards=1, samples=1), progress="none")

    def begin(folder, *, processes):
        settings = {"data.folder": folder, "data.sources.edit.path": pictures}
        settings |= {"data.encode.validation": 4, "data.encode.batch": 2, "data.encode.shards": 6}
        return start_job(
            "encode",
            f"--config={CONFIG},weights={released}",
            *(f"--set={key}={value}" for key, value in settings.items()),
            processes=processes,
            devices=1,
            compiled=tmp_path / "compiled",
            folder=tmp_path,
        )

    def files(folder):
        return {path.name: path.read_bytes() for path in (folder / "edit").iterdir()}

    def finish(job):
        for process in job:
            assert process.wait() == 0, process.log.read_text()[-3000:]
        return [process.log.read_text() for process in job]

    (alone,) = finish(begin(tmp_path / "alone", processes=1))
    (said,) = re.findall(r"(\d+ records, \d+ samples skipped)", alone)
    stopped = begin(tmp_path / "together", processes=2)
    wait_for(lambda: list((tmp_path / "together").glob("edit/train-*.json")), *stopped)
    for process in stopped:
        process.kill()
        process.wait()
    first, second = finish(begin(tmp_path / "together", processes=2))
    assert said in first and "records" not in second
    assert files(tmp_path / "together") == files(tmp_path / "alone")
    assert len(list((tmp_path / "together").glob("edit/train-*.json"))) == 6
