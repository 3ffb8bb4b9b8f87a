"""UniVG (arXiv:2503.12652) on latents of a released autoencoder.

    python -m launch.encode --config configs/univg.py:stage=multitask,weights=FOLDER
    python -m launch.train --config configs/univg.py:stage=multitask,weights=FOLDER,start=BEFORE \\
        --workdir RUN

FOLDER is a pipeline in OneDiffusion's released layout; its autoencoder, T5 and tokenizer are used,
frozen. `launch.encode` turns the pictures of `data.sources` into latents once.

| argument | |
|---|---|
| stage | `foundation` (pictures from words), `multitask`, `identity`: the paper's three |
| size | `B`, `L`, `XL` |
| weights | folder in the released layout |
| start | workdir of the stage before, whose averaged weights this one starts from; empty: random |
| identity | encoder of references: folder of a CLIP (L/14), or ONNX file (ArcFace); empty: pixels |
| tiny | sizes of `launch.tiny_onediffusion`, minutes on a CPU, on MiniWorld pictures |

The paper's full text was not at hand: the facts are those that others write of it. From them: two
streams of text and picture with joint attention (MM-DiT); the given picture and a mask on the
channels of the noisy latents, so that no task is longer than another; features of a reference in
the place of a word; flow matching; sizes of 416 M, 1.8 B and 3.7 B parameters; 400,000, 400,000 and
40,000 steps of 512 pictures; in the second stage 47 % editing, 20 % filling holes, 3 % depth, pose
and referring segmentation, 2 % layouts, and words alone for the rest; in the third as much identity
as all the others; the data sets; guidance by words and by pictures; prompts that begin with
`<t2i>`, `<ie>`, `<depth>`, `<lg>`.

Not known, chosen here:

- Widths and depths: 960 x 18, 1920 x 20, 2304 x 29, heads of 96, and one modulation a stream for
  all blocks, which DiT-Air (arXiv:2503.10618, of the same group) found to cost nothing: 414 M,
  1.80 B, 3.73 B parameters. Blocks are this project's.
- T5 1.1 XL and SD3's autoencoder with patches of 2 x 2, as in the other recipes. 256 pixels in the
  first stage's rows and 512 in the others'.
- Mask: 1 where the picture is to be made; 1 everywhere without a hole, in editing too, of which the
  sources differ (`frames.Guide`). No picture: zeros.
- One vector a reference, in the place of `<p>` or of the name IMGn behind the text encoder.
- 10 % of the prompts are dropped, half of these with their channels, for the two scales (guidance 5
  and 1.5, as InstructPix2Pix advises); velocity prediction, logit-normal(0, 1) levels, shift 3;
  AdamW at 1e-4 with weight decay 0.01, 1,000 steps of warm-up, gradients clipped at 1, EMA 0.9999.
- Other names in prompts: `<inpaint>`, `<segment>`, `<pose>`, `<id>`.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.latents import reading, released_parts, shrink, training
from configs.meshes import get_mesh
from unidiff_jax.config import ConfigError, parse_arg

# width, blocks; heads of 96
SIZES = {"B": (960, 18), "L": (1920, 20), "XL": (2304, 29)}

# pixels a side; a row is 4 pictures with their texts; rows; steps
STAGES: dict[str, dict[str, Any]] = {
    "foundation": {
        "size": 256,
        "row": {"tokens": 1024, "frames": 5, "segments": 5, "text": 640, "assets": 13},
        "batch_rows": 128,
        "num_steps": 400_000,
    },
    "multitask": {
        "size": 512,
        "row": {"tokens": 4096, "frames": 5, "segments": 5, "text": 640, "assets": 13},
        "batch_rows": 128,
        "num_steps": 400_000,
    },
    "identity": {
        "size": 512,
        "row": {"tokens": 4096, "frames": 5, "segments": 5, "text": 640, "assets": 13},
        "batch_rows": 128,
        "num_steps": 40_000,
    },
}

SHARES = {"edit": 0.47, "fill": 0.20, "perception": 0.03, "layout": 0.02, "words": 0.28}
"""Of the second stage; the last is what is left of one."""

GROUPS: dict[str, tuple[str, ...]] = {
    "edit": ("edit",),
    "fill": ("inpaint",),
    "perception": ("depth", "pose", "segment"),
    "layout": ("layout_to_image",),
    "words": ("text_to_image",),
    "identity": ("personalize",),
}

_EDIT = {"source": "source", "edited": "edited", "instruction": "instruction"}
_DEPTH = {"image": "image", "depth": "depth"}
_LAYOUT = {"image": "image", "layout": "layout", "caption": "caption"}
_WORDS = {"image": "jpg", "caption": "txt"}
_PERSON = {"later": "image", "assets": "references", "slots": "caption"}
_EXPRESSION = {"image": "image", "mask": "mask", "expression": "expression"}


def _table(name: str, fields: dict[str, str]) -> dict[str, Any]:
    return {"format": "parquet", "path": f"data/raw/{name}/*.parquet", "fields": fields}


def _tar(name: str, **more: Any) -> dict[str, Any]:
    return {"format": "tar", "path": f"data/raw/{name}/*.tar", "fields": _WORDS, **more}


# Where the pictures are is for the user to set: data.sources.NAME.path. The paper's own pictures
# (2 B with words, scenes to fill, faces) are a user's here.
DATASETS: dict[str, tuple[str, dict[str, Any]]] = {
    "pictures": ("text_to_image", _tar("pictures")),
    "journeydb": ("text_to_image", _tar("journeydb")),
    "dalle3": ("text_to_image", _tar("dalle3")),
    "instructpix2pix": ("edit", _table("instructpix2pix", _EDIT)),
    "ultraedit": ("edit", _table("ultraedit", _EDIT)),
    "seededit": ("edit", _table("seededit", _EDIT)),
    "osv": ("inpaint", _tar("osv", add=("holed",))),
    "places": ("inpaint", _tar("places", add=("outpaint",))),
    "hypersim": ("depth", _table("hypersim", _DEPTH)),
    "coco_pose": ("pose", _table("coco_pose", {"image": "image", "pose": "pose"})),
    "refcoco": ("segment", _table("refcoco", _EXPRESSION)),
    "phrasecut": ("segment", _table("phrasecut", _EXPRESSION)),
    "flickr": ("layout_to_image", _table("flickr", _LAYOUT)),
    "people": ("personalize", _table("people", _PERSON)),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """See the module."""
    args = parse_arg(
        arg,
        stage="multitask",
        size="XL",
        weights="weights/onediffusion",
        start="",
        identity="",
        tiny=False,
        steps=0,
        mesh="fsdp",
    )
    for name, known in (("stage", STAGES), ("size", SIZES)):
        if args[name] not in known:
            raise ConfigError(f"{name}={args[name]!r} is unknown; one of {', '.join(known)}")
    stage, (width, depth) = STAGES[args.stage], SIZES[args.size]
    tasks = task_weights(args.stage)
    config = released_parts(args.weights)
    config.seed = 0
    config.image_size = stage["size"]
    config.max_text = 160
    config.init.run = args.start

    config.model = {
        "fusion": "dual",
        "hidden_dim": width,
        "depth": depth,
        "num_heads": width // 96,
        "num_kv_heads": width // 96,
        "shared_modulation": True,
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
        "prediction": "v",
        "loss": "v",
        "min_sigma": 0.05,
        "time_sampler": "logit_normal",
        "time_mean": 0.0,
        "time_std": 1.0,
        "timed_conditions": False,
    }
    config.data = {
        "folder": f"data/univg-{stage['size']}",
        "tasks": {
            task: {"weight": weight, "plan": "clean", "loss_weight": 1.0}
            for task, weight in tasks.items()
        },
        "sources": {
            name: {"task": task, "size": stage["size"], "samples": 1, **source}
            for name, (task, source) in DATASETS.items()
            if task in tasks
        },
        **reading(),
        "prompts": "short",
        "roles": True,
        "guidance": "channels",
        "identity": _identity(args.identity),
        "caption_dropout": 0.1,
        "visual_dropout": 0.5,
        "shift": 3.0,
        "row": stage["row"],
        "batch_rows": stage["batch_rows"],
    }
    config.optim = {
        "name": "adamw",
        "learning_rate": 1e-4,
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
    config.sample = {"num_steps": 30, "solver": "euler", "guidance": 5.0, "image_guidance": 1.5}
    config.mesh = get_mesh(args.mesh)
    if args.tiny:
        _shrink(config, steps=args.steps)
    return config


def task_weights(stage: str) -> dict[str, float]:
    """Each task's share of the examples; a group's tasks share it equally."""
    shares = {"words": 1.0} if stage == "foundation" else dict(SHARES)
    if stage == "identity":
        shares["identity"] = sum(shares.values())
    return {
        task: round(share / len(GROUPS[group]), 4)
        for group, share in shares.items()
        for task in GROUPS[group]
    }


def _identity(path: str) -> dict[str, Any]:
    """Which encoder of references; another width than these: --set data.identity.dim."""
    if not path:
        return {"encoder": "pixels", "path": "", "dim": 256}
    if path.endswith(".onnx"):
        return {"encoder": "onnx", "path": path, "dim": 512}
    return {"encoder": "clip", "path": path, "dim": 768}


def _shrink(config: ConfigDict, *, steps: int) -> None:
    """Tiny sizes on MiniWorld, which has objects and no people."""
    shrink(config, steps=steps, max_text=96)
    data = config.data
    objects = {"personalize": "customize"}
    data.tasks = {
        objects.get(task, task): settings for task, settings in data.tasks.items() if task != "pose"
    }
    data.sources = {
        task: {"task": task, "format": "miniworld", "path": "data/miniworld-64", "size": 64}
        | {"samples": 1}
        for task in data.tasks
    }
    data.row = {"tokens": 64, "frames": 5, "segments": 5, "text": 384, "assets": 13}
