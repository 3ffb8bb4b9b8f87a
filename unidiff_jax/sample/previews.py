"""Pictures as training goes on: fixed held-out items of each task, from the averaged weights."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.build import heldout_items
from unidiff_jax.evals.pictures import grid
from unidiff_jax.models.autoencoder import SpaceToDepth
from unidiff_jax.paths import AnyPath, as_path, full_disk_borne, written_whole
from unidiff_jax.sample.images import to_picture
from unidiff_jax.sample.pipeline import Pipeline
from unidiff_jax.text import Tokenizer
from unidiff_jax.train.workdir import model_parts, on_latents, sees_pixels
from unidiff_jax.types import Params


class Previews:
    """A grid with one row an item: given frame, then each generated frame and its ground truth."""

    def __init__(
        self,
        config: ConfigDict,
        *,
        tokenizer: Tokenizer,
        mesh: Mesh,
        workdir: AnyPath,
        items_per_task: int = 2,
    ):
        """Picks the items; writes grids to `workdir/samples`."""
        seen = on_latents(config)
        model = model_parts(seen)
        self._parts = tuple(model.shapes)
        self._pipeline = Pipeline(seen, model=model, params={}, tokenizer=tokenizer, mesh=mesh)
        self._size = config.image_size
        self._folder = as_path(workdir) / "samples"
        blocks = SpaceToDepth(downscale=config.autoencoder.downscale)

        def to_latents(item: Mapping[str, Any]) -> Mapping[str, Any]:
            if not sees_pixels(config):
                return item
            encode = self._pipeline.maker.autoencoder.encode
            return {**item, "latents": [encode(blocks.decode(x)) for x in item["latents"]]}

        self._items = [
            (
                mix.task,
                item,
                self._pipeline.maker.example(
                    mix.task, to_latents(item), example_id=identity, cut=True
                ),
            )
            for mix, identity, item in heldout_items(config, num_items=items_per_task)
        ]

    def draw(self, params: Params, *, step: int) -> Image.Image:
        """Samples all items and writes `step_00000100.png`."""
        self._pipeline.params = {name: params[name] for name in self._parts}
        made = self._pipeline.generate([(t, e) for t, _, e in self._items], seeds=[0])
        rows, captions = [], []
        for (task, item, example), seeds in zip(self._items, made, strict=True):
            given, generated = [], []
            truths = self._pipeline.decode(example)
            if (guide := self._pipeline.decode_guide(example)) is not None:
                given.append(self._picture(guide, "rgb"))
            in_rows = self._pipeline.maker.in_rows(task)
            for number, (spec, truth) in enumerate(
                zip(in_rows.sequence(len(truths)), truths, strict=True)
            ):
                if truth is None:  # a ray frame
                    continue
                truth = self._picture(truth, spec.codec)
                if spec.field in seeds[0] and number < len(in_rows.frames):
                    generated += [self._picture(seeds[0][spec.field], spec.codec), truth]
                else:
                    given.append(truth)
            rows.append([*(given or [None])[:1], *generated])
            captions.append(f"{task.name}: {task.write(item, style=self._pipeline.maker.style)}")
        pairs = (max(map(len, rows)) - 1) // 2
        columns = ("given", *("made", "true") * pairs)
        sheet = grid(rows, columns=columns, captions=captions, cell=128)
        if jax.process_index() == 0:
            name = f"step_{step:08d}.png"
            with full_disk_borne(name), written_whole(self._folder / name) as file:
                sheet.save(file)
        return sheet

    def _picture(self, rgb: np.ndarray, codec: str) -> np.ndarray:
        return np.asarray(to_picture(rgb, codec=codec, size=(self._size, self._size)))
