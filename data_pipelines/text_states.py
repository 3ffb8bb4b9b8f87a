"""States of the frozen text encoder for every prompt of a config's data, computed once.

    FOLDER/manifest.json                           which encoder and tokenizer (`shards`)
    FOLDER/states-00000-of-00008.array_record      a prompt each: bfloat16 (tokens, width)
    FOLDER/states-00000-of-00008.json              {records, bytes, sha256, keys}

A prompt's key is a hash of its token ids, and of the pixels of the pictures among them where the
encoder reads these, so that data sets share what they say alike. Training looks each prompt up in
place of running the encoder in the step (`data.text_states`). A folder is of one encoder, by the
digest of its weights.
"""

import base64
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from data_pipelines import shards
from data_pipelines.blobs import BlobError, pack_blob, unpack_blob
from data_pipelines.encoded import EncodedSource
from data_pipelines.mixture import ExampleMaker, TaskMix
from data_pipelines.shards import ShardError
from unidiff_jax.config import ConfigError
from unidiff_jax.outside import fits
from unidiff_jax.paths import AnyPath, as_path
from unidiff_jax.processes import first_alone, meet, own_pieces
from unidiff_jax.tasks import Task

SCHEMA = "text_states/1"
_KEY = "unidiff"
_KEY_BYTES = 16
_UNIT = 64
"""Prompts are padded to a multiple of this, so that a few lengths are compiled."""

Encode = Callable[["Batched"], np.ndarray]
"""States (b, s, e) of prompts."""


class Batched(NamedTuple):
    """Prompts of one length for the encoder.

    Attributes:
      ids: (b, s).
      mask: (b, s), 1 where the prompt is.
      asset: (b, s), the row of `features` that each place shows; 0 for a word.
      features: (b, a, width) of the pictures, row 0 is none; None where the encoder reads none.
    """

    ids: np.ndarray
    mask: np.ndarray
    asset: np.ndarray
    features: np.ndarray | None


class Prompt(NamedTuple):
    """One prompt.

    Attributes:
      ids: of its tokens.
      key: its name (`prompt_key`).
      shown: of each token the number of the picture that it shows, from 1; 0 for a word.
      load: reads the pictures' features (n, width); None where it has none.
    """

    ids: tuple[int, ...]
    key: bytes
    shown: tuple[int, ...]
    load: Callable[[], np.ndarray] | None = None


def prompt_key(ids: Sequence[int], features: np.ndarray | None = None) -> bytes:
    """The name of a prompt, of its ids and of what the encoder reads of its pictures."""
    digest = hashlib.sha256(np.asarray(ids, "<i4").tobytes())
    if features is not None:
        digest.update(f"{features.dtype.str} {features.shape}".encode())
        digest.update(np.ascontiguousarray(features).tobytes())
    return digest.digest()[:_KEY_BYTES]


def all_prompts(
    sources: Mapping[str, EncodedSource], mixes: Sequence[TaskMix], maker: ExampleMaker
) -> Iterator[Prompt]:
    """Every prompt that training may write, each once; the dropped one first."""
    seen: set[bytes] = set()

    def fresh(prompt: Prompt) -> Iterator[Prompt]:
        if prompt.key not in seen:
            seen.add(prompt.key)
            yield prompt

    empty = tuple(maker.encode_prompt("", cut=True).ids)
    yield from fresh(Prompt(empty, prompt_key(empty), (0,) * len(empty)))
    for mix in mixes:
        source = sources[mix.task.name]
        for index in range(len(source)):
            record = source[index]
            choices = [[t] if isinstance(t, str) else t for t in record.texts.values()]
            for texts in itertools.product(*choices):
                item = dict(zip(record.texts, texts, strict=True)) | {"tags": record.tags}
                item |= {"latents": record.means, "features": record.features}
                yield from fresh(_read(source, index, item, mix.task, maker))


def _read(
    source: EncodedSource, index: int, item: Mapping[str, Any], task: Task, maker: ExampleMaker
) -> Prompt:
    prompt = task.write(item, style=maker.style)
    text = maker.encode_item(prompt, task, item, cut=True)
    shown, features = maker.shown_pictures(task, item, text)
    load = None
    if features is not None:

        def load() -> np.ndarray:
            record = source[index]
            again = {**item, "latents": record.means, "features": record.features}
            found = maker.shown_pictures(task, again, text).features
            assert found is not None  # as it was when the prompt was read
            return found

    return Prompt(tuple(text.ids), prompt_key(text.ids, features), tuple(shown), load)


def write_states(
    prompts: Sequence[Prompt],
    *,
    encode: Encode,
    folder: AnyPath,
    origin: Mapping[str, Any],
    num_shards: int = 8,
    batch: int = 64,
    on_prompts: Callable[[int], Any] = lambda count: None,
) -> None:
    """Writes what is missing of a folder; a stopped job continues, finished shards stay.

    The processes of a job share the shards, and return when all are finished.

    Args:
      prompts: what to encode.
      encode: the encoder.
      folder: to write.
      origin: what decides the states, for the manifest.
      num_shards: files.
      batch: prompts at once.
      on_prompts: called with the number of prompts that this process has done.

    Raises:
      ConfigError: the folder was begun with other settings or prompts.
    """
    folder = as_path(folder)
    digest = hashlib.sha256(b"".join(prompt.key for prompt in prompts)).hexdigest()
    manifest = {"origin": dict(origin), "prompts": len(prompts), "digest": digest}
    with first_alone(f"claim {folder}"):
        shards.claim_folder(
            folder,
            manifest | {"shards": num_shards},
            schema=SCHEMA,
            made="written",
            remedy="choose another --set data.text_states=FOLDER",
        )
    parts = np.array_split(np.arange(len(prompts)), num_shards)
    places = list(zip(shards.shard_names("states", num_shards), parts, strict=True))
    for name, part in own_pieces(places):
        if shards.read_entry(folder, name) is None:
            ordered = sorted((prompts[i] for i in part), key=_size)
            count = shards.write_shard(
                folder / name, _records(ordered, encode=encode, batch=batch, done=on_prompts)
            )
            keys = base64.b64encode(b"".join(prompt.key for prompt in ordered)).decode()
            shards.write_entry(folder / name, records=count, keys=keys)
        else:
            on_prompts(len(part))
    meet(f"states {folder}")


def _size(prompt: Prompt) -> tuple[int, int]:
    """Padded length and number of pictures, for which the encoder is compiled."""
    return -(-len(prompt.ids) // _UNIT) * _UNIT, max(prompt.shown, default=0)


def _records(
    prompts: Sequence[Prompt], *, encode: Encode, batch: int, done: Callable[[int], Any]
) -> Iterator[bytes]:
    for (length, pictures), group in itertools.groupby(prompts, key=_size):
        for part in _batches(group, batch):
            ids, mask, asset = np.zeros((3, batch, length), np.int32)
            features = None
            for row, prompt in enumerate(part):
                count = len(prompt.ids)
                ids[row, :count], mask[row, :count], asset[row, :count] = (
                    prompt.ids,
                    1,
                    prompt.shown,
                )
                if prompt.load is not None:
                    own = prompt.load()
                    if features is None:
                        features = np.zeros((batch, 1 + pictures, own.shape[1]), own.dtype)
                    features[row, 1 : 1 + len(own)] = own
            states = np.asarray(encode(Batched(ids, mask, asset, features))).astype(jnp.bfloat16)
            for row, prompt in enumerate(part):
                bits = np.ascontiguousarray(states[row, : len(prompt.ids)]).view(np.uint16)
                yield pack_blob({"states": bits}, {"schema": SCHEMA}, key=_KEY)
            done(len(part))


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while part := list(itertools.islice(iterator, size)):
        yield part


class TextStates:
    """States by token ids.

    Example:
      >>> states = TextStates("data/onediffusion-256/text", origin=origin)
      >>> states([42, 1]).shape
      (2, 2048)
    """

    def __init__(self, folder: AnyPath, *, origin: Mapping[str, Any]):
        """Opens a folder.

        Args:
          folder: what `write_states` wrote.
          origin: what it must have been written with.

        Raises:
          ConfigError: it is not finished, or of another encoder; the message has the command.
        """
        self._folder = as_path(folder)
        again = "write it with: python -m launch.precompute --config ... --set data.text_states="
        try:
            manifest = shards.read_manifest(self._folder, schema=SCHEMA)
            if manifest.get("origin") != dict(origin):
                raise ConfigError(
                    f"data.text_states: {folder} was written with {manifest.get('origin')}, the "
                    f"config has {dict(origin)}; choose another folder and {again}FOLDER"
                )
            names = shards.shard_names("states", manifest.get("shards", 0))
            opened = shards.open_shards((self._folder, name) for name in names)
            if opened is None or not all(fits(entry, {"keys": str}) for entry in opened.entries):
                raise ShardError("the states, or the keys of a shard, are missing")
            self._records = opened.records
            keys = b"".join(base64.b64decode(entry["keys"]) for entry in opened.entries)
        except ConfigError:
            raise
        except ValueError as error:  # of the manifest, the shards or their keys
            raise ConfigError(f"data.text_states: {error}; {again}{folder}") from None
        self._place = {
            keys[start : start + _KEY_BYTES]: number
            for number, start in enumerate(range(0, len(keys), _KEY_BYTES))
        }

    def __call__(self, ids: Sequence[int], features: np.ndarray | None = None) -> np.ndarray:
        """bfloat16 states (s, e) of a prompt with these ids and features of pictures.

        Raises:
          ConfigError: it was not there when the states were written.
        """
        place = self._place.get(prompt_key(ids, features))
        if place is None:
            raise ConfigError(
                f"data.text_states: {self._folder} has no states of a prompt of {len(ids)} tokens; "
                "the data have changed: remove it and run launch.precompute again"
            )
        try:
            arrays, _ = unpack_blob(self._records[place], key=_KEY)
            return arrays["states"].view(jnp.bfloat16)
        except (BlobError, KeyError, ValueError) as error:
            raise ConfigError(f"data.text_states: a record is damaged: {error}") from None
