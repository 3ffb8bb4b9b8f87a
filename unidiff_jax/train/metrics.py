"""Where numbers go: `metrics.jsonl` and TensorBoard files in the workdir, and a progress bar."""

import json
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tensorboardX
from absl import logging
from etils import epath
from PIL import Image

from unidiff_jax.paths import AnyPath, as_path, full_disk_borne, is_remote
from unidiff_jax.tasks import TASKS
from unidiff_jax.train.step import NUM_BINS, LossTable

ROWS, BOARD = "metrics.jsonl", "tensorboard"
"""The log's names in a workdir."""

UPLOAD_SECONDS = 120.0
"""A bucket's copy of the log is brought up to date this often, beside at every checkpoint."""


class MetricWriter:
    """Writes scalars and pictures; on resume, rows after the restored step are dropped first.

    A bucket has no append. There the log is written locally and uploaded by `flush`: the rows as
    one object that is replaced, TensorBoard's events as a further file each time. Of several
    processes the first one writes.
    """

    def __init__(self, workdir: AnyPath, *, first_step: int):
        """Opens the workdir's log for steps after `first_step`."""
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        self._workdir = as_path(workdir)
        self._stage = tempfile.TemporaryDirectory() if is_remote(self._workdir) else None
        self._folder = pathlib.Path(self._stage.name if self._stage else workdir)
        path = self._workdir / ROWS
        rows = read_metrics(path) if path.exists() else []
        kept = [row for row in rows if row["step"] <= first_step]
        (self._folder / ROWS).write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = (self._folder / ROWS).open("ab", buffering=0)
        self._unwritten = b""
        self._first_step, self._num_boards = first_step, 0
        self._board = self._open_board(purge_step=first_step)
        self._uploaded = time.monotonic()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row."""
        if not self._writes:
            return
        row = {"step": step} | {key: float(value) for key, value in values.items()}
        self._unwritten += f"{json.dumps(row)}\n".encode()
        self._write_rows()
        self._mend_board()
        for key, value in values.items():
            self._board.add_scalar(key, float(value), step)
        if self._stage is not None and time.monotonic() - self._uploaded > UPLOAD_SECONDS:
            try:
                self.flush()
            except Exception as error:  # of any of the client's layers; the next upload has it all
                logging.warning("the log could not be uploaded: %s", error)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Shows a picture in TensorBoard."""
        if self._writes:
            self._mend_board()
            self._board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def flush(self) -> None:
        """Brings a bucket's copy up to date, or raises; a local log always is."""
        if not self._writes or self._stage is None:
            return
        self._board.close()
        try:
            self._upload()
        finally:
            self._board = self._open_board()

    def close(self) -> None:
        if not self._writes:
            return
        self._write_rows()
        self._file.close()
        with full_disk_borne(BOARD):
            self._board.close()
        if self._stage is not None:
            self._upload()
            self._stage.cleanup()

    def _write_rows(self) -> None:
        """Writes what a full disk has left over, too."""
        with full_disk_borne(ROWS):
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]

    def _mend_board(self) -> None:
        """A full disk ends the thread of TensorBoard's writer; another file begins when it can."""
        worker = self._board.file_writer.event_writer._worker
        if worker is None or not worker.is_alive():
            with full_disk_borne(BOARD):
                self._board = self._open_board()

    def _open_board(self, *, purge_step: int | None = None) -> tensorboardX.SummaryWriter:
        self._num_boards += 1
        board = tensorboardX.SummaryWriter(
            str(self._folder / BOARD),
            purge_step=purge_step,
            max_queue=2**20,  # with ten, the default, a thread that ended would be waited for
            # a file's name has the time in whole seconds: two uploads in one must not collide
            filename_suffix=f".{self._first_step}-{self._num_boards}" if self._stage else "",
        )
        # `close` empties the queue; the process must not wait for one that a full disk has stopped
        board.file_writer.event_writer._event_queue.cancel_join_thread()
        return board

    def _upload(self) -> None:
        self._uploaded = time.monotonic()
        epath.Path(self._folder / ROWS).copy(self._workdir / ROWS, overwrite=True)
        for file in sorted((self._folder / BOARD).iterdir()):
            epath.Path(file).copy(self._workdir / BOARD / file.name, overwrite=True)
            file.unlink()


def read_metrics(path: AnyPath) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; a last line cut by a crash is left out."""
    rows = []
    for line in as_path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def summarize(table: LossTable, *, prefix: str) -> dict[str, float]:
    """Loss of the prediction (NaN without weight), by task and by noise-level bin where there is
    any, and the mean error of attention maps where the table has it.
    """
    error, weight = np.asarray(table.error), np.asarray(table.weight)
    total = weight.sum()
    values = {f"{prefix}/loss": error.sum() / total if total > 0 else np.nan}
    if table.map_error is not None:
        maps = np.asarray(table.map_error).sum()
        values[f"{prefix}/map_error"] = maps / total if total > 0 else np.nan
    for task in TASKS.values():
        if weight[task.id].sum() > 0:
            values[f"{prefix}/loss/{task.name}"] = error[task.id].sum() / weight[task.id].sum()
    for i in range(NUM_BINS):
        if weight[:, i].sum() > 0:
            values[f"{prefix}/loss_by_sigma/{i / NUM_BINS:.1f}"] = (
                error[:, i].sum() / weight[:, i].sum()
            )
    return {key: float(value) for key, value in values.items()}
