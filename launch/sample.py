"""Runs one task on one example and saves what it makes.

    python -m launch.sample --workdir runs/quickstart --task depth --image photo.png --out depth.png
    python -m launch.sample --task edit --image photo.png --prompt "make the red cube blue" \\
        --out edited.png
    python -m launch.sample --task depth_to_image --given depth=depth.png \\
        --prompt "a red cube on a grey floor" --out picture.png

Maps for a benchmark: --values writes depth with 16 bits a pixel and a mask in one channel, and the
same numbers as .npy.

    python -m launch.sample --task depth --image photo.png --out depth.png --values

A model that was trained on prompts in three parts (`data.prompts=context`) takes each from the task
unless it is given; the given pictures are IMG1, IMG2, ... in the task's order:

    python -m launch.sample --workdir runs/unireal --task customize --out together.png \\
        --given assets=dog.png --given assets=bowl.png --given assets=spot.png \\
        --base_prompt "The dog from IMG1 drinks from the bowl of IMG2 on the grass of IMG3" \\
        --tags "with reference object,realistic style"
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from launch import command
from unidiff_jax.outside import InputError
from unidiff_jax.paths import as_path, written_whole
from unidiff_jax.sample.images import write_values
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.sample.solvers import SOLVERS
from unidiff_jax.tasks import TASKS, Task
from unidiff_jax.train.workdir import load_workdir_config

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def define_flags() -> None:
    flags.DEFINE_string("workdir", "runs/quickstart", "Folder of the run.")
    flags.DEFINE_string("task", None, f"One of {', '.join(TASKS)}.", required=True)
    flags.DEFINE_string("image", None, "The task's given picture, where it has one.")
    flags.DEFINE_multi_string("given", [], "A given frame, repeatable: --given depth=depth.png")
    flags.DEFINE_multi_string("role", [], "A given frame's role, repeatable: --role source=asset")
    flags.DEFINE_string("prompt", None, "Caption, expression or instruction of the task.")
    flags.DEFINE_string("full_prompt", None, "The whole prompt, in place of the task's template.")
    flags.DEFINE_string("base_prompt", None, "The prompt's words, in place of the task's.")
    flags.DEFINE_list("tags", None, "The prompt's context tags, in place of the task's.")
    flags.DEFINE_string("out", "out.png", "Picture to write: PNG, JPEG or WebP.")
    flags.DEFINE_boolean("values", False, "Write maps as they are scored, and as .npy.")
    flags.DEFINE_integer("num_steps", None, "Solver steps.", lower_bound=1)
    flags.DEFINE_enum("solver", None, SOLVERS, "Solver.")
    flags.DEFINE_float("guidance", None, "Scale of the text; 1 is none.", lower_bound=0.0)
    flags.DEFINE_float(
        "image_guidance", None, "Scale of pictures on channels; 1 is none.", lower_bound=0.0
    )
    flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0)
    flags.DEFINE_integer("step", None, "Checkpoint; none is the newest.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    command.quiet_libraries()
    values = flags.FLAGS
    if values.task not in TASKS:
        raise InputError(f"no task {values.task!r}; tasks are: {', '.join(TASKS)}")
    task = TASKS[values.task]
    words = ("prompt", "full_prompt", "base_prompt")
    if sum(values[name].value is not None for name in words) > 1:
        raise InputError(f"give one of {', '.join(f'--{name}' for name in words)}")
    suffixes = SUFFIXES[:1] if values.values else SUFFIXES
    paths = output_paths(values.out, fields=task.generate, suffixes=suffixes)
    fields = given_fields(task, image=values.image, given=values.given)
    if values.full_prompt is None and values.base_prompt is None:
        fields |= text_fields(task, prompt=values.prompt)
    load_workdir_config(values.workdir)  # before Orbax makes the folder of a run that is not there
    pipeline = Pipeline.from_workdir(values.workdir, step=values.step)
    made = pipeline(
        values.task,
        seed=values.seed,
        prompt=values.full_prompt,
        base_prompt=values.base_prompt,
        tags=values.tags,
        roles=given_roles(values.role),
        num_steps=values.num_steps,
        solver=values.solver,
        guidance=values.guidance,
        image_guidance=values.image_guidance,
        as_values=values.values,
        **fields,
    )
    save(made, paths=paths)


def given_fields(
    task: Task, *, image: str | None, given: Sequence[str]
) -> dict[str, str | list[str]]:
    """Paths by field from `--image` and `--given`; lists for the frames that the task repeats.

    Raises:
      InputError: a malformed or repeated field, or `--image` where it is not clear which it is.
    """
    repeated = {frame.field for frame in task.frames[len(task.frames) - task.repeats :]}
    fields: dict[str, Any] = {}
    for text in given:
        name, sign, path = text.partition("=")
        if not (name and sign and path):
            raise InputError(f"--given {text} is not FIELD=PATH, such as --given depth=depth.png")
        if name not in task.given:
            wants = ", ".join(task.given) or "no picture"
            raise InputError(f"task {task.name!r} is given {wants}, not {name!r}")
        if name in repeated:
            fields.setdefault(name, []).append(path)
            continue
        if name in fields:
            raise InputError(f"--given {name} appears twice")
        fields[name] = path
    if image is not None:
        free = [name for name in task.given if name not in fields]
        if len(free) != 1:
            many = ", ".join(f"--given {name}=PATH" for name in free)
            raise InputError(
                f"task {task.name!r} takes "
                + (f"{len(free)} pictures; name them: {many}" if free else "no further picture")
            )
        fields[free[0]] = image
    return fields


def given_roles(texts: Sequence[str]) -> dict[str, str]:
    """Roles by field from `--role`; raises InputError for a malformed or repeated one."""
    roles: dict[str, str] = {}
    for text in texts:
        name, sign, role = text.partition("=")
        if not (name and sign and role):
            raise InputError(f"--role {text} is not FIELD=ROLE, such as --role source=asset")
        if name in roles:
            raise InputError(f"--role {name} appears twice")
        roles[name] = role
    return roles


def text_fields(task: Task, *, prompt: str | None) -> dict[str, str]:
    """The text field that `--prompt` fills.

    Raises:
      InputError: the task reads no text, or needs some.
    """
    if prompt is None:
        if task.prompt_fields:
            raise InputError(f"task {task.name!r} needs --prompt, its {task.prompt_fields[0]}")
        return {}
    if not task.prompt_fields:
        raise InputError(f"task {task.name!r} reads no text; leave --prompt out")
    return {task.prompt_fields[0]: prompt}


def output_paths(
    out: str, *, fields: Sequence[str], suffixes: Sequence[str] = SUFFIXES
) -> dict[str, epath.Path]:
    """Where each generated frame goes: `out` for one, `out_FIELD` for several.

    Raises:
      InputError: a name that ends in none of `suffixes`.
    """
    path = as_path(out)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"--out {out}: the name must end in {', '.join(suffixes)}")
    if len(fields) == 1:
        return {fields[0]: path}
    return {field: path.with_stem(f"{path.stem}_{field}") for field in fields}


def save(made: dict[str, Any], *, paths: dict[str, epath.Path]) -> None:
    """Writes the frames and prints their paths."""
    for field, frame in made.items():
        if isinstance(frame, np.ndarray):
            print(*write_values(frame, paths[field]), sep="\n")
            continue
        with written_whole(paths[field]) as file:
            frame.save(file)
        print(paths[field])


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
