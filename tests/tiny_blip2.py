"""A small BLIP-2 with weights that are a function of the tensor's name, and prompts for it.

`python tests/tiny_blip2.py` computes the golden values again, with PyTorch and transformers.
"""

import json
import pathlib
import zlib

import numpy as np

from unidiff_jax.export.files import write_model

GOLDEN = pathlib.Path(__file__).parent / "golden" / "blip2" / "tiny.npz"

IMAGE_ID, END = 519, 1
CONFIG = {
    "model_type": "blip-2",
    "architectures": ["Blip2ForConditionalGeneration"],
    "vision_config": {
        "model_type": "blip_2_vision_model",
        "hidden_size": 12,
        "intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 10,  # a picture's last 2 pixels are in no patch
        "patch_size": 4,
    },
    "qformer_config": {
        "model_type": "blip_2_qformer",
        "vocab_size": 30,
        "hidden_size": 8,
        "intermediate_size": 20,
        "num_hidden_layers": 6,
        "num_attention_heads": 2,
        "cross_attention_frequency": 3,
    },
    "text_config": {
        "model_type": "t5",
        "vocab_size": 520,
        "d_model": 10,
        "d_ff": 14,
        "d_kv": 4,
        "num_layers": 2,
        "num_heads": 3,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "feed_forward_proj": "gated-gelu",
        "dense_act_fn": "gelu",
        "decoder_start_token_id": 0,
    },
    "num_query_tokens": 5,
    "image_token_index": IMAGE_ID,
}
NUM_QUERIES = CONFIG["num_query_tokens"]

PROMPTS = {
    "none": (3, 17, 5, END),
    "one": ("0", 9, 8, 30, END),
    "three": (4, "2", 7, 11, "0", "1", 12, END),
}
"""Words by id, pictures by their number in `pictures`."""


def pictures() -> np.ndarray:
    """Normalised pictures (i, h, w, 3)."""
    size = CONFIG["vision_config"]["image_size"]
    return np.random.default_rng(0).standard_normal((3, size, size, 3)).astype(np.float32)


def row(prompt) -> tuple[list[int], list[int]]:
    """Ids and queries."""
    ids, query = [], []
    for part in prompt:
        if isinstance(part, str):
            first = 1 + int(part) * NUM_QUERIES
            ids += [IMAGE_ID] * NUM_QUERIES
            query += range(first, first + NUM_QUERIES)
        else:
            ids.append(part)
            query.append(0)
    return ids, query


def tensors(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    """Weights by official name: norms near one, and attention that is far from flat."""
    return {name: _values(name, tuple(shape)) for name, shape in shapes.items()}


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape) * (0.3 if len(shape) < 2 else shape[-1] ** -0.5)
    return (values + ("norm" in name.lower() and name.endswith("weight"))).astype(np.float32)


def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def shapes() -> dict[str, list[int]]:
    """Shape of each tensor of transformers' model, decoder included."""
    return json.loads(bytes(golden()["shapes"]))


def write_folder(folder: pathlib.Path) -> pathlib.Path:
    """The model as transformers would write it."""
    write_model(folder, tensors(shapes()), config=CONFIG, stem="model")
    return folder


# ------------------------------------------------------------------------------------ with PyTorch


def reference():
    """transformers' model with the weights."""
    import torch
    import transformers

    model = transformers.Blip2ForConditionalGeneration(transformers.Blip2Config(**CONFIG)).eval()
    state = model.state_dict()
    values = tensors({name: list(value.shape) for name, value in state.items()})
    shared = "language_model.shared.weight"  # last: other names have the same memory
    for name in sorted(values, key=lambda name: name == shared):
        state[name].copy_(torch.from_numpy(values[name]))
    return model


def reference_outputs(model) -> dict[str, np.ndarray]:
    """What `golden` holds, but for the shapes."""
    import torch

    seen = torch.from_numpy(np.moveaxis(pictures(), -1, 1))
    with torch.no_grad():
        features = model.get_image_features(seen)
        found = {
            "vision": features.vision_outputs.last_hidden_state,
            "queries": features.qformer_outputs.last_hidden_state,
            "features": features.pooler_output,
        }
        for name, prompt in PROMPTS.items():
            ids, _ = row(prompt)
            order = [int(part) for part in prompt if isinstance(part, str)]
            outputs = model(
                pixel_values=seen[order or [0]],  # without a place for it, one is not read
                input_ids=torch.tensor([ids]),
                decoder_input_ids=torch.tensor([[0]]),
            )
            states = outputs.language_model_outputs.encoder_last_hidden_state
            found[f"states_{name}"] = states[0]
    return {name: value.numpy() for name, value in found.items()}


def main() -> None:
    model = reference()
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    packed = np.frombuffer(json.dumps(shapes).encode(), np.uint8)
    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(GOLDEN, shapes=packed, **reference_outputs(model))


if __name__ == "__main__":
    main()
