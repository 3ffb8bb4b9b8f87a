"""From pictures to tokens and back: codecs, patches, examples, rows.

A picture goes through its codec to RGB in [-1, 1], through the autoencoder to latents, and is cut
into patches. `make_example` does that for all frames of a task and gives flat arrays that a packer
can concatenate; they number frames inside the example. `finalize_row` turns one packed row into the
row of a `Batch`, with frame and segment tables whose row 0 is padding.

Inside a token the channel is the fastest axis (patch row, patch column, channel), the order of the
official OneDiffusion code.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from unidiff_jax.config import ConfigError
from unidiff_jax.tasks import Task
from unidiff_jax.text import MAX_NAMES
from unidiff_jax.types import AnyArray, Batch, Kind, Role

MAX_PATCHES = 1024
"""At most this many patches a side and frames an example, so that a position packs into 30 bits."""


# ------------------------------------------------------------------------------------------ codecs


class Codec(NamedTuple):
    """How a field becomes an RGB picture in [-1, 1] (`draw`) and how it is read back (`read`)."""

    draw: Any
    read: Any


def _draw_rgb(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"a picture is uint8 (h, w, 3), got {image.dtype} {image.shape}")
    return image.astype(np.float32) / 127.5 - 1.0


def _read_rgb(rgb: np.ndarray) -> np.ndarray:
    return np.clip(np.round((rgb + 1.0) * 127.5), 0, 255).astype(np.uint8)


def _draw_grey(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey.astype(np.float32)[..., None] * 2.0 - 1.0, 3, axis=-1)


def _read_grey(rgb: np.ndarray) -> np.ndarray:
    return np.clip((rgb.mean(-1) + 1.0) / 2.0, 0.0, 1.0).astype(np.float32)


CODECS: dict[str, Codec] = {
    # uint8 (h, w, 3)
    "rgb": Codec(_draw_rgb, _read_rgb),
    # the same in flat colours that mean something, which scaling must not mix
    "colors": Codec(_draw_rgb, _read_rgb),
    # float (h, w) in [0, 1]; 1 is near
    "depth": Codec(_draw_grey, _read_grey),
    # bool (h, w); white on black, read back at half
    "mask": Codec(_draw_grey, lambda rgb: rgb.mean(-1) > 0.0),
}


# ----------------------------------------------------------------------------------------- patches


def patchify(latents: Float[AnyArray, "h w c"], *, patch: int) -> Float[AnyArray, "t p"]:
    """Cuts latents into patches, row by row. Works on numpy and JAX arrays."""
    height, width, channels = latents.shape
    if height % patch or width % patch:
        raise ValueError(f"latents of {height}x{width} do not divide into patches of {patch}")
    x = latents.reshape(height // patch, patch, width // patch, patch, channels)
    return x.swapaxes(1, 2).reshape(-1, patch * patch * channels)


def unpatchify(
    tokens: Float[AnyArray, "t p"], *, patch: int, grid: tuple[int, int]
) -> Float[AnyArray, "h w c"]:
    """Inverse of `patchify`; `grid` is (rows, columns) in patches."""
    rows, columns = grid
    x = tokens.reshape(rows, columns, patch, patch, -1).swapaxes(1, 2)
    return x.reshape(rows * patch, columns * patch, -1)


# ---------------------------------------------------------------------------------------- examples

FRAME_COLUMNS = ("kind", "role", "name", "given", "time_group")

Example = dict[str, np.ndarray]
"""Flat arrays of one example; the first axis of each is its packing axis:

    tokens       (t, p) float32    patch latents, or the means of their posteriors
    token_std    (t, p) float32    standard deviations of the posteriors, or (t, 0)
    token_index  (t, 4) int32      frame inside the example, then the rotary position (frame, y, x)
    loss_mask    (t,)   float32
    frame_table  (f, 5) int32      FRAME_COLUMNS
    frame_shift  (f,)   float32
    segment_table (1, 2) int32     example id, task id
    text_ids     (s,)   int32
    text_name    (s,)   int32      name that the word says (`frame_names`)
    text_states  (s, e) bfloat16   states of the text encoder, or (s, 0) where the step encodes
    visual       (t, p) float32    latents of the picture that guides each place, or (t, 0)
    mask         (t, m) float32    share of each latent pixel that is to be made, or (t, 0)
    text_asset   (s,)   int32      number of the asset whose features replace the word; 0 for none
    asset_table  (a, w) float32    features of the assets, or (a, 0); uint8 where they are pixels
    text_entity  (s,)   int32      number of the example's entity that the word shows; 0 for none
    entity_mask  (t, n) float32    share of the token that each entity covers, or (t, 0)

With guidance on channels or in the prompt (`GUIDANCE`) only generated frames have tokens.
"""

GUIDANCE = ("frames", "channels", "prompt")
"""How given pictures condition: as clean frames of the sequence (OneDiffusion, UniReal), on the
channels of the frames that are made, at no cost in tokens (UniVG), or between the words of the
prompt alone, where an encoder of text and pictures reads them (UNIMO-G)."""

PLANS = ("clean", "independent", "shared")
"""Noise plans of a task in training: conditions stay clean and only generated frames are noised and
scored (`clean`); every frame has its own level and is scored (`independent`, OneDiffusion
section 3.1); all frames share one level and are scored (`shared`)."""


def make_example(
    task: Task,
    *,
    latents: Sequence[np.ndarray],
    text_ids: Sequence[int],
    example_id: int,
    patch: int,
    text_names: Sequence[int] | None = None,
    plan: str = "clean",
    shift: float = 1.0,
    stds: Sequence[np.ndarray] | None = None,
    text_states: np.ndarray | None = None,
    guide: "Guide | None" = None,
    assets: np.ndarray | None = None,
    text_assets: Sequence[int] | None = None,
    entity_masks: np.ndarray | None = None,
    text_entities: Sequence[int] | None = None,
) -> Example:
    """Makes the flat arrays of one example.

    Args:
      task: the task.
      latents: one (h, w, c) array a frame, in the task's order.
      text_ids: tokens of the prompt; at least one (a dropped caption is the end-of-text token).
      text_names: the frame name that each of them says; None for no names.
      example_id: stable identity in [1, 2**31).
      patch: latent pixels a patch side.
      plan: one of `PLANS`.
      shift: resolution shift of the noise level (flow.py).
      stds: standard deviations where `latents` are the means of posteriors; None where they are
        the latents.
      text_states: (s, e) states of the prompt; None where the step encodes it.
      guide: what stands on the channels of every frame; None for no such channels.
      assets: (a, w) features of reference pictures; None for none.
      text_assets: of each text token, the number (1 and up) of the asset that replaces its state.
      entity_masks: (n, h, w) share of each latent pixel of the frames that are made that each
        entity covers; None where no loss asks for it.
      text_entities: of each text token, the number (1 and up) of the entity that it shows.

    Raises:
      ValueError: another number of frames than the task has, a frame that does not divide into
        patches or has too many, a guide or masks of another size, no text, or no such plan.
    """
    if plan not in PLANS:
        raise ValueError(f"unknown noise plan {plan!r}; plans are: {', '.join(PLANS)}")
    if not len(text_ids):
        raise ValueError("an example needs at least one text token")
    names = frame_names(task, len(latents))
    tokens, index, mask, table, visual, made, entities = [], [], [], [], [], [], []
    for number, (spec, latent) in enumerate(zip(task.sequence(len(latents)), latents, strict=True)):
        generated = spec.field in task.generate and number < len(task.frames)
        given = plan == "clean" and not generated
        if max(latent.shape[:2]) > MAX_PATCHES * patch:  # two places would draw the same noise
            side = max(latent.shape[:2]) // patch
            raise ValueError(
                f"a frame has {side} patches a side, at most {MAX_PATCHES} are possible"
            )
        patches = patchify(latent, patch=patch)
        y, x = np.divmod(
            np.arange(len(patches), dtype=np.int32), np.int32(latent.shape[1] // patch)
        )
        frame = np.full_like(y, number)
        if guide is not None:
            if guide.visual.shape != latent.shape or guide.mask.shape != latent.shape[:2]:
                raise ValueError(
                    f"a guide of {guide.visual.shape} and a mask of {guide.mask.shape} do not fit "
                    f"a frame of {latent.shape}"
                )
            visual.append(patchify(guide.visual, patch=patch))
            made.append(patchify(guide.mask[..., None], patch=patch))
        if entity_masks is not None:
            if entity_masks.shape[1:] != latent.shape[:2]:
                raise ValueError(
                    f"masks of {entity_masks.shape[1:]} do not fit a frame of {latent.shape}"
                )
            cut = patchify(np.moveaxis(entity_masks, 0, -1), patch=patch)
            share = cut.reshape(len(patches), patch**2, -1).mean(axis=1)
            entities.append(share if generated else np.zeros_like(share))
        tokens.append(patches)
        index.append(np.stack([frame, frame, y, x], axis=1))
        mask.append(np.full(len(patches), not given, np.float32))
        group = 0 if plan == "shared" or (plan == "clean" and generated) else number + 1
        table.append((spec.kind, spec.role, names[number], given, group))
    means = np.concatenate(tokens).astype(np.float32, copy=False)
    if stds is None:
        deviations = np.zeros((len(means), 0), np.float32)
    else:
        deviations = np.concatenate([patchify(std, patch=patch) for std in stds])
    return {
        "tokens": means,
        "token_std": deviations.astype(np.float32, copy=False),
        "token_index": np.concatenate(index),
        "loss_mask": np.concatenate(mask),
        "frame_table": np.asarray(table, np.int32),
        "frame_shift": np.full(len(table), shift, np.float32),
        "segment_table": np.asarray([[example_id, task.id]], np.int32),
        "text_ids": np.asarray(text_ids, np.int32),
        "text_name": np.asarray(text_names or [0] * len(text_ids), np.int32),
        "text_states": np.zeros((len(text_ids), 0), np.float32)
        if text_states is None
        else text_states,
        "visual": _columns(visual, rows=len(means)),
        "mask": _columns(made, rows=len(means)),
        "text_asset": np.asarray(text_assets or [0] * len(text_ids), np.int32),
        "asset_table": np.zeros((0, 0), np.float32) if assets is None else assets,
        "text_entity": np.asarray(text_entities or [0] * len(text_ids), np.int32),
        "entity_mask": _columns(entities, rows=len(means)),
    }


def _columns(parts: Sequence[np.ndarray], *, rows: int) -> np.ndarray:
    """The parts one below the other; without any, `rows` rows of no columns."""
    if not parts:
        return np.zeros((rows, 0), np.float32)
    return np.concatenate(parts).astype(np.float32, copy=False)


class Guide(NamedTuple):
    """What stands on the channels of a frame that is made (UniVG, figure 2).

    Attributes:
      visual: (h, w, c) latents of the given picture; zeros for none.
      mask: (h, w) share of each latent pixel that is to be made: 1 is made, 0 is kept as in the
        given picture. One polarity everywhere: a hole is 1, and without a hole all is 1.
    """

    visual: Float[np.ndarray, "h w c"]
    mask: Float[np.ndarray, "h w"]


def fit_mask(mask: np.ndarray, *, grid: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """A bool map over pixels as shares over latent pixels (box average).

    Raises:
      ValueError: the map is no multiple of the grid.
    """
    (height, width), (rows, columns) = mask.shape, grid
    if height % rows or width % columns:
        raise ValueError(f"a mask of {mask.shape} does not fit latents of {grid}")
    cut = mask.astype(np.float32).reshape(rows, height // rows, columns, width // columns)
    return cut.mean(axis=(1, 3))


def made_alone(task: Task, *, guidance: str = "channels") -> Task:
    """The task with the frames that it makes and no others, for other guidance than by frames.

    Raises:
      ConfigError: it is given more pictures beside assets than the guidance holds, which is one on
        channels and none in the prompt, or makes any number of frames.
    """
    frames = tuple(frame for frame in task.frames if frame.field in task.generate)
    given = [f for f in task.frames if f not in frames and f.role != Role.ASSET]
    room = {"channels": 1, "prompt": 0}[guidance]
    if len(given) > room or any(f.kind == Kind.RAY for f in given) or _repeats_made(task):
        holds = "on channels, which hold one picture" if room else "in the prompt by references"
        raise ConfigError(
            f"task {task.name!r} cannot be guided {holds}; data.guidance='frames' can"
        )
    return dataclasses.replace(task, frames=frames, repeats=0)


def _repeats_made(task: Task) -> bool:
    repeated = task.frames[len(task.frames) - task.repeats :]
    return any(frame.role != Role.ASSET for frame in repeated)


def frame_names(task: Task, count: int) -> list[int]:
    """What prompts call the frames, in order: n for IMGn, the n-th given one; MAX_NAMES + n for
    RESn, the n-th generated one; 0 beyond `MAX_NAMES` (UniReal section 3.1).
    """
    names, numbers = [], {True: 0, False: 0}
    for position, spec in enumerate(task.sequence(count)):
        generated = spec.field in task.generate and position < len(task.frames)
        numbers[generated] += 1
        number = numbers[generated]
        names.append(0 if number > MAX_NAMES else number + MAX_NAMES * generated)
    return names


class RowSize(NamedTuple):
    """Capacity of a row: image tokens, frames, examples, text tokens and references with features
    (tables count padding).
    """

    tokens: int
    frames: int
    segments: int
    text: int
    assets: int = 1

    def lengths(self) -> dict[str, int]:
        """Packing capacity of each array of an `Example`."""
        return {
            "tokens": self.tokens,
            "token_std": self.tokens,
            "token_index": self.tokens,
            "loss_mask": self.tokens,
            "frame_table": self.frames - 1,
            "frame_shift": self.frames - 1,
            "segment_table": self.segments - 1,
            "text_ids": self.text,
            "text_name": self.text,
            "text_states": self.text,
            "visual": self.tokens,
            "mask": self.tokens,
            "text_asset": self.text,
            "asset_table": self.assets - 1,
            "text_entity": self.text,
            "entity_mask": self.tokens,
        }


def finalize_row(packed: Mapping[str, np.ndarray]) -> Batch:
    """Makes one row (without batch axis) of a `Batch` from concatenated examples.

    Args:
      packed: arrays of `Example` padded to the row's capacity, and for each array NAME an array
        `NAME_segment_ids` with the example's number in the row (1 and up; 0 is padding).
    """
    frame_segment = packed["frame_table_segment_ids"]
    token_segment = packed["tokens_segment_ids"]
    text_segment = packed["text_ids_segment_ids"]
    segments = len(packed["segment_table"])
    # padding (0) is told apart below
    first = _first_places(frame_segment, segments)
    frame = packed["token_index"][:, 0] + first[token_segment] + 1
    table = packed["frame_table"].T
    columns = {k: _pad_front(table[i]) for i, k in enumerate(FRAME_COLUMNS)}
    position = np.arange(len(text_segment)) - _first_places(text_segment, segments)[text_segment]
    has_states = packed["text_states"].shape[-1] > 0
    has_guide, has_assets, has_entities = (
        packed[name].shape[-1] > 0 for name in ("visual", "asset_table", "entity_mask")
    )
    first_asset = _first_places(packed["asset_table_segment_ids"], segments)
    asset = packed["text_asset"]
    asset = np.where(asset > 0, asset + first_asset[text_segment], 0).astype(np.int32)
    return Batch(
        tokens=packed["tokens"],
        token_std=packed["token_std"] if packed["token_std"].shape[-1] else None,
        frame=np.where(token_segment, frame, 0).astype(np.int32),
        position=packed["token_index"][:, 1:].astype(np.int32),
        loss_mask=packed["loss_mask"],
        segment=_pad_front(frame_segment.astype(np.int32)),
        shift=np.where(
            _pad_front(frame_segment) > 0, _pad_front(packed["frame_shift"]), 1.0
        ).astype(np.float32),
        example_id=_pad_front(packed["segment_table"][:, 0]),
        task=_pad_front(packed["segment_table"][:, 1]),
        text_ids=None if has_states else packed["text_ids"],
        text_states=packed["text_states"] if has_states else None,
        text_name=packed["text_name"],
        text_segment=text_segment.astype(np.int32),
        text_position=np.where(text_segment, position, 0).astype(np.int32),
        visual=packed["visual"] if has_guide else None,
        mask=packed["mask"] if has_guide else None,
        text_asset=asset if has_assets else None,
        asset_features=_pad_front(packed["asset_table"]) if has_assets else None,
        text_entity=packed["text_entity"] if has_entities else None,
        entity_mask=packed["entity_mask"] if has_entities else None,
        **columns,
    )


def _first_places(ids: np.ndarray, segments: int) -> np.ndarray:
    """Where each example (0: padding) begins in a packed array with these example numbers."""
    return np.searchsorted(np.where(ids, ids, segments + 1), np.arange(segments + 2))


def _pad_front(column: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, *column.shape[1:]), column.dtype), column])


class Placed(NamedTuple):
    """Where `pack_rows` put an example: its row and its number (1 and up) in that row."""

    row: int
    segment: int


def pack_rows(examples: Sequence[Example], *, size: RowSize) -> tuple[Batch, list[Placed]]:
    """Packs a list of examples in order into as few rows as first-fit gives.

    For sampling and evaluation; the training stream is packed by Grain (`data_pipelines.packing`)
    and meets the same `finalize_row`.

    Raises:
      ValueError: an example does not fit into an empty row.
    """
    lengths = size.lengths()
    rows: list[list[Example]] = []
    free: list[dict[str, int]] = []
    placed = []
    for example in examples:
        need = {k: len(v) for k, v in example.items()}
        over = {k: n for k, n in need.items() if n > lengths[k]}
        if over:
            key, count = next(iter(over.items()))
            raise ValueError(f"an example needs {count} {key}, a row holds {lengths[key]}")
        row = next((i for i, f in enumerate(free) if all(need[k] <= f[k] for k in need)), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(dict(lengths))
        rows[row].append(example)
        free[row] = {k: free[row][k] - need[k] for k in need}
        placed.append(Placed(row, len(rows[row])))
    return stack_rows([finalize_row(_concatenate(row, lengths)) for row in rows]), placed


def stack_rows(rows: Sequence[Batch]) -> Batch:
    """Stacks rows into a batch."""
    import jax

    return jax.tree.map(lambda *leaves: np.stack(leaves), *rows)


def _concatenate(row: Sequence[Example], lengths: Mapping[str, int]) -> dict[str, np.ndarray]:
    packed = {}
    for key, length in lengths.items():
        parts = [e[key] for e in row]
        data = np.zeros((length, *parts[0].shape[1:]), parts[0].dtype)
        ids = np.zeros(length, np.int32)
        start = 0
        for number, part in enumerate(parts, start=1):
            data[start : start + len(part)] = part
            ids[start : start + len(part)] = number
            start += len(part)
        packed[key], packed[f"{key}_segment_ids"] = data, ids
    return packed
