"""The training loop, top to bottom: workdir, mesh, input, model, state, restore, loop."""

import contextlib
import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipelines.build import check_data, heldout_batches, make_loader, make_tokenizer
from data_pipelines.loader import gather_state, to_devices, whole_to_devices
from unidiff_jax.config import ConfigError
from unidiff_jax.paths import AnyPath, as_path
from unidiff_jax.processes import data_share, first_alone
from unidiff_jax.sample.previews import Previews
from unidiff_jax.train.checkpoint import Checkpoints, abstract_state
from unidiff_jax.train.goodput import Goodput, summarize_goodput
from unidiff_jax.train.initial import check_released, load_released
from unidiff_jax.train.metrics import MetricWriter, summarize
from unidiff_jax.train.optim import OptimConfig, make_schedule
from unidiff_jax.train.profile import Profile
from unidiff_jax.train.program import make_program
from unidiff_jax.train.state import (
    TrainState,
    count_parameters,
    create_state,
    join,
)
from unidiff_jax.train.workdir import claim_workdir


def check_rows(config: ConfigDict, mesh: Mesh) -> None:
    """Every device needs the same number of rows in every microbatch.

    Raises:
      ConfigError: `data.batch_rows` does not divide so.
    """
    rows, passes = config.data.batch_rows, config.train.num_microbatches
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (parts * passes):
        raise ConfigError(
            f"data.batch_rows={rows} must be a multiple of {parts * passes}: {parts} devices along "
            f"data and fsdp times train.num_microbatches={passes}; for example "
            f"--set data.batch_rows={-(-rows // (parts * passes)) * parts * passes}"
        )


def train(config: ConfigDict, workdir: AnyPath) -> TrainState:
    """Trains to `config.train.num_steps`, continuing what the workdir holds.

    Args:
      config: see `configs/quickstart.py`.
      workdir: made when absent; local or `gs://bucket/...`.

    Returns:
      The final state.

    Raises:
      ConfigError: the config cannot work, or the workdir holds another one.
    """
    workdir = as_path(workdir)
    num_steps = config.train.num_steps
    account = Goodput(workdir)

    # --------------------------------------------------------------------------- config and program
    # before the workdir is claimed, so that a run that cannot start leaves it free
    program = make_program(config)
    mesh, model = program.mesh, program.model
    states = check_data(config)
    check_released(config)
    check_rows(config, mesh)
    profile = Profile(
        workdir, start=config.train.profile_start, num_steps=config.train.profile_steps
    )

    # ------------------------------------------------------------------------------------ workdir
    with first_alone("workdir"):
        claim_workdir(config, workdir)

    # -------------------------------------------------------------------------------------- input
    with first_alone("tokenizer"):
        tokenizer = make_tokenizer(config, workdir / "tokenizer")
    loader = make_loader(config, tokenizer, share=data_share(mesh), states=states)
    heldout = [
        whole_to_devices(batch, mesh=mesh)
        for batch in heldout_batches(config, tokenizer, num_items=config.train.eval_items)
    ]

    # -------------------------------------------------------------------------- state and restore
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.train.keep)
    first_step = checkpoints.latest_step() or 0
    places = join(program.shardings.params, program.shardings.frozen)
    released = load_released(config, model, shardings=places, trained=first_step == 0)
    state = create_state(
        model,
        program.optimizer,
        seed=config.seed,
        shardings=program.shardings,
        released=released,
    )
    logging.info(
        "%.2f M parameters trained, %.2f M frozen, on %d devices",
        count_parameters(state.params) / 1e6,
        count_parameters(state.frozen) / 1e6,
        mesh.size,
    )
    clock = {"train_seconds": 0.0}
    if first_step:
        restored = checkpoints.restore(abstract_state(state), step=first_step)
        state = dataclasses.replace(restored.state, frozen=state.frozen)
        clock = restored.clock
        loader.set_state(restored.loader)
        logging.info("continuing at step %d", first_step)
    writer = MetricWriter(workdir, first_step=first_step)
    previews = Previews(config, model=model, tokenizer=tokenizer, mesh=mesh, workdir=workdir)
    schedule = make_schedule(OptimConfig(**config.optim), num_steps=num_steps)

    # --------------------------------------------------------------------------------------- loop
    bar = tqdm(
        total=num_steps,
        initial=first_step,
        unit="step",
        desc="train",
        disable=jax.process_index() != 0,
        mininterval=1.0,
    )
    total = None  # loss table since the last log
    skipped = []
    started = time.monotonic() - clock["train_seconds"]
    logged = time.monotonic()
    step = first_step
    account.begin(step)
    try:
        while step < num_steps:
            with account.part("data"):
                batch = to_devices(next(loader), mesh=mesh)
            profile.before(step, state)
            with (
                account.part("compile") if step == first_step else contextlib.nullcontext(),
                jax.profiler.StepTraceAnnotation("train", step_num=step),
            ):
                state, metrics = program.step(state, batch)
            step += 1
            profile.after(step, state)
            bar.update()
            table = metrics.pop("table")
            total = table if total is None else jax.tree.map(jnp.add, total, table)
            skipped.append(metrics["skipped"])

            if step % config.train.log_every == 0 or step == num_steps:
                values = summarize(total, prefix="train")
                now = time.monotonic()
                values |= {
                    "grad_norm": float(metrics["grad_norm"]),
                    "learning_rate": float(schedule(step - 1)),
                    "skipped_steps": int(sum(int(s) for s in skipped)),
                    "steps_per_second": len(skipped) / (now - logged),
                    "train_seconds": now - started,
                }
                writer.scalars(step, values)
                account.row(step)
                bar.set_postfix(loss=f"{values['train/loss']:.4f}")
                total, skipped, logged = None, [], now

            if step % config.train.eval_every == 0 or step == num_steps:
                jax.block_until_ready(state)  # steps that still run are not the evaluation's
                with account.part("evaluate"):
                    key = jax.random.key(config.seed)
                    params = join(state.frozen, state.ema)
                    tables = [program.score(params, batch, key) for batch in heldout]
                    summed = functools.reduce(functools.partial(jax.tree.map, jnp.add), tables)
                    writer.scalars(step, summarize(summed, prefix="heldout"))

            if step % config.train.sample_every == 0 or step == num_steps:
                jax.block_until_ready(state)
                with account.part("evaluate"):
                    sheet = previews.draw(join(state.frozen, state.ema), step=step)
                    writer.picture(step, "samples", sheet)

            if step % config.train.save_every == 0 or step == num_steps:
                jax.block_until_ready(state)
                with account.part("save"):
                    clock["train_seconds"] = time.monotonic() - started
                    writer.flush()  # a run that goes on from here has the rows up to it
                    # before next(): the saved stream continues with the batch that comes next
                    checkpoints.save(
                        state, step=step, loader=gather_state(loader.get_state()), clock=dict(clock)
                    )
    finally:
        # also on an error or Ctrl-C: a save that has begun is finished
        bar.close()
        try:
            profile.close(step, state)
            with account.part("save"):
                checkpoints.close()
        finally:
            writer.close()
            account.row(step)
    if jax.process_index() == 0:
        logging.info("goodput %.1f %%", 100 * summarize_goodput(workdir)["goodput"])
    return state
