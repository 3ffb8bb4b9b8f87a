"""The quick start: four tasks with one weight set in minutes on two CPU cores.

    python -m launch.quickstart --config configs/quickstart.py --workdir runs/quickstart

Hardware: two CPU cores, 8 GB. Expected result: the table in the README.

What was tried, on two cores that did other work too. Values on the validation split: skill of
object depth, cIoU of segmentation, share of object pixels in the right colour (depth to image),
gain of recolouring on the changed pixels. `examples` is thousands seen in training.

| patch, width x depth | optimizer | examples | depth | segment | to image | recolour |
|---|---|---|---|---|---|---|
| 8, 192 x 6, velocity loss, levels N(0.5) | AdamW 2e-3 | 45 | .55 | .26 | .19 | .03 |
| 8, 192 x 6, levels N(1) | AdamW 2e-3 | 45 | .53 | .38 | .28 | .08 |
| 8, 144 x 4, levels N(1) | AdamW 2e-3 | 64 | .60 | .38 | .37 | .16 |
| 8, 144 x 4 | AdamW 2e-3 | 64 | .49 | .48 | .41 | .19 |
| 8, 144 x 4 | AdamW 4e-3 | 64 | .52 | .42 | .39 | .19 |
| 8, 192 x 3 | AdamW 2e-3 | 64 | .49 | .38 | .39 | .18 |
| 8, 144 x 4 | Muon 2e-3 | 48 | .57 | .46 | .43 | .16 |
| 4, 96 x 4 | AdamW 2e-3 | 32 | .54 | .39 | .44 | .10 |
| 4, 96 x 4 | Muon 2e-3 | 32 | .60 | .45 | .48 | .18 |
| 4, 96 x 4, rotary base 20 | Muon 5e-3 | 32 | .68 | .51 | .50 | .24 |
| 4, 96 x 4, rotary base 20 | Muon 1e-2 | 24 | .66 | .39 | .49 | .17 |
| the same, loss weights | Muon 5e-3 | 24 | .68 | .42 | .49 | .18 |
| the same, loss weights | Muon 5e-3 | 128 | .73 | .68 | .61 | .62 |

So: score data and not velocity, and draw high noise levels (N(m): logit-normal of mean m; 2 from
the fourth row on). There the answer must come from the condition and the words; at low levels the
noisy target itself tells it. Patches of 4 pixels copy the source sharply where patches of 8 blur
it, at 2.5 times the cost an example; Muon needs half of AdamW's examples; a rotary base of 20 (and
twice the angle) helps a little on a grid of 8 x 8, where the released 10000 leaves most pairs
unturned. A recolouring changes a tenth of the pixels, so its squared error is small: hence the loss
weights. Captions name the objects from left to right, since depth cannot tell equal shapes apart.

Speed: a row holds one example, because attention over rows of 128 tokens saves more (a third of
the step) than four examples in a row of 512 save in padded text. No softcap: its hyperbolic tangent
over all scores is a tenth of attention. One thread a matrix product (`train.compiler_options`)
saves a sixth. Scanned layers cost 15 %. `launch.command.keep_freed_memory` halves the step.
"""

from ml_collections import ConfigDict

from configs.meshes import get_mesh
from unidiff_jax.config import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """`tiny` shrinks everything to seconds, for tests."""
    args = parse_arg(arg, tiny=False, steps=3600, mesh="fsdp")
    config = ConfigDict()
    config.seed = 0
    config.image_size = 32
    config.autoencoder = {"downscale": 2}
    config.patch = 2  # latent pixels: a token is 4 x 4 pixels, a picture 64 tokens
    config.max_text = 48

    config.model = {
        "hidden_dim": 96,
        "depth": 4,
        "num_heads": 4,
        "num_kv_heads": 4,
        "ffn_multiple_of": 32,
        "text_gate_init": 1.0,
        "softcap": 0.0,
        "rope_theta": 20.0,
        "rope_scale": 2.0,
        "attention": "auto",
        "context": "gather",
        "modulation": "auto",
        "quantized": "none",
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
    config.init = {
        "transformer": "",
        "text_encoder": "",
        "tokenizer": "",
        "frozen_dtype": "bfloat16",
    }
    config.lora = {"rank": 0, "alpha": 16.0, "targets": "dit/blocks/attention/(q|k|v|out)"}
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
            "depth": {"weight": 0.3, "plan": "clean", "loss_weight": 1.0},
            "segment": {"weight": 1.2, "plan": "clean", "loss_weight": 1.0},
            "depth_to_image": {"weight": 1.5, "plan": "clean", "loss_weight": 2.0},
            "edit": {"weight": 1.6, "plan": "clean", "loss_weight": 3.0},
        },
        "edit_kinds": ("recolor",),
        "min_reference_objects": 2,
        "num_captions": 1,
        "caption_dropout": 0.0,
        "shift": 1.0,
        "row": {"tokens": 128, "frames": 3, "segments": 2, "text": 48},
        "batch_rows": 32,
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
        "name": "muon",
        "learning_rate": 5e-3,
        "warmup_steps": 100,
        "schedule": "cosine",
        "final_fraction": 0.02,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "moments": "float32",
        "memory": "device",
        "ema_decay": 0.999,
    }
    config.train = {
        "num_steps": args.steps,
        "num_microbatches": 1,
        "trainable": ".*",
        # a thread a matrix product: small products run faster side by side than cut in two
        "compiler_options": {"xla_cpu_multi_thread_eigen": False},
        "log_every": 100,
        "eval_every": 500,
        "eval_items": 100,
        "sample_every": 1000,
        "save_every": 500,
        "keep": 2,
        "profile_start": 0,
        "profile_steps": 5,
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
