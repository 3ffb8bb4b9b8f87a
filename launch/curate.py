"""Turns video into pairs of frames with captions and mask trajectories, with Apache Beam.

    python -m launch.curate --input clips --output data/pairs
    python -m launch.curate --input data/miniworld-32 --format miniworld --split train \\
        --track given --output data/miniworld-pairs --lossless --tags "synthetic style"

Clips need a caption: `NAME.txt` or `NAME.json` beside `NAME.mp4`, or a model (`--describe`). A
stopped job continues with the same command. Clips that cannot be used are counted, and named in
`manifest.json` with the reason; `--on_bad error` stops at the first one.

It runs in threads on this machine's cores. The same job runs in processes, or on Dataflow, Flink or
Spark, with Beam's own options:

    --beam="--runner=FnApiRunner --direct_running_mode=multi_processing --direct_num_workers=64"
    --beam="--runner=DataflowRunner --project=P --region=R --temp_location=gs://B/tmp \\
        --sdk_container_image=IMAGE"
    --beam="--runner=FlinkRunner --flink_master=HOST:8081 --environment_type=DOCKER \\
        --environment_config=IMAGE"
    --beam="--runner=SparkRunner --spark_master_url=spark://HOST:7077 --environment_type=DOCKER \\
        --environment_config=IMAGE"

where IMAGE is Beam's Python image with this package and its extra `curate` installed, and input and
output are gs:// paths.
"""

import contextlib
import dataclasses
import os
import shlex
import threading
from collections.abc import Iterator
from typing import Any

from absl import flags
from tqdm import tqdm

from launch import command
from unidiff_jax.config import ConfigError
from unidiff_jax.paths import AnyPath, as_path, written_whole

DESCRIBERS = ("sidecar", "given", "kosmos2", "florence2", "grounding_dino")
TRACKERS = ("none", "given", "flow", "background", "sam2")
_HELP = {
    "size": "Pixels of the shorter side; larger frames are scaled down.",
    "min_side": "Clips with fewer pixels on the shorter side are left out.",
    "fps": "Frames a second that are looked at, at most.",
    "cut": "Score from which FFmpeg's scdet sees a cut, of 100.",
    "max_frames": "Frames of a shot; longer takes are divided.",
    "per_shot": "Pairs of a shot, at most.",
    "min_gap": "Seconds between the two frames, at least.",
    "max_gap": "Seconds between the two frames, at most.",
    "min_difference": "Mean absolute difference, of 1, below which a pair shows no change.",
    "max_difference": "Mean absolute difference above which frames have nothing in common.",
    "dynamic": "Share of the picture that moves in a dynamic scenario.",
    "min_sharpness": "Variance of the Laplacian, of grey values to 255; less is blurred.",
    "min_contrast": "Deviation of the grey values, of 255; less is a fade or a black frame.",
}


def define_flags() -> None:
    from data_pipelines.curate.clips import ReadSettings
    from data_pipelines.curate.formats import FORMATS
    from data_pipelines.curate.motion import PairSettings

    flags.DEFINE_string("input", None, "Folder or pattern of the clips.", required=True)
    flags.DEFINE_enum("format", "video", sorted(FORMATS), "What the input is.")
    flags.DEFINE_string("split", "all", "Split, for formats that have them.")
    flags.DEFINE_string("output", None, "Folder for the record files.", required=True)
    flags.DEFINE_integer("shards", 16, "Record files; a shard is one piece of work.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Seed of all choices.", lower_bound=0)
    for settings in (ReadSettings(), PairSettings()):
        for name, value in dataclasses.asdict(settings).items():
            define = flags.DEFINE_integer if isinstance(value, int) else flags.DEFINE_float
            define(name, value, _HELP[name], lower_bound=0)
    flags.DEFINE_enum("describe", "sidecar", DESCRIBERS, "Where captions and boxes come from.")
    flags.DEFINE_string("describe_model", None, "Checkpoint folder of the describing model.")
    flags.DEFINE_enum("track", "none", TRACKERS, "Where mask trajectories come from.")
    flags.DEFINE_string("track_model", None, "Checkpoint folder of the tracking model.")
    flags.DEFINE_string("unnamed", "", "What a thing is called that nobody named.")
    flags.DEFINE_string("depth_model", None, "Checkpoint folder of Depth Anything; none: no depth.")
    flags.DEFINE_list("names", [], "Things to look for, for grounding_dino.")
    flags.DEFINE_enum(
        "on_bad_box", "clip", ("clip", "skip", "error"), "Boxes that reach out of the picture."
    )
    flags.DEFINE_list("tags", "realistic style", "Context tags of every pair.")
    flags.DEFINE_float(
        "min_area", 0.002, "Share of the picture that a thing covers in both frames."
    )
    flags.DEFINE_integer("min_things", 0, "Things that a pair must show.", lower_bound=0)
    flags.DEFINE_bool("lossless", False, "Frames as PNG, for rendered clips; otherwise JPEG.")
    flags.DEFINE_enum(
        "on_bad", "skip", ("skip", "error"), "What to do with a clip that is no good."
    )
    flags.DEFINE_string("sheet", None, "PNG for a contact sheet of samples built from the pairs.")
    flags.DEFINE_integer("workers", None, "Threads; all cores by default.", lower_bound=1)
    flags.DEFINE_string("beam", "", "Options of another Beam runner.")


def main(argv: list[str]) -> None:
    del argv
    for module in ("apache_beam", "av"):
        command.require(module, extra="curate")
    from apache_beam.options.pipeline_options import PipelineOptions

    from data_pipelines.curate.job import run_job

    command.quiet_libraries()
    values = flags.FLAGS
    output = as_path(values.output)
    with _progress(output, values.shards):
        manifest = run_job(
            _curation(),
            output,
            settings=_settings(),
            num_shards=values.shards,
            options=PipelineOptions(_beam_arguments()),
        )
    print(f"{output}: {manifest['records']} pairs of {manifest['clips']} clips")
    for title, counts in (
        ("clips left out", manifest["skipped_by_reason"]),
        ("shots, pairs and masks left out", manifest["dropped"]),
    ):
        shown = ", ".join(f"{reason} {n}" for reason, n in sorted(counts.items()) if n)
        print(f"{title}: {shown or 'none'}")
    if values.sheet:
        draw_sheet(output, values.sheet)


def draw_sheet(folder: AnyPath, path: AnyPath) -> None:
    """Writes a picture of samples of every task that the pairs can fill."""
    from data_pipelines.sources.sheet import contact_sheet

    with written_whole(path) as file:
        contact_sheet(folder).save(file)
    print(f"samples: {path}")


def _curation() -> Any:
    from data_pipelines.curate.clips import ReadSettings
    from data_pipelines.curate.depth_model import DepthModel
    from data_pipelines.curate.formats import open_clips
    from data_pipelines.curate.job import Curation
    from data_pipelines.curate.motion import PairSettings

    values = flags.FLAGS
    settings = _from_flags(ReadSettings)
    return Curation(
        source=open_clips(values.format, values.input, settings=settings, split=values.split),
        describer=_describer(),
        tracker=_tracker(),
        depth_model=DepthModel(values.depth_model) if values.depth_model else None,
        unnamed=values.unnamed,
        pairs=_from_flags(PairSettings),
        tags=tuple(values.tags),
        min_area=values.min_area,
        min_things=values.min_things,
        lossless=values.lossless,
        seed=values.seed,
        stop_at_bad=values.on_bad == "error",
    )


def _describer() -> Any:
    from data_pipelines.curate import describe, describe_models

    kind, names = flags.FLAGS.describe, flags.FLAGS.names
    if kind == "sidecar":
        return describe.SidecarDescriber(on_bad_box=flags.FLAGS.on_bad_box)
    if kind == "given":
        return describe.GivenDescriber()
    folder = _folder("describe")
    if kind == "kosmos2":
        return describe_models.Kosmos2Describer(folder)
    if kind == "florence2":
        return describe_models.Florence2Describer(folder)
    return describe_models.GroundingDinoDescriber(folder, names=names or None)


def _tracker() -> Any:
    from data_pipelines.curate import track, track_background, track_flow, track_sam2

    kind = flags.FLAGS.track
    if kind == "none":
        return None
    if kind == "sam2":
        return track_sam2.Sam2Tracker(_folder("track"))
    trackers = {
        "given": track.GivenTracker,
        "flow": track_flow.FlowTracker,
        "background": track_background.BackgroundTracker,
    }
    return trackers[kind]()


def _folder(stage: str) -> str:
    """The checkpoint folder of a stage.

    Raises:
      ConfigError: none is given.
    """
    folder = flags.FLAGS[f"{stage}_model"].value
    if not folder:
        kind = flags.FLAGS[stage].value
        raise ConfigError(f"--{stage} {kind} needs --{stage}_model=FOLDER, its checkpoint")
    return folder


def _from_flags(settings: Any) -> Any:
    names = [field.name for field in dataclasses.fields(settings)]
    return settings(**{name: flags.FLAGS[name].value for name in names})


def _settings() -> dict[str, Any]:
    """What decides the records, for the manifest."""
    own = flags.FLAGS.get_key_flags_for_module(flags.FLAGS.find_module_defining_flag("input"))
    free = {"output", "shards", "workers", "beam", "on_bad", "sheet", "debug"}
    return {flag.name: flag.value for flag in own if flag.name not in free}


def _beam_arguments() -> list[str]:
    if flags.FLAGS.beam:
        return shlex.split(flags.FLAGS.beam)
    workers = flags.FLAGS.workers or os.cpu_count() or 1
    # decoding, flow and GrabCut run outside of Python's lock
    mode = "multi_threading" if workers > 1 else "in_memory"
    return [
        "--runner=FnApiRunner",
        f"--direct_num_workers={workers}",
        f"--direct_running_mode={mode}",
    ]


@contextlib.contextmanager
def _progress(folder: Any, num_shards: int) -> Iterator[None]:
    """A bar of finished shards; a runner's workers may be anywhere, so it looks at the folder."""
    from data_pipelines import shards
    from data_pipelines.curate.pairs import NAME

    done = threading.Event()

    def count() -> int:
        names = shards.shard_names(NAME, num_shards)
        return sum(shards.read_entry(folder, name) is not None for name in names)

    def watch() -> None:
        with tqdm(total=num_shards, initial=count(), unit="shard") as bar:
            while not done.wait(2):
                bar.update(count() - bar.n)
            bar.update(count() - bar.n)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
