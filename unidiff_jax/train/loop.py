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
from unidiff_jax.processes import data_share, first_alone, gather_numbers
from unidiff_jax.sample.previews import Previews
from unidiff_jax.train.checkpoint import Checkpoints, abstract_state
from unidiff_jax.train.goodput import Goodput, summarize_goodput
from unidiff_jax.train.guard import Guard, GuardConfig
from unidiff_jax.train.incidents import Origin, handle_bad_steps
from unidiff_jax.train.initial import check_released, first_state
from unidiff_jax.train.lock import locked_workdir
from unidiff_jax.train.metrics import MetricWriter, summarize
from unidiff_jax.train.optim import OptimConfig, make_schedule
from unidiff_jax.train.pace import Pace
from unidiff_jax.train.preemption import GRACE_SECONDS, Notice, PreemptedError
from unidiff_jax.train.profile import Profile
from unidiff_jax.train.program import Program, make_program
from unidiff_jax.train.state import (
    TrainState,
    count_parameters,
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


def return_to(
    step: int, state: TrainState, checkpoints: Checkpoints, config: ConfigDict, program: Program
) -> TrainState:
    """The state of a checkpoint, or the first one for step 0, in the place of `state`."""
    shapes = abstract_state(state)
    for leaf in jax.tree.leaves((state.params, state.opt_state, state.ema)):
        leaf.delete()  # there may be no room for two
    if not step:
        return first_state(config, program, trained=True)
    found = checkpoints.restore(dataclasses.replace(shapes, frozen={}), step=step).state
    return dataclasses.replace(found, frozen=state.frozen)


def train(config: ConfigDict, workdir: AnyPath, *, grace: float = GRACE_SECONDS) -> TrainState:
    """Trains to `config.train.num_steps`, continuing what the workdir holds.

    Args:
      config: see `configs/quickstart.py`.
      workdir: made when absent; local or `gs://bucket/...`.
      grace: seconds that a save after SIGTERM may take.

    Returns:
      The final state.

    Raises:
      ConfigError: the config cannot work, or the workdir holds another one.
      StalledError, TooManySkippedError: the data do not come, or are damaged.
      TrainingStoppedError: too many steps in a row went wrong.
      WorkdirBusyError: another job trains there.
      DamagedError: the workdir has checkpoints, and none can be used.
      PreemptedError: SIGTERM came, and the state is saved.
    """
    with contextlib.ExitStack() as held:
        return _train(config, as_path(workdir), held, grace=grace)


def _train(
    config: ConfigDict, workdir: AnyPath, held: contextlib.ExitStack, *, grace: float
) -> TrainState:
    num_steps = config.train.num_steps
    account = Goodput(workdir)

    # --------------------------------------------------------------------------- config and program
    # before the workdir is claimed, so that a run that cannot start leaves it free
    program = make_program(config)
    mesh = program.mesh
    states = check_data(config)
    check_released(config)
    check_rows(config, mesh)
    guard_config = GuardConfig(**config.train.get("guard", {}))
    profile = Profile(
        workdir, start=config.train.profile_start, num_steps=config.train.profile_steps
    )

    # ------------------------------------------------------------------------------------ workdir
    with first_alone("workdir"):
        held.enter_context(locked_workdir(workdir))
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
    checkpoints = Checkpoints(
        workdir / "checkpoints", keep=config.train.keep, keep_every=config.train.keep_every
    )
    is_new = checkpoints.latest_step() is None
    state = first_state(config, program, trained=is_new, report=workdir / "init.json")
    logging.info(
        "%.2f M parameters trained, %.2f M frozen, on %d devices",
        count_parameters(state.params) / 1e6,
        count_parameters(state.frozen) / 1e6,
        mesh.size,
    )
    clock = {"train_seconds": 0.0}
    first_step = 0
    if not is_new and (restored := checkpoints.restore_newest(abstract_state(state))):
        first_step = restored.step
        state = dataclasses.replace(restored.state, frozen=state.frozen)
        clock = restored.clock
        loader.set_state(restored.loader)
        logging.info("continuing at step %d", first_step)
    guard = Guard(guard_config, clock.pop("guard", None))
    origin = Origin(first_step, gather_state(loader.get_state()), guard.state())
    writer = MetricWriter(workdir, first_step=first_step)
    previews = Previews(config, tokenizer=tokenizer, mesh=mesh, workdir=workdir)
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
    pace = Pace()
    started = time.monotonic() - clock["train_seconds"]
    logged = time.monotonic()
    step = first_step
    notice = held.enter_context(Notice(grace=grace))
    account.begin(step)
    try:
        while step < num_steps:
            with account.part("data"), pace.own():
                rows = next(loader)
                batch = to_devices(rows, mesh=mesh)
            profile.before(step, state)
            with (
                account.part("compile") if step == first_step else contextlib.nullcontext(),
                jax.profiler.StepTraceAnnotation("train", step_num=step),
            ):
                limit = guard.limit(step)
                state, metrics = program.step(state, batch, limit)
            bad_steps = guard.judge(step, metrics["verdict"], rows, limit=limit)
            step += 1
            profile.after(step, state)
            bar.update()
            table = metrics.pop("table")
            total = table if total is None else jax.tree.map(jnp.add, total, table)
            skipped.append(metrics["skipped"])
            preempted = notice.reached(step)
            is_last = preempted or step == num_steps

            is_saved = step % config.train.save_every == 0 or is_last
            if bad_steps := bad_steps + (guard.drain() if is_saved else []):
                checkpoints.wait()
                handle_bad_steps(bad_steps, guard, workdir, origin=origin, share=data_share(mesh))
                if guard.rolls_back:
                    state = return_to(origin.step, state, checkpoints, config, program)
                    step = origin.step
                    guard.restore({**origin.guard, "in_a_row": bad_steps[-1].in_a_row})
                    origin = Origin(step, gather_state(loader.get_state()), guard.state())
                    writer.close()
                    writer = MetricWriter(workdir, first_step=step)
                    total, skipped, logged = None, [], time.monotonic()
                    bar.n = step
                    if preempted:  # the checkpoint to go on from is there
                        break
                    continue

            if step % config.train.log_every == 0 or is_last:
                values = summarize(total, prefix="train")
                now = time.monotonic()
                values |= {
                    "grad_norm": float(metrics["grad_norm"]),
                    "learning_rate": float(schedule(step - 1)),
                    "skipped_steps": int(sum(int(s) for s in skipped)),
                    "skipped_records": int(gather_numbers([loader.skipped]).sum()),
                    "steps_per_second": len(skipped) / (now - logged),
                    "train_seconds": now - started,
                }
                values |= pace.compare(
                    num_steps=len(skipped), seconds_per_step=1 / values["steps_per_second"]
                )
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

            if is_saved:
                jax.block_until_ready(state)
                with account.part("save"):
                    clock["train_seconds"] = time.monotonic() - started
                    writer.flush()  # a run that goes on from here has the rows up to it
                    # before next(): the saved stream continues with the batch that comes next
                    guard.saved()
                    origin = Origin(step, gather_state(loader.get_state()), guard.state())
                    checkpoints.save(
                        state,
                        step=step,
                        loader=origin.loader,
                        clock=clock | {"guard": origin.guard},
                    )
            if preempted:
                break
    finally:
        # also on an error or Ctrl-C: a save that has begun is finished
        bar.close()
        loader.close()
        try:
            profile.close(step, state)
            with account.part("save"):
                checkpoints.close()
        finally:
            writer.close()
            account.row(step)
    if step < num_steps:
        raise PreemptedError(step, workdir)
    if jax.process_index() == 0:
        logging.info("goodput %.1f %%", 100 * summarize_goodput(workdir)["goodput"])
    return state
