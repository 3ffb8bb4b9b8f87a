"""Loads a released folder onto meshes of simulated devices and prints what differs, as JSON.

A script, because the number of devices is fixed when JAX starts: see test_mesh_loading.py.
"""

import json
import sys

import jax
import numpy as np

from configs.meshes import get_mesh
from unidiff_jax import OneDiffusionPipeline


def results(folder, mesh):
    """A picture, its pipeline, and the share of the transformer's weights on the first device."""
    pipe = OneDiffusionPipeline.from_pretrained(folder, mesh=mesh)
    out = pipe("[[text2image]] a red cube", num_inference_steps=2, output_type="np")
    leaves = jax.tree.leaves(pipe.denoiser.params)
    share = sum(leaf.addressable_shards[0].data.size for leaf in leaves) / sum(
        leaf.size for leaf in leaves
    )
    return out.images, pipe, share


if __name__ == "__main__":
    plain, one, _ = results(sys.argv[1], None)
    for preset in ("tensor", "fsdp", "fsdp_tensor2"):
        picture, spread, share = results(sys.argv[1], get_mesh(preset))
        same = jax.tree.map(
            lambda a, b: bool(np.array_equal(np.asarray(a), np.asarray(b))),
            one.denoiser.params,
            spread.denoiser.params,
        )
        result = {
            "preset": preset,
            "picture": float(np.abs(picture - plain).max()),
            "weights_equal": all(jax.tree.leaves(same)),
            "share": share,
        }
        print(json.dumps(result), flush=True)
