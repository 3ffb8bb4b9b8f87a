"""Mixes tasks over a source into one stream of examples.

A *source* is a random-access sequence of records with `item(record, task, rng)`, which fills a
task's fields from one record, or None where the record has nothing for the task (a scene without an
edit). Every random choice comes from a generator keyed by the element's index, so that the stream
is a function of the seed and the position alone.
"""

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from unidiff_jax.config import ConfigError
from unidiff_jax.frames import (
    CODECS,
    FRAME_COLUMNS,
    GUIDANCE,
    PLANS,
    Example,
    Guide,
    fit_mask,
    frame_names,
    made_alone,
    make_example,
)
from unidiff_jax.identity import IdentityEncoder
from unidiff_jax.models.autoencoder import Autoencoder
from unidiff_jax.tasks import PLACEHOLDER, TASKS, FrameSpec, Task
from unidiff_jax.text import Encoded, Tokenizer
from unidiff_jax.types import Role

Item = Mapping[str, Any]
"""Fields of one training item: arrays for frames, strings for the prompt. An item that was encoded
before holds `latents`, one (h, w, c) array a frame, and `stds` where these are posteriors' means;
for guidance on channels also its region on that grid, and `features` of its reference objects.
"""


class Source(Protocol):
    """Random access to records, and items from them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def item(self, record: Any, task: Task, rng: np.random.Generator) -> Item | None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskMix:
    """One task's part in the mixture.

    Attributes:
      task: what it is.
      weight: share of examples, relative to the other tasks.
      plan: noise plan (`frames.PLANS`).
      loss_weight: of its tokens in the loss. Where only a few pixels depend on the words, as in an
        edit, the mean squared error is small however wrong they are.
      shift: of its noise levels (flow.py), times the config's; below 1 trains lower levels. A
        picture from words alone is settled at levels where a condition has long told the rest.
    """

    task: Task
    weight: float
    plan: str = "clean"
    loss_weight: float = 1.0
    shift: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExampleMaker:
    """Turns items into examples: draws frames, encodes them, tokenizes the prompt.

    Attributes:
      tokenizer: of the prompts.
      autoencoder: for items of pictures.
      patch: latent pixels a patch side.
      max_text: longest prompt in tokens.
      caption_dropout: probability that a prompt becomes empty, for guidance.
      shift: resolution shift of the noise levels.
      style: of the prompts, one of `tasks.STYLES`.
      roles: whether frames keep their roles; without, all have `Role.NONE`.
      guidance: how given pictures condition, one of `frames.GUIDANCE`.
      visual_dropout: with guidance on channels, the share of the empty prompts whose channels are
        empty too, for the guidance of pictures.
      identity: features of reference objects, which then replace the words that name them; None
        where references are frames.
      text_states: states (s, e) of token ids (`text_states.TextStates`), which then go into
        examples beside the ids; None where the step encodes.
    """

    tokenizer: Tokenizer
    autoencoder: Autoencoder
    patch: int
    max_text: int
    caption_dropout: float = 0.0
    shift: float = 1.0
    style: str = "token"
    roles: bool = True
    guidance: str = "frames"
    visual_dropout: float = 0.0
    identity: IdentityEncoder | None = None
    text_states: Callable[[Sequence[int]], np.ndarray] | None = None

    def __post_init__(self):
        if self.guidance not in GUIDANCE:
            raise ConfigError(
                f"data.guidance={self.guidance!r} is unknown; one of {', '.join(GUIDANCE)}"
            )

    def in_rows(self, task: Task) -> Task:
        """The task with the frames that have tokens."""
        return task if self.guidance == "frames" else made_alone(task)

    def encode_prompt(self, prompt: str, *, cut: bool = False) -> Encoded:
        """Tokens of a prompt; one longer than `max_text` is cut or raises ValueError."""
        ids, names = self.tokenizer.encode_named(prompt)
        if len(ids) > self.max_text and cut:
            ids = [*ids[: self.max_text - 1], self.tokenizer.end_id]
            names = [*names[: self.max_text - 1], 0]
        if len(ids) > self.max_text:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and the model reads {self.max_text}: "
                f"{textwrap.shorten(prompt, 60)!r}"
            )
        return Encoded(ids, names)

    def example(
        self,
        task: Task,
        item: Item,
        *,
        example_id: int,
        plan: str = "clean",
        prompt: str | None = None,
        cut: bool = False,
        shift: float = 1.0,
        guided: bool = True,
    ) -> Example:
        """One example.

        Args:
          task: the task.
          item: its fields; with guidance on channels, also the task's `region` where it has one.
          example_id: stable identity.
          plan: noise plan (`frames.PLANS`).
          prompt: in place of the task's template; "" is the dropped caption.
          cut: whether a prompt that is too long is cut; otherwise it raises ValueError.
          shift: of the noise levels, times the maker's.
          guided: False leaves the channels empty.

        Raises:
          ValueError: the prompt is too long, or names no place for a reference object.
        """
        prompt = task.write(item, style=self.style) if prompt is None else prompt
        text = self.encode_prompt(name_places(prompt, task), cut=cut)
        if self.guidance == "channels":
            free = cut or not prompt
            parts = self._on_channels(task, item, text, guided=guided, free=free)
        else:
            latents = item.get("latents") or self._encode(task.fill(item))
            parts = {"latents": latents, "stds": item.get("stds")}
        example = make_example(
            self.in_rows(task),
            **parts,
            text_ids=text.ids,
            text_names=text.names,
            text_states=None if self.text_states is None else self.text_states(text.ids),
            example_id=example_id,
            patch=self.patch,
            plan=plan,
            shift=self.shift * shift,
        )
        if not self.roles:
            example["frame_table"][:, FRAME_COLUMNS.index("role")] = Role.NONE
        return example

    def _encode(self, filled: Sequence[tuple[FrameSpec, Any]]) -> list[np.ndarray]:
        return [self.autoencoder.encode(CODECS[frame.codec].draw(v)) for frame, v in filled]

    def _on_channels(
        self, task: Task, item: Item, text: Encoded, *, guided: bool, free: bool
    ) -> dict[str, Any]:
        """Arguments of `make_example` with guidance on channels.

        Args:
          task: the task.
          item: its fields.
          text: its prompt.
          guided: whether the channels are filled.
          free: whether the prompt may lack the name of a reference object.
        """
        encoded = item.get("latents")
        values = encoded or [value for _, value in task.fill(item)]
        frames = task.sequence(len(values))
        made = [i for i, frame in enumerate(frames) if frame.field in task.generate]
        assets = [i for i, frame in enumerate(frames) if frame.role == Role.ASSET]
        given = [i for i in range(len(frames)) if i not in (*made, *assets)]

        def latents(chosen: Sequence[int]) -> list[np.ndarray]:
            if encoded:
                return [encoded[i] for i in chosen]
            return self._encode([(frames[i], values[i]) for i in chosen])

        parts: dict[str, Any] = {"latents": latents(made)}
        if item.get("stds"):
            parts["stds"] = [item["stds"][i] for i in made]
        blank = np.zeros_like(parts["latents"][0])
        parts["guide"] = Guide(blank, blank[..., 0])
        if guided:
            grid = blank.shape[:2]
            if task.region and task.region not in item:
                raise ConfigError(
                    f"examples of task {task.name!r} have no {task.region!r}, which guidance on "
                    "channels needs: encode them with data.guidance='channels'"
                )
            mask = fit_mask(item[task.region], grid=grid) if task.region else np.ones(grid)
            parts["guide"] = Guide(latents(given)[0] if given else blank, mask)
        if self.identity is None:
            if assets:
                raise ConfigError(
                    "reference objects need data.identity with guidance on channels; for example "
                    "--set data.identity.encoder=pixels"
                )
            return parts
        names = [frame_names(task, len(frames))[i] for i in assets]
        missing = [name for name in names if name not in text.names]
        if missing and not free:
            raise ValueError(f"the prompt names no IMG{missing[0]}, nor {PLACEHOLDER} for it")
        number = {name: place for place, name in enumerate(names, start=1)}
        features = item.get("features")
        if features is None:
            if encoded and assets:
                raise ConfigError(
                    f"examples of task {task.name!r} have no features of their reference objects: "
                    "encode them with data.identity"
                )
            features = [self.identity(values[i][None])[0] for i in assets]
        return parts | {
            "assets": np.asarray(features, np.float32).reshape(-1, self.identity.dim),
            "text_assets": [number.get(name, 0) for name in text.names],
        }

    def training_example(
        self, source: Source, mix: TaskMix, record: Any, index: int, rng: np.random.Generator
    ) -> Example | None:
        """An example with a random item of the record and caption dropout, or None."""
        item = source.item(record, mix.task, rng)
        if item is None:
            return None
        dropped = rng.random() < self.caption_dropout
        unguided = dropped and rng.random() < self.visual_dropout
        example = self.example(
            mix.task,
            item,
            example_id=stable_id(mix.task, index),
            plan=mix.plan,
            prompt="" if dropped else None,
            cut=True,
            shift=mix.shift,
            guided=not unguided,
        )
        example["loss_mask"] = example["loss_mask"] * np.float32(mix.loss_weight)
        return example


def name_places(prompt: str, task: Task) -> str:
    """The prompt with the names of the task's reference frames in place of `PLACEHOLDER`, in order.

    Example:
      >>> name_places("<p> in the snow", get_task("insert"))
      'IMG2 in the snow'
    """
    count = len(task.frames) + prompt.count(PLACEHOLDER) * task.repeats
    names = frame_names(task, count)
    frames = task.sequence(count)
    for frame, name in zip(frames, names, strict=True):
        if frame.role == Role.ASSET and name:
            prompt = prompt.replace(PLACEHOLDER, f"IMG{name}", 1)
    return prompt


def stable_id(task: Task, index: int) -> int:
    """Identity of the `index`-th example of a task's stream, in [1, 2**31)."""
    return 1 + (index * 64 + task.id) % (2**31 - 1)


def parse_mixture(tasks: Mapping[str, Mapping[str, Any]]) -> list[TaskMix]:
    """The config's `data.tasks`: {name: {"weight": float, "plan": str, "loss_weight": float,
    "shift": float}}.

    Raises:
      ConfigError: an unknown task or noise plan, or no task with a positive weight.
    """
    mixes = []
    for name, settings in tasks.items():
        if name not in TASKS:
            raise ConfigError(f"data.tasks.{name} is no task; tasks are: {', '.join(TASKS)}")
        mix = TaskMix(task=TASKS[name], **settings)
        if mix.plan not in PLANS:
            raise ConfigError(
                f"data.tasks.{name}.plan={mix.plan!r} is unknown; one of {', '.join(PLANS)}"
            )
        mixes.append(mix)
    mixes = [mix for mix in mixes if mix.weight > 0]
    if not mixes:
        raise ConfigError("data.tasks names no task with a positive weight")
    return mixes


def mix_examples(
    sources: Mapping[str, Source],
    mixes: Sequence[TaskMix],
    maker: ExampleMaker,
    *,
    seed: int,
    shard: int,
    num_shards: int,
) -> grain.MapDataset:
    """The endless stream of one data shard; elements without an item are None and dropped later.

    Args:
      sources: each task's records.
      mixes: tasks and weights.
      maker: makes the examples.
      seed: of order and choices.
      shard: which of the fixed data shards.
      num_shards: their number; independent of the number of processes.
    """
    streams = []
    for mix in mixes:
        source = sources[mix.task.name]
        indices = grain.MapDataset.range(shard, len(source), num_shards)
        stream = indices.seed(seed * 1009 + mix.task.id).shuffle().repeat()

        def load(number, index, rng, mix=mix, source=source):
            return maker.training_example(
                source, mix, source[index], number * num_shards + shard, rng
            )

        streams.append(_with_number(stream).random_map(_Load(load)))
    weights = [mix.weight for mix in mixes]
    return grain.MapDataset.mix(streams, weights) if len(streams) > 1 else streams[0]


def _with_number(stream: grain.MapDataset) -> grain.MapDataset:
    """Pairs each element with its position in the endless stream."""
    return stream.map_with_index(lambda number, index: (number, index))


class _Load(grain.transforms.RandomMap):
    """Adapter from Grain's random map to a plain function."""

    def __init__(self, load):
        self._load = load

    def random_map(self, element, rng: np.random.Generator):
        number, index = element
        return self._load(number, index, rng)
