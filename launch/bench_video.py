"""How fast video becomes pairs, beside the bare decoding of the same clips with PyAV."""

import concurrent.futures
import dataclasses
import multiprocessing
import pathlib
import tempfile
import time
from collections import Counter
from typing import Any

from tqdm import tqdm

from data_pipelines import shards
from data_pipelines.curate.clips import ReadSettings, Shot, VideoClips
from data_pipelines.curate.describe import Description
from data_pipelines.curate.pairs import encode_pair
from data_pipelines.curate.track_background import BackgroundTracker

STAGES = {
    "bare": "decoding, every frame as an RGB array",
    "decode": "decoding alone",
    "shots": "and finding cuts",
    "pairs": "and choosing pairs: RGB of their frames, flow, filters",
    "records": "and writing records",
    "masks": "the same with masks, by background subtraction",
}
MIN_SHARE = 0.8
"""Of the bare decoding rate, without models: below it something else than decoding dominates."""

Numbers = dict[str, Any]


def measure(folder: str, *, num_rounds: int) -> Numbers:
    """Rates over all clips of a folder, each stage with all those before it.

    Every stage runs in as many processes as there are cores, a clip at a time; best of the rounds,
    which take the stages in turn.

    Returns:
      {"cores", "clips", "frames", "pairs", "seconds": {stage: best}, "share"}; `share` is the rate
      of pairs without masks over the one that bare decoding would allow.

    Raises:
      SourceError: no clips.
    """
    clips = sorted(
        VideoClips(folder, settings=ReadSettings()).names(),
        key=lambda name: -(pathlib.Path(folder) / name).stat().st_size,
    )
    cores = multiprocessing.cpu_count()
    best: dict[str, float] = {}
    counts: dict[str, int] = {}
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(cores, mp_context=context) as pool:
        list(pool.map(_warm, range(2 * cores)))
        with tqdm(total=num_rounds * len(STAGES), desc="video", leave=False) as bar:
            for _ in range(num_rounds):
                for stage in STAGES:
                    start = time.perf_counter()
                    found = pool.map(_run, [(stage, folder, name) for name in clips])
                    counts[stage] = sum(found)
                    seconds = time.perf_counter() - start
                    best[stage] = min(seconds, best.get(stage, seconds))
                    bar.update()
    return {
        "cores": cores,
        "clips": len(clips),
        "frames": counts["bare"],
        "pairs": counts["records"],
        "seconds": best,
        "share": best["bare"] / best["records"],
    }


def rows(numbers: Numbers) -> list[tuple[str, str]]:
    """For the table."""
    seconds, frames = numbers["seconds"], numbers["frames"]
    found = [
        (
            "video",
            f"{numbers['clips']} clips, {frames:,} frames, {numbers['pairs']} pairs, "
            f"{numbers['cores']} processes",
        )
    ]
    for stage, title in STAGES.items():
        rate = f"{frames / seconds[stage]:,.0f} frames / s"
        found.append((f"  {title}", f"{rate}, {seconds[stage] / seconds['bare']:.2f} of the time"))
    rate = numbers["pairs"] / seconds["records"]
    found.append(("  pairs", f"{rate:,.1f} / s, {numbers['share']:.2f} of what decoding allows"))
    return found


@dataclasses.dataclass(frozen=True)
class _Unnamed:
    """Captions are a model's work, or written already."""

    def describe(self, shot: Shot) -> Description:
        del shot
        return Description("a video")


def _warm(number: int) -> None:
    """Imports what the stages need."""
    import av  # noqa: F401

    import data_pipelines.curate.job  # noqa: F401

    del number
    time.sleep(0.1)  # so that each process gets one


def _run(work: tuple[str, str, str]) -> int:
    """One clip through a stage and those before it; the number of frames, shots or records."""
    import av

    from data_pipelines.curate.job import Curation, curate_clip

    stage, folder, name = work
    source = VideoClips(folder, settings=ReadSettings())
    if stage in ("bare", "decode"):
        count = 0
        with av.open(str(pathlib.Path(folder) / name)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            for frame in container.decode(stream):
                if stage == "bare":
                    frame.to_ndarray(format="rgb24")
                count += 1
        return count
    if stage == "shots":
        return sum(1 for _ in source.shots(name))
    tracker = BackgroundTracker() if stage == "masks" else None
    curation = Curation(source=source, describer=_Unnamed(), tracker=tracker)
    pairs = curate_clip(curation, name, source.fingerprint(name), dropped=Counter())
    if stage == "pairs":
        return sum(1 for _ in pairs)
    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "pairs.array_record"
        return shards.write_shard(path, map(encode_pair, pairs))
