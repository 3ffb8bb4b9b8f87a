"""From nothing to a report: renders MiniWorld, trains, evaluates.

    python -m launch.quickstart --workdir runs/quickstart
    python -m launch.quickstart --config configs/quickstart.py:tiny --workdir runs/tiny

Stopped, it continues with the same command; a stage that is done with the same config is skipped.
`--fresh` removes the workdir first, and the data folder if this command made it.
"""

import json
import os
import time

from absl import flags
from ml_collections import ConfigDict

from data_pipelines.miniworld import manifest
from data_pipelines.miniworld.generate import GenerateError, generate
from data_pipelines.miniworld.manifest import Settings
from data_pipelines.miniworld.scene import SPLITS
from launch import command
from launch.evaluate import SECONDS, evaluate_workdir, report_folder
from unidiff_jax.config import ConfigError, to_dict
from unidiff_jax.evals.miniworld import evaluated_config, settings_of
from unidiff_jax.evals.miniworld_report import verdict_table
from unidiff_jax.paths import AnyPath, as_path, is_remote
from unidiff_jax.train.checkpoint import latest_step
from unidiff_jax.train.loop import train
from unidiff_jax.train.workdir import claim_workdir

MARKER = ".made_by_quickstart"
"""In a data folder that this command made, and that `--fresh` may therefore remove."""

MIN_PARALLEL = 1000
"""Scenes below which starting worker processes takes longer than rendering."""


def define_flags() -> None:
    command.define_config_flags("configs/quickstart.py")
    flags.DEFINE_string(
        "workdir",
        "runs/quickstart",
        "Folder of the run, or gs://bucket/...; continued if it exists.",
    )
    flags.DEFINE_bool("fresh", False, "Begin anew: remove the workdir and the data made here.")
    flags.DEFINE_integer("workers", os.cpu_count(), "Processes that render.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    config = command.config_from_flags()
    workdir = as_path(flags.FLAGS.workdir)
    command.quiet_libraries()
    settings = render_settings(config)
    if flags.FLAGS.fresh:
        remove(config, workdir)

    _banner(1, f"data: {sum(settings.counts.values())} scenes in {config.data.folder}")
    claim_workdir(config, workdir)
    seconds = render_data(config, settings, num_workers=flags.FLAGS.workers)
    if seconds is not None:
        (workdir / SECONDS).write_text(json.dumps({"render": seconds}) + "\n")

    _banner(2, f"training: {config.train.num_steps} steps in {workdir}")
    if _trained_steps(workdir) < config.train.num_steps:
        train(config, workdir)
    else:
        print("done before")

    _banner(3, f"evaluation: {settings_of(config).num_items} items a task")
    results = finished_results(config, workdir)
    if results is None:
        results = evaluate_workdir(workdir, config=config)
    else:
        print("done before")
    print(verdict_table(results))
    print(f"report: {report_folder(workdir) / 'index.html'}")


def render_settings(config: ConfigDict) -> Settings:
    """The config's `data.render` as settings of the renderer.

    Raises:
      ConfigError: the config has none.
    """
    if "render" not in config.data:
        raise ConfigError("data.render is missing; copy it from configs/quickstart.py")
    render = to_dict(config.data.render)
    counts = {split: render.pop(split) for split in SPLITS if split in render}
    return Settings(size=config.image_size, counts=counts, **render)


def render_data(config: ConfigDict, settings: Settings, *, num_workers: int) -> float | None:
    """Renders what is missing; returns the seconds, or None where nothing was missing.

    Raises:
      GenerateError: the folder holds data of other settings, or cannot be written; a bucket has
        to hold them already.
    """
    folder = as_path(config.data.folder)
    if is_remote(folder):
        _check_rendered(folder, settings)
        return None
    if not folder.exists():
        folder.mkdir(parents=True)
        (folder / MARKER).touch()
    names = [name for split in SPLITS for name in settings.shards_of(split)]
    before = manifest.read(folder).files if (folder / manifest.NAME).exists() else {}
    started = time.monotonic()
    few = sum(settings.counts.values()) < MIN_PARALLEL
    generate(folder, settings, num_workers=1 if few else num_workers)
    return None if set(names) <= set(before) else time.monotonic() - started


def _check_rendered(folder: AnyPath, settings: Settings) -> None:
    try:
        found = manifest.read(folder)
    except manifest.RecordsError:
        found = None
    names = {name for split in SPLITS for name in settings.shards_of(split)}
    if found is None or found.settings != settings or names - set(found.files):
        raise GenerateError(
            f"{folder} does not hold the config's data.render; make it with: "
            f"{settings.command(folder)}"
        )


def remove(config: ConfigDict, workdir: AnyPath) -> None:
    """Removes the workdir, and the data folder if this command made it.

    Raises:
      ConfigError: the workdir exists and holds no run, so it is somebody's other folder.
    """
    workdir = as_path(workdir)
    if workdir.exists():
        if any(workdir.iterdir()) and not (workdir / "config.json").is_file():
            raise ConfigError(f"--fresh: {workdir} holds no run; choose another --workdir")
        workdir.rmtree()
    folder = as_path(config.data.folder)
    if (folder / MARKER).is_file():
        folder.rmtree()


def finished_results(config: ConfigDict, workdir: AnyPath) -> dict | None:
    """The workdir's results, if they are of this config and of the newest checkpoint."""
    folder = report_folder(workdir)
    if not (folder / "index.html").is_file():
        return None
    results = json.loads((folder / "results.json").read_text())
    wanted = evaluated_config(config, settings=settings_of(config), split="test", tasks=())
    same = results["config"] == wanted and results["steps"] == latest_step(workdir)
    return results if same else None


def _trained_steps(workdir: AnyPath) -> int:
    try:
        return latest_step(workdir)
    except FileNotFoundError:
        return 0


def _banner(number: int, text: str) -> None:
    print(f"\n[{number}/3] {text}", flush=True)


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
