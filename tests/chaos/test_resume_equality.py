"""A run killed at a random step and resumed is the straight run, to the last bit, with the real learner and engine."""

import random
import signal
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file

from cluster.config import TrainRecipe
from cluster.tracking import read_metrics
from cluster.train_run import run_train
from learner import checkpoint
from tests.chaos.monkey import Kill, settings

SAME = ("reward/mean", "train/loss", "train/grad_norm", "train/entropy", "rollout/logprob_mean")
STEPS = 20
DEADLINE_S = 600


def recipe(model, runs_dir):
    rows = str(model.parent / "rows.jsonl")
    return TrainRecipe.model_validate(
        {
            "name": "equal",
            "runs_dir": str(runs_dir),
            "steps": STEPS,
            "prompts_per_step": 2,
            "model": {"path": str(model)},
            "tasks": [{"name": "arithmetic", "train_file": rows, "test_file": rows}],
            "eval": {"max_new_tokens": 1},
            "rollout": {"max_new_tokens": 1, "num_samples": 8},
            "learner": {"optimizer": {"lr": 1e-3}, "engine": {"micro_batch_tokens": 128}},
            "checkpoint": {"every": 4},
            "cluster": {"mode": "local"},
        }
    )


def curve(run_dir):
    return {row["step"]: [row[name] for name in SAME] for row in read_metrics(run_dir) if "reward/mean" in row}


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_killed_at_a_random_step_and_resumed_is_the_straight_run(digit_model, tmp_path, seed):
    straight = run_train(recipe(digit_model, tmp_path / "straight"))
    rng = random.Random(seed)
    kill = Kill("driver", rng.choice(["generate", "update", "publish", "checkpoint"]), 4 * rng.randrange(1, 5))
    command = settings(tmp_path / "settings.json", recipe(digit_model, tmp_path / "killed"), kills=[kill], real=True)
    killed = subprocess.run(command, timeout=DEADLINE_S, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = run_train(recipe(digit_model, tmp_path / "killed"), resume=True)
    assert resumed.steps_done == straight.steps_done == STEPS
    assert curve(resumed.run_dir) == curve(straight.run_dir)
    assert len(curve(straight.run_dir)) == STEPS
    weights = [
        load_file(checkpoint.latest(run.run_dir / "checkpoints") / "model" / "model.safetensors")
        for run in (straight, resumed)
    ]
    assert sum(grad_norm > 0 for _, _, grad_norm, *_ in curve(straight.run_dir).values()) >= STEPS // 2
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name])
