"""The quick start: four tasks with one weight set in minutes on two CPU cores.

    python -m launch.quickstart --config configs/quickstart.py --workdir runs/quickstart

Hardware: two CPU cores, 8 GB. Expected result: the table in the README.

What was tried, on two cores that did other work too. Values: skill of object depth, cIoU of
segmentation, share of object pixels in the right colour (depth to image), gain of recolouring.

| model, examples a step, steps | loss | levels | depth | segment | to image | recolour |
|---|---|---|---|---|---|---|
| 192 x 6, 64, 700 | v | logit-normal(0.5) | .55 | .26 | .19 | .03 |
| 192 x 6, 64, 700 | x | logit-normal(1) | .53 | .38 | .28 | .08 |
| 144 x 4, 64, 1000 | x | logit-normal(1) | .54 | .37 | .38 | .13 |
| 144 x 4, 32, 2000 | x | logit-normal(1) | .60 | .38 | .37 | .16 |
| 144 x 4, 32, 2000, depth weight .3 | x | logit-normal(2) | .49 | .48 | .41 | .19 |
| the same, learning rate 4e-3 | x | logit-normal(2) | .52 | .42 | .39 | .19 |
| 192 x 3, 32, 2000, edit weight 1.5 | x | logit-normal(2) | .49 | .38 | .39 | .18 |

So: score data and not velocity, and draw high levels. There the answer must come from the condition
and the words; at low levels the noisy target itself tells it, and nothing of them is learned. From
the third row on, every caption names all colours.

Speed, on a quiet pair of cores: 144 x 4 makes 1.8 times the examples a second of 192 x 6; half the
batch costs a tenth; scanned layers cost 15 %; softcap, shorter rows and XLA's fusion flags change
nothing that could be told from noise. `launch.command.keep_freed_memory` halves the step.
"""

from ml_collections import ConfigDict

from configs.meshes import get_mesh
from unidiff_jax.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """`tiny` shrinks everything to seconds, for tests."""
    args = parse_arg(arg, tiny=False, steps=7000, mesh="fsdp")
    config = ConfigDict()
    config.seed = 0
    config.image_size = 32
    config.autoencoder = {"downscale": 2}
    config.patch = 4  # latent pixels: a token is 8 x 8 pixels, a picture 16 tokens
    config.max_text = 48

    config.model = {
        "hidden_dim": 144,
        "depth": 4,
        "num_heads": 4,
        "num_kv_heads": 4,
        "ffn_multiple_of": 32,
        "text_gate_init": 1.0,
        "softcap": 30.0,
        "rope_theta": 10000.0,
        "rope_scale": 1.0,
        "scan_layers": False,
        "remat": "none",
    }
    config.text = {
        "vocab_size": 512,
        "d_model": 128,
        "d_ff": 256,
        "d_kv": 32,
        "num_layers": 2,
        "num_heads": 4,
        "scan_layers": False,
        "remat": "none",
    }
    config.flow = {
        "prediction": "x",
        "loss": "x",
        "min_sigma": 0.05,
        "time_sampler": "logit_normal",
        "time_mean": 2.0,
        "time_std": 1.0,
    }
    config.data = {
        "folder": "data/miniworld-32",
        "tasks": {
            "depth": {"weight": 0.4, "plan": "clean", "loss_weight": 1.0},
            "segment": {"weight": 1.2, "plan": "clean", "loss_weight": 1.0},
            "depth_to_image": {"weight": 2.0, "plan": "clean", "loss_weight": 1.0},
            "edit": {"weight": 1.0, "plan": "clean", "loss_weight": 1.0},
        },
        "edit_kinds": ("recolor",),
        "min_reference_objects": 2,
        "num_captions": 1,
        "caption_dropout": 0.0,
        "shift": 1.0,
        "row": {"tokens": 128, "frames": 9, "segments": 5, "text": 72},
        "batch_rows": 8,
        "num_bins": 32,
        "num_shards": 1,
        "read_threads": 0,
        "prefetch": 8,
    }
    # launch.quickstart renders these; edits and clip frames are pictures beside the base picture
    config.data.render = {
        "train": 12000,
        "validation": 400,
        "test": 600,
        "heldout": 500,
        "edits": 3,
        "clip_frames": 0,
        "samples": 2,
        "shards": 4,
        "seed": 0,
    }
    config.optim = {
        "name": "adamw",
        "learning_rate": 2e-3,
        "warmup_steps": 200,
        "schedule": "cosine",
        "final_fraction": 0.02,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "ema_decay": 0.999,
    }
    config.train = {
        "num_steps": args.steps,
        "num_microbatches": 1,
        "log_every": 100,
        "eval_every": 500,
        "eval_items": 100,
        "sample_every": 1000,
        "save_every": 500,
        "keep": 2,
    }
    config.sample = {"num_steps": 8, "solver": "euler", "guidance": 1.0}
    config.eval = {"num_items": 300, "seeds": 3, "num_steps": 8, "guidance": 1.0}
    config.mesh = get_mesh(args.mesh)
    if args.tiny:
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    """A model, a data set and a run of seconds."""
    config.model.update({"hidden_dim": 48, "depth": 2, "num_heads": 2, "num_kv_heads": 2})
    config.text.update({"vocab_size": 256, "d_model": 32, "d_ff": 64, "d_kv": 16, "num_layers": 1})
    config.text.num_heads = 2
    config.data.folder = "data/miniworld-tiny"
    config.data.render.update(
        {"train": 40, "validation": 20, "test": 40, "heldout": 20, "shards": 1}
    )
    config.data.num_bins = 8
    config.optim.update({"warmup_steps": 5, "ema_decay": 0.9})
    config.train.update(
        {
            "num_steps": 20,
            "log_every": 5,
            "eval_every": 20,
            "eval_items": 8,
            "sample_every": 20,
            "save_every": 10,
        }
    )
    config.eval.update({"num_items": 12, "num_steps": 2})
    config.sample.num_steps = 2
