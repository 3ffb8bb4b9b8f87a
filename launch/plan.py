"""Compiles a config's programs for a TPU that is not here, and prints what they need of it.

    python -m launch.plan --config configs/onediffusion.py:stage=1024 --program sample \\
        --topology v5e:1x1
    python -m launch.plan --config configs/onediffusion.py:stage=256 --program train \\
        --topology v5p:4x4x4 --json plan.json

Needs the TPU compiler (./launch/environment.sh tpu) and no TPU. `sample` is OneDiffusionPipeline on
one chip or, with mesh=tensor in the config's argument, several: text states, the whole loop of one
picture, decoding. `train` is the train step with its state.
"""

import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

# the programs are compiled for the topology's chips, and this process needs none
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch import command
from unidiff_jax.config import ConfigError
from unidiff_jax.frames import RowSize, make_example, pack_rows
from unidiff_jax.mesh import make_mesh, parameter_shardings, replicated
from unidiff_jax.models.layers import Abstract, abstract
from unidiff_jax.models.t5 import T5Encoder
from unidiff_jax.models.vae import AutoencoderKL, VAEConfig
from unidiff_jax.sample import encoders, onediffusion
from unidiff_jax.sample.denoiser import abstract_dit
from unidiff_jax.tasks import get_task
from unidiff_jax.train.program import make_program
from unidiff_jax.train.state import TrainState
from unidiff_jax.train.workdir import latent_channels, model_configs

GIB = 2**30
# GiB a chip that programs can use: what the compiler refuses to exceed
HBM = {"v4": 31.2, "v5e": 15.75, "v5p": 95.7, "v6e": 31.25}
RELEASED_VAE = VAEConfig(
    latent_channels=16,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    use_quant_conv=False,
    use_post_quant_conv=False,
    dtype="bfloat16",
)
"""The autoencoder of Stable Diffusion 3, which OneDiffusion uses."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What one compiled program needs on each chip, in bytes, and how long compiling took."""

    arguments: int
    temporaries: int
    output: int
    seconds: float


def define_flags() -> None:
    command.define_config_flags("configs/onediffusion.py:stage=1024")
    flags.DEFINE_enum("program", "train", ["train", "sample"], "What to compile.")
    flags.DEFINE_string("topology", "v5e:1x1", "Chips, such as v5e:2x4, v5p:4x4x4, v6e:8x8.")
    flags.DEFINE_integer("frames", 1, "Of `sample`: frames that are made.", lower_bound=1)
    flags.DEFINE_integer("size", None, "Of `sample`: pixels a side; none is the config's.")
    flags.DEFINE_string("json", None, "File to write the numbers to.")


def main(argv: list[str]) -> None:
    del argv
    command.quiet_libraries()
    values = flags.FLAGS
    config = command.config_from_flags()
    devices = topology_devices(values.topology)
    mesh = make_mesh(config.mesh.axes, devices=devices)
    if values.program == "train":
        programs, weights, parameters = plan_train(config, mesh)
    else:
        programs, weights, parameters = plan_sampling(
            config, mesh, frames=values.frames, size=values.size or config.image_size
        )
    limit = HBM[values.topology.split(":")[0]] * GIB
    # weights of the other programs stay on the chip too; a program's own are in its arguments
    peak = max(
        (p.arguments + p.temporaries + sum(weights.values()) - weights[name])
        for name, p in programs.items()
    )
    result = {
        "topology": values.topology,
        "chips": len(devices),
        "program": values.program,
        "parameters": parameters,
        "hbm_limit_bytes": int(limit),
        "peak_bytes": int(peak),
        "fits": bool(peak <= limit),
        "programs": {name: dataclasses.asdict(p) for name, p in programs.items()},
    }
    print(f"{parameters / 1e9:.4f} B parameters in the denoiser, {len(devices)} chips")
    print(f"{'program':<14} {'arguments':>10} {'temporary':>10}  GiB a chip")
    for name, p in programs.items():
        print(f"{name:<14} {p.arguments / GIB:>10.2f} {p.temporaries / GIB:>10.2f}", end="  ")
        print(f"compiled in {p.seconds:.0f} s")
    verdict = "fits" if result["fits"] else "does NOT fit"
    print(f"all weights and the largest temporaries: {peak / GIB:.2f} GiB of {limit / GIB:.2f} GiB")
    print(f"{values.topology}: {verdict}")
    if values.json:
        pathlib.Path(values.json).write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


def topology_devices(name: str) -> list[jax.Device]:
    """The chips of a topology that need not be here.

    Raises:
      ConfigError: an unknown topology, or no TPU compiler.
    """
    kind, _, shape = name.partition(":")
    if kind not in HBM or not shape:
        raise ConfigError(
            f"topology {name!r} is unknown; a generation ({', '.join(HBM)}) and a shape, v5e:2x4"
        )
    sides = [int(side) if side.isdigit() else 0 for side in shape.split("x")]
    # a slice smaller than a host's usual share
    small = {"chips_per_host_bounds": (*sides, 1)} if int(np.prod(sides)) < 4 else {}
    try:
        return list(topologies.get_topology_desc(name, "tpu", **small).devices)
    except RuntimeError as error:
        if "not installed" in str(error):
            raise ConfigError(
                "the TPU compiler is missing; install it with ./launch/environment.sh tpu"
            ) from None
        raise ConfigError(f"topology {name!r} cannot be: {error}") from None


def compiled(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Program:
    """Compiles for the devices of the arguments' shardings.

    Raises:
      ConfigError: the program needs more memory than the chip has; with the compiler's numbers.
    """
    started = time.monotonic()
    try:
        memory = function.lower(*args, **kwargs).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(f"does NOT fit: {str(error).splitlines()[0]}") from None
    return Program(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        output=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        seconds=time.monotonic() - started,
    )


def plan_sampling(
    config: ConfigDict, mesh: Mesh, *, frames: int, size: int
) -> tuple[dict[str, Program], dict[str, int], int]:
    """One result of OneDiffusionPipeline with guidance, in bfloat16."""
    dit, text = model_configs(config)
    dit = dataclasses.replace(dit, dtype="bfloat16", remat="none")
    text = dataclasses.replace(text, dtype="bfloat16", remat="none")
    networks = {
        "text": abstract(lambda rngs: T5Encoder(text, rngs=rngs)),
        "denoise": abstract_dit(dit),
        "decode": abstract(lambda rngs: AutoencoderKL(RELEASED_VAE, rngs=rngs)),
    }
    params = {
        name: _parameters(network, config, mesh, dtype=jnp.bfloat16)
        for name, network in networks.items()
    }
    whole = replicated(mesh)

    def array(shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=whole)

    side = size // config.autoencoder.downscale
    grid = (frames, side // config.patch, side // config.patch)
    length = config.max_text
    programs = {
        "text": compiled(
            encoders.encode_text,
            params["text"],
            array((2, length), jnp.int32),
            array((2, length), jnp.int32),
            graphdef=networks["text"].graphdef,
        ),
        "denoise": compiled(
            onediffusion.integrate,
            params["denoise"],
            array((1, int(np.prod(grid)), dit.patch_dim)),
            array((config.sample.num_steps + 1,)),
            array(()),
            array((2, 1, length, dit.text_dim)),
            array((2, 1, length), jnp.int32),
            array(()),
            config=dit,
            grid=grid,
            made=(1,) * frames,
        ),
        "decode": compiled(
            encoders.vae_decode,
            params["decode"],
            array((frames, side, side, RELEASED_VAE.latent_channels)),
            graphdef=networks["decode"].graphdef,
        ),
    }
    weights = {name: _bytes_a_chip(tree) for name, tree in params.items()}
    return programs, weights, _count(networks["denoise"].shapes)


def plan_train(config: ConfigDict, mesh: Mesh) -> tuple[dict[str, Program], dict[str, int], int]:
    """The train step with its state and one batch."""
    program = make_program(config, mesh=mesh)
    model = program.model
    params, frozen = model.split(model.shapes)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        TrainState(
            step=jax.ShapeDtypeStruct((), jnp.int32),
            params=params,
            opt_state=jax.eval_shape(program.optimizer.init, params),
            ema=params,
            key=key,
            frozen=_cast(frozen, config.init.frozen_dtype if _has_released(config) else None),
        ),
        program.shardings,
    )
    side = config.patch
    latent = np.zeros((side, side, latent_channels(config)), np.float32)
    example = make_example(
        get_task("text_to_image"),
        latents=[latent],
        stds=[latent] if "sources" in config.data else None,
        text_ids=[1],
        example_id=1,
        patch=config.patch,
    )
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            (config.data.batch_rows, *leaf.shape[1:]), leaf.dtype, sharding=program.rows
        ),
        pack_rows([example], size=RowSize(**config.data.row))[0],
    )
    programs = {"train step": compiled(program.step, state, batch)}
    return programs, {"train step": 0}, _count(model.shapes["dit"])


def _has_released(config: ConfigDict) -> bool:
    """Whether frozen weights come from a folder, and so in `init.frozen_dtype`."""
    return bool(config.init.transformer or config.init.text_encoder)


def _cast(shapes: Any, dtype: str | None) -> Any:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype or leaf.dtype)), shapes
    )


def _parameters(network: Abstract, config: ConfigDict, mesh: Mesh, *, dtype: Any) -> Any:
    places = parameter_shardings(network.shapes, network.axes, rules=config.mesh.rules, mesh=mesh)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place),
        network.shapes,
        places,
    )


def _bytes_a_chip(tree: Any) -> int:
    return sum(
        int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _count(shapes: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
