"""All MiniWorld tasks with one weight set: about two hours on two CPU cores.

    python -m launch.quickstart --config configs/miniworld.py --workdir runs/miniworld

The quick start's recipe with a wider and deeper model, every task and every kind of edit. Adding,
removing and moving have most of the weight: they need the instruction, the scene and the shadows.
A tenth of the prompts is dropped, so that guidance can be tried. The steps fill two hours at the
speed that `launch.bench` measures on two cores; the result has not been measured yet.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(arg: str | None = None) -> ConfigDict:
    """Takes the quick start's arguments; `tiny` shrinks everything to seconds, for tests."""
    config = quickstart.get_config(arg)
    config.data.tasks = {
        "text_to_image": {"weight": 2.0, "plan": "clean"},
        "depth": {"weight": 0.4, "plan": "clean"},
        "depth_to_image": {"weight": 1.5, "plan": "clean"},
        "segment": {"weight": 1.0, "plan": "clean"},
        "edit": {"weight": 3.0, "plan": "clean"},
        "next_frame": {"weight": 0.4, "plan": "clean"},
        "layout_to_image": {"weight": 0.4, "plan": "clean"},
        "inpaint": {"weight": 0.4, "plan": "clean"},
    }
    config.data.edit_kinds = ()  # all
    config.data.caption_dropout = 0.1
    config.data.row = {"tokens": 128, "frames": 9, "segments": 9, "text": 96}
    config.data.render.clip_frames = 2
    if not config.data.folder.endswith("tiny"):
        config.data.folder = "data/miniworld-32-all"
        config.data.batch_rows = 16
        config.data.render.train = 40000
        config.data.render.test = 800
        config.model.hidden_dim = 192
        config.model.depth = 6
        config.train.num_steps = 26000
        config.train.eval_every = 1000
        config.train.sample_every = 2000
        config.train.save_every = 1000
        config.optim.warmup_steps = 500
    else:
        config.data.folder = "data/miniworld-tiny-all"
    return config
