"""UniReal (arXiv:2412.07774) in miniature: editing learned from MiniWorld's video pairs.

    python -m launch.quickstart --config configs/miniworld_unireal.py --workdir runs/unireal
    ./launch/reproduce_unireal.sh

From the paper: text, given and generated frames in one stream (`fusion="joint"`); role embeddings
and names tied to the words IMG1, RES1, ...; clean conditions without a noise level; prompts with
context; several results in one pass (an edit and the mask of what changes); and its video tasks:
frame to frame, objects in a new scene, insertion, local inpainting, masks and depth. Chosen here:
the shares of the tasks, and sizes and x-prediction, which are the quick start's. The paper's first
stage learns pictures and videos from words. Here it learns from words, and to keep what is given:
in minutes, an arm cannot learn from nothing to copy a picture and to change one thing in it. Frame
pairs have the largest share of the video tasks: of two trials of `video`, removing an object gained
.10 with three eighths of the examples and .26 with three fifths.

| arm | what is different (the paper's Table 4) |
|---|---|
| `base` | single pictures alone: from words, with holes, masks, depth; the others start from it |
| `all` | video tasks and exact edit pairs |
| `video` | no edit pairs: what edits it can do come from video |
| `expert` | edit pairs alone |
| `no_tags` | as `all`, prompts without context tags |
| `no_roles` | as `all`, frames without role embeddings |
"""

from ml_collections import ConfigDict

from configs import quickstart
from unidiff_jax.config import ConfigError, parse_arg

ARMS = ("base", "all", "video", "expert", "no_tags", "no_roles")

_BASE = {
    "text_to_image": {"weight": 1.0, "loss_weight": 2.0, "shift": 0.37},
    "inpaint": {"weight": 2.0, "loss_weight": 3.0},
    "segment": {"weight": 1.0, "loss_weight": 1.0},
    "depth": {"weight": 0.5, "loss_weight": 1.0},
    "depth_to_image": {"weight": 0.5, "loss_weight": 2.0},
}
_VIDEO = {
    "next_frame": {"weight": 7.0, "loss_weight": 3.0},
    "customize": {"weight": 1.5, "loss_weight": 2.0},
    "insert": {"weight": 1.0, "loss_weight": 3.0},
    "inpaint": {"weight": 0.5, "loss_weight": 2.0},
    "segment": {"weight": 1.0, "loss_weight": 1.0},
    "depth": {"weight": 0.3, "loss_weight": 1.0},
    "depth_to_image": {"weight": 0.5, "loss_weight": 2.0},
}
_EXPERT = {
    "edit": {"weight": 3.0, "loss_weight": 3.0},
    "edit_with_mask": {"weight": 0.3, "loss_weight": 2.0},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """Takes an `arm` of `ARMS`, a `seed`, the run to `start` from, `steps`, `mesh`, and `tiny`."""
    args = parse_arg(arg, arm="video", seed=0, start="", tiny=False, steps=4000, mesh="fsdp")
    if args.arm not in ARMS:
        raise ConfigError(f"arm={args.arm!r} is unknown; one of {', '.join(ARMS)}")
    shared = f"mesh={args.mesh},steps={args.steps}"
    config = quickstart.get_config(f"tiny,{shared}" if args.tiny else shared)
    config.seed = args.seed
    config.init.run = args.start
    config.init.new = ""  # parameters that `start` may lack: train/partial.py
    tasks = {"base": _BASE, "video": _VIDEO, "expert": _EXPERT}.get(args.arm, _VIDEO | _EXPERT)
    config.data.tasks = {name: {"plan": "clean", **task} for name, task in tasks.items()}
    config.data.prompts = "base" if args.arm == "no_tags" else "context"
    config.data.roles = args.arm != "no_roles"
    config.data.edit_kinds = ()  # all
    config.data.caption_dropout = 0.1
    config.data.row = {"tokens": 256, "frames": 6, "segments": 3, "text": 128}
    config.data.batch_rows = 16
    config.data.render.clip_frames = 2
    config.max_text = 96
    config.model.fusion = "joint"
    config.flow.timed_conditions = False
    if args.tiny:
        config.data.folder = "data/miniworld-tiny-all"
    else:
        config.data.folder = "data/miniworld-32-all"
        config.data.render.update({"train": 40000, "test": 800})
        config.optim.learning_rate = 4e-3
    return config
