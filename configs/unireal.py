"""UniReal (arXiv:2412.07774) on latents of a released autoencoder.

    python -m launch.encode --config configs/unireal.py:stage=256,weights=FOLDER
    python -m launch.train --config configs/unireal.py:stage=256,weights=FOLDER,start=BEFORE \\
        --workdir RUN

FOLDER is a pipeline in OneDiffusion's released layout; its autoencoder, T5 and tokenizer are used,
frozen. `launch.encode` turns the pictures of `data.sources` into latents once.

| argument | |
|---|---|
| stage | `pretrain` (pictures from words), then `256`, `512`, `1024` with all tasks: the paper's |
| weights | folder in the released layout |
| start | workdir of the stage before, whose averaged weights this one starts from; empty: random |
| pairs | folder of `launch.curate`, for the video tasks |
| tiny | sizes of `launch.tiny_onediffusion`, minutes on a CPU; MiniWorld data, or `pairs` alone |

From the paper: 5 B parameters; text, given and generated pictures in one stream with full
attention; T5 states; embeddings of the names IMG1, RES1, ..., shared by a picture and its word, and
of the roles canvas, asset and control; a noise level on generated pictures alone; prompts of
context tags and base prompt; flow matching; the stages; a learning rate of 1e-5 with a warm-up in
each; mixed aspect ratios; the data sets of its Table 1 with their sizes.

Not in the paper, chosen here:

- 40 blocks of width 3072 with 32 heads: 5.05 B parameters. T5 1.1 XL with 300 tokens, the
  autoencoder, patches of 2 x 2, and rotary positions are OneDiffusion's.
- A task's share of the examples is the square root of its pictures (`share`): in proportion, words
  alone would be nine tenths of them. Within a task every picture counts the same.
- Velocity prediction, logit-normal(0, 1) levels, shift 3, 10 % dropped prompts, AdamW with weight
  decay 0.01, 1,000 steps of warm-up, gradients clipped at 1, EMA 0.9999, rows, steps, and guidance.
- Context tags: the paper shows some. A data set has its style, a pair of video frames whether the
  scene moves (`data_pipelines.curate`), a task what it is (`unidiff_jax.tasks`).

Not here: text to video in the first stage, and the paper's own pictures (T2I, editing, insertion),
for which a user's take the place.
"""

from typing import Any

from ml_collections import ConfigDict

from configs.latents import reading, released_parts, shrink, training
from configs.meshes import get_mesh
from unidiff_jax.config import ConfigError, parse_arg

# pixels a side; tokens, frames and examples of a row: 8, 6 and 4 pictures; rows; steps
STAGES: dict[str, dict[str, Any]] = {
    "pretrain": {
        "size": 256,
        "row": {"tokens": 2048, "frames": 9, "segments": 9, "text": 1200},
        "batch_rows": 128,
        "num_steps": 300_000,
    },
    "256": {
        "size": 256,
        "row": {"tokens": 2048, "frames": 9, "segments": 9, "text": 1200},
        "batch_rows": 128,
        "num_steps": 300_000,
    },
    "512": {
        "size": 512,
        "row": {"tokens": 6144, "frames": 7, "segments": 7, "text": 900},
        "batch_rows": 128,
        "num_steps": 200_000,
    },
    "1024": {
        "size": 1024,
        "row": {"tokens": 16384, "frames": 5, "segments": 5, "text": 900},
        "batch_rows": 128,
        "num_steps": 100_000,
    },
}

_REAL, _SYNTHETIC = {"tags": ("realistic style",)}, {"tags": ("synthetic style",)}
_EDIT = {"source": "source", "edited": "edited", "instruction": "instruction"}
_INSERT = {"canvas": "canvas", "assets": "assets", "later": "result", "references": "references"}
_PAIRS = {"format": "pairs", "path": "data/pairs"}  # which tags itself


def _table(name: str, fields: dict[str, str]) -> dict[str, Any]:
    return {"format": "parquet", "path": f"data/raw/{name}/*.parquet", "fields": fields}


# Table 1: pictures, task, and where they are; `path` and `fields` (the columns) are for the user to
# set: data.sources.NAME.path. Video Control's 3 M are in four equal parts.
DATASETS: dict[str, tuple[float, str, dict[str, Any]]] = {
    "instructpix2pix": (300e3, "edit", _table("instructpix2pix", _EDIT) | _SYNTHETIC),
    "ultraedit": (500e3, "edit", _table("ultraedit", _EDIT) | _SYNTHETIC),
    "vton": (10e3, "insert", _table("vton", _INSERT) | _REAL),
    "refcoco": (
        150e3,
        "segment",
        _table("refcoco", {"image": "image", "mask": "mask", "expression": "expression"}) | _REAL,
    ),
    "pictures": (
        300e6,
        "text_to_image",
        {"format": "tar", "path": "data/raw/pictures/*.tar", **_REAL}
        | {"fields": {"image": "jpg", "caption": "txt"}},
    ),
    "edits": (2e6, "edit", _table("edits", _EDIT) | _REAL),
    "insertions": (100e3, "insert", _table("insertions", _INSERT) | _REAL),
    "video_frames": (8e6, "next_frame", _PAIRS),
    "video_objects": (5e6, "customize", _PAIRS),
    "video_insert": (1e6, "insert", _PAIRS),
    "video_add": (1e6, "inpaint", _PAIRS),
    "video_segment": (5e6, "segment", _PAIRS),
    "video_depth": (0.75e6, "depth", _PAIRS),
    "video_from_depth": (0.75e6, "depth_to_image", _PAIRS),
    "video_edges": (0.75e6, "edges", _PAIRS),
    "video_from_edges": (0.75e6, "edges_to_image", _PAIRS),
}


def share(pictures: float) -> float:
    """A task's share of the examples, from the size of its data sets; see the module."""
    return pictures**0.5


def get_config(arg: str | None = None) -> ConfigDict:
    """See the module."""
    args = parse_arg(
        arg,
        stage="256",
        weights="weights/onediffusion",
        start="",
        pairs="",
        tiny=False,
        steps=0,
        mesh="fsdp",
    )
    if args.stage not in STAGES:
        raise ConfigError(f"stage={args.stage!r} is unknown; one of {', '.join(STAGES)}")
    stage = STAGES[args.stage]
    datasets = {
        name: dataset
        for name, dataset in DATASETS.items()
        if args.stage != "pretrain" or dataset[1] == "text_to_image"
    }
    if args.pairs:
        place = {"path": args.pairs}
        datasets = {
            name: (count, task, source | place if source["format"] == "pairs" else source)
            for name, (count, task, source) in datasets.items()
            if not args.tiny or source["format"] == "pairs"
        }
    config = released_parts(args.weights)
    config.seed = 0
    config.image_size = stage["size"]
    config.init.run = args.start
    config.init.new = ""  # parameters that `start` may lack: train/partial.py

    config.model = {
        "fusion": "joint",
        "hidden_dim": 3072,
        "depth": 40,
        "num_heads": 32,
        "num_kv_heads": 32,
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
        "folder": f"data/unireal-{stage['size']}",
        "tasks": _tasks(datasets),
        "sources": {
            name: {"task": task, "size": stage["size"], "samples": 1, **source}
            for name, (_, task, source) in datasets.items()
        },
        **reading(),
        "prompts": "context",
        "roles": True,
        "caption_dropout": 0.1,
        "shift": 3.0,
        "row": stage["row"],
        "batch_rows": stage["batch_rows"],
    }
    config.optim = {
        "name": "adamw",
        "learning_rate": 1e-5,
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
    config.sample = {"num_steps": 30, "solver": "euler", "guidance": 4.0}
    config.sample.update(_REAL)
    config.mesh = get_mesh(args.mesh)
    if args.tiny:
        _shrink(config, steps=args.steps, is_video=bool(args.pairs))
    return config


def _tasks(datasets: dict[str, tuple[float, str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Each task with its share, which add up to one."""
    pictures: dict[str, float] = {}
    for count, task, _ in datasets.values():
        pictures[task] = pictures.get(task, 0.0) + count
    total = sum(map(share, pictures.values()))
    return {
        task: {"weight": round(share(count) / total, 4), "plan": "clean", "loss_weight": 1.0}
        for task, count in pictures.items()
    }


def _shrink(config: ConfigDict, *, steps: int, is_video: bool) -> None:
    """Tiny sizes; MiniWorld pictures, a data set a task, unless there are pairs."""
    shrink(config, steps=steps, max_text=96)
    data = config.data
    if is_video:
        for source in data.sources.values():
            source.size = 64
        data.encode.validation = 4
    else:
        data.sources = {
            task: {"task": task, "format": "miniworld", "path": "data/miniworld-64", "size": 64}
            | {"samples": 1, "add": ("edges",) if "edges" in task else (), **_SYNTHETIC}
            for task in data.tasks
        }
        config.sample.update(_SYNTHETIC)
    data.row = {"tokens": 128, "frames": 9, "segments": 5, "text": 384}
