"""Curation as an Apache Beam pipeline: clips to sharded records of pairs.

    names -> fingerprint -> group by content -> group by shard -> curate a shard -> manifest

A clip belongs to the shard that its content decides, and a shard is curated as one piece of work,
its records written in the order of the clips' names: so the records depend neither on the runner
nor on the number of workers, and a job that was stopped goes on with the shards that are not there
yet. Of clips with the same content the first by name is taken. Only names pass through the groups;
pictures stay inside a worker.

    FOLDER/manifest.json                          settings, totals, clips that were left out and why
    FOLDER/pairs-00000-of-00016.array_record      records (`pairs`); none for an empty shard
    FOLDER/pairs-00000-of-00016.json              what is known of the shard, written last

Random choices are keyed by the seed and the clip's content.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import numpy as np
from absl import logging
from apache_beam.options.pipeline_options import PipelineOptions
from etils import epath

from data_pipelines import shards
from data_pipelines.curate.clips import ClipError, ClipSource, Shot, StoppedError
from data_pipelines.curate.depth_model import DepthModel
from data_pipelines.curate.describe import Describer
from data_pipelines.curate.motion import PairSettings, choose_pairs, context_tags
from data_pipelines.curate.pairs import NAME, SCHEMA, Pair, encode_pair
from data_pipelines.curate.track import Tracker
from unidiff_jax.paths import AnyPath, as_path, write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curation:
    """What is done with each clip. Travels to workers.

    Attributes:
      source: the clips.
      describer: captions and boxes.
      tracker: mask trajectories; None for none.
      depth_model: depth where the data have none; None for none.
      unnamed: what a thing is called that nobody named; empty: nothing, and so no task that speaks
        of things has a use for it.
      pairs: which pairs are taken.
      tags: context tags of every pair, such as "realistic style".
      min_area: share of the picture that a thing covers in both frames, at least; smaller masks
        are removed.
      min_things: things that a pair must show in both frames.
      lossless: frames as PNG instead of JPEG.
      seed: of the choices.
      stop_at_bad: whether a clip that cannot be used stops the job; otherwise it is counted.
    """

    source: ClipSource
    describer: Describer
    tracker: Tracker | None = None
    depth_model: DepthModel | None = None
    unnamed: str = ""
    pairs: PairSettings = dataclasses.field(default_factory=PairSettings)
    tags: tuple[str, ...] = ("realistic style",)
    min_area: float = 0.002
    min_things: int = 0
    lossless: bool = False
    seed: int = 0
    stop_at_bad: bool = False


def curate_clip(
    curation: Curation, name: str, fingerprint: str, *, dropped: collections.Counter[str]
) -> Iterator[Pair]:
    """The pairs of one clip.

    Args:
      curation: what is done.
      name: of the clip.
      fingerprint: of its content.
      dropped: counts shots, pairs and masks that were left out, by reason.

    Raises:
      ClipError: the clip cannot be read.
    """
    rng = np.random.default_rng([curation.seed, int(fingerprint[:16], 16)])
    for shot in curation.source.shots(name):
        try:
            yield from _curate_shot(curation, shot, name=name, rng=rng, dropped=dropped)
        except ClipError as error:
            if curation.stop_at_bad:
                raise
            dropped[error.reason] += 1
            logging.info("%s: a shot is left out: %s", name, error)


def _curate_shot(
    curation: Curation,
    shot: Shot,
    *,
    name: str,
    rng: np.random.Generator,
    dropped: collections.Counter[str],
) -> Iterator[Pair]:
    chosen = choose_pairs(shot, curation.pairs, rng, dropped=dropped)
    if not chosen:
        return
    description = curation.describer.describe(shot)
    tracks = curation.tracker.track(shot, description.entities) if curation.tracker else None
    for pair in chosen:
        ends = [pair.earlier, pair.later]
        frames = np.stack([shot.frames[i] for i in ends])
        masks = np.zeros(frames.shape[:3], np.uint8)
        if tracks is not None:
            masks = keep_large(tracks.masks[ends], min_area=curation.min_area, dropped=dropped)
        ids = set(np.unique(masks).tolist()) - {0}
        if len(ids) < curation.min_things:
            dropped["too few things"] += 1
            continue
        names = tracks.names if tracks is not None else {}
        depth = None if shot.depth is None else shot.depth[ends]
        if depth is None and curation.depth_model is not None:
            depth = curation.depth_model.depth(frames)
        yield Pair(
            frames=frames,
            masks=masks,
            names={i: text for i in sorted(ids) if (text := names.get(i, curation.unnamed))},
            caption=description.caption,
            clip=name,
            times=(float(shot.times[pair.earlier]), float(shot.times[pair.later])),
            tags=(*curation.tags, *context_tags(pair.motion, curation.pairs)),
            flow=pair.motion.flow,
            difference=pair.motion.difference,
            depth=None if depth is None else depth.astype(np.float16),
        )


def keep_large(
    masks: np.ndarray, *, min_area: float, dropped: collections.Counter[str]
) -> np.ndarray:
    """Masks (2, H, W) without the ids that cover less than `min_area` in one of the two frames."""
    areas = np.stack([np.bincount(mask.ravel(), minlength=256) for mask in masks])
    small = (areas < min_area * masks[0].size).any(0) & areas.any(0)
    small[0] = False
    dropped["small or lost mask"] += int(small.sum())
    return np.where(small[masks], 0, masks).astype(np.uint8)


# -------------------------------------------------------------------------------------------- beam


def run_job(
    curation: Curation,
    folder: AnyPath,
    *,
    settings: Mapping[str, Any],
    num_shards: int,
    options: PipelineOptions | None = None,
) -> dict[str, Any]:
    """Curates what is missing of a folder and returns its manifest.

    Args:
      curation: what is done with each clip.
      folder: to write, local or in a bucket.
      settings: everything that decides the records, for the manifest.
      num_shards: record files. A shard is one piece of work: more of them keep more workers busy,
        and a stopped job loses less.
      options: of the Beam runner; None is the direct runner in this process.

    Raises:
      ConfigError: the folder was begun with other settings.
      SourceError: there are no clips.
      StoppedError: a clip cannot be used, where the curation stops at that.
    """
    folder = as_path(folder)
    claim_folder(folder, settings, num_shards=num_shards)
    names = list(curation.source.names())
    missing = [
        number
        for number, name in enumerate(shards.shard_names(NAME, num_shards))
        if shards.read_entry(folder, name) is None
    ]
    if missing:
        work = _CurateShard(curation, str(folder), num_shards)
        with beam.Pipeline(options=options or PipelineOptions([])) as pipeline:
            clips = (
                pipeline
                | "Names" >> beam.Create(names)
                | "Spread" >> beam.Reshuffle()
                | "Fingerprint" >> beam.Map(_WithFingerprint(curation.source))
                | "SameContent" >> beam.GroupByKey()
                | "ToShard" >> beam.Map(functools.partial(_with_shard, num_shards=num_shards))
            )
            empty = pipeline | "Shards" >> beam.Create([(number, None) for number in missing])
            _ = (
                (clips, empty)
                | beam.Flatten()
                | "OneShard" >> beam.GroupByKey()
                | "Missing" >> beam.Filter(functools.partial(_is_among, numbers=set(missing)))
                | "Curate" >> beam.Map(work)
            )
    return finish(folder, num_shards=num_shards)


def claim_folder(folder: AnyPath, settings: Mapping[str, Any], *, num_shards: int) -> None:
    """Begins a folder, or checks that it was begun with the same settings.

    Raises:
      ConfigError: other settings; names those that differ.
      ManifestError: its manifest cannot be read.
    """
    shards.claim_folder(
        folder,
        {"settings": dict(settings), "shards": num_shards},
        schema=SCHEMA,
        made="curated",
        remedy="choose another --output",
    )


def finish(folder: AnyPath, *, num_shards: int) -> dict[str, Any]:
    """Writes the totals of a folder whose shards are all there into its manifest.

    Raises:
      StoppedError: a shard stopped at a clip that cannot be used.
    """
    folder = as_path(folder)
    totals: collections.Counter[str] = collections.Counter()
    dropped: collections.Counter[str] = collections.Counter()
    skipped: list[dict[str, str]] = []
    for name in shards.shard_names(NAME, num_shards):
        entry = shards.read_entry(folder, name)
        if entry is None:
            raise StoppedError(_stop_file(folder / name).read_text().strip())
        totals.update(records=entry["records"], clips=entry["clips"])
        dropped.update(entry["dropped"])
        skipped += entry["skipped"]
    manifest = shards.read_manifest(folder, schema=SCHEMA) | {
        "records": totals["records"],
        "clips": totals["clips"],
        "skipped": sorted(skipped, key=lambda clip: clip["clip"]),
        "skipped_by_reason": dict(collections.Counter(clip["reason"] for clip in skipped)),
        "dropped": dict(dropped),
    }
    write_json(folder / "manifest.json", manifest)
    return manifest


@dataclasses.dataclass(frozen=True)
class _WithFingerprint:
    """A clip's name with the fingerprint of its content before it."""

    source: ClipSource

    def __call__(self, name: str) -> tuple[str, str]:
        try:
            return self.source.fingerprint(name), name
        except OSError:
            # reading it will say why
            return hashlib.sha256(name.encode()).hexdigest(), name


def _with_shard(
    clip: tuple[str, Iterable[str]], *, num_shards: int
) -> tuple[int, tuple[str, list[str]]]:
    fingerprint, names = clip
    return int(fingerprint[-8:], 16) % num_shards, (fingerprint, sorted(names))


def _is_among(group: tuple[int, Any], *, numbers: set[int]) -> bool:
    return group[0] in numbers


@dataclasses.dataclass(frozen=True)
class _CurateShard:
    """Curates all clips of a shard and writes its records and what is known of them."""

    curation: Curation
    folder: str
    num_shards: int

    def __call__(self, group: tuple[int, Iterable[Any]]) -> None:
        number, clips = group
        path = as_path(self.folder) / shards.shard_names(NAME, self.num_shards)[number]
        ordered = sorted((clip for clip in clips if clip is not None), key=lambda clip: clip[1])
        skipped: list[dict[str, str]] = []
        dropped: collections.Counter[str] = collections.Counter()
        try:
            count = shards.write_shard(path, self._records(ordered, skipped, dropped))
        except ClipError as error:
            # A runner would wrap the error, print it per worker and try again.
            _stop_file(path).write_text(f"{error.reason}: {error}\n")
            return
        shards.write_entry(
            path,
            records=count,
            clips=sum(len(names) for _, names in ordered),
            skipped=skipped,
            dropped=dict(dropped),
        )
        _stop_file(path).unlink(missing_ok=True)

    def _records(
        self,
        clips: Iterable[tuple[str, list[str]]],
        skipped: list[dict[str, str]],
        dropped: collections.Counter[str],
    ) -> Iterator[bytes]:
        for fingerprint, (name, *others) in clips:
            skipped += [
                {"clip": other, "reason": "duplicate", "message": f"the same as {name}"}
                for other in others
            ]
            try:
                for pair in curate_clip(self.curation, name, fingerprint, dropped=dropped):
                    yield encode_pair(pair, lossless=self.curation.lossless)
            except (ClipError, OSError) as error:
                reason = error.reason if isinstance(error, ClipError) else "unreadable"
                if self.curation.stop_at_bad:
                    raise ClipError(reason, str(error)) from None
                skipped.append({"clip": name, "reason": reason, "message": str(error)})
                logging.warning("%s is left out: %s", name, error)


def _stop_file(path: epath.Path) -> epath.Path:
    """Why a shard was not finished."""
    return path.with_suffix(".stopped.txt")
