"""Compiles a config's programs for TPUs or GPUs that are not here, and says what they need.

    python -m launch.plan --config configs/onediffusion.py:stage=512 --topology v5p:4x4x4
    python -m launch.plan --config configs/unireal.py:stage=256,mesh=slices2 --topology v5p:4x4x4 \\
        --num_slices 2 --json plan.json
    python -m launch.plan --config configs/onediffusion.py:stage=1024 --program sample \\
        --topology v5e:1x1
    python -m launch.plan --config configs/onediffusion.py:stage=512 --topology h100:8
    python -m launch.plan --config configs/onediffusion.py:stage=256 --topology v6e:8x8 --sweep

Needs the compiler (./launch/environment.sh tpu, or cuda) and no TPU, GPU or driver. `train` is the
train step with its state: memory, collectives, and the roofline (`launch.roofline`). `sample` is
OneDiffusionPipeline on one chip or, with mesh=tensor in the config's argument, several: text
states, the whole loop of one picture, decoding. `--sweep` compiles the train step for several
meshes, remat policies and numbers of rows, and prints a table; a compilation takes a minute or two.
"""

import dataclasses
import itertools
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
from tqdm import tqdm

from configs.meshes import PRESETS, get_mesh
from configs.plans import PLANS
from launch import command, gpus, hlo
from launch.chips import CHIPS, GIB, parse_topology
from launch.efficiency import bytes_a_device, efficiency, efficiency_report
from launch.roofline import attention_kernels, train_roofline
from unidiff_jax.config import ConfigError, load_config, to_dict
from unidiff_jax.export.mapping import flatten
from unidiff_jax.mesh import make_mesh, parameter_shardings, replicated
from unidiff_jax.models.layers import REMAT_POLICIES, Abstract, abstract
from unidiff_jax.models.text_encoder import make_text_encoder, text_config
from unidiff_jax.models.vae import AutoencoderKL, VAEConfig
from unidiff_jax.sample import encoders, onediffusion
from unidiff_jax.sample.denoiser import abstract_dit
from unidiff_jax.train.loop import check_rows
from unidiff_jax.train.program import batch_shapes, make_program, state_shapes
from unidiff_jax.train.workdir import model_configs

RELEASED_VAE = VAEConfig(
    latent_channels=16,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    use_quant_conv=False,
    use_post_quant_conv=False,
    dtype="bfloat16",
)
"""The autoencoder of Stable Diffusion 3, which OneDiffusion uses."""

HALF = 0.5
"""Of the bound: what a well-tuned trainer reaches."""

Numbers = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips that need not be here."""

    name: str
    num_slices: int
    devices: list[jax.Device]

    @property
    def kind(self) -> str:
        return parse_topology(self.name)[0]

    @property
    def sides(self) -> tuple[int, ...]:
        return parse_topology(self.name)[1]


class Compiled(NamedTuple):
    """A compiled program: bytes on each device and of its host, seconds of compiling, its text."""

    arguments: int
    temporaries: int
    output: int
    host: int
    seconds: float
    text: str

    def numbers(self) -> Numbers:
        return {k: v for k, v in self._asdict().items() if k != "text"}


def define_flags() -> None:
    command.define_config_flags("configs/onediffusion.py:stage=1024")
    flags.DEFINE_enum("program", "train", ["train", "sample"], "What to compile.")
    flags.DEFINE_string("topology", "v5e:1x1", "Chips, such as v5e:2x4, v5p:4x4x4, h100:8.")
    flags.DEFINE_integer("num_slices", 1, "Slices or nodes of this topology.", lower_bound=1)
    flags.DEFINE_integer("frames", 1, "Of `sample`: frames that are made.", lower_bound=1)
    flags.DEFINE_integer("size", None, "Of `sample`: pixels a side; none is the config's.")
    flags.DEFINE_string(
        "named", None, "A plan of configs/plans.py, or all of them; no config, no topology."
    )
    flags.DEFINE_bool("sweep", False, "Try meshes, remat policies and numbers of rows.")
    flags.DEFINE_string("json", None, "File to write the numbers to.")


def main(argv: list[str]) -> None:
    del argv
    command.quiet_libraries()
    values = flags.FLAGS
    if values.named:
        _write(values.json, plan_named(values.named))
        return
    config = command.config_from_flags()
    topology = load_topology(values.topology, num_slices=values.num_slices)
    if values.sweep:
        result = sweep(config, topology)
    elif values.program == "train":
        result = plan_train(config, topology)
        print(train_report(result))
    else:
        size = values.size or config.image_size
        result = plan_sampling(config, topology, frames=values.frames, size=size)
        print(memory_report(result))
    _write(values.json, result)


def _write(path: str | None, result: Numbers) -> None:
    if path:
        pathlib.Path(path).write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


def plan_named(name: str) -> Numbers:
    """Plans by the names of `configs/plans.py`; prints a row each.

    Raises:
      ConfigError: an unknown name.
    """
    if name != "all" and name not in PLANS:
        raise ConfigError(f"--named={name!r} is unknown; all, or one of {', '.join(PLANS)}")
    chosen = PLANS if name == "all" else {name: PLANS[name]}
    results = {}
    tqdm.write(f"{'plan':<26} {'chips':>5} {'GiB':>6} {'ms':>7} {'MFU bound':>10}  limit")
    for key, plan in tqdm(chosen.items(), desc="plans", unit="plan"):
        config = load_config(plan.config, overrides=plan.settings)
        topology = load_topology(plan.topology, num_slices=plan.num_slices)
        found = results[key] = plan_train(config, topology)
        tqdm.write(
            f"{key:<26} {found['chips']:>5} {found['peak_bytes'] / GIB:>6.1f} "
            f"{1e3 * found['seconds']['step']:>7.1f} {found['mfu_bound']:>10.1%}  {found['limit']}"
        )
    return results


def load_topology(name: str, *, num_slices: int = 1) -> Topology:
    """The chips of a topology.

    Raises:
      ConfigError: an unknown topology, or no compiler for it.
    """
    kind, sides = parse_topology(name)
    if CHIPS[kind].is_gpu:
        return Topology(
            name, num_slices, gpus.gpu_devices(kind, per_node=sides[0], nodes=num_slices)
        )
    settings: dict[str, Any] = {"num_slices": num_slices} if num_slices > 1 else {}
    if int(np.prod(sides)) < 4:  # smaller than a host's usual share
        settings["chips_per_host_bounds"] = (*sides, *(1,) * (3 - len(sides)))
    try:
        devices = topologies.get_topology_desc(name, "tpu", **settings).devices
    except RuntimeError as error:
        if "not installed" in str(error):
            raise ConfigError(
                "the TPU compiler is missing; install it with ./launch/environment.sh tpu"
            ) from None
        raise ConfigError(f"topology {name!r} cannot be: {error}") from None
    return Topology(name, num_slices, list(devices))


def compile_for(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Compiled:
    """Compiles for the devices of the arguments' shardings.

    Raises:
      ConfigError: the program needs more memory than the chip has; with the compiler's numbers.
    """
    started = time.monotonic()
    try:
        done = function.lower(*args, **kwargs).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(f"does NOT fit: {str(error).splitlines()[0]}") from None
    memory = done.memory_analysis()
    return Compiled(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        output=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        host=memory.host_argument_size_in_bytes + memory.host_temp_size_in_bytes,
        seconds=time.monotonic() - started,
        text=done.as_text(),
    )


# -------------------------------------------------------------------------------------------- train


def plan_train(config: ConfigDict, topology: Topology) -> Numbers:
    """Compiles the train step and reads from it what it needs and moves."""
    chip = CHIPS[topology.kind]
    mesh = make_mesh(config.mesh.axes, devices=topology.devices)
    check_rows(config, mesh)
    if chip.is_gpu:
        config = config.copy_and_resolve_references()
        config.train.compiler_options = gpus.OPTIONS | to_dict(config.train.compiler_options)
    program = make_program(config, mesh=mesh)
    batch = batch_shapes(config, sharding=program.rows)
    state = state_shapes(config, program)
    step = compile_for(program.step, state, batch)
    parsed = hlo.parse(step.text)
    found = hlo.collectives(parsed)
    dit, text = model_configs(config)
    examples = config.data.row.segments - 1
    kernels = attention_kernels(dit, is_gpu=chip.is_gpu)
    roof = train_roofline(
        dit,
        text,
        batch,
        trains_text=any(k.startswith("text_encoder") for k in flatten(program.shardings.params)),
        examples=examples,
        attention=kernels,
        found=found,
        traffic=hlo.hbm_bytes(parsed),
        mesh=mesh,
        chip=chip,
        sides=topology.sides,
    )
    peak = step.arguments + step.temporaries
    limit = int(chip.memory / chip.devices)
    seconds = config.train.num_steps * roof.seconds
    chips = len(topology.devices) // chip.devices
    return {
        "topology": topology.name,
        "num_slices": topology.num_slices,
        "chips": chips,
        "program": "train",
        "parameters": _count(program.model.shapes["dit"]),
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "rows": config.data.batch_rows,
        "tokens_per_chip": config.data.batch_rows * config.data.row.tokens // chips,
        "remat": dit.remat,
        "attention": kernels,
        "options": efficiency(config, state, parsed, host_bytes=step.host),
        "devices_per_chip": chip.devices,
        "hbm_limit_bytes": limit,
        "peak_bytes": peak,
        "fits": peak <= limit,
        "programs": {"train step": step.numbers()},
        "collectives": collective_table(found),
        "largest_collectives": [
            {"kind": c.kind, "shape": c.shape, "group": len(c.group), "count": c.count}
            | {"sent_bytes": int(c.sent), "source": c.source}
            for c in sorted(found, key=lambda c: -c.sent)[:20]
        ],
        "flops": {"needed": roof.needed, "again": roof.again, "kernel": roof.kernel},
        "seconds": {
            "compute": roof.compute,
            "HBM": roof.hbm,
            "interconnect": roof.ici,
            "network": roof.dcn,
            "step": roof.seconds,
        },
        "limit": roof.limit,
        "mfu_bound": roof.bound,
        "num_steps": config.train.num_steps,
        "chip_hours": {
            "at_bound": seconds * chips / 3600,
            "at_half": seconds * chips / 3600 / HALF,
        },
        "partition": {
            path: str(place.spec) for path, place in flatten(program.shardings.params).items()
        },
    }


def collective_table(found: list[hlo.Collective]) -> Numbers:
    """Number of runs and bytes that a chip sends, by kind."""
    kinds = [kind for kind in hlo.COLLECTIVES if any(c.kind == kind for c in found)]
    return {
        kind: {
            "count": sum(c.count for c in found if c.kind == kind),
            "sent_bytes": int(sum(c.sent for c in found if c.kind == kind)),
        }
        for kind in kinds
    }


def train_report(result: Numbers) -> str:
    """What a reader wants to know of `plan_train`."""
    seconds, flops = result["seconds"], result["flops"]
    lines = [
        memory_report(result),
        "",
        f"mesh {result['mesh'] or 'of one chip'}, {result['rows']} rows, "
        f"{result['tokens_per_chip']} tokens a chip, remat {result['remat']}",
        ", ".join(f"{name} by {kernel}" for name, kernel in result["attention"].items()),
        efficiency_report(result["options"]),
        "",
        f"{'collective':<20} {'runs':>6} {f'sent by a {_unit(result)}, MiB':>24}",
        *(
            f"{kind:<20} {row['count']:>6} {row['sent_bytes'] / 2**20:>24.1f}"
            for kind, row in result["collectives"].items()
        ),
        "",
        f"operations of all chips: {flops['needed'] / 1e12:.1f} TFLOP needed, "
        f"{flops['again'] / flops['needed']:.0%} of that again (remat {result['remat']}), "
        f"{flops['kernel'] / flops['needed']:.0%} more in the attention kernel",
        "at the peak: "
        + ", ".join(f"{k} {1e3 * v:.1f} ms" for k, v in seconds.items() if k != "step"),
        f"MFU bound {result['mfu_bound']:.1%}, by {result['limit']}; "
        f"step of {1e3 * seconds['step']:.1f} ms or more",
        f"{result['num_steps']} steps: {result['chip_hours']['at_bound']:,.0f} chip-hours at the "
        f"bound, {result['chip_hours']['at_half']:,.0f} at half of it",
    ]
    return "\n".join(lines)


def memory_report(result: Numbers) -> str:
    """Table of the programs' memory."""
    lines = [
        f"{result['parameters'] / 1e9:.4f} B parameters in the denoiser, {result['chips']} chips",
        f"{'program':<14} {'arguments':>10} {'temporary':>10}  GiB a {_unit(result)}",
    ]
    for name, p in result["programs"].items():
        sizes = f"{p['arguments'] / GIB:>10.2f} {p['temporaries'] / GIB:>10.2f}"
        lines.append(f"{name:<14} {sizes}  compiled in {p['seconds']:.0f} s")
    peak, limit = result["peak_bytes"] / GIB, result["hbm_limit_bytes"] / GIB
    verdict = "fits" if result["fits"] else "does NOT fit"
    lines.append(f"all weights and the largest temporaries: {peak:.2f} GiB of {limit:.2f} GiB")
    slices = f"{result['num_slices']} x " if result["num_slices"] > 1 else ""
    return "\n".join([*lines, f"{slices}{result['topology']}: {verdict}"])


def _unit(result: Numbers) -> str:
    return "chip" if result["devices_per_chip"] == 1 else "core"


# -------------------------------------------------------------------------------------------- sweep


def sweep(config: ConfigDict, topology: Topology) -> Numbers:
    """Plans the train step for meshes, remat policies and numbers of rows; prints as it goes."""
    rows = [config.data.batch_rows * factor for factor in (1, 2)]
    tries = list(itertools.product(usable_meshes(topology), REMAT_POLICIES, rows))
    head = f"{'mesh':<16} {'remat':<6} {'rows':>6} {'GiB':>7} {'MFU bound':>10}  limit"
    tqdm.write(head)
    table = []
    for preset, remat, batch_rows in tqdm(tries, desc="plans", unit="plan"):
        tried = config.copy_and_resolve_references()
        tried.mesh, tried.model.remat = get_mesh(preset), remat
        tried.data.batch_rows = batch_rows
        name = f"{preset:<16} {remat:<6} {batch_rows:>6}"
        try:
            plan = plan_train(tried, topology)
        except ConfigError as error:
            tqdm.write(f"{name} {str(error)[:80]}")
            table.append({"mesh": preset, "remat": remat, "rows": batch_rows, "error": str(error)})
            continue
        tqdm.write(
            f"{name} {plan['peak_bytes'] / GIB:>7.1f} {plan['mfu_bound']:>10.1%}  {plan['limit']}"
        )
        table.append({"preset": preset} | {k: v for k, v in plan.items() if k != "partition"})
    return {"topology": topology.name, "num_slices": topology.num_slices, "plans": table}


def usable_meshes(topology: Topology) -> Iterator[str]:
    """Presets that these devices can form, for one slice or several."""
    for preset in PRESETS:
        try:
            mesh = make_mesh(PRESETS[preset], devices=topology.devices)
        except ConfigError:
            continue
        if mesh.shape["tensor"] <= 8:  # heads and kv heads of the models
            yield preset


# ------------------------------------------------------------------------------------------- sample


def plan_sampling(config: ConfigDict, topology: Topology, *, frames: int, size: int) -> Numbers:
    """One result of OneDiffusionPipeline with guidance, in bfloat16."""
    mesh = make_mesh(config.mesh.axes, devices=topology.devices)
    dit, _ = model_configs(config)
    dit = dataclasses.replace(dit, dtype="bfloat16", remat="none")
    text = text_config({**config.text, "dtype": "bfloat16", "remat": "none"})
    networks = {
        "text": abstract(lambda rngs: make_text_encoder(text, rngs=rngs)),
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
        "text": compile_for(
            encoders.encode_text,
            params["text"],
            array((2, length), jnp.int32),
            array((2, length), jnp.int32),
            graphdef=networks["text"].graphdef,
        ),
        "denoise": compile_for(
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
        "decode": compile_for(
            encoders.vae_decode,
            params["decode"],
            array((frames, side, side, RELEASED_VAE.latent_channels)),
            graphdef=networks["decode"].graphdef,
        ),
    }
    weights = {name: bytes_a_device(tree) for name, tree in params.items()}
    # weights of the other programs stay on the chip too; a program's own are in its arguments
    peak = max(
        p.arguments + p.temporaries + sum(weights.values()) - weights[name]
        for name, p in programs.items()
    )
    chip = CHIPS[topology.kind]
    limit = int(chip.memory / chip.devices)
    return {
        "topology": topology.name,
        "num_slices": topology.num_slices,
        "chips": len(topology.devices) // chip.devices,
        "devices_per_chip": chip.devices,
        "program": "sample",
        "parameters": _count(networks["denoise"].shapes),
        "hbm_limit_bytes": limit,
        "peak_bytes": int(peak),
        "fits": bool(peak <= limit),
        "programs": {name: p.numbers() for name, p in programs.items()},
    }


def _parameters(network: Abstract, config: ConfigDict, mesh: Mesh, *, dtype: Any) -> Any:
    places = parameter_shardings(network.shapes, network.axes, rules=config.mesh.rules, mesh=mesh)
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=place),
        network.shapes,
        places,
    )


def _count(shapes: Any) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


if __name__ == "__main__":
    command.run(main, define_flags=define_flags)
