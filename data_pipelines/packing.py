"""Packs examples into fixed rows by Grain, so that one compiled step serves every task and size."""

import grain
import grain.experimental
import numpy as np

from unidiff_jax.config import ConfigError
from unidiff_jax.frames import Example, RowSize, finalize_row, stack_rows
from unidiff_jax.types import Batch


def pack(
    examples: grain.IterDataset[Example], *, size: RowSize, num_bins: int
) -> grain.IterDataset:
    """First-fit packing into `num_bins` open rows, then `finalize_row`.

    Args:
      examples: stream of examples.
      size: capacity of a row.
      num_bins: rows filled at once; more leave less padding.
    """
    lengths = size.lengths()

    def check(example: Example) -> Example:
        for key, value in example.items():
            if len(value) > lengths[key]:
                raise ConfigError(
                    f"an example needs {len(value)} {key} and a row holds {lengths[key]}: raise "
                    f"data.row (now {', '.join(f'{k}={v}' for k, v in size._asdict().items())})"
                )
        return example

    packed = grain.experimental.FirstFitPackIterDataset(
        examples.map(check),
        length_struct=lengths,
        num_packing_bins=num_bins,
        shuffle_bins=False,
    )
    return packed.map(finalize_row)


def batch_rows(rows: grain.IterDataset, *, num_rows: int) -> grain.IterDataset:
    """Stacks rows into batches."""
    return rows.batch(num_rows, drop_remainder=True, batch_fn=stack_rows)


def utilisation(batch: Batch) -> dict[str, float]:
    """Share of a batch's token, frame and text places that hold something."""
    return {
        "tokens": float(np.mean(np.asarray(batch.frame) > 0)),
        "frames": float(np.mean(np.asarray(batch.segment)[:, 1:] > 0)),
        "text": float(np.mean(np.asarray(batch.text_segment) > 0)),
    }
