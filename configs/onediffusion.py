"""OneDiffusion (arXiv:2411.16318) on latents of the released autoencoder, scratch or fine-tuned.

    python -m launch.encode --config configs/onediffusion.py:stage=256,weights=FOLDER
    python -m launch.train --config configs/onediffusion.py:stage=256,weights=FOLDER --workdir RUN

FOLDER is a pipeline in the released layout; of it come the autoencoder, the text encoder and the
tokenizer, all frozen, and with `start=released` the transformer. `launch.encode` turns the pictures
of `data.sources` into latents once; training reads those.

| argument | |
|---|---|
| stage | `256`, `512`, `multitask`, `1024`: the paper's |
| | `subject`: the multi-task stage and pictures of one subject, from released weights |
| | `finetune`: a user's own edits, from released weights |
| weights | folder in the released layout |
| start | `random`, `released`, or a folder that `launch.export` wrote of the stage before |
| clip | folder in Stable Diffusion XL's layout, whose two CLIPs take the T5's place; from scratch |
| lora | rank of adapters, which are then all that is trained; 0 trains every weight |
| tiny | sizes of `launch.tiny_onediffusion` and MiniWorld data: minutes on a CPU |

From the paper: the network; frozen T5-XL, 300 tokens; an independent logit-normal(0, 1) level for
every frame and the loss on all of them; shift 3; AdamW at 5e-4; 256 examples a step; steps of the
stages; equal parts of text to image, picture pairs and views; views are 2 to 6 pictures with their
cameras. From the released config: EMA 0.9999; soft bound 30.

Not said there, chosen here: 10 % dropped captions, weight decay 0.01, 1,000 steps of warm-up,
gradients clipped at 1, the rows that examples are packed into, the share of each pair task, and all
of `finetune`. The 40,000 steps of `subject` are the repository's, its share is ours. The released
weights come from a shift that grows with the picture (their path says so); here it is 3 as in the
paper: --set data.shift.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.latents import clip_parts, reading, released_parts, shrink, training
from configs.meshes import get_mesh
from unidiff_jax.config import ConfigError, parse_arg

_PAIRS = ("depth_to_image", "edges_to_image", "pose_to_image", "semantic_to_image", "deblur")
_PAIRS += ("layout_to_image", "inpaint", "upscale")

# tasks with their weights; pixels a side; tokens, frames and examples of a row; rows; steps
STAGES: dict[str, dict[str, Any]] = {
    "256": {
        "tasks": {"text_to_image": 1.0},
        "size": 256,
        "row": {"tokens": 1024, "frames": 5, "segments": 5, "text": 1200},
        "batch_rows": 64,
        "num_steps": 500_000,
    },
    "512": {
        "tasks": {"text_to_image": 1.0},
        "size": 512,
        "row": {"tokens": 1024, "frames": 2, "segments": 2, "text": 300},
        "batch_rows": 256,
        "num_steps": 500_000,
    },
    "multitask": {
        "tasks": {
            "text_to_image": 1.0,
            **dict.fromkeys(_PAIRS, 1.0 / len(_PAIRS)),
            "multiview": 0.5,
            "identity": 0.5,
        },
        "size": 256,
        "row": {"tokens": 4096, "frames": 17, "segments": 9, "text": 1200},
        "batch_rows": 64,
        "num_steps": 1_000_000,
    },
    "1024": {
        "tasks": {"text_to_image": 1.0},
        "size": 1024,
        "row": {"tokens": 4096, "frames": 2, "segments": 2, "text": 300},
        "batch_rows": 256,
        "num_steps": 100_000,
    },
    "finetune": {
        "tasks": {"edit": 1.0},
        "size": 512,
        "row": {"tokens": 2048, "frames": 3, "segments": 2, "text": 300},
        "batch_rows": 64,
        "num_steps": 30_000,
    },
}
STAGES["subject"] = STAGES["multitask"] | {
    "tasks": STAGES["multitask"]["tasks"] | {"subject": 1.0},
    "num_steps": 40_000,
}


def get_config(arg: str | None = None) -> ConfigDict:
    """See the module."""
    args = parse_arg(
        arg,
        stage="256",
        weights="weights/onediffusion",
        start="random",
        clip="",
        lora=0,
        tiny=False,
        steps=0,
        mesh="fsdp",
    )
    if args.stage not in STAGES:
        raise ConfigError(f"stage={args.stage!r} is unknown; one of {', '.join(STAGES)}")
    stage = STAGES[args.stage]
    adapts = args.lora > 0 or args.stage in ("subject", "finetune")
    start = args.weights if args.start == "released" or adapts else args.start
    config = released_parts(args.weights)
    row = dict(stage["row"])
    if args.clip:
        if start != "random" or args.tiny:
            raise ConfigError(
                f"clip={args.clip} trains from scratch at full size: released transformers read "
                "the states of a T5; for example stage=256,start=random"
            )
        prompts = row["text"] // config.max_text
        clip_parts(config, args.clip)
        row["text"] = prompts * config.max_text
    config.seed = 0
    config.image_size = stage["size"]
    config.model = {
        "hidden_dim": 3840,
        "depth": 16,
        "num_heads": 32,
        "num_kv_heads": 8,
        "ffn_multiple_of": 256,
        "softcap": 30.0,
        "attention": "auto",
        "context": "gather",
        "modulation": "auto",
        "quantized": "none",
        "scan_layers": True,
        "remat": "full",
        "dtype": "bfloat16",
    }
    config.init.transformer = "" if start == "random" else f"{start}/transformer"
    config.lora = {
        "rank": args.lora,
        "alpha": float(args.lora or 1),
        "targets": "dit/blocks/attention/(q|k|v|out)",
    }
    config.flow = {
        "prediction": "v",
        "loss": "v",
        "min_sigma": 0.05,
        "time_sampler": "logit_normal",
        "time_mean": 0.0,
        "time_std": 1.0,
    }
    config.data = {
        "folder": f"data/onediffusion-{args.stage}",
        "tasks": {
            name: {"weight": weight, "plan": "independent", "loss_weight": 1.0}
            for name, weight in stage["tasks"].items()
        },
        "sources": _sources(
            stage["tasks"], size=stage["size"], is_mixed="multiview" in stage["tasks"]
        ),
        **reading(),
        "caption_dropout": 0.1,
        "shift": 3.0,
        "row": row,
        "batch_rows": stage["batch_rows"],
    }
    config.optim = {
        "name": "adamw",
        "learning_rate": 5e-4,
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
    if adapts:
        config.optim.learning_rate = 1e-4 if args.lora else 2e-5
        config.optim.warmup_steps = 200
        config.optim.ema_decay = 0.999
    config.train = training(
        num_steps=args.steps or stage["num_steps"],
        trainable=".*/lora_[ab]" if args.lora else "dit/.*",
    )
    config.sample = {"num_steps": 30, "solver": "euler", "guidance": 4.0}
    config.mesh = get_mesh(args.mesh)
    if args.tiny:
        _shrink(config, steps=args.steps)
    return config


def _sources(tasks: dict[str, float], *, size: int, is_mixed: bool) -> dict[str, dict[str, Any]]:
    """A data set for each task, in the format that such data usually have.

    `path` and `fields` (the columns) are for the user to set: data.sources.NAME.path.
    """
    plain = {
        "text_to_image": ("tar", {"image": "jpg", "caption": "txt"}),
        "edit": (
            "parquet",
            {"source": "source", "edited": "edited", "instruction": "instruction"},
        ),
        "depth_to_image": ("tar", {"image": "jpg", "depth": "depth.png", "caption": "txt"}),
        "edges_to_image": ("tar", {"image": "jpg", "caption": "txt"}),
        "pose_to_image": ("tar", {"image": "jpg", "pose": "pose.png", "caption": "txt"}),
        "semantic_to_image": ("tar", {"image": "jpg", "semantic": "map.png", "caption": "txt"}),
        "layout_to_image": ("tar", {"image": "jpg", "layout": "boxes.png", "caption": "txt"}),
        "deblur": ("tar", {"image": "jpg", "caption": "txt"}),
        "inpaint": ("tar", {"image": "jpg", "caption": "txt"}),
        "upscale": ("tar", {"image": "jpg", "caption": "txt"}),
    }
    made = {
        "edges_to_image": ("edges",),
        "deblur": ("blurred",),
        "inpaint": ("holed",),
        "upscale": ("small",),
    }
    sources: dict[str, dict[str, Any]] = {}
    for task in tasks:
        source = {"task": task, "size": size, "samples": 1}
        if task == "multiview":
            source |= {"format": "scenes", "path": "data/raw/scenes/*", "num_views": (2, 6)}
            source["samples"] = 8
        elif task == "identity":
            source |= {"format": "subjects", "path": "data/raw/identities", "num_views": (2, 4)}
            source["samples"] = 8
        elif task == "subject":
            source |= {"format": "subjects", "path": "data/raw/subjects", "num_views": 2}
            source["samples"] = 4
        else:
            form, fields = plain[task]
            ending = {"tar": "*.tar", "parquet": "*.parquet"}[form]
            source |= {"format": form, "path": f"data/raw/{task}/{ending}", "fields": fields}
            source["add"] = made.get(task, ())
        if task == "text_to_image" and is_mixed:
            source["size"] = 512
        sources[task] = source
    return sources


def _shrink(config: ConfigDict, *, steps: int) -> None:
    """Tiny sizes, and MiniWorld pictures."""
    shrink(config, steps=steps, max_text=64)
    data = config.data
    known = ("text_to_image", "depth_to_image", "layout_to_image", "inpaint", "edit", "multiview")
    data.tasks = {name: task for name, task in data.tasks.to_dict().items() if name in known}
    data.sources = {
        name: {"task": name, "format": "miniworld", "path": "data/miniworld-64", "size": 64}
        | {"samples": 1}
        for name in data.tasks
    }
    data.row = {"tokens": 128, "frames": 9, "segments": 5, "text": 256}
