"""Turns a config's raw data sets into latents of its autoencoder, once, for training; or into
pictures of one size, where the autoencoder runs in the train step (`autoencoder.in_step`).

    python -m launch.encode --config configs/onediffusion.py:stage=finetune,weights=FOLDER \\
        --set data.sources.edit.path=/data/edits/*.parquet

Reads `data.sources`, writes `data.folder/NAME`. A stopped run continues with the same command, on
as many processes as there are then. With `--distributed` the processes of a job share the shards:
`data.encode.shards` should be several times as many, and all processes see the same sources.
Samples that cannot be used are skipped, counted and listed in the shard's JSON file; when they are
too many, the command stops and says why. Samples that have nothing for the task, such as a scene
without an edit, are counted by reason.
"""

import hashlib

import jax
from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.build import make_autoencoder, make_identity
from data_pipelines.encoder import EncodeSettings, Guides, encode_dataset, own_samples
from data_pipelines.sources.make import make_source
from launch import command
from unidiff_jax.config import ConfigError
from unidiff_jax.export.files import weights_digest
from unidiff_jax.paths import as_path
from unidiff_jax.processes import join_job
from unidiff_jax.tasks import Task, get_task


def define_flags() -> None:
    command.define_config_flags("configs/onediffusion.py")
    flags.DEFINE_list("only", None, "Names of data sets; none is all of data.sources.")
    command.define_distributed_flag()


def main(argv: list[str]) -> None:
    del argv
    config = command.config_from_flags()
    join_job(flags.FLAGS.distributed)
    command.quiet_libraries()
    encode(config, only=flags.FLAGS.only)


def encode(config: ConfigDict, *, only: list[str] | None = None) -> None:
    """Encodes the config's data sets and prints what was written.

    Raises:
      ConfigError: a name that is no data set, or settings that cannot be.
    """
    if "sources" not in config.data:
        raise ConfigError("data.sources is missing: this config trains on MiniWorld, unencoded")
    names = only or list(config.data.sources)
    for name in names:
        if name not in config.data.sources:
            raise ConfigError(
                f"no data set {name!r}; data.sources has {', '.join(config.data.sources)}"
            )
    autoencoder = make_autoencoder(config)
    guides = make_guides(config)
    shared = config.data.encode.to_dict()
    batch = shared.pop("batch")
    for name in names:
        raw = config.data.sources[name].to_dict()
        task = get_task(raw.pop("task"))
        settings = EncodeSettings(size=raw.pop("size"), samples=raw.pop("samples"), **shared)
        source = make_source(raw, key=f"data.sources.{name}", task=task)
        check_fields(source.fields, task=task, name=name, guided=guides.regions)
        folder = as_path(config.data.folder) / name
        with tqdm(
            total=own_samples(len(source), settings),
            unit="sample",
            desc=name,
            disable=jax.process_index() != 0,
        ) as bar:
            count = encode_dataset(
                source,
                task=task,
                autoencoder=autoencoder,
                folder=folder,
                settings=settings,
                origin=raw,
                batch=batch,
                guides=guides,
                on_samples=bar.update,
            )
        if jax.process_index() > 0:
            continue
        print(f"{folder}: {count.records} records, {count.skipped} samples skipped")
        for reason, number in count.unsuitable.most_common():
            print(f"  {number} samples without use for the task: {reason}")


def make_guides(config: ConfigDict) -> Guides:
    """What records hold beside latents, where the config guides on channels or in the prompt."""
    guidance = config.data.get("guidance", "frames")
    if guidance == "frames":
        return Guides()
    settings = config.data.get("identity")
    origin = {}
    if settings:
        origin["identity"] = settings.encoder
    if settings and settings.path:
        path = as_path(settings.path)
        if path.is_dir():
            origin["sha256"] = weights_digest(path)
        else:
            with path.open("rb") as file:
                origin["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    identity, entities = make_identity(config), bool(config.data.get("entities"))
    if entities:
        origin["entities"] = True
    regions = guidance == "channels"
    return Guides(regions=regions, entities=entities, identity=identity, origin=origin)


def check_fields(fields: tuple[str, ...], *, task: Task, name: str, guided: bool = False) -> None:
    """Raises ConfigError where the samples lack a field of the task."""
    region = [task.region] if guided and task.region else []
    frames = (frame.field for frame in task.frames)
    needed = dict.fromkeys([*frames, *task.prompt_fields, *region])
    missing = [field for field in needed if field not in fields]
    if missing:
        raise ConfigError(
            f"data.sources.{name} has {', '.join(fields)}; task {task.name!r} needs "
            f"{', '.join(missing)} too: name its column in data.sources.{name}.fields"
        )


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
