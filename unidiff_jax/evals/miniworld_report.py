"""The benchmark's side of the report: sample lines, deviations, a plain text table."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipelines.miniworld.items import FAR, NEAR, TASK_NAMES, to_depth
from data_pipelines.mixture import parse_mixture
from unidiff_jax.evals import pictures
from unidiff_jax.evals.charts import format_number
from unidiff_jax.evals.miniworld_protocol import Protocol
from unidiff_jax.evals.miniworld_training import NUM_RECORDS
from unidiff_jax.evals.report import NUM_SHOWN
from unidiff_jax.evals.results import SampleWriter
from unidiff_jax.frames import CODECS
from unidiff_jax.types import Role


def write_samples(
    folder: str | pathlib.Path, *, protocol: Protocol, outputs: np.ndarray, values: np.ndarray
) -> None:
    """Writes one line an item, and pictures of the first and the worst, which the page shows.

    Args:
      folder: of the report.
      protocol: with the items.
      outputs: (items, seeds, h, w, 3) as the sampler gave them.
      values: (items, seeds) scores.
    """
    means = values.mean(axis=1)
    shown = {*range(NUM_SHOWN), *np.argsort(means, kind="stable")[:NUM_SHOWN]}
    with SampleWriter(folder, task=protocol.name) as writer:
        for i, (index, item) in enumerate(zip(protocol.indices, protocol.items, strict=True)):
            writer.write(
                f"{index:05d}",
                prompt=protocol.task.write(item),
                value=means[i],
                seed_values=values[i],
                images=_pictures(protocol, item, outputs[i, 0]) if i in shown else {},
            )


def _pictures(
    protocol: Protocol, item: Mapping[str, Any], output: np.ndarray
) -> dict[str, np.ndarray]:
    """Given frames, output and truth as the page shows them; depth in one colour scale."""
    shown = {}
    for spec in protocol.task.frames:
        codec = CODECS[spec.codec]

        def picture(field: np.ndarray, codec=codec, name=spec.codec) -> np.ndarray:
            if name == "depth":
                return pictures.depth_to_rgb(to_depth(field), near=NEAR, far=FAR)
            return CODECS["rgb"].read(codec.draw(field))

        if spec.field in protocol.task.generate:
            made = codec.read(np.nan_to_num(output, nan=-1.0, posinf=1.0, neginf=-1.0))
            shown["output"], shown["target"] = picture(made), picture(item[spec.field])
            error = [codec.draw(x) * 0.5 + 0.5 for x in (made, item[spec.field])]
            shown["error"] = pictures.error_map(error[0], target=error[1])
        else:
            kind = "condition" if spec.role == Role.CONTROL else "input"
            given = item[spec.field]
            if isinstance(given, list):
                blank = np.full_like(item[protocol.task.frames[0].field], 255)
                given = np.concatenate(given or [blank], axis=1)
            shown[kind] = picture(given)
    return shown


def deviations(config: ConfigDict, *, split: str) -> list[str]:
    """What a reader must know beside the numbers."""
    trained = [mix.task.name for mix in parse_mixture(config.data.tasks)]
    absent = [name for name in TASK_NAMES if name not in trained]
    texts = []
    if config.image_size < 64:
        texts.append(
            f"Pictures have {config.image_size} pixels a side, where the verifier cannot tell "
            "shapes: only colours, places, masks and depth are judged."
        )
    texts.append(
        "One training run: the seeds are seeds of the sampling noise, so the intervals do not hold "
        "the spread between trainings."
    )
    if absent:
        texts.append(f"Not in this mixture, hence not judged by default: {', '.join(absent)}.")
    if "edit" in trained and config.data.edit_kinds:
        texts.append(f"Editing is trained on {', '.join(config.data.edit_kinds)} alone.")
    if split == "test":
        texts.append(
            "Test scenes come from the grammar of the training scenes; the split 'heldout' asks "
            "for colour-shape pairs, views and counts that training never shows."
        )
    texts.append(f"Floors that are fitted use the first {NUM_RECORDS} training records at most.")
    return texts


def verdict_table(results: Mapping[str, Any]) -> str:
    """The verdicts as aligned plain text, one line a task."""
    number = format_number
    rows = [("task", "metric", "value [95 % interval]", "best floor", "shuffled", "ceiling", "")]
    for task in results["tasks"]:
        low, high = task["ci95"]
        rows.append(
            (
                task["task"],
                task["metric"],
                f"{number(task['value'])} [{number(low)}, {number(high)}]",
                f"{number(task['floor'])} {task['floor_name']}",
                number(task["shuffled"]),
                number(task["ceiling"]),
                task["verdict"],
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
