"""Where numbers go: `metrics.jsonl` and TensorBoard files in the workdir, and a progress bar."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorboardX
from PIL import Image

from unidiff_jax.tasks import TASKS
from unidiff_jax.train.step import NUM_BINS, LossTable


class MetricWriter:
    """Writes scalars and pictures; on resume, rows after the restored step are dropped first."""

    def __init__(self, workdir: str | pathlib.Path, *, first_step: int):
        """Opens the workdir's log for steps after `first_step`."""
        workdir = pathlib.Path(workdir)
        path = workdir / "metrics.jsonl"
        rows = read_metrics(path) if path.exists() else []
        kept = [row for row in rows if row["step"] <= first_step]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", buffering=1)
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=first_step
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row."""
        row = {"step": step} | {key: float(value) for key, value in values.items()}
        self._file.write(json.dumps(row) + "\n")
        for key, value in values.items():
            self._board.add_scalar(key, float(value), step)

    def picture(self, step: int, name: str, image: Image.Image) -> None:
        """Shows a picture in TensorBoard."""
        self._board.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        self._file.close()
        self._board.close()


def read_metrics(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """Rows of a `metrics.jsonl`; a last line cut by a crash is left out."""
    rows = []
    for line in pathlib.Path(path).read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def summarize(table: LossTable, *, prefix: str) -> dict[str, float]:
    """Total loss (NaN without weight), loss by task and by noise-level bin where there is any."""
    error, weight = np.asarray(table.error), np.asarray(table.weight)
    total = weight.sum()
    values = {f"{prefix}/loss": error.sum() / total if total > 0 else np.nan}
    for task in TASKS.values():
        if weight[task.id].sum() > 0:
            values[f"{prefix}/loss/{task.name}"] = error[task.id].sum() / weight[task.id].sum()
    for i in range(NUM_BINS):
        if weight[:, i].sum() > 0:
            values[f"{prefix}/loss_by_sigma/{i / NUM_BINS:.1f}"] = (
                error[:, i].sum() / weight[:, i].sum()
            )
    return {key: float(value) for key, value in values.items()}
