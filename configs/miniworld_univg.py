"""UniVG (arXiv:2503.12652) in miniature: what auxiliary tasks, late identity and channels do.

    ./launch/reproduce_univg.sh

From the paper: two streams with joint attention, the given picture and a mask on channels, features
in the place of a word, the three stages, and their shares of the tasks but one: depth and referring
segmentation have 15 % of the examples in place of 3 %, since an arm sees a few ten thousand
examples, of which 3 % would teach nothing. Chosen here: sizes and x-prediction, which are the quick
start's.

| arm | what it is trained on |
|---|---|
| `base`, `base_frames` | the first stage: words and holes; pictures on channels, or as frames |
| `plain` | from `base`: editing, holes, layouts, words |
| `auxiliary` | the same with depth and referring segmentation |
| `frames` | from `base_frames`: as `plain`, each given picture a clean frame (OneDiffusion) |
| `identity_first` | from `base`: as `plain` with as many pictures of given subjects, all the time |
| `identity_last` | from a run of `plain`: the same mixture, in a short last stage alone |
"""

from ml_collections import ConfigDict

from configs import quickstart
from unidiff_jax.config import ConfigError, parse_arg

_BASE = {"text_to_image": 0.6, "inpaint": 0.4}
_PLAIN = {"edit": 0.47, "inpaint": 0.20, "layout_to_image": 0.02, "text_to_image": 0.31}
_AUXILIARY = {"depth": 0.075, "segment": 0.075}

MIXTURES: dict[str, dict[str, float]] = {
    "base": _BASE,
    "base_frames": _BASE,
    "plain": _PLAIN,
    "auxiliary": {task: 0.85 * share for task, share in _PLAIN.items()} | _AUXILIARY,
    "frames": _PLAIN,
    "identity_first": _PLAIN | {"personalize": 1.0},
    "identity_last": _PLAIN | {"personalize": 1.0},
}

# of few pixels depends what the words say: a larger weight in the loss
_LOSS = {"edit": 3.0, "inpaint": 3.0, "depth": 1.0, "segment": 1.0}


def get_config(arg: str | None = None) -> ConfigDict:
    """Takes an `arm` of `MIXTURES`, a `seed`, the run to `start` from, `steps`, `mesh`, `tiny`."""
    args = parse_arg(arg, arm="plain", seed=0, start="", tiny=False, steps=1000, mesh="fsdp")
    if args.arm not in MIXTURES:
        raise ConfigError(f"arm={args.arm!r} is unknown; one of {', '.join(MIXTURES)}")
    shared = f"mesh={args.mesh},steps={args.steps}"
    config = quickstart.get_config(f"tiny,{shared}" if args.tiny else shared)
    config.seed = args.seed
    config.init.run = args.start
    config.init.new = ""  # parameters that `start` may lack: train/partial.py
    config.data.tasks = {
        task: {"weight": share, "plan": "clean", "loss_weight": _LOSS.get(task, 2.0)}
        for task, share in MIXTURES[args.arm].items()
    }
    config.data.tasks.text_to_image.shift = 0.37
    config.data.edit_kinds = ()  # all
    config.data.caption_dropout = 0.1
    config.data.visual_dropout = 0.5
    config.data.prompts = "short"
    config.max_text = 64
    config.model.fusion = "dual"
    config.model.shared_modulation = True
    config.flow.timed_conditions = False
    config.data.render.clip_frames = 2
    is_frames = args.arm in ("base_frames", "frames")
    config.data.guidance = "frames" if is_frames else "channels"
    config.data.row = {"tokens": 128, "frames": 3, "segments": 2, "text": 64, "assets": 1}
    if not is_frames:
        config.data.row.update({"tokens": 64, "frames": 2, "assets": 4})
        config.data.identity = {"encoder": "pixels", "path": "", "dim": 256}
    config.data.subjects = {"tasks": ("personalize",), "folder": "data/subjects-32"}
    config.sample.image_guidance = 1.0
    if args.tiny:
        config.data.folder = "data/miniworld-tiny-all"
    else:
        config.data.folder = "data/miniworld-32-all"
        config.data.render.update({"train": 40000, "test": 800})
        config.optim.learning_rate = 4e-3
    return config
