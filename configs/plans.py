"""Plans that hold: which recipe on which chips, and how good it can be at best.

    python -m launch.plan --named onediffusion-512-v5p
    python -m launch.plan --named all --json plans.json

`docs/scaling.md` has their numbers; `./launch/test.sh -m slow tests/launch/test_plans.py` compiles
them all and checks that they still hold.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Plan:
    """A train step on chips.

    Attributes:
      config: config file and its argument.
      topology: chips of a slice, GPUs of a node.
      num_slices: number of slices or nodes.
      settings: overrides, as of `--set`.
      min_bound: the MFU bound that the plan keeps.
    """

    config: str
    topology: str
    num_slices: int = 1
    settings: tuple[str, ...] = ()
    min_bound: float = 0.6


_DOTS = ("model.remat=dots",)  # keeps the products with weights: memory is there, and time is not

PLANS = {
    **{
        f"onediffusion-{stage}-v5p": Plan(
            f"configs/onediffusion.py:stage={stage}", "v5p:4x4x4", settings=_DOTS
        )
        for stage in ("256", "512", "multitask", "1024")
    },
    **{
        f"onediffusion-{stage}-v6e": Plan(
            f"configs/onediffusion.py:stage={stage}", "v6e:8x8", settings=_DOTS
        )
        for stage in ("256", "512", "multitask", "1024")
    },
    # 16 views at 1024 pixels: 65,536 tokens over 16 chips. Attention is most of it, and `dots`
    # would compute it again.
    "onediffusion-views-v5p": Plan(
        "configs/onediffusion.py:stage=multitask,mesh=seq",
        "v5p:2x2x4",
        settings=(
            "data.batch_rows=1",
            "data.num_shards=1",
            "data.row.tokens=65536",
            "data.row.frames=33",
            "data.row.segments=2",
            "data.row.text=300",
            "model.remat=none",
        ),
    ),
    "unireal-256-v5p": Plan("configs/unireal.py:stage=256", "v5p:4x4x8", settings=_DOTS),
    "unireal-256-v5p-slices": Plan(
        "configs/unireal.py:stage=256,mesh=slices2", "v5p:4x4x4", num_slices=2, settings=_DOTS
    ),
    "univg-xl-v5e": Plan("configs/univg.py:stage=multitask,size=XL", "v5e:8x8"),
    # one node; what `dots` keeps of UniReal's 32,768 tokens a GPU is too much
    "onediffusion-512-h100": Plan("configs/onediffusion.py:stage=512", "h100:8"),
    "unireal-256-h100": Plan("configs/unireal.py:stage=256", "h100:8"),
}
