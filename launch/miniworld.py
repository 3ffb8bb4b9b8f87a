"""Renders the MiniWorld data set: small 3-D scenes with exact maps, edits, clips and language.

    python -m launch.miniworld --out data/miniworld-32 --size 32 \
        --train 8000 --validation 400 --test 600 --heldout 300 --seed 0 --workers 2

A stopped run continues with the same command; files that are finished are kept. The files depend
on every flag except --out and --workers.
"""

import sys

from absl import app, flags

from data_pipelines.miniworld.generate import GenerateError, generate
from data_pipelines.miniworld.manifest import Settings
from data_pipelines.miniworld.scene import SPLITS

_OUT = flags.DEFINE_string("out", "data/miniworld-32", "Folder for the record files.")
_SIZE = flags.DEFINE_integer("size", 32, "Pixels a side.", lower_bound=8, upper_bound=512)
_COUNTS = {
    split: flags.DEFINE_integer(split, count, f"Records in {split}.", lower_bound=0)
    for split, count in zip(SPLITS, (8000, 400, 600, 300), strict=True)
}
_SEED = flags.DEFINE_integer("seed", 0, "Seed of all randomness.", lower_bound=0)
_SAMPLES = flags.DEFINE_integer("samples", 2, "Rays a side of each pixel.", lower_bound=1)
_SHARDS = flags.DEFINE_integer("shards", 4, "Files a split.", lower_bound=1)
_EDITS = flags.DEFINE_integer("edits", 3, "Edit pairs a scene.", lower_bound=0)
_CLIP_FRAMES = flags.DEFINE_integer(
    "clip_frames", 2, "Clip frames a scene besides the base image; 0 for none.", lower_bound=0
)
_WORKERS = flags.DEFINE_integer("workers", 1, "Processes.", lower_bound=1)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; every setting is a flag")
    settings = Settings(
        size=_SIZE.value,
        counts={split: flag.value for split, flag in _COUNTS.items()},
        seed=_SEED.value,
        samples=_SAMPLES.value,
        shards=_SHARDS.value,
        edits=_EDITS.value,
        clip_frames=_CLIP_FRAMES.value,
    )
    try:
        manifest = generate(_OUT.value, settings, num_workers=_WORKERS.value)
    except GenerateError as error:
        sys.exit(f"miniworld: {error}")
    except KeyboardInterrupt:
        print("miniworld: stopped; the same command continues", file=sys.stderr)
        sys.exit(130)
    num_bytes = sum(entry["bytes"] for entry in manifest.files.values())
    print(f"{_OUT.value}: {len(manifest.files)} files, {num_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    app.run(main)
