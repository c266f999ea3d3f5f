"""Random kills until a number is reached: `python -m tests.chaos.campaign --kills 200 --seed 0` (`make chaos`).

Runs follow each other, each with `--per-run` kills at random stages and moments: rollout workers, graders and the
learner by themselves, the driver in between, after which the same run is resumed by a new one. Every run must end with
the steps, the ledger (each prompt trained once, at its step) and the weights of a run that nothing happened to, bit for
bit. A run that does not is named with its seed, and the exit status is 1.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import ray

import models
from cluster.config import ClusterConfig
from cluster.ray_start import ray_session
from tests.chaos.conftest import sketch_recipe
from tests.chaos.monkey import STAGES, VICTIMS, Kill, outcome, settings

RUN_DEADLINE_S = 1200
MAX_ATTEMPTS = 50


def plan(rng, steps, num_kills):
    """Kills in the order of their steps."""
    kills = [
        Kill(
            rng.choices(VICTIMS, weights=(4, 2, 3, 1))[0],
            rng.choice(STAGES),
            rng.randrange(steps),
            delay_s=rng.choice((0.0, rng.uniform(0.0, 0.3))),
        )
        for _ in range(num_kills)
    ]
    return sorted(kills, key=lambda kill: (kill.step, STAGES.index(kill.stage)))


def disturbed(recipe, kills, folder):
    """Starts and resumes one run until it has done all steps; how many kills hit somebody, by victim."""
    hit, left = Counter(), list(kills)
    for attempt in range(MAX_ATTEMPTS):
        command = settings(folder / "settings.json", recipe, kills=left, resume=attempt > 0)
        ended = subprocess.run(command, timeout=RUN_DEADLINE_S, check=False, capture_output=True, text=True)
        if ended.returncode == 0:
            report = json.loads(ended.stdout.strip().splitlines()[-1])
            hit.update(kill["victim"] for kill in report["kills"])
            return hit
        if ended.returncode != -signal.SIGKILL:
            raise RuntimeError(
                f"the driver ended with {ended.returncode}:\n{ended.stdout[-4000:]}{ended.stderr[-4000:]}"
            )
        # What this attempt has killed is in its own memory: count the driver, and repeat none of what came before it.
        first = next(kill for kill in left if kill.victim == "driver")
        hit.update(kill.victim for kill in left[: left.index(first) + 1])
        left = left[left.index(first) + 1 :]
    raise RuntimeError(f"the run was not done after {MAX_ATTEMPTS} attempts")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--per-run", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, hit, number, bad = random.Random(given.seed), Counter(), 0, 0
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name, ray_session(ClusterConfig(num_cpus=4)):
        folder, address = Path(name), ray.get_runtime_context().gcs_address
        small = {"d_model": 32, "mlp_hidden_size": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2}
        denoiser = models.create(models.TINY_CONFIG | small, tokenizer=models.character_tokenizer(), seed=7)
        models.save(denoiser, folder / "model")

        def recipe(runs):
            return sketch_recipe(folder / "model", folder / runs, address=address, steps=given.steps)

        disturbed(recipe("undisturbed"), [], folder)
        weights, ledger = outcome(folder / "undisturbed" / "chaos")
        while sum(hit.values()) < given.kills:
            number += 1
            hit += disturbed(recipe(f"run-{number}"), plan(rng, given.steps, given.per_run), folder)
            found_weights, found_ledger = outcome(folder / f"run-{number}" / "chaos")
            same = found_ledger == ledger and np.array_equal(found_weights, weights)
            bad += not same
            print(
                f"run {number}: {'same weights and ledger' if same else 'DIFFERS'}; {sum(hit.values())} kills so far "
                f"({', '.join(f'{count} {victim}' for victim, count in sorted(hit.items()))}), "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
