"""Several ranks act as one; a rank that is lost ends them all, and the error names it."""

import os
import signal
import time

import numpy as np
import pytest

from cluster.actors import Launcher
from cluster.calls import ActorInfo
from cluster.config import TrainRecipe
from cluster.learner_group import LearnerGroup, LearnerLostError
from learner.records import Sample
from tests.cluster.standins import trajectory


def recipe(folder, num_ranks):
    engine = {"num_ranks": num_ranks, "cpus_per_rank": 0.5, "micro_batch_tokens": 64, "timeout_s": 120}
    settings = {
        "tasks": [{"name": "arithmetic"}],
        "model": {"path": str(folder)},
        # Where a gradient is 0 but for rounding, a small eps would make AdamW's step a coin toss.
        "learner": {"optimizer": {"lr": 1e-2, "eps": 1e-6}, "engine": engine},
    }
    return TrainRecipe.model_validate(settings)


def samples():
    advantages = (0.5, -0.5, 0.25, -0.25)
    answers = [trajectory("p#0", index, tokens=np.array([10 + index, 0, 0])) for index in range(4)]
    return [Sample(answer, advantage) for answer, advantage in zip(answers, advantages, strict=True)]


def started(folder, num_ranks, mode, log_dir=None):
    group = LearnerGroup(recipe(folder, num_ranks), launcher=Launcher(mode=mode, log_dir=log_dir))
    description = group.start()
    assert description["world_size"] == num_ranks
    return group


@pytest.mark.ray
def test_two_ranks_make_the_update_of_one_and_a_lost_one_ends_both(local_ray, small_model, tmp_path):
    import ray

    one, two = started(small_model, 1, "local"), started(small_model, 2, "ray", tmp_path)
    metrics = [group.update(samples()) for group in (one, two)]
    assert metrics[1]["grad_norm"] == pytest.approx(metrics[0]["grad_norm"], rel=1e-4)
    weights = [one.keep_weights().value, ray.get(two.keep_weights())]
    for name, array in weights[0][0].items():
        np.testing.assert_allclose(weights[1][0][name], array, atol=1e-5)

    lost = two._ranks[1].health(timeout_s=30)
    assert isinstance(lost, ActorInfo)
    os.kill(lost.pid, signal.SIGKILL)
    with pytest.raises(LearnerLostError, match=rf"learner-1\.update: actor_lost \(pid {lost.pid} on "):
        two.update(samples())
    until = time.monotonic() + 30  # Ray kills in the background
    while isinstance(other := two._ranks[0].health(timeout_s=30), ActorInfo) and time.monotonic() < until:
        time.sleep(0.1)
    assert other.kind == "actor_lost"
