"""OneDiffusion's pipeline from a released folder, with the arguments of its PyTorch code.

    pipe = OneDiffusionPipeline.from_pretrained("folder")
    pipe("[[text2image]] a red cat").images[0].save("cat.png")
    pipe.img2img("[[depth2image]] a cat", image=[photo], denoise_mask=[0, 1]).images[0]

A call is a row of frames: a mask entry 1 is made from noise, an entry 0 is given. Images are
encoded, given latents stay clean and carry the time of the last step, guidance mixes the prompt
with the negative one, Euler steps go from sigma 1 to 0, and the frames that were made are decoded.
The loop is one compiled program a shape and stays on the device; every prompt is encoded once.

What the official code does and a reader would not expect is kept while `official_quirks` is on:

- conditions are draws from the autoencoder's posterior; off, its mean;
- the latents' `shift_factor` is ignored; off, it is applied;
- pictures are normalised twice where no value of any of them is below 128; off, once;
- the text encoder's weights are rounded to float16, whatever `dtype` says; off, they are not.

Kept always: a camera frame that is made is also decoded into a picture. Fixed always: a list of
prompts, several pictures a prompt and cameras that are all unknown crash in the official code.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int
from PIL import Image

from unidiff_jax import cameras
from unidiff_jax.config import Config, ConfigError, read_fields
from unidiff_jax.export.files import read_config
from unidiff_jax.flow import shift_sigma
from unidiff_jax.models.dit import DiTConfig
from unidiff_jax.paths import AnyPath, as_path, write_json
from unidiff_jax.sample.buckets import nearest_bucket
from unidiff_jax.sample.denoiser import (
    Denoiser,
    RopeScaling,
    abstract_dit,
    dense_batch,
    dense_noised,
    from_tokens,
    load_denoiser,
    to_tokens,
)
from unidiff_jax.sample.encoders import LoadedText, LoadedVAE
from unidiff_jax.sample.images import open_picture
from unidiff_jax.types import AnyArray, Params

SCHEDULER = "FlowMatchEulerDiscreteScheduler"
MODEL_INDEX = {
    "_class_name": "OneDiffusionPipeline",
    "scheduler": ["diffusers", SCHEDULER],
    "text_encoder": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["onediffusion.models.denoiser.nextdit.modeling_nextdit", "NextDiT"],
    "vae": ["diffusers", "AutoencoderKL"],
}
"""`model_index.json` of a released folder: which class loads which part."""

_SIZE_STEP = 16
_CAMERA_GRID = 8
"""Pixels a side for one place of a ray frame."""


class PipelineOutput(NamedTuple):
    """images: PIL pictures or floats in [0, 1] (n, h, w, 3); latents: (B, F, C, h, w), img2img."""

    images: Any
    latents: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class FlowMatchSchedule:
    """Noise levels of diffusers' `FlowMatchEulerDiscreteScheduler`, with its config's names."""

    num_train_timesteps: int = 1000
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float = 0.5
    max_shift: float = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "FlowMatchSchedule":
        schedule = cls(**read_fields(cls, values))
        if schedule.num_train_timesteps != 1000:
            raise ConfigError(
                f"num_train_timesteps={schedule.num_train_timesteps} is not known; only 1000"
            )
        return schedule

    def sigmas(self, num_steps: int, *, num_tokens: float) -> Float[np.ndarray, "n"]:
        """num_steps + 1 levels from 1 to 0; dynamic shifting looks at the image tokens made.

        Raises:
          ValueError: fewer than one step.
        """
        if num_steps < 1:
            raise ValueError(f"num_inference_steps={num_steps} must be at least 1, say 50")
        shift = self.shift
        if self.use_dynamic_shifting:
            slope = (self.max_shift - self.base_shift) / (
                self.max_image_seq_len - self.base_image_seq_len
            )
            shift = math.exp(self.base_shift + slope * (num_tokens - self.base_image_seq_len))
        sigma = shift_sigma(np.linspace(1.0, 1.0 / num_steps, num_steps), shift)
        return np.append(sigma, 0.0).astype(np.float32)


class OneDiffusionPipeline:
    """Text, pictures, maps and cameras in any direction; see the module."""

    def __init__(
        self,
        *,
        denoiser: Denoiser,
        vae: LoadedVAE,
        text: LoadedText,
        schedule: FlowMatchSchedule,
        official_quirks: bool = True,
    ):
        """Takes loaded parts; see `from_pretrained`."""
        self.denoiser, self.vae, self.text, self.schedule = denoiser, vae, text, schedule
        self.official_quirks = official_quirks

    @classmethod
    def from_pretrained(
        cls,
        folder: AnyPath,
        *,
        dtype: str = "float32",
        official_quirks: bool = True,
        mesh: Config | None = None,
    ) -> "OneDiffusionPipeline":
        """Loads a folder with `transformer`, `vae`, `text_encoder`, `tokenizer`, `scheduler`.

        Args:
          folder: in the released layout.
          dtype: of all three networks; see `load_denoiser`.
          official_quirks: see the module.
          mesh: see `load_denoiser`; for all three networks.

        Raises:
          FolderError, MappingError, ConfigError: a part that cannot be loaded, and why.
        """
        folder = as_path(folder)
        schedule = read_config(folder / "scheduler", name="scheduler_config.json")
        return cls(
            denoiser=load_denoiser(folder / "transformer", dtype=dtype, mesh=mesh),
            vae=LoadedVAE.load(folder / "vae", dtype=dtype, mesh=mesh),
            text=LoadedText.load(
                folder / "text_encoder",
                tokenizer=folder / "tokenizer",
                dtype=dtype,
                round_to="float16" if official_quirks else None,
                mesh=mesh,
            ),
            schedule=FlowMatchSchedule.from_json(schedule),
            official_quirks=official_quirks,
        )

    def save_pretrained(self, folder: AnyPath) -> None:
        """Writes all parts in the released layout; the official code and this one load it."""
        folder = as_path(folder)
        self.denoiser.save_pretrained(folder / "transformer")
        self.vae.save_pretrained(folder / "vae")
        self.text.save_pretrained(folder / "text_encoder", tokenizer=folder / "tokenizer")
        scheduler = {"_class_name": SCHEDULER} | dataclasses.asdict(self.schedule)
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
        write_json(folder / "model_index.json", MODEL_INDEX)

    # ------------------------------------------------------------------------------------- calls

    def __call__(
        self,
        prompt: str | Sequence[str],
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        noise: Float[AnyArray, "..."] | None = None,
        seed: int = 0,
        output_type: str = "pil",
        forward_kwargs: Mapping[str, float] | None = None,
    ) -> PipelineOutput:
        """Text to image.

        Args:
          prompt: one or several, each with its task token, such as `[[text2image]] a cat`.
          height, width: pixels, multiples of 16; None is the size of the model's config.
          num_inference_steps: Euler steps.
          guidance_scale: above 1, weight of the prompt against the negative prompt.
          negative_prompt: None is empty.
          num_images_per_prompt: independent pictures of each prompt.
          noise: initial latents (B, C, h, w) or (B, 1, C, h, w), instead of the seed's.
          seed: of the noise.
          output_type: `pil` or `np`.
          forward_kwargs: `scale_factor` and `scale_watershed` (`denoiser.RopeScaling`).

        Raises:
          ValueError: sizes, shapes or types that cannot be.
        """
        default = [side * self.vae.downscale for side in self.denoiser.config.input_size[-2:]]
        size = (height or default[0], width or default[1])
        text = self._encode_text(prompt, negative_prompt, guidance_scale, num_images_per_prompt)
        row = self._frames(text.count, 1, size, noise=noise, seed=seed)
        row = row._replace(latents=self._run(row, text, num_inference_steps, forward_kwargs))
        return PipelineOutput(self._decode(row, output_type))

    def img2img(
        self,
        prompt: str | Sequence[str],
        image: Image.Image | Sequence[Image.Image] = (),
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        denoise_mask: Sequence[int] = (1, 0),
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        do_crop: bool = True,
        is_multiview: bool = False,
        multiview_azimuths: Sequence[float | None] = (0, 30, 60, 90),
        multiview_elevations: Sequence[float | None] = (0, 0, 0, 0),
        multiview_distances: float | Sequence[float | None] = 1.7,
        multiview_c2ws: Float[AnyArray, "n 4 4"] | None = None,
        multiview_intrinsics: Float[AnyArray, "n 3 3"] | None = None,
        multiview_focal_length: float = cameras.DEFAULT_FOCAL,
        noise_scale: float = 1.0,
        noise: Float[AnyArray, "..."] | None = None,
        posterior_noise: Float[AnyArray, "..."] | None = None,
        seed: int = 0,
        output_type: str = "pil",
        forward_kwargs: Mapping[str, float] | None = None,
    ) -> PipelineOutput:
        """Any frames given, the rest made; text to image with conditions, and everything else.

        Args:
          prompt: one or several, with the task token.
          image: what is given, in the order of the mask's zeros; with several prompts, those of the
            first prompt first.
          height, width: pixels, multiples of 16; None is the bucket of the first image near 512**2.
          num_inference_steps: Euler steps.
          guidance_scale: above 1, weight of the prompt against the negative prompt.
          denoise_mask: an entry a frame, 1 is made and 0 is given. With `is_multiview` frames
            alternate: picture, camera, picture, camera.
          negative_prompt: None is empty.
          num_images_per_prompt: independent results of each prompt.
          do_crop: cut pictures to the shape of the result; otherwise they are stretched.
          is_multiview: whether odd frames are cameras.
          multiview_azimuths: degrees, of each given camera; None entries are dropped, here and in
            the next two, so that unknown cameras may keep their place in a list.
          multiview_elevations: degrees.
          multiview_distances: from the origin, one for all or one each.
          multiview_c2ws: OpenGL camera to world matrices instead of the angles.
          multiview_intrinsics: in picture widths and heights, with `multiview_c2ws`.
          multiview_focal_length: in picture widths, where there are no intrinsics.
          noise_scale: scales the number of tokens in the schedule's dynamic shift.
          noise: initial latents (B, F, C, h, w), not the seed's; given frames are overwritten.
          posterior_noise: (images, C, h, w), the posterior's draws.
          seed: of both.
          output_type: `pil` or `np`.
          forward_kwargs: `scale_factor` and `scale_watershed` (`denoiser.RopeScaling`).

        Returns:
          Pictures of all made frames, and the latents of all frames over the rays' scale, so that
          `latents[:, odd]` are the rays of a camera frame (`read_cameras`).

        Raises:
          ValueError: images or cameras that do not fit the mask, or sizes that cannot be.
        """
        one = isinstance(image, Image.Image)
        images = [open_picture(picture) for picture in ([image] if one else image)]
        mask = np.asarray(denoise_mask, int)
        if mask.ndim != 1 or not len(mask) or not set(mask.tolist()) <= {0, 1} or not mask.any():
            raise ValueError(
                f"denoise_mask={list(denoise_mask)} must be zeros and ones with a 1, such as [1, 0]"
            )
        if is_multiview and len(mask) % 2:
            raise ValueError(f"a multi-view denoise_mask has an even length, got {len(mask)}")
        is_camera = np.arange(len(mask)) % 2 == 1 if is_multiview else np.zeros(len(mask), bool)
        if height is None or width is None:
            if not images:
                raise ValueError("without an image, give height and width")
            height, width = nearest_bucket(images[0].height, images[0].width)
        if is_multiview and height != width:
            raise ValueError(f"multi-view pictures are square, got {height}x{width}")

        text = self._encode_text(prompt, negative_prompt, guidance_scale, num_images_per_prompt)
        row = self._frames(text.count, len(mask), (height, width), noise=noise, seed=seed)
        row = row._replace(made=tuple(int(m) for m in mask))
        slots = np.flatnonzero((mask == 0) & ~is_camera)
        given = self._encode_images(
            images, slots, text, (height, width), do_crop, posterior_noise, seed
        )
        latents = row.latents.at[:, slots].set(given) if len(slots) else row.latents
        camera_slots = np.flatnonzero((mask == 0) & is_camera)
        if len(camera_slots):
            found = make_cameras(
                azimuths=multiview_azimuths,
                elevations=multiview_elevations,
                distances=multiview_distances,
                focal=multiview_focal_length,
                c2ws=multiview_c2ws,
                intrinsics=multiview_intrinsics,
            )
            if len(found.focal) != len(camera_slots):
                raise ValueError(
                    f"{len(found.focal)} cameras for {len(camera_slots)} camera frames that the "
                    "mask gives"
                )
            rays = cameras.to_rays(cameras.relative_to_first(found), size=height // _CAMERA_GRID)
            frame = cameras.ray_frame(rays, channels=self.denoiser.config.in_channels)
            frame = np.moveaxis(frame, -1, 1).astype(np.float32)
            latents = latents.at[:, camera_slots].set(frame)
        row = row._replace(latents=latents)
        row = row._replace(
            latents=self._run(row, text, num_inference_steps, forward_kwargs, noise_scale)
        )
        return PipelineOutput(
            self._decode(row, output_type), np.asarray(row.latents) / cameras.RAY_SCALE
        )

    def read_cameras(
        self, latents: Float[np.ndarray, "B F C h w"], *, focal: float = cameras.DEFAULT_FOCAL
    ) -> list[cameras.Cameras]:
        """Cameras of a multi-view result's odd frames, for each row of `PipelineOutput.latents`."""
        found = []
        for row in np.asarray(latents)[:, 1::2]:
            rays = cameras.read_ray_frame(np.moveaxis(row, 1, -1) * cameras.RAY_SCALE)
            count = len(rays)
            found.append(
                cameras.from_rays(
                    rays, focal=np.full((count, 2), 2 * focal), principal=np.zeros((count, 2))
                )
            )
        return found

    # ------------------------------------------------------------------------------------- steps

    def _encode_text(
        self,
        prompt: str | Sequence[str],
        negative: str | Sequence[str] | None,
        guidance: float,
        per_prompt: int,
    ) -> "_Text":
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negatives = [negative or ""] if negative is None or isinstance(negative, str) else negative
        negatives = list(negatives) * (len(prompts) if len(negatives) == 1 else 1)
        if not prompts or len(negatives) != len(prompts):
            raise ValueError(f"{len(negatives)} negative prompts for {len(prompts)} prompts")
        guided = guidance > 1.0
        states, mask = self.text.encode([*negatives, *prompts] if guided else prompts)
        states, mask = (
            x.reshape(-1, len(prompts), *x.shape[1:]).repeat(per_prompt, axis=1)
            for x in (states, mask)
        )
        return _Text(states, mask, guidance if guided else None, per_prompt)

    def _frames(
        self,
        count: int,
        frames: int,
        size: tuple[int, int],
        *,
        noise: AnyArray | None,
        seed: int,
    ) -> "_Row":
        """Noise of every frame."""
        if any(side % _SIZE_STEP or side < _SIZE_STEP for side in size):
            raise ValueError(
                f"height={size[0]} and width={size[1]} must be multiples of {_SIZE_STEP}, say 512"
            )
        down, channels = self.vae.downscale, self.denoiser.config.in_channels
        shape = (count, frames, channels, size[0] // down, size[1] // down)
        self.denoiser.check_samples(shape)
        if noise is None:
            latents = jax.random.normal(jax.random.fold_in(jax.random.key(seed), 0), shape)
        else:
            noise = jnp.asarray(noise, jnp.float32)
            latents = noise[:, None] if noise.ndim == 4 else noise
            if latents.shape != shape:
                raise ValueError(f"noise must be {shape}, got {tuple(noise.shape)}")
        return _Row(latents, made=(1,) * frames)

    def _encode_images(
        self,
        images: Sequence[Image.Image],
        slots: np.ndarray,
        text: "_Text",
        size: tuple[int, int],
        crop: bool,
        posterior_noise: AnyArray | None,
        seed: int,
    ) -> Float[Array, "B i C h w"] | None:
        """Latents of the given pictures, a row of slots for each result."""
        prompts = text.count // text.per_prompt if images else 1
        if len(images) != len(slots) * prompts:
            raise ValueError(
                f"{len(images)} images for {prompts} x {len(slots)} picture frames that the mask "
                "gives"
            )
        if not images:
            return None
        pixels = preprocess(images, size=size, crop=crop, twice=self.official_quirks)
        posterior = self.vae.encode(jnp.asarray(pixels))
        if posterior_noise is not None:
            drawn = jnp.moveaxis(jnp.asarray(posterior_noise, jnp.float32), 1, -1)
            if drawn.shape != posterior.mean.shape:
                shape = jnp.moveaxis(posterior.mean, -1, 1).shape
                raise ValueError(f"posterior_noise must be {shape}, got {posterior_noise.shape}")
        else:
            key = jax.random.fold_in(jax.random.key(seed), 1)
            drawn = jax.random.normal(key, posterior.mean.shape)
        config = self.vae.config
        if self.official_quirks:
            latents = config.scaling_factor * posterior.sample(drawn)
        else:
            latents = config.scaling_factor * (posterior.mean - config.shift_factor)
        latents = jnp.moveaxis(latents, -1, 1)
        latents = latents.reshape(prompts, len(slots), *latents.shape[1:])
        return latents.repeat(text.per_prompt, axis=0)

    def _run(
        self,
        row: "_Row",
        text: "_Text",
        num_steps: int,
        forward_kwargs: Mapping[str, float] | None,
        noise_scale: float = 1.0,
    ) -> Float[Array, "B F C h w"]:
        """Euler from noise to data; frames that are given stay."""
        unknown = set(forward_kwargs or ()) - {"scale_factor", "scale_watershed"}
        if unknown:
            raise ValueError(
                f"forward_kwargs has {', '.join(sorted(unknown))}; it takes scale_factor and "
                "scale_watershed"
            )
        denoiser = self.denoiser
        grid = denoiser.check_samples(row.latents.shape)
        tokens_made = noise_scale * sum(row.made) * grid[1] * grid[2]
        sigmas = self.schedule.sigmas(num_steps, num_tokens=tokens_made)
        kwargs = {k.removeprefix("scale_"): v for k, v in (forward_kwargs or {}).items()}
        scaling = RopeScaling(**kwargs)
        tokens = to_tokens(row.latents, patch=denoiser.config.patch)
        # levels fall, so that the rotary scaling changes at most once on the way
        ropes = [scaling.rope(1000.0 * float(sigma)) for sigma in sigmas[:-1]]
        start = 0
        for rope in dict.fromkeys(ropes):
            stop = start + ropes.count(rope)
            tokens = integrate(
                denoiser.params,
                tokens,
                jnp.asarray(sigmas[start : stop + 1]),
                jnp.asarray(sigmas[-2]),
                text.states,
                text.mask,
                jnp.asarray(text.guidance or 1.0),
                config=dataclasses.replace(denoiser.dit, rope_theta=rope[0], rope_scale=rope[1]),
                grid=grid,
                made=row.made,
            )
            start = stop
        return from_tokens(tokens, grid=grid, patch=denoiser.config.patch)

    def _decode(self, row: "_Row", output_type: str) -> Any:
        """Pictures of the made frames, results first, then frames."""
        if output_type not in ("pil", "np"):
            raise ValueError(f"output_type={output_type!r} must be 'pil' or 'np'")
        made = np.flatnonzero(row.made)
        latents = row.latents[:, made].reshape(-1, *row.latents.shape[2:])
        latents = jnp.moveaxis(latents, 1, -1) / self.vae.config.scaling_factor
        if not self.official_quirks:
            latents = latents + self.vae.config.shift_factor
        pictures = np.asarray(jnp.clip(self.vae.decode(latents) / 2 + 0.5, 0.0, 1.0))
        if output_type == "np":
            return pictures
        return [Image.fromarray((255 * picture).round().astype(np.uint8)) for picture in pictures]


class _Text(NamedTuple):
    """States and mask of the prompts (after the negative ones, with guidance), each repeated."""

    states: Float[Array, "w B L E"]
    mask: Int[Array, "w B L"]
    guidance: float | None
    per_prompt: int

    @property
    def count(self) -> int:
        return self.states.shape[1]


class _Row(NamedTuple):
    """Latents of all frames, and which of them are made."""

    latents: Float[Array, "B F C h w"]
    made: tuple[int, ...]


@functools.partial(jax.jit, static_argnames=("config", "grid", "made"))
def integrate(
    params: Params,
    tokens: Float[Array, "B t p"],
    sigmas: Float[Array, "n"],
    given_sigma: Float[Array, ""],
    text: Float[Array, "w B L E"],
    text_mask: Int[Array, "w B L"],
    guidance: Float[Array, ""],
    *,
    config: DiTConfig,
    grid: tuple[int, int, int],
    made: tuple[int, ...],
) -> Float[Array, "B t p"]:
    """Steps along `sigmas`; given frames carry `given_sigma` and stay as they are."""
    model = nnx.merge(abstract_dit(config).graphdef, params)
    passes, count = text.shape[:2]
    states, mask = (x.reshape(passes * count, *x.shape[2:]) for x in (text, text_mask))
    is_made = jnp.asarray(made, bool)
    token_made = jnp.repeat(is_made, grid[1] * grid[2])[None, :, None]

    def step(x, pair):
        now, after = pair
        batch = dense_batch(
            jnp.tile(x, (passes, 1, 1)), text_states=states, text_mask=mask, grid=grid
        )
        level = jnp.broadcast_to(jnp.where(is_made, now, given_sigma), (passes * count, len(made)))
        v = model(batch, dense_noised(batch, sigma=level, per_token=False), states)
        v = v[..., : x.shape[-1]].reshape(passes, count, *x.shape[1:])
        v = v[0] + guidance * (v[1] - v[0]) if passes == 2 else v[0]
        moved = (x + (after - now) * v).astype(config.dtype).astype(x.dtype)
        return jnp.where(token_made, moved, x), None

    return jax.lax.scan(step, tokens, (sigmas[:-1], sigmas[1:]))[0]


# ------------------------------------------------------------------------------ pictures, cameras


def preprocess(
    images: Sequence[Image.Image], *, size: tuple[int, int], crop: bool, twice: bool
) -> Float[np.ndarray, "b h w 3"]:
    """Pictures in [-1, 1] of one size, as the official code makes them.

    Args:
      images: of any size and mode.
      size: height and width.
      crop: cut the centre to the shape, then sample it without antialiasing; otherwise stretch with
        antialiasing.
      twice: whether pictures without a dark pixel are normalised twice.
    """
    height, width = size
    result = []
    for image in images:
        x = np.asarray(image.convert("RGB"), np.float32) / 255.0
        if crop:
            h, w = x.shape[:2]
            cut = (
                (h, int(h * width / height))
                if w / h > width / height
                else (
                    int(w / (width / height)),
                    w,
                )
            )
            top, left = int((h - cut[0]) / 2), int((w - cut[1]) / 2)
            x = x[top : top + cut[0], left : left + cut[1]]
        method = jax.image.ResizeMethod.LINEAR
        x = jax.image.resize(x, (height, width, 3), method, antialias=not crop)
        result.append((np.asarray(x) - 0.5) / 0.5)
    pixels = np.stack(result)
    return 2.0 * pixels - 1.0 if twice and pixels.min() >= 0 else pixels


def make_cameras(
    *,
    azimuths: Sequence[float | None],
    elevations: Sequence[float | None],
    distances: float | Sequence[float | None],
    focal: float,
    c2ws: Float[AnyArray, "n 4 4"] | None,
    intrinsics: Float[AnyArray, "n 3 3"] | None,
) -> cameras.Cameras:
    """Cameras of `img2img`'s arguments.

    Raises:
      ValueError: lists of different lengths, or matrices of another shape.
    """
    if c2ws is not None:
        poses = np.asarray(c2ws, np.float64)
        if poses.ndim != 3 or poses.shape[1:] != (4, 4):
            raise ValueError(f"multiview_c2ws must be (n, 4, 4), got {poses.shape}")
    else:
        turns = [a for a in azimuths if a is not None]
        rises = [e for e in elevations if e is not None]
        scalar = isinstance(distances, (int, float))
        away = [distances] * len(turns) if scalar else [d for d in distances if d is not None]
        if not len(turns) == len(rises) == len(away):
            raise ValueError(
                f"{len(turns)} azimuths, {len(rises)} elevations and {len(away)} distances"
            )
        angles = zip(turns, rises, away, strict=True)
        poses = np.asarray([cameras.look_at_origin(*view) for view in angles]).reshape(-1, 4, 4)
    count = len(poses)
    if c2ws is not None and intrinsics is not None:
        matrix = np.asarray(intrinsics, np.float64)
        if matrix.shape != (count, 3, 3):
            raise ValueError(f"multiview_intrinsics must be {(count, 3, 3)}, got {matrix.shape}")
        lengths, middle = matrix[:, (0, 1), (0, 1)], matrix[:, :2, 2]
    else:
        lengths, middle = np.full((count, 2), focal), np.full((count, 2), 0.5)
    return cameras.from_opengl(poses, focal=lengths, principal=middle)
