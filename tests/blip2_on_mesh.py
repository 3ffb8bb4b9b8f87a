"""Loads a BLIP-2 folder onto meshes of simulated devices and prints what differs, as JSON.

A script, because the number of devices is fixed when JAX starts: see test_multimodal_folder.py.
"""

import json
import pathlib
import sys

import jax
import numpy as np
from PIL import Image

from configs.meshes import get_mesh
from unidiff_jax.sample.multimodal import LoadedMultimodal
from unidiff_jax.text import load_tokenizer

TOKENIZER = pathlib.Path(__file__).parent / "golden" / "onediffusion" / "tinypipe" / "tokenizer"
PROMPT = [Image.new("RGB", (9, 9), (200, 30, 60)), " in the snow"]


def results(folder, mesh):
    encoder = LoadedMultimodal.load(folder, tokenizer=load_tokenizer(TOKENIZER), mesh=mesh)
    leaves = jax.tree.leaves(encoder.params)
    here = sum(leaf.addressable_shards[0].data.size for leaf in leaves)
    states = np.asarray(encoder.encode([PROMPT, "a red cat"]).states)
    return states, encoder.params, here / sum(leaf.size for leaf in leaves)


if __name__ == "__main__":
    plain, one, _ = results(sys.argv[1], None)
    for preset in ("fsdp", "fsdp_tensor2"):
        states, params, share = results(sys.argv[1], get_mesh(preset))
        same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), one, params)
        result = {
            "preset": preset,
            "states": float(np.abs(states - plain).max()),
            "weights_equal": all(jax.tree.leaves(same)),
            "share": share,
        }
        print(json.dumps(result), flush=True)
