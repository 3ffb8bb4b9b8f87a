"""The OneDiffusion pipeline against runs of the official one, draw for draw."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from unidiff_jax import OneDiffusionPipeline, cameras
from unidiff_jax.sample.buckets import nearest_bucket
from unidiff_jax.sample.onediffusion import (
    FlowMatchSchedule,
    integrate,
    make_cameras,
    preprocess,
)

GOLDEN = pathlib.Path(__file__).resolve().parents[2] / "golden" / "onediffusion"
CASES = sorted(file.stem for file in (GOLDEN / "pipeline").glob("*.npz"))
FRAMES = [name for name in CASES if not name.startswith("t2i")]


@pytest.fixture(scope="module")
def pipe():
    return OneDiffusionPipeline.from_pretrained(GOLDEN / "tinypipe")


def read(name):
    with np.load(GOLDEN / "pipeline" / f"{name}.npz", allow_pickle=False) as arrays:
        case = {key: arrays[key] for key in arrays.files}
    settings = json.loads(str(case.pop("case")))
    del settings["dtype"]
    images = [
        Image.fromarray(case[key]) for key in sorted(k for k in case if k.startswith("image/"))
    ]
    draws = [case[key] for key in sorted(k for k in case if k.startswith("draw/"))]
    return case, settings, images, draws


def run(pipe, name, **changes):
    case, settings, images, draws = read(name)
    kind = settings.pop("kind")
    settings |= {"output_type": "np", "noise": draws[-1]} | changes
    if kind == "t2i":
        return case, pipe(**settings)
    if "c2ws" in case:
        settings |= {"multiview_c2ws": case["c2ws"], "multiview_intrinsics": case["intrinsics"]}
    if images:
        settings["posterior_noise"] = draws[-2]
    return case, pipe.img2img(image=images, **settings)


@pytest.mark.parametrize("name", CASES)
def test_equals_the_official_pipeline(pipe, name, parity):
    case, out = run(pipe, name)
    assert out.images.shape == case["images"].shape
    error = np.abs(out.images - case["images"]).max()
    parity("OneDiffusion pipeline, pictures in [0, 1]", error, bound=1e-3)
    if "latents" in case:
        error = np.abs(out.latents - case["latents"]).max() / np.abs(case["latents"]).max()
        parity("OneDiffusion pipeline, latents", error, bound=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_levels_of_the_schedule(pipe, name):
    case, settings, *_ = read(name)
    height, width = settings["height"], settings["width"]
    made = sum(settings.get("denoise_mask", [1]))
    sigmas = pipe.schedule.sigmas(
        settings["num_inference_steps"], num_tokens=made * height * width / 256
    )
    np.testing.assert_allclose(sigmas, case["sigmas"], rtol=1e-6)
    np.testing.assert_allclose(1000 * sigmas[:-1], case["timesteps"], rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_states_of_the_text(pipe, name):
    case, settings, *_ = read(name)
    states, mask = pipe.text.encode([settings["negative_prompt"] or "", settings["prompt"]])
    width = case["encoder_attention_mask"].shape[1]
    np.testing.assert_array_equal(mask[:, :width], case["encoder_attention_mask"])
    real = case["encoder_attention_mask"] == 1
    expected = case["encoder_hidden_states"][real]
    np.testing.assert_allclose(np.asarray(states)[:, :width][real], expected, atol=1e-4)


@pytest.mark.parametrize("name", [n for n in FRAMES if "text" not in n])
def test_pictures_and_posterior(pipe, name):
    case, settings, images, _ = read(name)
    pixels = preprocess(images, size=(settings["height"], settings["width"]), crop=True, twice=True)
    np.testing.assert_allclose(np.moveaxis(pixels, -1, 1), case["preprocessed"], atol=1e-5)
    posterior = pipe.vae.encode(pixels)
    for got, key in zip(posterior, ("vae_mean", "vae_std"), strict=True):
        np.testing.assert_allclose(np.moveaxis(np.asarray(got), -1, 1), case[key], atol=2e-4)


@pytest.mark.parametrize("name", [n for n in FRAMES if n.startswith("mv")])
def test_cameras_and_rays(name):
    case, settings, *_ = read(name)
    c2ws, intrinsics = case.get("c2ws"), case.get("intrinsics")
    found = make_cameras(
        azimuths=settings.get("multiview_azimuths", ()),
        elevations=settings.get("multiview_elevations", ()),
        distances=settings.get("multiview_distances", ()),
        focal=cameras.DEFAULT_FOCAL,
        c2ws=c2ws,
        intrinsics=intrinsics,
    )
    found = cameras.relative_to_first(found)
    rays = cameras.to_rays(found, size=8).reshape(len(found.focal), 64, 6)
    np.testing.assert_allclose(rays, case["rays"], atol=1e-5)


# ----------------------------------------------------------------------- where the official crashes


def test_several_prompts_and_pictures_a_prompt(pipe):
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4, 16, 8, 8)).astype(np.float32)
    settings = {
        "height": 64, "width": 64, "num_inference_steps": 2, "guidance_scale": 3.0,
        "output_type": "np",
    }  # fmt: skip
    prompts = ["[[text2image]] a cat", "[[text2image]] a red table"]
    together = pipe(prompts, num_images_per_prompt=2, noise=noise, **settings).images
    assert together.shape == (4, 64, 64, 3)
    for i in range(4):
        alone = pipe(prompts[i // 2], noise=noise[i : i + 1], **settings).images
        np.testing.assert_allclose(together[i], alone[0], atol=1e-4)


def test_all_cameras_unknown(pipe):
    picture = Image.fromarray(np.full((64, 64, 3), 90, np.uint8))
    out = pipe.img2img(
        "[[multiview]]",
        image=[picture, picture],
        denoise_mask=[0, 1, 0, 1],
        is_multiview=True,
        multiview_azimuths=[None, None],
        multiview_elevations=[None, None],
        multiview_distances=[None, None],
        height=64,
        width=64,
        num_inference_steps=2,
    )
    assert len(out.images) == 2 and out.latents.shape == (1, 4, 16, 8, 8)
    (found,) = pipe.read_cameras(out.latents)
    np.testing.assert_allclose(
        found.rotation @ found.rotation.swapaxes(1, 2),
        np.broadcast_to(np.eye(3), (2, 3, 3)),
        atol=1e-9,
    )


def test_given_cameras_are_read_back(pipe):
    _, out = run(pipe, "mv_image_to_views")
    (found,) = pipe.read_cameras(out.latents)
    given = make_cameras(
        azimuths=[0, 20, 40], elevations=[0, 5, 10], distances=1.5, focal=1.3887, c2ws=None,
        intrinsics=None,
    )  # fmt: skip
    given = cameras.relative_to_first(given)
    assert cameras.rotation_error(found.rotation, given.rotation).max() < 0.1
    np.testing.assert_allclose(found.translation, given.translation, atol=1e-3)


# --------------------------------------------------------------------------------------------- rest


def test_guidance_one_ignores_the_negative_prompt(pipe):
    _, first = run(pipe, "depth2image", guidance_scale=1.0, negative_prompt="grey")
    _, second = run(pipe, "depth2image", guidance_scale=1.0, negative_prompt="a lot of words")
    np.testing.assert_array_equal(first.images, second.images)


def test_quirks_off_takes_the_mean(pipe):
    plain = OneDiffusionPipeline(
        denoiser=pipe.denoiser,
        vae=pipe.vae,
        text=pipe.text,
        schedule=pipe.schedule,
        official_quirks=False,
    )
    _, first = run(plain, "depth2image", seed=0, posterior_noise=None)
    _, second = run(plain, "depth2image", seed=1, posterior_noise=None)
    np.testing.assert_array_equal(first.images, second.images)


def test_rotary_scaling_reaches_the_model(pipe):
    kwargs = {"scale_factor": 1.5, "scale_watershed": 700.0}
    _, scaled = run(pipe, "depth2image", forward_kwargs=kwargs)
    case, _ = run(pipe, "depth2image")
    assert np.abs(scaled.images - case["images"]).max() > 1e-4
    with pytest.raises(ValueError, match="forward_kwargs has noise_scale"):
        run(pipe, "depth2image", forward_kwargs={"noise_scale": 2.0})


def test_bright_pictures_are_normalised_twice():
    bright = Image.fromarray(np.full((32, 32, 3), 200, np.uint8))
    once = preprocess([bright], size=(32, 32), crop=True, twice=False)
    np.testing.assert_allclose(once, 200 / 127.5 - 1, atol=1e-6)
    twice = preprocess([bright], size=(32, 32), crop=True, twice=True)
    np.testing.assert_allclose(twice, 0.137, atol=1e-3)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((512, 512), (512, 512)),
        ((480, 640), (416, 576)),
        ((100, 400), (256, 1024)),
        ((900, 10), (1024, 256)),
    ],
)
def test_buckets(size, bucket):
    assert nearest_bucket(*size) == bucket
    assert nearest_bucket(*size, side=256) == (bucket[0] // 2, bucket[1] // 2)


def test_static_shift():
    schedule = FlowMatchSchedule(shift=3.0)
    np.testing.assert_allclose(schedule.sigmas(4, num_tokens=1), [1, 0.9, 0.75, 0.5, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"denoise_mask": [0, 0]}, "must be zeros and ones with a 1"),
        ({"denoise_mask": [1, 0, 0]}, "1 images for 1 x 2 picture frames"),
        ({"height": 60}, "must be multiples of 16"),
        ({"output_type": "pt"}, "must be 'pil' or 'np'"),
        ({"num_inference_steps": 0}, "must be at least 1"),
        ({"noise": np.zeros((1, 1, 16, 8, 8))}, "noise must be"),
        (
            {"is_multiview": True, "denoise_mask": [0, 0, 1, 0], "multiview_azimuths": [1]},
            "azimuths",
        ),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
    ],
)
def test_calls_that_cannot_be(pipe, changes, message):
    with pytest.raises(ValueError, match=message):
        run(pipe, "depth2image", **({"noise": None} | changes))


def test_one_program_a_shape_and_one_encoding_a_prompt(pipe, monkeypatch):
    real, encoded = pipe.text.encode, []

    def encode(self, prompts):
        encoded.append(list(prompts))
        return real(prompts)

    monkeypatch.setattr(type(pipe.text), "encode", encode)
    settings = {"height": 48, "width": 64, "output_type": "np", "guidance_scale": 2.0}
    before = integrate._cache_size()
    for steps, prompt in ((3, "[[text2image]] a cat"), (3, "[[text2image]] two dogs")):
        pipe(prompt, num_inference_steps=steps, seed=steps, **settings)
    assert integrate._cache_size() == before + 1
    assert encoded == [["", "[[text2image]] a cat"], ["", "[[text2image]] two dogs"]]
