"""Times a network of ours beside the same network in PyTorch: `launch.bench --model NAME`.

Both have the same weights and inputs, float32 and as many threads, and run in one process, taking
turns call by call. PyTorch runs eagerly and, as the official code does, computes the modulation at
every token; ours computes it once a frame. Without PyTorch only ours is timed.
"""

import dataclasses
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float
from tqdm import tqdm

from unidiff_jax.export.mapping import dit_table, to_official
from unidiff_jax.models.dit import DiT, DiTConfig
from unidiff_jax.sample.denoiser import (
    NextDiTConfig,
    dense_batch,
    dense_noised,
    from_tokens,
    to_tokens,
)
from unidiff_jax.types import Params

KINDS = ("forward", "forward_backward")


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network and the size of its input: one example, all of its words real."""

    config: NextDiTConfig
    frames: int
    side: int
    """Latent pixels."""
    words: int


WORKLOADS = {
    "onediffusion_mid": Workload(
        NextDiTConfig(
            in_channels=4,
            hidden_size=768,
            depth=12,
            num_heads=8,
            caption_channels=512,
            qk_norm=True,
            rotary_max_length=32,
        ),
        frames=3,
        side=32,
        words=64,
    )
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Of one call, in the official layouts; `target` is the loss's."""

    samples: Float[np.ndarray, "1 F C h w"]
    times: Float[np.ndarray, "1 F"]
    text: Float[np.ndarray, "1 L E"]
    target: Float[np.ndarray, "1 F C h w"]

    @classmethod
    def draw(cls, work: Workload) -> "Inputs":
        rng, c = np.random.default_rng(0), work.config
        shape = (1, work.frames, c.in_channels, work.side, work.side)
        return cls(
            samples=rng.standard_normal(shape, np.float32),
            times=rng.uniform(0, 1000, shape[:2]).astype(np.float32),
            text=rng.standard_normal((1, work.words, c.caption_channels), np.float32),
            target=rng.standard_normal(shape, np.float32),
        )


def measure(name: str, *, num_rounds: int) -> dict[str, Any]:
    """Times forward, and forward with the gradient of a mean squared error.

    Args:
      name: key of `WORKLOADS`.
      num_rounds: calls of each.

    Returns:
      Parameters, threads, compile time, and for each implementation and kind the median and best
      milliseconds; where there is PyTorch, the ratios of the bests (ours / PyTorch) and the largest
      difference of the outputs, as a share of their largest value.
    """
    work = WORKLOADS[name]
    inputs, dit = Inputs.draw(work), network(work.config)
    make = jax.jit(lambda: nnx.to_pure_dict(nnx.split(DiT(dit, rngs=nnx.Rngs(0)))[1]))
    params = make()
    start = time.perf_counter()
    calls = {"ours": our_calls(work, inputs, params)}
    outputs = {"ours": first_calls(calls["ours"])}
    numbers: dict[str, Any] = {
        "name": name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "threads": count_threads(),
        "compile_seconds": time.perf_counter() - start,
        "rounds": num_rounds,
    }
    if importlib.util.find_spec("torch"):
        calls["torch"] = torch_calls(work, inputs, params, num_threads=numbers["threads"])
        outputs["torch"] = first_calls(calls["torch"])

    times: dict[str, dict[str, list[float]]] = {who: {kind: [] for kind in KINDS} for who in calls}
    for _ in tqdm(range(num_rounds), desc=name, leave=False, disable=not sys.stderr.isatty()):
        for kind in KINDS:
            for who in calls:
                start = time.perf_counter()
                calls[who][kind]()
                times[who][kind].append(1e3 * (time.perf_counter() - start))
    for who, kinds in times.items():
        numbers[who] = {
            kind: {"median_ms": float(np.median(ms)), "best_ms": min(ms)}
            for kind, ms in kinds.items()
        }
    if "torch" in calls:
        numbers["ratio"] = {
            kind: numbers["ours"][kind]["best_ms"] / numbers["torch"][kind]["best_ms"]
            for kind in KINDS
        }
        expected = outputs["torch"]
        error = np.abs(outputs["ours"] - expected).max() / np.abs(expected).max()
        numbers["difference"] = float(error)
    return numbers


def first_calls(calls: dict[str, Callable[[], Any]]) -> np.ndarray:
    """Compiles and warms up; gives the forward call's output."""
    return {kind: calls[kind]() for kind in KINDS}["forward"]


def count_threads() -> int:
    """Threads of XLA's CPU client, which reads NPROC; PyTorch is given as many."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return int(os.environ.get("NPROC", cores))


def network(config: NextDiTConfig) -> DiTConfig:
    """Our network as a CPU runs it fastest; the text gates are open, so that text counts."""
    return config.dit(
        softcap=0.0, dtype="float32", remat="none", scan_layers=False, text_gate_init=1.0
    )


def our_calls(work: Workload, inputs: Inputs, params: Params) -> dict[str, Callable[[], Any]]:
    """Compiled calls by kind; the forward call gives the velocity (1, F, C, h, w)."""
    patch = work.config.patch
    grid = (work.frames, work.side // patch, work.side // patch)
    graphdef = nnx.split(nnx.eval_shape(lambda: DiT(network(work.config), rngs=nnx.Rngs(0))))[0]
    arrays = jax.tree.map(jnp.asarray, dataclasses.asdict(inputs))

    def forward(params, arrays):
        text = arrays["text"]
        batch = dense_batch(
            to_tokens(arrays["samples"], patch=patch),
            text_states=text,
            text_mask=jnp.ones(text.shape[:2], jnp.int32),
            grid=grid,
        )
        noised = dense_noised(batch, sigma=arrays["times"] / 1000.0, per_token=False)
        return from_tokens(nnx.merge(graphdef, params)(batch, noised, text), grid=grid, patch=patch)

    def loss(params, arrays):
        return jnp.mean((forward(params, arrays) - arrays["target"]) ** 2)

    run, run_both = jax.jit(forward), jax.jit(jax.value_and_grad(loss))
    return {
        "forward": lambda: np.asarray(run(params, arrays)),
        "forward_backward": lambda: jax.block_until_ready(run_both(params, arrays)),
    }


def torch_calls(
    work: Workload, inputs: Inputs, params: Params, *, num_threads: int
) -> dict[str, Callable[[], Any]]:
    """The same calls in PyTorch, with the same weights."""
    import torch

    from unidiff_jax.export.torch_model import NextDiT

    torch.set_num_threads(num_threads)
    tensors = to_official(params, table=dit_table(network(work.config)))
    model = NextDiT(work.config, softcap=0.0)
    model.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, strict=True)
    times = np.broadcast_to(inputs.times[..., None, None, None], inputs.samples.shape).copy()
    samples, times, text, target = (
        torch.from_numpy(x) for x in (inputs.samples, times, inputs.text, inputs.target)
    )
    mask = torch.ones(text.shape[:2], dtype=torch.int64)

    def forward():
        with torch.no_grad():
            return model(samples, times, text, mask).numpy()

    def forward_backward():
        model.zero_grad(set_to_none=True)
        torch.mean((model(samples, times, text, mask) - target) ** 2).backward()

    return {"forward": forward, "forward_backward": forward_backward}


def rows(numbers: dict[str, Any]) -> list[tuple[str, str]]:
    """Lines of a table: name and value."""
    n = numbers
    lines = [
        (n["name"], f"{n['parameters'] / 1e6:.1f} M parameters, float32, {n['threads']} threads"),
        ("compile time and first call", f"{n['compile_seconds']:.1f} s"),
    ]
    for kind, title in zip(KINDS, ("forward", "forward and backward"), strict=True):
        for who in ("ours", "torch"):
            if who in n:
                ms = n[who][kind]
                value = f"{ms['best_ms']:,.0f} ms, median of {n['rounds']} {ms['median_ms']:,.0f}"
                lines.append((f"{title}, {who}", value))
        if "ratio" in n:
            lines.append(("  ours / torch, of the best", f"{n['ratio'][kind]:.2f}"))
    if "difference" in n:
        lines.append(("difference of the outputs", f"{n['difference']:.1e} of the largest value"))
    return lines
