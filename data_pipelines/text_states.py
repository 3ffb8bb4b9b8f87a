"""States of the frozen text encoder for every prompt of a config's data, computed once.

    FOLDER/manifest.json                           which encoder and tokenizer (`shards`)
    FOLDER/states-00000-of-00008.array_record      a prompt each: bfloat16 (tokens, width)
    FOLDER/states-00000-of-00008.json              {records, bytes, sha256, keys}

A prompt's key is a hash of its token ids, so that data sets share what they say alike. Training
looks each prompt up in place of running the encoder in the step (`data.text_states`).
"""

import base64
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from data_pipelines import shards
from data_pipelines.blobs import pack_blob, unpack_blob
from data_pipelines.encoded import EncodedSource
from data_pipelines.mixture import ExampleMaker, TaskMix, name_places
from data_pipelines.shards import ShardError
from unidiff_jax.config import ConfigError
from unidiff_jax.paths import AnyPath, as_path
from unidiff_jax.processes import first_alone, meet, own_pieces

SCHEMA = "text_states/1"
_KEY = "unidiff"
_KEY_BYTES = 16
_UNIT = 64
"""Prompts are padded to a multiple of this, so that a few lengths are compiled."""

Encode = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""States (b, s, e) of ids (b, s) and mask (b, s)."""


def prompt_key(ids: Sequence[int]) -> bytes:
    """The name of a prompt."""
    return hashlib.sha256(np.asarray(ids, "<i4").tobytes()).digest()[:_KEY_BYTES]


def all_prompts(
    sources: Mapping[str, EncodedSource], mixes: Sequence[TaskMix], maker: ExampleMaker
) -> Iterator[list[int]]:
    """Token ids of every prompt that training may write, each once; the dropped one first."""
    seen: set[bytes] = set()

    def fresh(prompt: str) -> Iterator[list[int]]:
        ids = list(maker.encode_prompt(prompt, cut=True).ids)
        if (key := prompt_key(ids)) not in seen:
            seen.add(key)
            yield ids

    yield from fresh("")
    for mix in mixes:
        source = sources[mix.task.name]
        for index in range(len(source)):
            record = source[index]
            choices = [[t] if isinstance(t, str) else t for t in record.texts.values()]
            for texts in itertools.product(*choices):
                item = dict(zip(record.texts, texts, strict=True)) | {"tags": record.tags}
                yield from fresh(name_places(mix.task.write(item, style=maker.style), mix.task))


def write_states(
    prompts: Sequence[Sequence[int]],
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
      prompts: token ids.
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
    digest = hashlib.sha256(b"".join(map(prompt_key, prompts))).hexdigest()
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
            ordered = sorted((prompts[i] for i in part), key=len)
            count = shards.write_shard(
                folder / name, _records(ordered, encode=encode, batch=batch, done=on_prompts)
            )
            keys = base64.b64encode(b"".join(map(prompt_key, ordered))).decode()
            shards.write_entry(folder / name, records=count, keys=keys)
        else:
            on_prompts(len(part))
    meet(f"states {folder}")


def _records(
    prompts: Sequence[Sequence[int]], *, encode: Encode, batch: int, done: Callable[[int], Any]
) -> Iterator[bytes]:
    by_length = itertools.groupby(prompts, key=lambda ids: -(-len(ids) // _UNIT) * _UNIT)
    for length, group in by_length:
        for part in _batches(group, batch):
            ids, mask = np.zeros((2, batch, length), np.int32)
            for row, prompt in enumerate(part):
                ids[row, : len(prompt)], mask[row, : len(prompt)] = prompt, 1
            states = np.asarray(encode(ids, mask)).astype(jnp.bfloat16)
            for row, prompt in enumerate(part):
                bits = np.ascontiguousarray(states[row, : len(prompt)]).view(np.uint16)
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
            if manifest["origin"] != dict(origin):
                raise ConfigError(
                    f"data.text_states: {folder} was written with {manifest['origin']}, the config "
                    f"has {dict(origin)}; choose another folder and {again}FOLDER"
                )
            names = shards.shard_names("states", manifest["shards"])
            opened = shards.open_shards((self._folder, name) for name in names)
        except (shards.ManifestError, ShardError) as error:
            raise ConfigError(f"data.text_states: {error}; {again}{folder}") from None
        assert opened is not None  # the dropped prompt is always there
        self._records = opened.records
        keys = b"".join(base64.b64decode(entry["keys"]) for entry in opened.entries)
        self._place = {
            keys[start : start + _KEY_BYTES]: number
            for number, start in enumerate(range(0, len(keys), _KEY_BYTES))
        }

    def __call__(self, ids: Sequence[int]) -> np.ndarray:
        """bfloat16 states (s, e) of a prompt.

        Raises:
          ConfigError: it was not there when the states were written.
        """
        place = self._place.get(prompt_key(ids))
        if place is None:
            raise ConfigError(
                f"data.text_states: {self._folder} has no states of a prompt of {len(ids)} tokens; "
                "the data have changed: remove it and run launch.precompute again"
            )
        arrays, _ = unpack_blob(self._records[place], key=_KEY)
        return arrays["states"].view(jnp.bfloat16)
