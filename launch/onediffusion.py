"""Makes pictures with a OneDiffusion folder in the released layout.

    python -m launch.onediffusion --model FOLDER --prompt "[[text2image]] a red cat" --out cat.png
    python -m launch.onediffusion --model FOLDER --prompt "[[depth2image]]" --image photo.png \\
        --mask 0,1 --out depth.png
    python -m launch.onediffusion --model FOLDER --prompt "[[multiview]] a chair" \\
        --image chair.png --mask 0,0,1,0,1,0 --azimuths 0,30,60 --distance 1.5 --out view.png

Without --mask it is text to image. A mask has an entry a frame: 1 is made, 0 is given. With
--azimuths or --multiview frames alternate, picture and camera, and the cameras are printed.
"""

from collections.abc import Sequence

import numpy as np
from absl import flags
from PIL import Image

from configs.meshes import PRESETS, get_mesh
from launch import command
from launch.sample import output_paths
from unidiff_jax.outside import InputError
from unidiff_jax.paths import AnyPath, as_path, written_whole
from unidiff_jax.sample.images import open_picture
from unidiff_jax.sample.onediffusion import OneDiffusionPipeline


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Folder in the released layout.", required=True)
    flags.DEFINE_string("prompt", None, "Prompt with its task token.", required=True)
    flags.DEFINE_string("negative_prompt", "", "What guidance moves away from.")
    flags.DEFINE_multi_string("image", [], "A given picture, repeatable, in the mask's order.")
    flags.DEFINE_string("mask", None, "Frames: 1 is made, 0 is given; such as 1,0.")
    flags.DEFINE_string("azimuths", None, "Degrees of the given cameras, such as 0,30.")
    flags.DEFINE_string("elevations", None, "Degrees of the given cameras; none is 0 for all.")
    flags.DEFINE_float("distance", 1.7, "Of all cameras from the origin.")
    flags.DEFINE_bool("multiview", False, "Frames alternate, picture and camera.")
    flags.DEFINE_integer("height", None, "Pixels, a multiple of 16.", lower_bound=16)
    flags.DEFINE_integer("width", None, "Pixels, a multiple of 16.", lower_bound=16)
    flags.DEFINE_integer("num_steps", 50, "Euler steps.", lower_bound=1)
    flags.DEFINE_float("guidance", 4.0, "Scale of the prompt; 1 is none.", lower_bound=0.0)
    flags.DEFINE_integer("seed", 0, "Of the noise.", lower_bound=0)
    flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of weights and activations.")
    flags.DEFINE_enum("mesh", None, list(PRESETS), "Weights over all devices; none is one device.")
    flags.DEFINE_bool("quirks", True, "Keep the official code's habits.")
    flags.DEFINE_string("out", "out.png", "Picture to write; several are numbered.")


def main(argv: list[str]) -> None:
    del argv
    command.quiet_libraries()
    values = flags.FLAGS
    numbers("mask", values.mask)  # before the weights are read
    output_paths(values.out, fields=("picture",))
    images = [open_picture(path) for path in values.image]
    if values.image and values.mask is None:
        raise InputError("--image needs --mask, such as --mask 1,0 (make the first of two frames)")
    pipe = OneDiffusionPipeline.from_pretrained(
        values.model,
        dtype=values.dtype,
        official_quirks=values.quirks,
        mesh=get_mesh(values.mesh) if values.mesh else None,
    )
    common = {
        "negative_prompt": values.negative_prompt,
        "height": values.height,
        "width": values.width,
        "num_inference_steps": values.num_steps,
        "guidance_scale": values.guidance,
        "seed": values.seed,
    }
    try:
        if values.mask is None:
            out = pipe(values.prompt, **common)
        else:
            multiview = values.multiview or values.azimuths is not None
            azimuths = numbers("azimuths", values.azimuths) or []
            elevations = numbers("elevations", values.elevations) or [0.0] * len(azimuths)
            out = pipe.img2img(
                values.prompt,
                image=images,
                denoise_mask=[int(x) for x in numbers("mask", values.mask)],
                is_multiview=multiview,
                multiview_azimuths=azimuths,
                multiview_elevations=elevations,
                multiview_distances=values.distance,
                **common,
            )
    except ValueError as error:
        raise InputError(str(error)) from error
    save(out.images, path=values.out)
    if values.mask is not None and (values.multiview or values.azimuths is not None):
        for found in pipe.read_cameras(out.latents):
            for number, (rotation, center) in enumerate(
                zip(found.rotation, found.centers, strict=True)
            ):
                print(f"camera {number}: at {np.round(center, 3).tolist()}, axes", end=" ")
                print(np.round(rotation, 3).tolist())


def numbers(name: str, text: str | None) -> list[float] | None:
    """Comma-separated numbers of a flag.

    Raises:
      InputError: something else.
    """
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--{name} {text} must be numbers with commas, such as 1,0") from None


def save(pictures: Sequence[Image.Image], *, path: AnyPath) -> None:
    """Writes one picture to `path`, several to numbered names beside it, and prints the names."""
    path = as_path(path)
    for number, picture in enumerate(pictures):
        target = path if len(pictures) == 1 else path.with_stem(f"{path.stem}_{number}")
        with written_whole(target) as file:
            picture.save(file)
        print(target)


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
