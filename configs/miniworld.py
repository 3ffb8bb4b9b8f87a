"""All MiniWorld tasks with one weight set: about two and a half hours on two CPU cores.

    python -m launch.quickstart --config configs/miniworld.py --workdir runs/miniworld

The quick start's recipe with a wider and deeper model, every task and every kind of edit. A tenth
of the prompts is dropped, so that guidance can be tried. A row holds one example of two frames or
two of one frame.

Pictures from words alone need the most. In a first run of 14,000 steps they had a quarter of the
examples, and all tasks the quick start's high noise levels (logit-normal of mean 2). After 7,000
steps adding, removing and moving were far above their floors (gains of .28, .56 and .48), and text
to image below its own (binding .31, floor .37): its shapes stayed blurred, since a shape is settled
at levels that were hardly drawn. 500 further steps of text to image alone at mean .5 gave .33, and
.36 with 20 steps of sampling in place of 8, which cost edits .01. So now it has more than half of
the examples, mean 1 (`shift`), and 16 steps: binding .44 [.42, .47] over a floor of .33. The README
has the whole table.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(arg: str | None = None) -> ConfigDict:
    """Takes the quick start's arguments; `tiny` shrinks everything to seconds, for tests."""
    config = quickstart.get_config(arg)
    config.data.tasks = {
        "text_to_image": {"weight": 6.0, "plan": "clean", "loss_weight": 2.0, "shift": 0.37},
        "depth": {"weight": 0.2, "plan": "clean", "loss_weight": 1.0},
        "depth_to_image": {"weight": 0.5, "plan": "clean", "loss_weight": 2.0},
        "segment": {"weight": 0.6, "plan": "clean", "loss_weight": 1.0},
        "edit": {"weight": 2.5, "plan": "clean", "loss_weight": 3.0},
        "next_frame": {"weight": 0.2, "plan": "clean", "loss_weight": 1.0},
        "layout_to_image": {"weight": 0.3, "plan": "clean", "loss_weight": 2.0},
        "inpaint": {"weight": 0.3, "plan": "clean", "loss_weight": 2.0},
    }
    config.data.edit_kinds = ()  # all
    config.data.caption_dropout = 0.1
    config.data.row = {"tokens": 128, "frames": 3, "segments": 3, "text": 64}
    config.data.render.clip_frames = 2
    config.sample.num_steps = 16
    config.eval.num_steps = 16
    if not config.data.folder.endswith("tiny"):
        config.data.folder = "data/miniworld-32-all"
        config.data.render.train = 40000
        config.data.render.test = 800
        config.model.hidden_dim = 144
        config.model.depth = 6
        config.train.num_steps = 14000
        config.train.eval_every = 1000
        config.train.sample_every = 2000
        config.optim.learning_rate = 4e-3
        config.optim.warmup_steps = 200
    else:
        config.data.folder = "data/miniworld-tiny-all"
    return config
