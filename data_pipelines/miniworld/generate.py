"""Renders MiniWorld to record files, in parallel and resumable by shard.

Record i of a split draws from its own generator, seeded with (seed, split, i), and a shard is a
fixed range of i. Which process renders a shard, and how often the run was stopped, therefore
leaves no trace in the files.
"""

import concurrent.futures
import dataclasses
import errno
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import numpy as np
import tqdm
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines.miniworld import edits, language, manifest, records, video
from data_pipelines.miniworld.manifest import Manifest, Settings
from data_pipelines.miniworld.render import render
from data_pipelines.miniworld.scene import SPLITS, Scene, heldout_factors, sample_scene, to_dict
from unidiff_jax.paths import AnyPath, is_remote

WRITER_OPTIONS = "group_size:1,zstd"


class GenerateError(RuntimeError):
    """Rendering cannot start or go on; the message is one line and says what to do."""


class _StopError(Exception):
    """Raised in a worker when the run is being stopped."""


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file to render."""

    path: pathlib.Path
    split: str
    indices: range
    settings: Settings


def _references(scenes: list[Scene], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Two expressions for each object of the base image, one for each object elsewhere."""
    result = []
    for image, scene in enumerate(scenes):
        for target in scene.objects:
            draws = [language.refer(scene, target.id, rng) for _ in range(2 if image == 0 else 1)]
            result += [
                {"expression": expression, "object": target.id, "image": image}
                for expression in dict.fromkeys(draws)
                if expression is not None
            ]
    return result


def make_record(settings: Settings, split: str, index: int) -> records.Record:
    """Record `index` of a split: a pure function of its arguments."""
    number = SPLITS.index(split)
    rng = np.random.default_rng([settings.seed, number, index])
    base = sample_scene(rng, split=split)
    # The object that an edit adds and the one that a clip shows get ids of their own.
    next_id = 1 + max(o.id for o in base.objects)
    changes = edits.sample_edits(base, rng, num_edits=settings.edits, next_id=next_id)
    scenes = [base, *(change.after for change in changes)]
    clip = None
    if settings.clip_frames:
        drawn = video.frames(base, rng, settings.clip_frames + 1, next_id=next_id + 1)
        images = [0, *range(len(scenes), len(scenes) + settings.clip_frames)]
        clip = {"kind": drawn.kind, "images": images, "description": drawn.description}
        scenes += drawn.scenes[1:]
    drawings = [render(scene, settings.size, samples=settings.samples) for scene in scenes]
    return records.Record(
        rgb=np.stack([d.rgb for d in drawings]),
        depth=np.stack([d.depth for d in drawings]).astype(np.float16),
        instance=np.stack([d.instance for d in drawings]),
        shadow=np.stack([d.shadow for d in drawings]).astype(np.uint8),
        camera_to_world=np.stack([d.camera_to_world for d in drawings]),
        intrinsics=np.stack([d.intrinsics for d in drawings]),
        id=number * 2**28 + index,
        split=split,
        heldout=next(iter(heldout_factors(base)), None),
        scenes=[to_dict(scene) for scene in scenes],
        captions=[language.captions(scene, rng) for scene in scenes],
        references=_references(scenes, rng),
        edits=[
            {
                "kind": change.kind,
                "instruction": change.instruction,
                "before": 0,
                "after": position + 1,
                "object": change.object,
            }
            for position, change in enumerate(changes)
        ],
        clip=clip,
    )


def render_shard(shard: Shard, on_record: Callable[[], Any]) -> dict[str, Any]:
    """Renders one file under a temporary name, renames it, and returns its manifest entry.

    Args:
      shard: the file and its records.
      on_record: called after each record; what it raises ends the shard.

    Raises:
      GenerateError: the file could not be written.
    """
    partial = shard.path.with_name(shard.path.name + ".partial")
    try:
        writer = array_record_module.ArrayRecordWriter(str(partial), WRITER_OPTIONS)
        try:
            for index in shard.indices:
                record = make_record(shard.settings, shard.split, index)
                writer.write(records.encode(record))
                on_record()
        finally:
            writer.close()
        os.replace(partial, shard.path)
        return manifest.file_entry(shard.path, num_records=len(shard.indices))
    except (OSError, RuntimeError) as error:
        raise _write_error(shard.path, error) from None
    finally:
        partial.unlink(missing_ok=True)


def _write_error(path: pathlib.Path, error: Exception) -> GenerateError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
    if full:
        return GenerateError(
            f"the disk is full at {path}; free some space and run the same command again, "
            "finished shards are kept"
        )
    return GenerateError(f"could not write {path}: {' '.join(str(error).split())}")


# A worker process keeps what all its shards share; it is set once by the pool's initializer.
_worker: dict[str, Any] = {}


def _start_worker(counter, stop) -> None:
    _worker.update(counter=counter, stop=stop)


def _count_record() -> None:
    if _worker["stop"].is_set():
        raise _StopError
    with _worker["counter"].get_lock():
        _worker["counter"].value += 1


def _render_in_worker(shard: Shard) -> dict[str, Any]:
    return render_shard(shard, _count_record)


@contextmanager
def _held_interrupt() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and processes started inside never see it.

    They inherit the blocked signal. Another thread of this process may still receive it, so that
    it is only noted: an interrupt while a process is being started would leave that one waiting.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    noted: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if noted:
        raise KeyboardInterrupt


def _render_parallel(
    shards: list[Shard], num_workers: int, bar: tqdm.tqdm
) -> Generator[tuple[Shard, dict[str, Any]], None, None]:
    """Yields each shard with its manifest entry as it is finished."""
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    with concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(counter, stop)
    ) as pool:
        try:
            with _held_interrupt():
                pending = {pool.submit(_render_in_worker, shard): shard for shard in shards}
            shown = 0
            while pending:
                with _held_interrupt():  # wait takes a lock a future, and would keep some of them
                    done, _ = concurrent.futures.wait(
                        pending, timeout=0.2, return_when=concurrent.futures.FIRST_COMPLETED
                    )
                rendered = counter.get_obj().value  # no lock: an interrupt could keep it
                bar.update(rendered - shown)
                shown = rendered
                for future in done:
                    yield pending.pop(future), future.result()
        except concurrent.futures.process.BrokenProcessPool:
            raise GenerateError(
                "a worker process died, perhaps for lack of memory; run the same command again "
                "with fewer --workers"
            ) from None
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _prepare(folder: pathlib.Path, settings: Settings) -> Manifest:
    """The folder's manifest, cut down to the files that are whole."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / manifest.NAME).exists():
            if any(folder.glob("*.array_record")):
                raise GenerateError(
                    f"{folder} holds record files without a manifest; use another --out, or "
                    "remove the folder"
                )
            current = Manifest(settings)
            manifest.write(folder, current)
            return current
        current = manifest.read(folder)
    except OSError as error:
        raise _write_error(folder, error) from None
    except manifest.RecordsError as error:
        raise GenerateError(str(error)) from None
    wanted = {"generator": manifest.GENERATOR, **dataclasses.asdict(settings)}
    found = {"generator": current.generator, **dataclasses.asdict(current.settings)}
    other = [f"{k} {found[k]} instead of {wanted[k]}" for k in wanted if found[k] != wanted[k]]
    if other:
        raise GenerateError(
            f"{folder} was made with {'; '.join(other)}; use another --out, or remove the folder "
            "to render it anew"
        )
    for name, entry in list(current.files.items()):
        path = folder / name
        whole = path.exists() and path.stat().st_size == entry["bytes"]
        if not whole or manifest.sha256(path) != entry["sha256"]:
            del current.files[name]
    return current


def generate(
    folder: AnyPath, settings: Settings, *, num_workers: int = 1, progress: str = "bar"
) -> Manifest:
    """Renders a folder of record files; what is already there and whole is kept.

    Example:
      generate("data/tiny", Settings(size=32, counts={"train": 100, "test": 20}))

    Args:
      folder: where the files go, a local one; made if need be.
      settings: what to render.
      num_workers: processes; the files do not depend on it.
      progress: "bar" for a progress bar with the time left on stderr, "none" for silence.

    Raises:
      GenerateError: the folder was made with other settings or is no local one, the disk is full,
        a worker died.
      KeyboardInterrupt: after the partial files are removed; the same call continues.
    """
    if is_remote(folder):
        raise GenerateError(f"render locally and copy: {settings.command(folder)}")
    folder = pathlib.Path(folder)
    current = _prepare(folder, settings)
    missing, total = [], 0
    for split in SPLITS:
        for name, indices in settings.shards_of(split).items():
            total += len(indices)
            if name not in current.files:
                missing.append(Shard(folder / name, split, indices, settings))
    done = total - sum(len(shard.indices) for shard in missing)
    with tqdm.tqdm(
        total=total, initial=done, unit="record", disable=progress == "none", smoothing=0.05
    ) as bar:
        if num_workers > 1 and len(missing) > 1:
            finished = _render_parallel(missing, min(num_workers, len(missing)), bar)
        else:
            finished = ((shard, render_shard(shard, bar.update)) for shard in missing)
        with closing(finished):
            for shard, entry in finished:
                current.files[shard.path.name] = entry
                try:
                    manifest.write(folder, current)
                except OSError as error:
                    raise _write_error(folder / manifest.NAME, error) from None
    return current
