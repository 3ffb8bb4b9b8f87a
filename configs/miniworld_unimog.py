"""UNIMO-G (arXiv:2401.13388) in miniature: what pictures between the words do.

    ./launch/reproduce_unimog.sh

From the paper: cross-attention to the states of an encoder of words and pictures, the two stages,
the loss of attention maps, its data's shares of entities, and a tenth of plain captions. Chosen
here: sizes and x-prediction, which are the quick start's, a transformer with flow matching in the
place of the U-Net that predicts noise, and an encoder that is trained with the model
(`models.multimodal.PatchT5`) in the place of a frozen language model: a picture is five vectors of
pixels, which a linear layer brings among the words. Scenes are composed of emoji, whose references
are drawn otherwise than in the scene; subjects of the evaluation are in no training scene.

| arm | what it is trained on |
|---|---|
| `base` | the first stage: pictures from words |
| `full` | from `base`: nine tenths interleaved prompts, a tenth captions; with attention maps |
| `no_maps` | the same without the loss of attention maps |
| `longer` | from `base`: the first stage for as many steps again, so without the second |
"""

from ml_collections import ConfigDict

from configs import quickstart
from data_pipelines.interleaved import PLAIN
from unidiff_jax.config import ConfigError, parse_arg
from unidiff_jax.identity import PatchPictures

_WORDS = {"text_to_image": 1.0}
_INTERLEAVED = {"interleave": 1.0 - PLAIN, "text_to_image": PLAIN}

MIXTURES: dict[str, dict[str, float]] = {
    "base": _WORDS,
    "full": _INTERLEAVED,
    "no_maps": _INTERLEAVED,
    "longer": _WORDS,
}

MAP_WEIGHT = 0.05
"""Of attention maps in the loss; the paper does not say its own."""


def get_config(arg: str | None = None) -> ConfigDict:
    """Takes an `arm` of `MIXTURES`, a `seed`, the run to `start` from, `steps`, `mesh`, `tiny`."""
    args = parse_arg(arg, arm="full", seed=0, start="", tiny=False, steps=2000, mesh="fsdp")
    if args.arm not in MIXTURES:
        raise ConfigError(f"arm={args.arm!r} is unknown; one of {', '.join(MIXTURES)}")
    shared = f"mesh={args.mesh},steps={args.steps}"
    config = quickstart.get_config(f"tiny,{shared}" if args.tiny else shared)
    config.seed = args.seed
    config.init.run = args.start
    config.data.tasks = {
        task: {"weight": share, "plan": "clean", "loss_weight": 1.0}
        for task, share in MIXTURES[args.arm].items()
    }
    config.data.tasks.text_to_image.shift = 0.37
    config.data.caption_dropout = 0.1
    config.data.prompts = "short"
    config.data.guidance = "prompt"
    config.data.identity = {"encoder": "patches", "path": "", "dim": PatchPictures.dim}
    config.data.entities = 3
    config.max_text = 96
    config.data.row = {"tokens": 64, "frames": 2, "segments": 2, "text": 96}
    config.data.row["assets"] = 1 + 3 * PatchPictures.places.vectors
    config.data.kind = "subjects"
    config.data.folder = "data/subjects-32"
    del config.data.render  # subjects are drawn as they are asked for
    config.text.kind = "patches"
    config.text.picture_dim = PatchPictures.dim
    config.model.map_layers = (1,) if args.tiny else (1, 2)
    config.flow.map_weight = MAP_WEIGHT if args.arm == "full" else 0.0
    config.flow.timed_conditions = False
    return config
