"""Sampling: any subset of an example's frames is given, the rest is generated.

pipe = Pipeline.from_workdir("runs/quickstart")
result = pipe("depth", image=Image.open("photo.png"))
result["depth"].save("depth.png")
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.build import make_maker, row_size, split_rows
from unidiff_jax import cameras, flow
from unidiff_jax.frames import (
    CODECS,
    FRAME_COLUMNS,
    Example,
    frame_names,
    pack_rows,
    unpatchify,
)
from unidiff_jax.mesh import batch_sharding, make_mesh, on_mesh, parameter_shardings, replicated
from unidiff_jax.outside import InputError
from unidiff_jax.paths import AnyPath, as_path
from unidiff_jax.prompts import parse_prompt, to_slots
from unidiff_jax.sample.guidance import Guidance
from unidiff_jax.sample.images import load_image, to_picture
from unidiff_jax.sample.solvers import integrate, sigma_schedule
from unidiff_jax.tasks import FrameSpec, Task, get_task
from unidiff_jax.text import Tokenizer, load_tokenizer
from unidiff_jax.train.checkpoint import load_average
from unidiff_jax.train.initial import load_released
from unidiff_jax.train.state import ModelParts, initial_params, join
from unidiff_jax.train.workdir import load_workdir_config, model_parts, on_latents
from unidiff_jax.types import Batch, Kind, Params, Role, take_rows

NONE = Guidance()


def sample_tokens(
    params: Params,
    batch: Batch,
    key: jax.Array,
    *,
    graphdef: nnx.GraphDef,
    flow_config: flow.FlowConfig,
    empty_text: tuple[int, ...],
    num_steps: int,
    solver: str = "euler",
    guidance: Guidance = NONE,
    shift: float = 1.0,
) -> jax.Array:
    """Generates every frame that is not given.

    Args:
      params: weights.
      batch: rows; tokens of given frames are data, the others are ignored.
      key: noise is keyed by (key, example, place), so an example's result does not depend on the
        rows around it.
      graphdef: the model.
      flow_config: what its output means.
      empty_text: ids of the empty prompt, which guidance leads away from.
      num_steps: solver steps.
      solver: see `solvers.SOLVERS`.
      guidance: scales of text and pictures.
      shift: of the levels; above 1 spends more steps on noise.

    Returns:
      Clean tokens (b, t, p); those of given frames unchanged.
    """
    model = nnx.merge(graphdef, params)
    batch = flow.draw_latents(key, batch)
    given = (take_rows(batch.given, batch.frame) == 1)[..., None]
    rows = guidance.stack(batch, empty_text)
    text = model.encode_text(rows)

    def velocity(tokens, sigma):
        x = jnp.concatenate([tokens] * guidance.passes)
        table = jnp.where(rows.given == 1, 0.0, sigma)
        noised = flow.at_levels(rows, tokens=x, sigma=table, config=flow_config)
        v = flow.to_velocity(model.dit(rows, noised, text), x, sigma, flow_config)
        return jnp.where(given, 0.0, guidance.combine(v))

    start = jnp.where(given, batch.tokens, flow.draw_noise(key, batch))
    return integrate(velocity, start, sigmas=sigma_schedule(num_steps, shift=shift), solver=solver)


class Pipeline:
    """A trained model with its tokenizer, ready to sample any task."""

    def __init__(
        self,
        config: ConfigDict,
        *,
        model: ModelParts,
        params: Params,
        tokenizer: Tokenizer,
        mesh: Mesh,
    ):
        """Wraps weights; users call `from_workdir`."""
        self.config = config
        self.params = params
        self.maker = make_maker(config, tokenizer)
        self._mesh = mesh
        self._sample = jax.jit(
            on_mesh(
                functools.partial(
                    sample_tokens,
                    graphdef=model.graphdef,
                    flow_config=flow.FlowConfig(**config.flow),
                    empty_text=tuple(tokenizer.encode("")),
                    shift=config.data.shift,
                ),
                mesh,
                rules=config.mesh.rules,
            ),
            static_argnames=("num_steps", "solver", "guidance"),
            out_shardings=replicated(mesh),  # every process reads the result
        )

    @classmethod
    def from_workdir(
        cls,
        workdir: AnyPath,
        *,
        step: int | None = None,
        config: ConfigDict | None = None,
        mesh: Mesh | None = None,
    ) -> "Pipeline":
        """Loads the averaged weights of a training run.

        Args:
          workdir: what `launch.train` wrote.
          step: which checkpoint; None is the newest.
          config: in place of the run's own, with the same model.
          mesh: in place of the config's, such as one of this process's devices alone.

        Raises:
          FileNotFoundError: no run or no such checkpoint in the folder.
        """
        workdir = as_path(workdir)
        config = on_latents(config or load_workdir_config(workdir))
        mesh = mesh or make_mesh(config.mesh.axes)
        model = model_parts(config)
        shardings = parameter_shardings(
            model.shapes, model.axes, rules=config.mesh.rules, mesh=mesh
        )
        trained, frozen = model.split(shardings)
        params = load_average(workdir, model.split(model.shapes)[0], shardings=trained, step=step)
        released = load_released(config, model, shardings=shardings, trained=False)
        params = join(
            params,
            initial_params(model, seed=config.seed, shardings=frozen, released=released),
        )
        tokenizer = load_tokenizer(workdir / "tokenizer")
        return cls(config, model=model, params=params, tokenizer=tokenizer, mesh=mesh)

    def __call__(
        self,
        task: str,
        *,
        seed: int = 0,
        prompt: str | None = None,
        base_prompt: str | None = None,
        tags: Sequence[str] | None = None,
        roles: Mapping[str, str] | None = None,
        num_steps: int | None = None,
        solver: str | None = None,
        guidance: float | None = None,
        image_guidance: float | None = None,
        as_values: bool = False,
        **fields: Any,
    ) -> dict[str, Any]:
        """Runs one task on one example.

        Args:
          task: name in the registry.
          seed: of the noise.
          prompt: the whole prompt; None fills the task's template from `fields`.
          base_prompt: in place of the task's words, behind the tags; calls the given frames IMG1,
            IMG2, ... in order and the generated ones RES1, ... (`data.prompts=context`).
          tags: of the prompt, in place of the task's and of the config's `sample.tags`.
          roles: in place of the task's: canvas, asset, control or none, by field name.
          num_steps: solver steps; None is the config's, as for the next two.
          solver: `euler` or `heun`.
          guidance: text scale.
          image_guidance: scale of given pictures, where they are on channels
            (`data.guidance=channels`).
          as_values: whether frames come as their codecs read them, in place of pictures: depth as
            float32 (h, w) in [0, 1], a mask as bool (h, w), a picture as uint8 (h, w, 3).
          **fields: the task's given frames (path, PIL picture or array, by field name; a list of
            them where the task repeats the frame) and the text fields of its prompt, such as
            caption="a red cube". The task `interleave` takes pictures in its prompt too:
            slots="<img>fox.png</img> in the snow", or a list (`unidiff_jax.prompts`). Where a task
            makes any number of frames, None stands for each that is to be made:
            views=[photo, None], cameras=[camera, camera], each a `cameras.Cameras` of one at the
            scale of training (`cameras.normalize`).

        Returns:
          The generated frames by field name, of frames that repeat with the round: `views.1`.
          Cameras are `cameras.Cameras` of one, of the default focal length.

        Raises:
          InputError: a field is missing, unknown or cannot be read, or the model's prompts have no
            such part.
        """
        spec, example = self.example(
            task, prompt=prompt, base_prompt=base_prompt, tags=tags, roles=roles, **fields
        )
        made = self.generate(
            [(spec, example)],
            seeds=[seed],
            num_steps=num_steps,
            solver=solver,
            guidance=guidance,
            image_guidance=image_guidance,
        )[0][0]
        frames = {frame.field: frame for frame in spec.frames}
        size = (self.config.image_size, self.config.image_size)

        def show(frame: FrameSpec, values: np.ndarray) -> Any:
            if frame.kind == Kind.RAY:
                return cameras.from_rays(values[None])
            if as_values:
                return CODECS[frame.codec].read(values)
            return to_picture(values, codec=frame.codec, size=size)

        return {field: show(frames[field], values) for field, values in made.items()}

    def example(
        self,
        task: str,
        *,
        example_id: int = 1,
        prompt: str | None = None,
        base_prompt: str | None = None,
        tags: Sequence[str] | None = None,
        roles: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> tuple[Task, Example]:
        """What `generate` takes, of the arguments of a call.

        Args:
          task: name in the registry.
          example_id: in [1, 2**31); decides the noise, with the seed.
          prompt, base_prompt, tags, roles, **fields: as of a call.

        Raises:
          InputError: as a call.
        """
        if roles and not self.maker.roles:
            raise InputError("this model was trained without roles; leave them out")
        spec = _with_roles(get_task(task), roles or {})
        if prompt is not None and not (base_prompt is None and tags is None):
            raise InputError("the whole prompt has its tags and its base prompt; give these alone")
        if any(text is not None and not text.strip() for text in (prompt, base_prompt)):
            raise InputError("the prompt is empty; say what to make, or leave it out")
        has_words = prompt is not None or base_prompt is not None
        item = self._item(spec, fields, has_words=has_words)
        try:
            if prompt is None:
                prompt = spec.write(item, style=self.maker.style, base=base_prompt, tags=tags)
            if spec.makes_rounds:
                return self._unrolled(spec, item, example_id=example_id, prompt=prompt)
            example = self.maker.example(spec, item, example_id=example_id, prompt=prompt)
        except ValueError as error:  # too long for the model, or a part that its prompts lack
            raise InputError(str(error)) from None
        return spec, example

    def _unrolled(
        self, task: Task, item: Mapping[str, Any], *, example_id: int, prompt: str
    ) -> tuple[Task, Example]:
        """An example of a task whose item has None for each frame that is to be made."""
        if self.maker.guidance != "frames":
            raise InputError(f"task {task.name!r} needs data.guidance=frames")
        filled = task.fill(item)
        if all(value is not None for _, value in filled):
            raise InputError(
                f"task {task.name!r} makes any number of frames: give None for each that is to be "
                "made, such as views=[photo, None]; the command for that is launch.onediffusion, "
                "on an exported folder"
            )
        posed = [value for frame, value in filled if frame.kind == Kind.RAY]
        rays = iter(self._rays([value for value in posed if value is not None]) if posed else ())
        encoder, side = self.maker.autoencoder, self.config.image_size
        grid = side // encoder.downscale
        blank = np.zeros((grid, grid, encoder.latent_channels), np.float32)

        def latents(frame: FrameSpec, value: Any) -> np.ndarray:
            if value is None:
                return blank
            if frame.kind == Kind.RAY:
                return next(rays)
            return np.asarray(encoder.encode(CODECS[frame.codec].draw(value)))

        encoded = [latents(frame, value) for frame, value in filled]
        spec = task.unrolled([value is None for _, value in filled])
        example = self.maker.example(
            spec, {**item, "latents": encoded}, example_id=example_id, prompt=prompt
        )
        # names are those of training, which does not know what will be asked for
        names = frame_names(task, len(filled))
        example["frame_table"][:, FRAME_COLUMNS.index("name")] = names
        return spec, example

    def _rays(self, given: Sequence[cameras.Cameras]) -> np.ndarray:
        """Ray frames (n, y, x, c) of cameras of one each, seen from the first."""
        channels = self.maker.autoencoder.latent_channels
        grid = self.config.image_size // self.maker.autoencoder.downscale
        if channels < 6:
            raise InputError(f"a camera needs 6 channels, and latents have {channels}")
        if not given:
            return np.zeros((0, grid, grid, channels), np.float32)
        if any(not isinstance(c, cameras.Cameras) or len(c.focal) != 1 for c in given):
            raise InputError("cameras are a list of cameras.Cameras of one each, or None")
        posed = cameras.relative_to_first(
            cameras.Cameras(*(np.concatenate(part) for part in zip(*given, strict=True)))
        )
        frames = cameras.ray_frame(cameras.to_rays(posed, size=grid), channels=channels)
        return frames.astype(np.float32)

    def generate(
        self,
        examples: Sequence[tuple[Task, Example]],
        *,
        seeds: Sequence[int],
        num_steps: int | None = None,
        solver: str | None = None,
        guidance: float | None = None,
        image_guidance: float | None = None,
    ) -> list[list[dict[str, np.ndarray]]]:
        """Generates many examples, packed into the config's rows.

        Returns:
          [example][seed][field]: RGB (h, w, 3) float in about [-1, 1], before the codec; of
          cameras rays (y, x, 6).

        Raises:
          InputError: an example is larger than a row, or a scale for pictures that are frames.
        """
        settings = self.config.sample
        if image_guidance is None:
            image_guidance = settings.get("image_guidance", 1.0)
        if image_guidance != 1.0 and self.maker.guidance == "frames":
            raise InputError(
                "image_guidance is for pictures on channels (data.guidance=channels); here given "
                "pictures are frames: leave it at 1"
            )
        text_guidance = settings.guidance if guidance is None else guidance
        scales = Guidance(text=float(text_guidance), image=float(image_guidance))
        try:
            batch, placed = pack_rows([e for _, e in examples], size=row_size(self.config))
        except ValueError as error:
            raise InputError(str(error)) from None
        num_rows = min(self.config.data.batch_rows, _round_up(len(batch.tokens), self._mesh.size))
        made: list[list[dict[str, np.ndarray]]] = [[] for _ in examples]
        for seed in seeds:
            parts = [
                self._sample(
                    self.params,
                    jax.device_put(part, batch_sharding(self._mesh)),
                    jax.random.key(seed),
                    num_steps=num_steps or settings.num_steps,
                    solver=solver or settings.solver,
                    guidance=scales,
                )
                for part in split_rows(batch, num_rows=num_rows)
            ]
            tokens = np.concatenate([np.asarray(part) for part in parts])
            for (task, example), place, frames in zip(examples, placed, made, strict=True):
                owner = take_rows_host(batch, place.row) == place.segment
                task = self.maker.in_rows(task)
                own = example | {"tokens": tokens[place.row][owner]}
                wanted = [i for i, f in enumerate(task.frames) if f.field in task.generate]
                pictures = self.decode(own, frames=wanted)
                frames.append(
                    {
                        task.frames[i].field: cameras.read_ray_frame(self._latents(own, i))
                        if picture is None
                        else picture
                        for i, picture in zip(wanted, pictures, strict=True)
                    }
                )
        return made

    def decode(
        self, example: Example, *, frames: Sequence[int] | None = None
    ) -> list[np.ndarray | None]:
        """An example's frames, or those of the numbers `frames`, as RGB (h, w, 3) in about [-1, 1];
        None for ray frames.
        """
        kinds = example["frame_table"][:, FRAME_COLUMNS.index("kind")]
        return [
            None
            if kinds[number] == Kind.RAY
            else self.maker.autoencoder.decode(self._latents(example, number))
            for number in (range(len(kinds)) if frames is None else frames)
        ]

    def _latents(self, example: Example, number: int) -> np.ndarray:
        """A frame's latents (y, x, c)."""
        index = example["token_index"]
        own = index[:, 0] == number
        grid = tuple(int(n) + 1 for n in index[own, 2:].max(axis=0))
        return unpatchify(example["tokens"][own], patch=self.config.patch, grid=grid)

    def decode_guide(self, example: Example) -> np.ndarray | None:
        """The picture on an example's channels as RGB (h, w, 3); None where there is none."""
        if not example["visual"].any():
            return None
        own = example | {"tokens": example["visual"]}
        return self.decode(own, frames=[0])[0]

    def _item(self, task: Task, fields: Mapping[str, Any], *, has_words: bool) -> dict[str, Any]:
        """Loads given frames, fills generated ones with zeros and checks names."""
        words = () if has_words else task.prompt_fields
        if task.optional and "slots" in fields and "assets" not in fields:
            slots, assets = to_slots(parse_prompt(fields["slots"]))
            fields = {**fields, "slots": slots, "assets": assets}
        region = (task.region,) if task.region and self.maker.guidance == "channels" else ()
        given_fields = tuple(f.field for f in task.frames) if task.makes_rounds else task.given
        known = {*given_fields, *region, *words}
        unknown = sorted(set(fields) - known)
        missing = sorted(known - set(fields))
        if unknown or missing:
            wants = ", ".join([*given_fields, *region, *task.prompt_fields]) or "nothing"
            wrong = f"has no field {unknown[0]!r}" if unknown else f"needs {missing[0]!r}"
            raise InputError(f"task {task.name!r} {wrong}; it takes: {wants}")
        size = self.config.image_size
        item: dict[str, Any] = {"tags": self.config.sample.get("tags", ())}
        for number, frame in enumerate(task.frames):
            if frame.field in task.generate and not task.makes_rounds:
                item[frame.field] = CODECS[frame.codec].read(np.zeros((size, size, 3), np.float32))
                continue
            given = fields[frame.field]
            several = isinstance(given, list | tuple)
            if number < len(task.frames) - task.repeats:
                if several:
                    raise InputError(f"task {task.name!r} takes one {frame.field}")
                item[frame.field] = load_image(given, codec=frame.codec, size=size)
            else:
                given = given if several else [given]
                if not given and not task.optional:
                    raise InputError(f"task {task.name!r} needs at least one of {frame.field}")
                item[frame.field] = [
                    g
                    if frame.kind == Kind.RAY or (g is None and task.makes_rounds)
                    else load_image(g, codec=frame.codec, size=size)
                    for g in given
                ]
        for name in region:
            item[name] = load_image(fields[name], codec="mask", size=size)
        for word in words:
            if not str(fields[word]).strip():
                raise InputError(f"{word} is empty; say what to make")
            item[word] = str(fields[word])
        return item


def take_rows_host(batch: Batch, row: int) -> np.ndarray:
    """Segment of each token of one row, on the host."""
    return np.asarray(batch.segment)[row][np.asarray(batch.frame)[row]]


def _with_roles(task: Task, roles: Mapping[str, str]) -> Task:
    """The task with other roles of its given frames, by name."""
    names = {role.name.lower(): role for role in Role}
    for field, role in roles.items():
        if field not in task.given:
            wants = ", ".join(task.given) or "no picture"
            raise InputError(f"task {task.name!r} is given {wants}, not {field!r}")
        if role not in names:
            raise InputError(f"role {role!r} is unknown; one of {', '.join(names)}")
    frames = tuple(
        dataclasses.replace(frame, role=names[roles[frame.field]])
        if frame.field in roles
        else frame
        for frame in task.frames
    )
    return dataclasses.replace(task, frames=frames)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
