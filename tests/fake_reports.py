"""Results of runs that never were, for tests of the report."""

import numpy as np

from unidiff_jax.evals import statistics
from unidiff_jax.evals.results import (
    SampleWriter,
    package_versions,
    score_result,
    task_result,
    write_results,
)
from unidiff_jax.evals.results_schema import MINIATURE, OFFICIAL, SUBSTITUTE

NUM_ITEMS = statistics.MIN_ITEMS


def fake_task(task, *, values, floors, **changes):
    verdict = statistics.verdict(
        values,
        floors=floors,
        shuffled=values - 0.3,
        higher_is_better=changes.pop("higher_is_better", True),
        num_resamples=200,
    )
    arguments = {
        "task": task,
        "title": task.title(),
        "metric": "skill",
        "seeds": [0, 1, 2],
        "ceiling": 1.0,
        "protocol": "A protocol with <b>markup</b> & signs.",
        "split": "test",
    }
    return task_result(verdict, **{**arguments, **changes})


def fake_results():
    rng = np.random.default_rng(0)
    values = 0.6 + 0.1 * rng.standard_normal((statistics.MIN_ITEMS, 3))
    zeros = np.zeros(len(values))
    tasks = [
        fake_task("depth", values=values, floors={"mean": zeros, "ramp": zeros - 0.4}),
        fake_task("edit", values=values, floors={"copy": zeros + 0.7}, n_failed=2, ceiling=None),
        fake_task(
            "outside",
            values=values - 0.5,
            floors={"copy|paste": zeros + 0.02},
            higher_is_better=False,
            secondary={"a/b~c": 1 / 3, "tiny": 1e-5, "none": 0.0},
        ),
    ]
    config = {"model": {"depth": 8, "width": 192}, "learning_rate": 3e-4}
    steps = np.arange(0, 2000, 3)
    return {
        "run_id": "fake-0",
        "git": {"sha": "c0ffee", "dirty": True},
        "command": "python -m launch.evaluate <x>",
        "config": config,
        "seeds": [0],
        "steps": np.int64(2000),
        "params": 2_512_384,
        "wall_clock_seconds": {"render": 12.25, "train": 3600.5, "evaluate": 99.999},
        "device": "cpu",
        "packages": package_versions(),
        "dataset_manifest_sha256": "ab" * 32,
        "tasks": tasks,
        "curves": {
            "training loss/depth": np.stack([steps, 1 / (1 + steps)], axis=1),
            "training loss/edit": [[0, 1.0], [2000, 0.5]],
            "held-out loss": [[0, 0.7]],
        },
        "deviations": ["A <small> one."],
    }


def write_samples(folder, *, task):
    rng = np.random.default_rng(1)
    values = rng.permutation(NUM_ITEMS) / NUM_ITEMS
    with SampleWriter(folder, task=task) as writer:
        for i, value in enumerate(values):
            image = rng.random((8, 8, 3))
            shown = i < 8 or not 0.03 < value < 0.97
            writer.write(
                f"scene-{i:03d}",
                prompt=f"prompt {i} <of> {task}",
                value=value,
                seed_values=[value - 0.1, value, value + 0.1],
                images={"input": image, "output": image[..., 0] > 0.5, "target": image}
                if shown
                else {},
            )


def fake_score(**changes):
    """A score of MagicBrush, changed."""
    arguments = {
        "score": statistics.interval(np.linspace(0.7, 0.9, NUM_ITEMS), num_resamples=50),
        "benchmark": "magicbrush",
        "protocol": "magicbrush/single_turn",
        "title": "MagicBrush test, single turn",
        "metric": "clip_i",
        "higher_is_better": True,
        "n_items": NUM_ITEMS,
        "badge": OFFICIAL,
        "split": "test",
        "description": "Cosine of the embeddings of output and target, mean over items.",
        "reference": "gt",
        "encoder": {"name": "clip-vit-b-32", "sha256": "ab" * 32, "preprocess": "PIL bicubic 224"},
        "captions": "all",
        "rows": {"copy input": 0.861},
        "samples": "magicbrush",
    } | changes
    return score_result(arguments.pop("score"), **arguments)


def fake_scores():
    """Two encoders, two filters, a substitute, a judged suite with failures, a miniature."""
    clip_l = {"name": "clip-vit-l-14", "sha256": "cd" * 32, "preprocess": "PIL bicubic 224"}
    judge = {"name": "gpt-4.1", "date": "2026-11-01", "sha256": "ef" * 32}
    miniature = {
        "benchmark": "miniworld",
        "protocol": "miniworld/recolor",
        "title": "MiniWorld recolouring",
        "badge": MINIATURE,
    }
    return [
        fake_score(),
        fake_score(
            score=statistics.interval(np.linspace(0.6, 0.9, NUM_ITEMS), num_resamples=50),
            encoder=clip_l,
            samples=None,
        ),
        fake_score(score=0.812, captions="captions differ", n_items=200, samples=None),
        fake_score(
            score=0.0912, metric="l1", higher_is_better=False, encoder=None, captions=None, rows={}
        ),
        fake_score(
            score=0.287,
            metric="clip_t",
            reference="text",
            badge=SUBSTITUTE,
            deviations=["The dev split, since the test split is not redistributed."],
            samples=None,
        ),
        fake_score(
            score=5.31,
            benchmark="gedit_bench",
            protocol="gedit_bench/en/fullset",
            title="GEdit-Bench, English",
            metric="overall",
            reference="none",
            encoder=None,
            captions=None,
            judge=judge,
            n_items=606,
            n_failed=4,
            failures="left out of the mean",
            rows={},
            samples=None,
        ),
        fake_score(**miniature, samples=None),
    ]


def write_scored(folder):
    """A folder with scores, tasks and samples of both; returns results.json's content."""
    results = {**fake_results(), "scores": fake_scores()}
    results["tasks"] = results["tasks"][:1]
    write_results(folder, results=results)
    for name in ("depth", "magicbrush"):
        write_samples(folder, task=name)
    return results
