"""UNIMO-G (arXiv:2401.13388) on latents of a released autoencoder and the states of BLIP-2.

    python -m launch.encode --config configs/unimog.py:weights=FOLDER,encoder=BLIP2
    python -m launch.precompute --config configs/unimog.py:weights=FOLDER,encoder=BLIP2 \\
        --set data.text_states=data/unimog-states
    python -m launch.train --config configs/unimog.py:weights=FOLDER,encoder=BLIP2,start=BEFORE \\
        --set data.text_states=data/unimog-states --workdir RUN

FOLDER is a pipeline in OneDiffusion's released layout, of which the autoencoder is used; BLIP2 is a
folder of a BLIP-2 with a FLAN-T5 (`blip2-flan-t5-xl`) in Hugging Face's layout. Both stay frozen.
`launch.precompute` is optional: without `data.text_states` the encoder runs in each step. States
are found by the prompt's tokens and its pictures' pixels, in a folder that is of one encoder.

| argument | |
|---|---|
| stage | `words`, `refine` (pictures from words, then from the best of them), `tuning` |
| size | `B`, `L`, `XL`: 0.5 B, 1.6 B and 4 B parameters |
| weights | folder in the released layout, for its autoencoder |
| encoder | folder of the multimodal encoder |
| start | workdir of the stage before, whose averaged weights this one starts from; empty: random |
| prediction | `v`, or `eps` to compare with the paper's |
| tiny | sizes of `launch.tiny_onediffusion --blip2`, minutes on a CPU, on MiniWorld's clips |

From the paper: pictures enter by cross-attention to the states of a frozen multimodal encoder of
32 places a picture, and by nothing else; the loss of attention maps in the last stage; 700,000
steps of 10,240 pictures from words, 200,000 on a million of the best pictures in five aspect
ratios and 200,000 of multimodal tuning, both of 3,072 pictures; AdamW at 5e-5 and then 1e-5 with
weight decay 0.01; a tenth of plain captions, and the shares of entities
(`data_pipelines.interleaved`); 50 steps with guidance 5.

Where this differs: the paper has a U-Net of 4 B parameters that predicts noise; here it is this
project's transformer with flow matching and velocity prediction. Its encoder is a Chinese language
model of 6 B behind ViT-G and a Q-Former, which is not public; BLIP-2's with the encoder of FLAN-T5
is, and reads English. The first two phases of its pre-training (256 and 512 pixels) are one stage
here.

Not known, chosen here: weight and layers of the attention maps (0.05; the middle third), which
layer's states are read (the last), dropped prompts (10 %), logit-normal(0, 1) levels with shift 3,
1,000 steps of warm-up, gradients clipped at 1, EMA 0.9999.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.latents import reading, released_parts, shrink, training
from configs.meshes import get_mesh
from data_pipelines.interleaved import MAX_ENTITIES, PLAIN
from unidiff_jax.config import ConfigError, parse_arg

# width, blocks; heads of 96
SIZES = {"B": (960, 24), "L": (1920, 27), "XL": (2880, 32)}

PLACES = 32
"""Of a picture in the prompt."""

# learning rate, steps, batch rows of 4 pictures
STAGES: dict[str, dict[str, Any]] = {
    "words": {"learning_rate": 5e-5, "num_steps": 700_000, "batch_rows": 2560},
    "refine": {"learning_rate": 1e-5, "num_steps": 200_000, "batch_rows": 768},
    "tuning": {"learning_rate": 1e-5, "num_steps": 200_000, "batch_rows": 768},
}

_WORDS = {"image": "jpg", "caption": "txt"}

# Where the pictures are is for the user to set: data.sources.NAME.path.
DATASETS: dict[str, tuple[str, dict[str, Any]]] = {
    "pictures": (
        "text_to_image",
        {"format": "tar", "path": "data/raw/pictures/*.tar", "fields": _WORDS},
    ),
    "annotated": ("interleave", {"format": "annotated", "path": "data/raw/annotated/*.tar"}),
    "videos": ("interleave", {"format": "pairs", "path": "data/pairs"}),
}

MAP_WEIGHT = 0.05
"""Of attention maps in the loss."""


def get_config(arg: str | None = None) -> ConfigDict:
    """See the module."""
    args = parse_arg(
        arg,
        stage="tuning",
        size="XL",
        weights="weights/onediffusion",
        encoder="weights/blip2-flan-t5-xl",
        start="",
        prediction="v",
        tiny=False,
        steps=0,
        mesh="fsdp",
    )
    for name, known in (("stage", STAGES), ("size", SIZES)):
        if args[name] not in known:
            raise ConfigError(f"{name}={args[name]!r} is unknown; one of {', '.join(known)}")
    stage, (width, depth) = STAGES[args.stage], SIZES[args.size]
    tasks = {"text_to_image": 1.0}
    if args.stage == "tuning":
        tasks = {"interleave": 1.0 - PLAIN, "text_to_image": PLAIN}
    config = released_parts(args.weights)
    config.seed = 0
    config.image_size = 512
    config.max_text = 224
    config.init.run = args.start
    config.text = blip2_text()
    config.init.text_encoder = args.encoder
    config.init.tokenizer = args.encoder

    config.model = {
        "fusion": "cross",
        "hidden_dim": width,
        "depth": depth,
        "num_heads": width // 96,
        "num_kv_heads": width // 96,
        "text_gate_init": 0.0,
        "map_layers": tuple(range(depth // 3, 2 * depth // 3)),
        "ffn_multiple_of": 256,
        "softcap": 0.0,
        "attention": "auto",
        "context": "gather",
        "modulation": "auto",
        "quantized": "none",
        "scan_layers": True,
        "remat": "full",
        "dtype": "bfloat16",
    }
    config.lora = {"rank": 0, "alpha": 1.0, "targets": "dit/blocks/attention/(q|k|v|out)"}
    config.flow = {
        "prediction": args.prediction,
        "loss": args.prediction,
        "min_sigma": 0.05,
        "time_sampler": "logit_normal",
        "time_mean": 0.0,
        "time_std": 1.0,
        "timed_conditions": False,
        "map_weight": MAP_WEIGHT if args.stage == "tuning" else 0.0,
    }
    config.data = {
        "folder": f"data/unimog-{config.image_size}",
        "tasks": {
            task: {"weight": weight, "plan": "clean", "loss_weight": 1.0}
            for task, weight in tasks.items()
        },
        "sources": {
            name: {"task": task, "size": config.image_size, "samples": 1, **source}
            for name, (task, source) in DATASETS.items()
            if task in tasks
        },
        **reading(),
        "prompts": "base",
        "roles": True,
        "guidance": "prompt",
        "identity": {"encoder": "picture", "path": args.encoder, "dim": 3 * 224**2},
        "entities": MAX_ENTITIES,
        "caption_dropout": 0.1,
        "shift": 3.0,
        "row": {"tokens": 4096, "frames": 5, "segments": 5, "text": 768, "assets": 17},
        "batch_rows": stage["batch_rows"],
    }
    config.optim = {
        "name": "adamw",
        "learning_rate": stage["learning_rate"],
        "warmup_steps": 1000,
        "schedule": "constant",
        "final_fraction": 0.0,
        "b2": 0.999,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "moments": "float32",
        "memory": "device",
        "ema_decay": 0.9999,
    }
    config.train = training(num_steps=args.steps or stage["num_steps"], trainable="dit/.*")
    config.sample = {"num_steps": 50, "solver": "euler", "guidance": 5.0}
    config.mesh = get_mesh(args.mesh)
    if args.tiny:
        _shrink(config, steps=args.steps)
    return config


def blip2_text() -> dict[str, Any]:
    """The section `text` of BLIP-2 with FLAN-T5 XL."""
    return {
        "kind": "blip2",
        "vision": {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39},
        "qformer": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
        "num_query_tokens": PLACES,
        "vocab_size": 32128,
        "d_model": 2048,
        "d_ff": 5120,
        "d_kv": 64,
        "num_layers": 24,
        "num_heads": 32,
        "scan_layers": True,
        "remat": "none",
        "dtype": "bfloat16",
    }


def _shrink(config: ConfigDict, *, steps: int) -> None:
    """Tiny sizes on MiniWorld, whose references are of another frame."""
    shrink(config, steps=steps, max_text=96)
    config.model.map_layers = (1,)
    config.text.vision = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    config.text.vision.update({"num_attention_heads": 2, "image_size": 32, "patch_size": 8})
    config.text.qformer = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2}
    config.text.qformer.num_attention_heads = 2
    config.text.num_query_tokens = 4
    config.data.identity.dim = 3 * 32**2
    config.data.sources = {
        task: {"task": task, "format": "miniworld", "path": "data/miniworld-64", "size": 64}
        | {"samples": 1}
        for task in config.data.tasks
    }
    config.data.row = {"tokens": 64, "frames": 5, "segments": 5, "text": 384, "assets": 17}
