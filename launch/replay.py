"""Runs a bad training step again and says where it went wrong.

    python -m launch.replay --workdir runs/quickstart
    python -m launch.replay --workdir runs/quickstart --incident step_00001234 --examples 20

A step whose loss or gradient was not finite, or far too large, leaves an incident in the workdir
(`train.guard`). The steps from the checkpoint before it are trained again, with the same batches
and noise, and then printed are the loss of each example, the first module whose output is not
finite, and the parameters with the largest gradients. One process does it, with all of the job's
rows.
"""

from absl import flags

from launch import command
from unidiff_jax.train.incidents import read_incident
from unidiff_jax.train.replay import Replay, replay


def define_flags() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run, or gs://bucket/...", required=True)
    flags.DEFINE_string("incident", None, "Its name in the workdir; none is the last one.")
    flags.DEFINE_integer("examples", 10, "Examples, modules and parameters to show.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    command.quiet_libraries()
    values = flags.FLAGS
    incident = read_incident(values.workdir, values.incident)
    print(report(replay(values.workdir, incident), most=values.examples))


def report(found: Replay, *, most: int) -> str:
    """What a replay found, for people."""
    was = found.incident
    lines = [
        f"step {was.step}, from checkpoint {was.origin.step}",
        f"  in the run: loss {was.loss:g}, gradient norm {was.grad_norm:g}, bound {was.limit:g}",
        f"  now:        loss {found.loss:g}, gradient norm {found.grad_norm:g}",
        "  the data stream gives "
        + ("the same batch" if found.same_batch else "ANOTHER batch: the data have changed"),
        f"the first number that is not finite arises {found.first_fault}",
        "",
        "   row  segment     example  task                  loss",
    ]
    lines += [
        f"{e.row:>6}  {e.segment:>7}  {e.example_id:>10}  {e.task:<16}  {e.loss:>8.4g}"
        for e in found.examples[:most]
    ]
    lines += ["", "largest  output of"]
    worst = sorted(found.modules, key=lambda module: (module.is_finite, -module.largest))
    shown = [m for m in found.modules if not m.is_finite][:most] or worst[:most]
    lines += [f"{f'{m.largest:.3g}' if m.is_finite else 'nan/inf':>7}  {m.path}" for m in shown]
    lines += ["", "   norm  gradient of"]
    lines += [f"{norm:>7.3g}  {path}" for path, norm in found.gradients[:most]]
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
