"""Says how long the published benchmarks take: the table of docs/benchmarks.md.

    python -m launch.benchmark_hours
    python -m launch.benchmark_hours --chip v5e --mfu 0.4

Operations are counted (`unidiff_jax.flops`), hours follow from them: every step of the solver is a
forward pass for each guidance scale and one without, at the chip's published rate times an assumed
share of it. Text encoders, autoencoders and extractors are not counted; they run once a picture.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from absl import flags

from launch import command
from launch.chips import CHIPS
from unidiff_jax.config import load_config
from unidiff_jax.evals.benchmarks import BENCHMARKS
from unidiff_jax.evals.benchmarks.views import FIRST_TEST, SETTINGS, VIEWS
from unidiff_jax.flops import forward_flops
from unidiff_jax.train.workdir import model_configs
from unidiff_jax.types import Batch

SIDE, NUM_STEPS, MFU, CHIP = 512, 50, 0.35, "h100"

Parts = Sequence[tuple[int, int]]
"""Numbers of items, and the frames of each."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A paper's model.

    Attributes:
      config: that has its sizes.
      passes: forward passes a step.
      conditions_are_frames: False where they are on channels or in the prompt, without tokens.
      lacks: suites that ask for what it cannot do.
    """

    config: str
    passes: int
    conditions_are_frames: bool = True
    lacks: tuple[str, ...] = ("gso_views", "gso_pose")


_PICTURES_AND_WORDS = (
    *("dreambench", "multibench", "coco_fid", "unsplash50"),
    *("geneval", "t2i_compbench", "dpg_bench", "omnicontext"),
)

MODELS = {
    "OneDiffusion": Model("configs/onediffusion.py:stage=1024", passes=2, lacks=()),
    "UniReal": Model("configs/unireal.py:stage=256", passes=2),
    "UniVG": Model(
        "configs/univg.py:stage=multitask,size=XL", passes=3, conditions_are_frames=False
    ),
    "UNIMO-G": Model(
        "configs/unimog.py:stage=tuning,size=XL",
        passes=2,
        conditions_are_frames=False,
        lacks=tuple(name for name in BENCHMARKS if name not in _PICTURES_AND_WORDS),
    ),
}

_VIEW_ITEMS = 30 * (VIEWS - FIRST_TEST)

ITEMS: dict[str, Parts] = {
    "emu_edit": [(BENCHMARKS["emu_edit"].counts["test"], 2)],
    "magicbrush": [(BENCHMARKS["magicbrush"].counts["test"], 2)],
    "pie_bench": [(BENCHMARKS["pie_bench"].counts["test"], 2)],
    "dreambench": [(BENCHMARKS["dreambench"].counts["test"], 2)],
    "multibench": [(1200, 3), (8000, 4)],
    "nyuv2": [(BENCHMARKS["nyuv2"].counts["test"], 2)],
    "kitti": [(BENCHMARKS["kitti"].counts["test"], 2)],
    "eth3d": [(BENCHMARKS["eth3d"].counts["test"], 2)],
    "scannet": [(BENCHMARKS["scannet"].counts["test"], 2)],
    "diode": [(BENCHMARKS["diode"].counts["test"], 2)],
    "refcoco": [(sum(BENCHMARKS["refcoco"].counts.values()), 2)],
    "gso_views": [(_VIEW_ITEMS, 2 * (inputs + 1)) for inputs, _ in SETTINGS],
    "gso_pose": [(150, 12)],
    "coco_fid": [(BENCHMARKS["coco_fid"].counts["val2014"], 1)],
    "unsplash50": [(450, 2)],
    "geneval": [(BENCHMARKS["geneval"].counts["test"], 1)],
    "t2i_compbench": [(8 * 300 * 10, 1)],
    "dpg_bench": [(1065 * 4, 1)],
    "gedit_bench": [(BENCHMARKS["gedit_bench"].counts["test"], 2)],
    "imgedit_bench": [(BENCHMARKS["imgedit_bench"].counts["test"], 2)],
    "kris_bench": [(BENCHMARKS["kris_bench"].counts["test"], 2)],
    "omnicontext": [(100, 2), (300, 3)],
}
"""What is asked. MultiBench: 300 prompts of two objects, 2,000 of three, four pictures each; camera
poses: five draws of 30 objects; Unsplash-50: 9 prompts a portrait. RefCOCO: all three splits. KRIS:
as if each edit had one input; OmniContext: two references in the six tasks that have several."""


def define_flags() -> None:
    flags.DEFINE_enum("chip", CHIP, list(CHIPS), "Accelerator.")
    flags.DEFINE_float("mfu", MFU, "Assumed share of its rate.", lower_bound=0.01, upper_bound=1)
    flags.DEFINE_integer("side", SIDE, "Pixels a side.", lower_bound=16)
    flags.DEFINE_integer("num_steps", NUM_STEPS, "Solver steps.", lower_bound=1)


def main(argv: list[str]) -> None:
    del argv
    values = flags.FLAGS
    print(
        hours_table(chip=values.chip, mfu=values.mfu, side=values.side, num_steps=values.num_steps)
    )


def hours_table(
    *, chip: str = CHIP, mfu: float = MFU, side: int = SIDE, num_steps: int = NUM_STEPS
) -> str:
    """Hours of one chip, as a table of Markdown."""
    rate = CHIPS[chip].flops * mfu * 3600
    lines = [
        f"| `--benchmark` | items | {' | '.join(MODELS)} |",
        "|---" * (2 + len(MODELS)) + "|",
    ]
    for name, parts in ITEMS.items():
        cells = []
        for model in MODELS.values():
            if name in model.lacks:
                cells.append("-")
                continue
            hours = operations(model, parts, side=side, num_steps=num_steps) / rate
            cells.append(f"{hours:.1f}" if hours >= 0.95 else f"{hours:.2f}")
        count = sum(number for number, _ in parts)
        lines.append(f"| `{name}` | {count:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def operations(model: Model, parts: Parts, *, side: int, num_steps: int) -> float:
    """Floating-point operations of all items."""
    config = load_config(model.config)
    dit, text = model_configs(config)
    tokens = (side // 16) ** 2  # an autoencoder of 8, patches of 2
    total = 0
    for number, frames in parts:
        passes = model.passes if frames > 1 else 2  # without a picture there is no scale for it
        frames = frames if model.conditions_are_frames else 1
        batch = item_shapes(frames * tokens, frames=frames, dit=dit, text=config.max_text)
        total += number * num_steps * passes * forward_flops(dit, text, batch)
    return total


def item_shapes(tokens: int, *, frames: int, dit, text: int) -> Batch:
    """Shapes of one example with states of its prompt, in a row of its own."""

    def ints(*shape):
        return jax.ShapeDtypeStruct((1, *shape), jnp.int32)

    def floats(*shape):
        return jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    columns = ("segment", "kind", "role", "name", "given", "time_group")
    return Batch(
        tokens=floats(tokens, dit.patch_dim),
        frame=ints(tokens),
        position=ints(tokens, 3),
        loss_mask=floats(tokens),
        shift=floats(frames + 1),
        example_id=ints(2),
        task=ints(2),
        text_states=floats(text, dit.text_dim),
        text_segment=ints(text),
        text_position=ints(text),
        **{column: ints(frames + 1) for column in columns},
    )


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
