"""The papers' benchmarks: true data, official scores, one command.

python -m launch.evaluate --benchmark magicbrush --data DIR --model DIR --extractors DIR

Each suite is a `Benchmark` of `BENCHMARKS`; `runner.run_benchmark` generates, keeps what it made,
scores and writes the report, or exports what others judge. `docs/benchmarks.md` says what to fetch
and how long it takes.
"""

from unidiff_jax.config import ConfigError
from unidiff_jax.evals.benchmarks.base import Benchmark
from unidiff_jax.evals.benchmarks.coco import COCO_FID
from unidiff_jax.evals.benchmarks.depth import DIODE, ETH3D, KITTI, NYUV2, SCANNET
from unidiff_jax.evals.benchmarks.editing import EMU_EDIT, MAGICBRUSH, PIE_BENCH
from unidiff_jax.evals.benchmarks.judged import JUDGED
from unidiff_jax.evals.benchmarks.multibench import MULTIBENCH
from unidiff_jax.evals.benchmarks.portraits import UNSPLASH50
from unidiff_jax.evals.benchmarks.referring import (
    REFCOCO,
    REFCOCO_PLUS,
    REFCOCOG,
    REFCOCOG_GOOGLE,
)
from unidiff_jax.evals.benchmarks.subject_driven import DREAMBENCH
from unidiff_jax.evals.benchmarks.views import GSO_POSE, GSO_VIEWS

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        EMU_EDIT,
        MAGICBRUSH,
        PIE_BENCH,
        DREAMBENCH,
        MULTIBENCH,
        NYUV2,
        KITTI,
        ETH3D,
        SCANNET,
        DIODE,
        REFCOCO,
        REFCOCO_PLUS,
        REFCOCOG,
        REFCOCOG_GOOGLE,
        GSO_VIEWS,
        GSO_POSE,
        COCO_FID,
        UNSPLASH50,
        *JUDGED,
    )
}


def get_benchmark(name: str) -> Benchmark:
    """Looks a benchmark up; raises ConfigError for an unknown name."""
    if name not in BENCHMARKS:
        raise ConfigError(f"benchmark {name!r} is unknown; one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
