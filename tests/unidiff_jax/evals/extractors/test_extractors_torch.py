"""Extractors against PyTorch: transformers' CLIP, ViT and DINOv2, restated Inception and LPIPS."""

import dataclasses
import functools

import numpy as np
import pytest
import tiny_clip
from PIL import Image
from safetensors.numpy import save_file

from unidiff_jax.evals.extractors import load_extractor
from unidiff_jax.evals.extractors.pictures import preprocess, resample
from unidiff_jax.export.mapping import (
    clip_text_table,
    clip_vision_table,
    from_official,
)
from unidiff_jax.models.clip import CLIPTextEncoder, CLIPVisionEncoder
from unidiff_jax.models.layers import abstract
from unidiff_jax.sample.clip import clip_text_config, clip_vision_config, tower_values

pytestmark = pytest.mark.torch
BOUND = 1e-5


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("transformers")
    found = pytest.importorskip("torch")
    found.manual_seed(0)
    return found


def pictures(sizes=((40, 33), (37, 64), (50, 50))):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for w, h in sizes]


def difference(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


def forward(torch, model, items, *, name, size):
    """What a PyTorch model makes of preprocessed pictures."""
    values = np.stack([preprocess(item, name=name, size=size) for item in items])
    with torch.no_grad():
        return model(torch.from_numpy(values).permute(0, 3, 1, 2))


def randomize(torch, model):
    """Weights that make norms, scales and biases matter."""
    for name, parameter in model.named_parameters():
        spread = 0.3 if parameter.ndim < 2 else 1.5 * parameter.shape[-1] ** -0.5
        centre = float(parameter.ndim == 1 and name.endswith(("weight", "lambda1")))
        torch.nn.init.normal_(parameter, centre, spread)
    return model.eval()


def test_clip(torch, tmp_path, parity):
    folder = tiny_clip.write_whole(tmp_path / "clip")
    tiny_clip.write_tokenizer(folder)
    text = dataclasses.replace(tiny_clip.TEXT, vocab_size=300)
    tiny_clip.write_whole(folder, text=text)
    extractor, items = load_extractor("clip-b32", folder), pictures()
    model = tiny_clip.torch_tower(tiny_clip.VISION)
    expected = forward(torch, model, items, name="clip", size=tiny_clip.VISION.image_size)
    got = extractor.images(items)
    parity("CLIP extractor, pictures", difference(got, expected.image_embeds.numpy()), bound=BOUND)

    texts = ["a red cube", "", "words without an end that nobody reads to the last one"]
    ids = np.full((3, 10), 0, np.int64)
    mask = np.zeros_like(ids)
    for row, words in enumerate(texts):
        tokens = extractor.text.tokenizer.encode(words)
        tokens = tokens if len(tokens) <= 10 else [*tokens[:9], tokens[-1]]
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
    end = extractor.text.tokenizer.end_id
    settings = tiny_clip.settings(text) | {"eos_token_id": end, "bos_token_id": end - 1}
    import transformers

    settings = {k: v for k, v in settings.items() if k not in ("model_type", "architectures")}
    tower = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**settings)).eval()
    tower.load_state_dict({k: torch.from_numpy(v) for k, v in tiny_clip.weights(text).items()})
    with torch.no_grad():
        embeds = tower(torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)).text_embeds
    got = extractor.texts(texts)
    parity("CLIP extractor, texts", difference(got, embeds.numpy()), bound=BOUND)


@pytest.mark.parametrize("kind", ["dino-s16", "dinov2-b14"])
def test_dino(torch, kind, tmp_path, parity):
    import transformers

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    second = kind == "dinov2-b14"
    sizes |= {"patch_size": 28, "image_size": 252} if second else {"patch_size": 8}
    sizes |= {} if second else {"image_size": 32, "intermediate_size": 40}
    family = "Dinov2" if second else "ViT"
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = randomize(torch, getattr(transformers, f"{family}Model")(config))
    model.save_pretrained(tmp_path)
    extractor, items = load_extractor(kind, tmp_path), pictures()
    size = 224 if second else 32
    assert extractor.config.image_size == size  # DINOv2's positions are of another size
    found = forward(torch, model, items, name="imagenet", size=size)
    expected = found.last_hidden_state[:, 0].numpy()
    parity(f"{kind}, pictures", difference(extractor.images(items), expected), bound=BOUND)
    assert extractor.identity["substitute"].startswith("hidden_size=24 (released: ")


@pytest.mark.parametrize("name", ["clean", "legacy_tensorflow", "legacy_pytorch"])
def test_inception(torch, name, tmp_path, parity):
    import torch_extractors

    state = torch_extractors.inception_state()
    torch.save(state, tmp_path / "inception.pth")
    extractor = load_extractor("inception", tmp_path / "inception.pth", preprocess=name)
    items = pictures()[:2]
    run = functools.partial(torch_extractors.inception_features, state)
    expected = forward(torch, run, items, name=name, size=299).numpy()
    parity("Inception of FID", difference(extractor.images(items), expected), bound=BOUND)


@pytest.mark.parametrize("side", [32, 40])
def test_structure(torch, side, tmp_path, parity):
    """PIE-Bench's distance: keys of the last block, resized by torchvision without antialiasing."""
    import transformers

    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, patch_size=8, image_size=32,
        intermediate_size=40,
    )  # fmt: skip
    model = randomize(torch, transformers.ViTModel(config))
    model.save_pretrained(tmp_path)
    seen = []
    # transformers has renamed it
    keys = [m for name, m in model.named_modules() if name.endswith((".key", ".k_proj"))]
    assert len(keys) == 3
    keys[-1].register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    first, second = pictures(((side, side),) * 3), pictures(((side, side),) * 4)[1:]
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]

    def similarity(item):
        values = torch.from_numpy(np.array(item, np.float32)).permute(2, 0, 1)
        values = torch.nn.functional.interpolate(values[None], (32, 32), mode="bilinear")
        with torch.no_grad():
            model((values - mean) / std)
        return torch.nn.functional.cosine_similarity(seen[-1][:, None], seen[-1][None], dim=-1)

    expected = [
        float(torch.nn.functional.mse_loss(similarity(a), similarity(b)))
        for a, b in zip(first, second, strict=True)
    ]
    extractor = load_extractor("dino-b8", tmp_path)
    got = extractor.distance(first, second)
    parity("distance of structure", difference(got, np.asarray(expected)), bound=BOUND)
    assert min(expected) > 1e-3
    assert extractor.identity["preprocess"] == "structure"
    assert extractor.identity["substitute"].startswith("hidden_size=24 (released: 768)")


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_lpips(torch, net, tmp_path, parity):
    import torch_extractors

    state = torch_extractors.lpips_state(net)
    heads = {k: v for k, v in state.items() if k.startswith("lin")}
    torch.save(heads, tmp_path / f"{net}.pth")
    torch.save({k: v for k, v in state.items() if k not in heads}, tmp_path / "backbone.pth")
    extractor = load_extractor(f"lpips-{net}", tmp_path)
    first, second = pictures(((40, 33), (37, 64), (40, 33))), pictures()[::-1]
    second = [b.resize(a.size) for a, b in zip(first, second, strict=True)]

    def tensors(item):
        values = preprocess(item, name="lpips", size=0)
        return torch.from_numpy(values).permute(2, 0, 1)[None]

    expected = [
        float(torch_extractors.lpips_distance(net, state, tensors(a), tensors(b)))
        for a, b in zip(first, second, strict=True)
    ]
    got = extractor.distance(first, second)
    parity(f"LPIPS, {net}", difference(got, np.asarray(expected)), bound=BOUND)
    whole = {}
    for number, (name, tensor) in enumerate(state.items()):
        name = name.replace("features.", f"net.slice{number % 5 + 1}.")
        whole[name] = np.ascontiguousarray(tensor.numpy())
    save_file(whole, tmp_path / "whole.safetensors")
    again = load_extractor(f"lpips-{net}", tmp_path / "whole.safetensors")
    np.testing.assert_array_equal(again.distance(first, second), got)


# ------------------------------------------------------------------------ released names and shapes


def fits(tensors, make, table):
    """Whether all tensors have a place, without reading them."""
    from_official(tensors, abstract(make).shapes, table=table, keep=lambda path: False)


def empty(state):
    return {name: np.broadcast_to(np.float32(0), tuple(t.shape)) for name, t in state.items()}


@pytest.mark.parametrize("width", ["b32", "l14"])
def test_clip_of_the_released_size_has_the_released_names(torch, width):
    import transformers

    if width == "b32":
        config = transformers.CLIPConfig()  # its defaults are B/32
    else:
        config = transformers.CLIPConfig(
            projection_dim=768,
            text_config={
                "hidden_size": 768,
                "intermediate_size": 3072,
                "num_attention_heads": 12,
                "projection_dim": 768,
            },
            vision_config={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "patch_size": 14,
                "projection_dim": 768,
            },
        )
    with torch.device("meta"):
        tensors = empty(transformers.CLIPModel(config).state_dict())
    values = config.to_dict()
    text = clip_text_config(tower_values(values, "text"), dtype="float32")
    vision = clip_vision_config(tower_values(values, "vision"), dtype="float32")
    fits(tensors, lambda rngs: CLIPTextEncoder(text, rngs=rngs), clip_text_table(text))
    fits(tensors, lambda rngs: CLIPVisionEncoder(vision, rngs=rngs), clip_vision_table(vision))


@pytest.mark.parametrize("kind", ["dino-s16", "dinov2-b14"])
def test_dino_of_the_released_size_has_the_released_names(torch, kind, tmp_path):
    import transformers

    if kind == "dino-s16":
        config = transformers.ViTConfig(hidden_size=384, intermediate_size=1536)
        config.num_attention_heads = 6
        family = transformers.ViTModel
    else:
        config = transformers.Dinov2Config(image_size=518, patch_size=14)
        family = transformers.Dinov2Model
    config.num_hidden_layers = 1  # the layers are alike
    family(config).save_pretrained(tmp_path)
    extractor = load_extractor(kind, tmp_path)
    assert extractor.identity["substitute"] == "num_hidden_layers=1 (released: 12)"


# --------------------------------------------------------------------------------------- resampling


@pytest.mark.parametrize("kind", ["torch_bicubic", "torch_bilinear"])
@pytest.mark.parametrize("size", [(7, 11), (29, 40), (13, 17)])
def test_resampling_is_torchs(torch, kind, size):
    values = np.random.default_rng(0).random((13, 17, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values).permute(2, 0, 1)[None],
        size,
        mode=kind.removeprefix("torch_"),
        align_corners=False,
    )
    got = resample(values, size=size, kind=kind)
    np.testing.assert_allclose(got, expected[0].permute(1, 2, 0).numpy(), atol=2e-6)


@pytest.mark.parametrize("size", [(7, 11), (29, 40)])
def test_tensorflows_bilinear_is_a_shifted_grid(torch, size):
    """As NVIDIA's network does it, whose weights clean-fid uses: a grid of torch, moved."""
    values = np.random.default_rng(0).random((1, 3, 13, 17)).astype(np.float32)
    (h, w), (old_h, old_w) = size, values.shape[2:]
    theta = torch.eye(2, 3)[None]
    theta[0, :, 2] = torch.tensor([1 / old_w - 1 / w, 1 / old_h - 1 / h])
    grid = torch.nn.functional.affine_grid(theta, [1, 3, h, w], align_corners=False)
    expected = torch.nn.functional.grid_sample(
        torch.from_numpy(values), grid, padding_mode="border", align_corners=False
    )
    got = resample(values[0].transpose(1, 2, 0), size=size, kind="tensorflow_bilinear")
    np.testing.assert_allclose(got, expected[0].permute(1, 2, 0).numpy(), atol=5e-6)
