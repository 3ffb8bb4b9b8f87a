"""Mixes tasks over a source into one stream of examples.

A *source* is a random-access sequence of records with `item(record, task, rng)`, which fills a
task's fields from one record, or None where the record has nothing for the task (a scene without an
edit). Every random choice comes from a generator keyed by the element's index, so that the stream
is a function of the seed and the position alone.
"""

import dataclasses
import itertools
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import grain
import numpy as np

from data_pipelines.skips import Skipped, usable_or_skipped
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
from unidiff_jax.identity import IdentityEncoder, places_of
from unidiff_jax.models.autoencoder import Autoencoder
from unidiff_jax.tasks import PLACEHOLDER, TASKS, FrameSpec, Task
from unidiff_jax.text import MAX_NAMES, Encoded, Tokenizer
from unidiff_jax.types import Role

Item = Mapping[str, Any]
"""Fields of one training item: arrays for frames, strings for the prompt. An item that was encoded
before holds `latents`, one (h, w, c) array a frame, and `stds` where these are posteriors' means;
for other guidance than by frames also its region and the `entity_masks` on that grid, and
`features` of its reference objects.
"""


class Source(Protocol):
    """Random access to records, and items from them."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def name(self, index: int) -> str:
        """Which record of which file it is, for messages."""
        ...

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


class Shown(NamedTuple):
    """The pictures of a prompt.

    Attributes:
      numbers: of each token, the row of `features` that it shows, from 1; 0 for a word.
      features: (n, width) of those that are shown; None for none.
    """

    numbers: list[int]
    features: np.ndarray | None


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
      text_states: states (s, e) of token ids, and of the features of pictures among them
        (`text_states.TextStates`), which then go into examples beside the ids; None where the step
        encodes.
      entities: columns of the entities' masks, for the loss of attention maps; 0 for none.
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
    text_states: Callable[[Sequence[int], np.ndarray | None], np.ndarray] | None = None
    entities: int = 0

    def __post_init__(self):
        if self.guidance not in GUIDANCE:
            raise ConfigError(
                f"data.guidance={self.guidance!r} is unknown; one of {', '.join(GUIDANCE)}"
            )

    def in_rows(self, task: Task) -> Task:
        """The task with the frames that have tokens."""
        return task if self.guidance == "frames" else made_alone(task, guidance=self.guidance)

    def encode_item(self, prompt: str, task: Task, item: Item, *, cut: bool = False) -> Encoded:
        """Tokens of an item's prompt, whose references have their places."""
        widened = () if self.identity is None else self._references(task, item).values()
        return self.encode_prompt(name_places(prompt, task), cut=cut, widened=widened)

    def _references(self, task: Task, item: Item) -> dict[int, int]:
        """Place of each reference object among the task's frames, and its name."""
        frames = task.sequence(len(item.get("latents") or task.fill(item)))
        names = frame_names(task, len(frames))
        return {i: names[i] for i, frame in enumerate(frames) if frame.role == Role.ASSET}

    def encode_prompt(
        self, prompt: str, *, cut: bool = False, widened: Collection[int] = ()
    ) -> Encoded:
        """Tokens of a prompt; one longer than `max_text` is cut or raises ValueError.

        The names `widened` take as many places as the identity encoder's pictures.
        """
        ids, names = self.tokenizer.encode_named(prompt)
        if self.identity is not None and widened:
            ids, names = _widen(ids, names, widened, words=places_of(self.identity).words)
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
        text = self.encode_item(prompt, task, item, cut=cut)
        if self.guidance == "frames":
            latents = item.get("latents") or self._encode(task.fill(item))
            parts = {"latents": latents, "stds": item.get("stds")}
        else:
            free = cut or not prompt
            parts = self._made_alone(task, item, text, guided=guided, free=free)
        states = None
        if self.text_states is not None:
            features = self.shown_pictures(task, item, text).features
            states = self.text_states(text.ids, features)
        example = make_example(
            self.in_rows(task),
            **parts,
            text_ids=text.ids,
            text_names=text.names,
            text_states=states,
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

    def _made_alone(
        self, task: Task, item: Item, text: Encoded, *, guided: bool, free: bool
    ) -> dict[str, Any]:
        """Arguments of `make_example` with guidance on channels or in the prompt.

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
        grid = blank.shape[:2]
        if self.guidance == "channels":
            parts["guide"] = Guide(blank, blank[..., 0])
        if self.guidance == "channels" and guided:
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
                    f"reference objects need data.identity with data.guidance={self.guidance!r}; "
                    "for example --set data.identity.encoder=pixels"
                )
            return parts
        names = list(self._references(task, item).values())
        missing = [name for name in names if name not in text.names]
        if missing and not free:
            raise ValueError(f"the prompt names no IMG{missing[0]}, nor {PLACEHOLDER} for it")
        entity = {name: place for place, name in enumerate(names, start=1)}
        features = item.get("features")
        if features is None and encoded and assets:
            raise ConfigError(
                f"examples of task {task.name!r} have no features of their reference objects: "
                "encode them with data.identity"
            )
        parts["assets"] = self._vectors(features, [values[i] for i in assets])
        vectors = places_of(self.identity).vectors
        parts["text_assets"] = _vector_numbers(text.names, entity, vectors=vectors)
        if self.entities:
            parts["entity_masks"] = self._entity_masks(item, grid=grid, count=len(names))
            parts["text_entities"] = [entity.get(name, 0) for name in text.names]
        return parts

    def _vectors(self, features: np.ndarray | None, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Rows of the asset table: of features that were computed before, or of pictures."""
        assert self.identity is not None
        none = self.identity(np.zeros((0, 1, 1, 3), np.uint8))
        if features is None:
            found = [none, *(self.identity(picture[None]) for picture in pictures)]
            features = np.concatenate(found)
        return np.asarray(features, none.dtype).reshape(-1, self.identity.dim)

    def shown_pictures(self, task: Task, item: Item, text: Encoded) -> "Shown":
        """What a multimodal text encoder reads of the pictures in an item's prompt."""
        if self.identity is None or self.guidance != "prompt":  # it stands behind the encoder
            return Shown([0] * len(text.ids), None)
        places = self._references(task, item)
        entity = {name: number for number, name in enumerate(places.values(), start=1)}
        numbers = _vector_numbers(text.names, entity, vectors=places_of(self.identity).vectors)
        used = sorted({number for number in numbers if number})
        if not used:
            return Shown(numbers, None)
        pictures = []
        if item.get("features") is None:
            values = [value for _, value in task.fill(item)]
            pictures = [values[i] for i in places]
        rows = self._vectors(item.get("features"), pictures)
        order = {number: place for place, number in enumerate(used, start=1)}
        return Shown([order.get(number, 0) for number in numbers], rows[[n - 1 for n in used]])

    def _entity_masks(self, item: Item, *, grid: tuple[int, int], count: int) -> np.ndarray:
        """Shares of latent pixels, one map a column; of references without masks none."""
        masks = item.get("entity_masks", ())
        if len(masks) > self.entities:
            raise ConfigError(
                f"an example has masks of {len(masks)} entities, data.entities={self.entities}; "
                f"for example --set data.entities={len(masks)}"
            )
        shares = np.zeros((self.entities, *grid), np.float32)
        for share, mask in zip(shares, masks, strict=False):
            share[:] = mask if mask.dtype != bool else fit_mask(mask, grid=grid)
        return shares

    def training_example(
        self, source: Source, mix: TaskMix, record: Any, index: int, rng: np.random.Generator
    ) -> Example | None:
        """An example with a random item of the record and caption dropout, or None.

        Raises:
          ValueError: the record holds values that are no numbers.
        """
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
        _check_finite(example)
        return example


def _check_finite(example: Example) -> None:
    """Raises ValueError where an example holds NaN or an infinity."""
    for key, value in example.items():
        if value.dtype.kind not in "iub" and not np.isfinite(value).all():
            raise ValueError(f"its {key} are not finite")


def _widen(
    ids: Sequence[int], names: Sequence[int], widened: Collection[int], *, words: int
) -> tuple[list[int], list[int]]:
    """Repeats the pieces of some names so that each takes at least `words` places."""
    found: tuple[list[int], list[int]] = ([], [])
    for name, run in itertools.groupby(zip(ids, names, strict=True), key=lambda piece: piece[1]):
        pieces = [piece for piece, _ in run]
        more = max(words - len(pieces), 0) if name in widened else 0
        pieces += pieces[-1:] * more
        found[0].extend(pieces)
        found[1].extend([name] * len(pieces))
    return found


def _vector_numbers(names: Sequence[int], entity: Mapping[int, int], *, vectors: int) -> list[int]:
    """Which row (1 and up) of the assets' vectors each text token shows; 0 for none."""
    numbers: list[int] = []
    for name, run in itertools.groupby(names):
        for place, _ in enumerate(run):
            shown = (entity[name] - 1) * vectors + min(place, vectors - 1) if name in entity else -1
            numbers.append(1 + shown)
    return numbers


def name_places(prompt: str, task: Task) -> str:
    """The prompt with the names of the task's reference frames in place of `PLACEHOLDER`, in order.

    Example:
      >>> name_places("<p> in the snow", get_task("insert"))
      'IMG2 in the snow'
    """
    placeholders = min(prompt.count(PLACEHOLDER), MAX_NAMES)  # further ones have no name
    count = len(task.frames) + placeholders * task.repeats
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
    """The endless stream of one data shard.

    Elements without an item are None and dropped later; those of records that cannot be used are
    `Skipped`, and `skips.count_skips` drops them.

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

        def load(number, index, rng, mix=mix, source=source) -> Example | Skipped | None:
            place = number * num_shards + shard
            return usable_or_skipped(
                lambda: source[index],
                lambda record: maker.training_example(source, mix, record, place, rng),
                name=lambda: source.name(index),
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
