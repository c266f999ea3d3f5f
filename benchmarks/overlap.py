"""Steps per hour with and without bounded asynchrony, when a step takes as long to answer as to learn.

`unmask bench overlap [--seconds 1.0] [--steps 12]`: the whole controller of a run on Ray (loop, cursor, buffer, pools,
transport, checkpoints, tracking) with engines that sleep (`benchmarks.sketch`): a step's answers take `--seconds` on
the worker, its update `--seconds` in the learner, so the two use different resources, as on two machines. Prints the
median seconds of a step at each staleness, and their ratio; the first two steps, which fill the buffer, are left out.
At best a step takes the longer of the two instead of their sum: a ratio of 2.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import models
from benchmarks.sketch import SketchRank, SketchWorker
from cluster.config import TrainRecipe
from cluster.ray_start import ray_session
from cluster.tracking import read_metrics
from cluster.train_run import Engines, run_train

PROMPTS, SAMPLES = 4, 2
WARMUP_STEPS = 2


def main(arguments: Sequence[str]) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(prog="unmask bench overlap", description="Synchronous against asynchronous steps.")
    parser.add_argument("--seconds", type=float, default=1.0, help="Of a step's answers, and of its update.")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--staleness", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args(arguments)
    engines = Engines(
        worker=partial(SketchWorker, answer_s=given.seconds / (PROMPTS * SAMPLES)),
        rank=partial(SketchRank, update_s=given.seconds),
    )
    step_s = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        models.save(models.create(models.TINY_CONFIG, tokenizer=models.character_tokenizer(), seed=0), path)
        base = _recipe(path, given.steps)
        with ray_session(base.cluster):
            for staleness in given.staleness:
                recipe = base.model_copy(update={"staleness": staleness, "runs_dir": f"{folder}/{staleness}"})
                summary = run_train(recipe, engines=engines)
                rows = [row for row in read_metrics(summary.run_dir) if row["step"] > WARMUP_STEPS]
                step_s[staleness] = statistics.median(row["time/step_s"] for row in rows if "time/step_s" in row)
    first = step_s[given.staleness[0]]
    for staleness, seconds in step_s.items():
        print(
            f"staleness {staleness}: {seconds:.2f} s a step, {3600 / seconds:,.0f} steps an hour, "
            f"{first / seconds:.2f} times staleness {given.staleness[0]}"
        )


def _recipe(model: Path, steps: int) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "name": "overlap",
            "steps": steps,
            "prompts_per_step": PROMPTS,
            "model": {"path": str(model)},
            "tasks": [{"name": "arithmetic"}],
            "eval": {"max_new_tokens": 2, "limit": 1},
            "rollout": {"max_new_tokens": 2, "num_samples": SAMPLES, "cpus_per_worker": 0.1},
            "reward": {"cpus_per_worker": 0.1},
            "learner": {
                "objective": {"importance": "token"},
                "engine": {"micro_batch_tokens": 64, "cpus_per_rank": 0.1},
            },
            "cluster": {"num_cpus": 2},
        }
    )
