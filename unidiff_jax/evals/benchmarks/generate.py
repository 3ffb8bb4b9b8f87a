"""Models that benchmarks ask: one method, from requests to pictures.

generator = load_generator("runs/quickstart")        # a workdir
generator = load_generator("weights/onediffusion")   # a folder in the released layout
(made,) = generator.generate([Request("depth", id="1", given={"image": photo})])
"""

import dataclasses
import hashlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from data_pipelines.mixture import parse_mixture
from data_pipelines.sources.scenes import SCALE
from unidiff_jax import cameras
from unidiff_jax.config import ConfigError, config_hash, to_dict
from unidiff_jax.mesh import make_mesh
from unidiff_jax.paths import AnyPath, as_path
from unidiff_jax.sample.buckets import nearest_bucket
from unidiff_jax.sample.images import InputError
from unidiff_jax.sample.onediffusion import OneDiffusionPipeline
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.tasks import Task, get_task
from unidiff_jax.train.checkpoint import latest_step
from unidiff_jax.train.state import count_parameters
from unidiff_jax.types import Kind

RGB = Float[np.ndarray, "h w 3"]
"""A generated frame in about [-1, 1], before its codec."""

NUM_STEPS, GUIDANCE, SIDE = 50, 4.0, 512
"""Defaults of released folders, as in `launch.onediffusion`."""

_ENDS = 2**20
"""Bytes at each end of a weights file that its fingerprint reads."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked.

    Attributes:
      task: name in the registry.
      id: decides the noise, with the seed; not the requests around it.
      given: RGB pictures by field, lists of them where the task repeats the frame.
      text: words by field.
      seed: of the noise.
      made_cameras: of `multiview`, which cameras are asked for; the others are `poses`.
      poses: of `multiview`, OpenGL camera to world (n, 4, 4), one a frame.
      intrinsics: (n, 3, 3) in picture widths.
    """

    task: str
    id: str
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: Mapping[str, str] = dataclasses.field(default_factory=dict)
    seed: int = 0
    made_cameras: tuple[bool, ...] = ()
    poses: np.ndarray | None = None
    intrinsics: np.ndarray | None = None


class Generator(Protocol):
    """A model.

    Attributes:
      name: for the report.
      tasks: that it was trained on.
      settings: all that decides its pictures, for the report and to know old ones again.
      steps: of its training, 0 if not known.
      params: number of weights.
    """

    name: str
    tasks: tuple[str, ...]
    settings: Mapping[str, Any]
    steps: int
    params: int

    def generate(self, requests: Sequence[Request]) -> list[RGB | cameras.Cameras]:
        """The first made frame of each request: a picture or map before its codec, or, where
        cameras are asked for and no picture, the cameras.

        Raises:
          InputError: a request that the model cannot serve.
        """
        ...


def load_generator(
    model: AnyPath,
    *,
    step: int | None = None,
    num_steps: int | None = None,
    guidance: float | None = None,
    image_guidance: float | None = None,
    side: int | None = None,
    dtype: str = "bfloat16",
    mesh: Any = None,
) -> Generator:
    """Loads a workdir or a folder in the released layout.

    Args:
      model: the folder.
      step: checkpoint of a workdir; None is the newest.
      num_steps: solver steps; None is the model's default, as for guidance.
      guidance: scale of the text.
      image_guidance: scale of given pictures, of models that have them on channels.
      side: of a released folder, pixels a side of what it makes: of 256, 512 and 1024 the bucket
        nearest to the given picture, of others the square; None is `SIDE`.
      dtype: of a released folder's weights.
      mesh: of a released folder; None is one device.

    Raises:
      ConfigError: the folder is neither, or an option is the other kind's.
    """
    folder = as_path(model)
    if (folder / "model_index.json").exists():
        for name, value in (("step", step), ("image_guidance", image_guidance)):
            if value is not None:
                raise ConfigError(f"--{name} is for workdirs; {folder} has released weights")
        return ReleasedGenerator.load(
            folder,
            num_steps=num_steps or NUM_STEPS,
            guidance=GUIDANCE if guidance is None else guidance,
            side=side or SIDE,
            dtype=dtype,
            mesh=mesh,
        )
    if side is not None:
        raise ConfigError(f"--side is for released weights; the run {folder} has image_size")
    if not (folder / "config.json").exists():
        raise ConfigError(
            f"{folder} is neither a workdir of launch.train (config.json) nor a folder in the "
            "released layout (model_index.json)"
        )
    return WorkdirGenerator.load(
        folder, step=step, num_steps=num_steps, guidance=guidance, image_guidance=image_guidance
    )


def stretched(task: Task) -> bool:
    """Whether pictures are stretched to the model's size, so that every place stays in the result.

    References, of which any number may come, are cut to their middle instead.
    """
    return not task.repeats


class WorkdirGenerator:
    """A run's averaged weights."""

    def __init__(self, pipeline: Pipeline, *, name: str, settings: Mapping[str, Any], steps: int):
        """Takes a pipeline; `settings` has the arguments of `Pipeline.generate` in `sample`."""
        self.name, self.settings, self.steps = name, settings, steps
        self.params = count_parameters(pipeline.params)
        self._pipeline = pipeline
        self.tasks = tuple(
            dict.fromkeys(mix.task.name for mix in parse_mixture(pipeline.config.data.tasks))
        )

    @classmethod
    def load(
        cls, workdir: AnyPath, *, step: int | None = None, **sample: Any
    ) -> "WorkdirGenerator":
        """Loads a checkpoint; raises as `Pipeline.from_workdir`."""
        step = latest_step(workdir) if step is None else step
        mesh = None  # processes of a job make different pictures: each on its own devices
        if jax.process_count() > 1:
            mesh = make_mesh({"fsdp": -1}, devices=jax.local_devices())
        pipeline = Pipeline.from_workdir(workdir, step=step, mesh=mesh)
        config = to_dict(pipeline.config)
        settings = {
            "model": str(workdir),
            "step": step,
            "config": config_hash(config),
            "sample": {
                "num_steps": pipeline.config.sample.num_steps,
                "guidance": pipeline.config.sample.guidance,
                "solver": pipeline.config.sample.solver,
            }
            | {key: value for key, value in sample.items() if value is not None},
        }
        return cls(pipeline, name=as_path(workdir).name, settings=settings, steps=step)

    def generate(self, requests: Sequence[Request]) -> list[RGB | cameras.Cameras]:
        examples = [
            self._pipeline.example(
                request.task, example_id=_number(request), **self._arguments(request)
            )
            for request in requests
        ]
        made: list[Any] = [None] * len(requests)
        for seed in sorted({request.seed for request in requests}):
            places = [place for place, r in enumerate(requests) if r.seed == seed]
            found = self._pipeline.generate(
                [examples[place] for place in places], seeds=[seed], **self.settings["sample"]
            )
            for place, frames in zip(places, found, strict=True):
                made[place] = _first(examples[place][0], frames[0])
        return made

    def _arguments(self, request: Request) -> dict[str, Any]:
        """Fields of the pipeline's call; without words the prompt is what training has then."""
        task, size = get_task(request.task), self._pipeline.config.image_size
        texts = {name: _fields(request, name, where="text") for name in task.prompt_fields}
        if texts and not any(text.strip() for text in texts.values()):
            texts = {"prompt": task.write(texts, style=self._pipeline.maker.style)}
        if any(frame.kind == Kind.RAY for frame in task.frames):
            views = _fields(request, "views", where="given")
            return texts | {"views": list(views), "cameras": self._cameras(request)}
        if task.makes_rounds:
            return texts | {"views": [None, *_fields(request, "views", where="given")]}
        given = {name: _fields(request, name, where="given") for name in task.given}
        if stretched(task):
            given |= {
                name: picture.resize((size, size), Image.Resampling.BICUBIC)
                for name, picture in given.items()
                if isinstance(picture, Image.Image)
            }
        return texts | given

    def _cameras(self, request: Request) -> list[cameras.Cameras | None]:
        """Those that are given, at the scale that training saw; None for the others."""
        found: list[cameras.Cameras | None] = [None] * len(request.made_cameras)
        given = [place for place, asked in enumerate(request.made_cameras) if not asked]
        if not given:
            return found
        if request.poses is None or request.intrinsics is None:
            raise InputError("given cameras need poses and intrinsics")
        intrinsics = request.intrinsics[given]
        posed = cameras.from_opengl(
            request.poses[given],
            focal=intrinsics[:, (0, 1), (0, 1)],
            principal=intrinsics[:, :2, 2],
        )
        sources = self._pipeline.config.data.get("sources", {}).values()
        scale = next((s.get("scale", SCALE) for s in sources if s.task == request.task), SCALE)
        try:
            posed = cameras.normalize(posed, scale=scale)
        except ValueError as error:
            raise InputError(str(error)) from None
        for number, place in enumerate(given):
            found[place] = cameras.Cameras(*(part[[number]] for part in posed))
        return found


def _first(task: Task, made: Mapping[str, np.ndarray]) -> RGB | cameras.Cameras:
    """The first made picture, or the cameras where there is none."""
    rays = {frame.field for frame in task.frames if frame.kind == Kind.RAY}
    pictures = [made[field] for field in task.generate if field not in rays]
    if pictures:
        return pictures[0]
    return cameras.from_rays(np.stack([made[field] for field in task.generate]))


class ReleasedGenerator:
    """A OneDiffusion folder in the released layout."""

    tasks = (
        "text_to_image",
        "edit",
        "depth",
        "segment",
        "subject",
        "identity",
        "multiview",
        "layout_to_image",
        "depth_to_image",
    )
    """Those that the released weights know, and its paper scores."""

    steps = 0

    def __init__(self, pipeline: OneDiffusionPipeline, *, name: str, settings: Mapping[str, Any]):
        """Takes a pipeline; `settings` has `num_steps`, `guidance` and `side`."""
        self.name, self.settings = name, settings
        self._pipeline = pipeline
        self.params = count_parameters(pipeline.denoiser.params)

    @classmethod
    def load(
        cls,
        folder: AnyPath,
        *,
        num_steps: int = NUM_STEPS,
        guidance: float = GUIDANCE,
        side: int = SIDE,
        dtype: str = "bfloat16",
        mesh: Any = None,
    ) -> "ReleasedGenerator":
        """Loads all parts; raises as `OneDiffusionPipeline.from_pretrained`."""
        folder = as_path(folder)
        pipeline = OneDiffusionPipeline.from_pretrained(folder, dtype=dtype, mesh=mesh)
        settings = {
            "model": str(folder),
            "weights": fingerprint(folder),
            "dtype": dtype,
            "num_steps": num_steps,
            "guidance": guidance,
            "side": side,
        }
        return cls(pipeline, name=folder.name, settings=settings)

    def generate(self, requests: Sequence[Request]) -> list[RGB | cameras.Cameras]:
        plans = [self._plan(request) for request in requests]
        made: list[Any] = [None] * len(requests)
        for key in dict.fromkeys(plan.key for plan in plans):
            places = [place for place, plan in enumerate(plans) if plan.key == key]
            # cameras are an argument of the whole call
            groups = [[p] for p in places] if plans[places[0]].multiview else [places]
            for group in groups:
                found = self._run([plans[place] for place in group])
                for place, one in zip(group, found, strict=True):
                    made[place] = one
        return made

    def _plan(self, request: Request) -> "_Plan":
        task = get_task(request.task)
        fields = {name: _fields(request, name, where="text") for name in task.prompt_fields}
        pictures: list[Image.Image] = []
        mask: list[int] = []
        multiview = any(frame.kind == Kind.RAY for frame in task.frames)
        if multiview:
            views = list(request.given.get("views", ()))
            for view, asked in zip(views, request.made_cameras, strict=True):
                mask += [int(view is None), int(asked)]
                pictures += [view] if view is not None else []
        else:
            once = len(task.frames) - task.repeats
            for frame in task.frames[:once]:
                is_made = frame.field in task.generate
                mask.append(int(is_made))
                if not is_made:
                    pictures.append(_fields(request, frame.field, where="given"))
            for frame in task.frames[once:]:
                several = _fields(request, frame.field, where="given")
                mask += [1] * (frame.field in task.generate) + [0] * len(several)
                pictures += several
        size = self._size(pictures)
        return _Plan(
            request,
            task.write(fields),
            tuple(pictures),
            tuple(mask),
            size,
            stretched(task),
            multiview,
        )

    def _size(self, pictures: Sequence[Image.Image]) -> tuple[int, int]:
        """Height and width."""
        side = self.settings["side"]
        if not pictures or side not in (256, 512, 1024):
            return side, side
        return nearest_bucket(pictures[0].height, pictures[0].width, side=side)

    def _run(self, plans: Sequence["_Plan"]) -> list[Any]:
        pipe, (height, width) = self._pipeline, plans[0].size
        down, channels = pipe.vae.downscale, pipe.denoiser.config.in_channels
        latent = (channels, height // down, width // down)
        common = {
            "num_inference_steps": self.settings["num_steps"],
            "guidance_scale": self.settings["guidance"],
            "output_type": "np",
        }
        first = plans[0]
        noise, posterior = [], []
        for plan in plans:
            key = jax.random.fold_in(jax.random.key(plan.request.seed), _number(plan.request))
            noise.append(jax.random.normal(key, (len(plan.mask), *latent)))
            posterior.append(
                jax.random.normal(jax.random.fold_in(key, 1), (len(plan.pictures), *latent))
            )
        try:
            out = pipe.img2img(
                [plan.prompt for plan in plans],
                image=[picture for plan in plans for picture in plan.pictures],
                height=height,
                width=width,
                denoise_mask=first.mask,
                do_crop=not first.stretched,
                noise=np.stack(noise),
                posterior_noise=np.concatenate(posterior) if first.pictures else None,
                **(_cameras(first) if first.multiview else {}),
                **common,
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        if first.multiview and not any(view is None for view in first.request.given["views"]):
            return pipe.read_cameras(out.latents)
        pictures = 2.0 * np.asarray(out.images) - 1.0
        each = len(pictures) // len(plans)  # the first made frame of each
        return [pictures[number * each] for number in range(len(plans))]


@dataclasses.dataclass(frozen=True)
class _Plan:
    request: Request
    prompt: str
    pictures: tuple[Image.Image, ...]
    mask: tuple[int, ...]
    size: tuple[int, int]
    stretched: bool
    multiview: bool

    @property
    def key(self) -> tuple:
        """Plans of one key are one call."""
        return self.size, self.mask, self.stretched, self.multiview


def _cameras(plan: _Plan) -> dict[str, Any]:
    request = plan.request
    given = [not asked for asked in request.made_cameras]
    poses = np.zeros((0, 4, 4)) if request.poses is None else request.poses[given]
    shape = (
        {} if request.intrinsics is None else {"multiview_intrinsics": request.intrinsics[given]}
    )
    return {"is_multiview": True, "multiview_c2ws": poses, **shape}


def _fields(request: Request, name: str, *, where: str) -> Any:
    found = getattr(request, where)
    if name not in found:
        raise InputError(
            f"task {request.task!r} needs {name!r}; this benchmark has {', '.join(found) or 'none'}"
        )
    return found[name]


def _number(request: Request) -> int:
    """Of the noise: stable, in [1, 2**31)."""
    return 1 + zlib.crc32(request.id.encode()) % (2**31 - 2)


def fingerprint(folder: AnyPath) -> str:
    """A digest of a folder's files: names, sizes, and each one's first and last MiB."""
    digest = hashlib.sha256()
    folder = as_path(folder)
    paths = sorted(str(path) for part in folder.iterdir() for path in _files(part))
    for name in paths:
        path = as_path(name)
        size = path.stat().length
        digest.update(f"{name.removeprefix(str(folder))} {size}\n".encode())
        with path.open("rb") as file:
            digest.update(file.read(_ENDS))
            file.seek(max(0, size - _ENDS))
            digest.update(file.read(_ENDS))
    return digest.hexdigest()


def _files(path) -> list:
    return [f for p in path.iterdir() for f in _files(p)] if path.is_dir() else [path]
