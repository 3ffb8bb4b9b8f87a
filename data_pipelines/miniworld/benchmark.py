"""Measures how long MiniWorld takes to draw a picture.

taskset -c 0 env OMP_NUM_THREADS=1 python -m data_pipelines.miniworld.benchmark
"""

import time

import numpy as np

from data_pipelines.miniworld.render import SIZES, render
from data_pipelines.miniworld.scene import sample_scene


def measure(*, num_scenes: int = 64, samples: int = 2, seed: int = 0) -> dict[int, float]:
    """Milliseconds a picture by size in pixels: the mean over `num_scenes` train scenes.

    Each scene is timed three times and the fastest counts, so that other work on the machine
    disturbs the figure less.
    """
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(num_scenes)]
    result = {}
    for size in SIZES:
        best = []
        for scene in scenes:
            times = []
            for _ in range(3):
                start = time.perf_counter()
                render(scene, size, samples=samples)
                times.append(time.perf_counter() - start)
            best.append(min(times))
        result[size] = 1000 * float(np.mean(best))
    return result


if __name__ == "__main__":
    for size, milliseconds in measure().items():
        print(f"{size:4d} px  {milliseconds:6.2f} ms a frame")
