"""Small CLIP towers with weights that are a function of the tensor's name, and folders of them.

`python tests/tiny_clip.py` computes the golden values again, with PyTorch and transformers.
"""

import dataclasses
import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unidiff_jax.export.files import WEIGHT_NAMES, write_model
from unidiff_jax.export.mapping import (
    Table,
    clip_text_table,
    clip_vision_table,
    flatten,
    from_official,
    nest,
    to_official,
)
from unidiff_jax.models.clip import (
    CLIPTextConfig,
    CLIPTextEncoder,
    CLIPVisionConfig,
    CLIPVisionEncoder,
)
from unidiff_jax.models.layers import abstract

GOLDEN = pathlib.Path(__file__).parent / "golden" / "clip"

TEXT = CLIPTextConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=10,
    projection_dim=6,
    scan_layers=False,
    remat="none",
)
VISION = CLIPVisionConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=20,
    patch_size=8,  # a picture's last 4 pixels are in no patch
    projection_dim=6,
    scan_layers=False,
)
START, END = 38, 39
TEXTS = ([START, 3, 17, 5, END], [START, END], [START, 9, 8, 7, 6, 5, 4, 3, 2, END])
ACTIVATIONS = ("quick_gelu", "gelu")


def rows() -> tuple[np.ndarray, np.ndarray]:
    """`TEXTS`, one a row, and their mask."""
    ids, mask = np.zeros((2, len(TEXTS), TEXT.max_position_embeddings), np.int32)
    for row, text in enumerate(TEXTS):
        ids[row, : len(text)], mask[row, : len(text)] = text, 1
    return ids, mask


def pictures() -> np.ndarray:
    """Normalised pictures (b, h, w, 3)."""
    shape = (2, VISION.image_size, VISION.image_size, 3)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def table(config) -> Table:
    return (clip_text_table if isinstance(config, CLIPTextConfig) else clip_vision_table)(config)


def make(config):
    encoder = CLIPTextEncoder if isinstance(config, CLIPTextConfig) else CLIPVisionEncoder
    return lambda rngs: encoder(config, rngs=rngs)


def weights(config) -> dict[str, np.ndarray]:
    """Tensors of a tower by official name."""
    shapes = flatten(abstract(make(config)).shapes)
    empty = nest({path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items()})
    return {
        name: _values(name, tensor.shape)
        for name, tensor in to_official(empty, table=table(config)).items()
    }


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Norms near one, and attention that is far from flat."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape) * (0.3 if len(shape) < 2 else 1.5 * shape[-1] ** -0.5)
    return (values + ("norm" in name and name.endswith("weight"))).astype(np.float32)


def tower(config):
    """The tower with its weights."""
    graphdef, shapes, _ = abstract(make(config))
    params = from_official(weights(config), shapes, table=table(config))
    return nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))


def settings(config) -> dict[str, object]:
    """The tower's `config.json`."""
    name = "text" if isinstance(config, CLIPTextConfig) else "vision"
    own = ("scan_layers", "remat", "dtype", "skip_layers")
    values = {k: v for k, v in dataclasses.asdict(config).items() if k not in own}
    suffix = "WithProjection" if config.projection_dim else ""
    values |= {"model_type": f"clip_{name}_model"}
    values |= {"architectures": [f"CLIP{name.capitalize()}Model{suffix}"]}
    return values | ({"bos_token_id": START, "eos_token_id": END} if name == "text" else {})


def write_tower(folder: pathlib.Path, config) -> pathlib.Path:
    write_model(folder, weights(config), config=settings(config), stem=WEIGHT_NAMES[1])
    return folder


def write_whole(folder: pathlib.Path, text=TEXT, vision=VISION) -> pathlib.Path:
    """A folder of a whole `CLIPModel`."""
    tensors = weights(text) | weights(vision) | {"logit_scale": np.asarray(2.5, np.float32)}
    values = {"model_type": "clip", "architectures": ["CLIPModel"]}
    values |= {"projection_dim": text.projection_dim}
    for name, config in (("text", text), ("vision", vision)):
        values[f"{name}_config"] = settings(config) | {"projection_dim": 512}  # not the one in use
    write_model(folder, tensors, config=values, stem=WEIGHT_NAMES[1])
    return folder


MERGES = (("r", "e"), ("re", "d</w>"), ("c", "u"), ("cu", "b"), ("cub", "e</w>"), ("t", "h"))


def write_tokenizer(folder: pathlib.Path) -> int:
    """A byte-pair folder that knows printable ASCII; returns its number of pieces."""
    signs = [chr(code) for code in range(33, 127)]
    words = [*signs, *(f"{sign}</w>" for sign in signs), *map("".join, MERGES)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGES)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    return len(words)


# ------------------------------------------------------------------------------------ golden values


def torch_tower(config):
    """transformers' tower with these weights."""
    import torch
    import transformers

    kind = "Text" if isinstance(config, CLIPTextConfig) else "Vision"
    values = {k: v for k, v in settings(config).items() if k not in ("model_type", "architectures")}
    theirs = getattr(transformers, f"CLIP{kind}Config")(**values)
    model = getattr(transformers, f"CLIP{kind}ModelWithProjection")(theirs).eval()
    model.load_state_dict({k: torch.from_numpy(v) for k, v in weights(config).items()})
    return model


def torch_text(act: str) -> dict[str, np.ndarray]:
    """States of `rows()` by transformers: last, last but one, and the embedding."""
    import torch

    ids, mask = (torch.from_numpy(x.astype(np.int64)) for x in rows())
    model = torch_tower(dataclasses.replace(TEXT, hidden_act=act))
    with torch.no_grad():
        found = model(ids, attention_mask=mask, output_hidden_states=True)
    return {
        "last": found.last_hidden_state.numpy(),
        "penultimate": found.hidden_states[-2].numpy(),
        "embedding": found.text_embeds.numpy(),
    }


def torch_vision(act: str) -> dict[str, np.ndarray]:
    """States and embeddings of `pictures()` by transformers."""
    import torch

    model = torch_tower(dataclasses.replace(VISION, hidden_act=act))
    with torch.no_grad():
        found = model(torch.from_numpy(pictures()).permute(0, 3, 1, 2))
    return {"states": found.last_hidden_state.numpy(), "embedding": found.image_embeds.numpy()}


def goldens() -> dict[str, dict[str, np.ndarray]]:
    """What lies in `GOLDEN`, by file name, computed again."""
    return {f"text_{act}": torch_text(act) for act in ACTIVATIONS} | {
        f"vision_{act}": torch_vision(act) for act in ACTIVATIONS
    }


def load_golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file_name, arrays in goldens().items():
        np.savez_compressed(GOLDEN / f"{file_name}.npz", **arrays)
