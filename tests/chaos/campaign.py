"""Random kills until a number is reached: `python -m tests.chaos.campaign --kills 200 --seed 0` (`make chaos`).

Runs follow each other on a cluster of two raylets, each run with `--per-run` kills at random stages and moments:
rollout workers, graders, jails in which programs are graded, the learner, the second raylet with all that is on it, and
the driver in between, after which the same run is resumed by a new one. A while after the second raylet died another
one joins. Every run must end with the steps, the ledger (each prompt trained once, at its step) and the weights of a
run that nothing happened to, bit for bit. Folders of runs are kept where a run does not, and the exit status is 1.
"""

import argparse
import json
import os
import random
import secrets
import shutil
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
from tests.chaos.conftest import sketch_recipe
from tests.chaos.monkey import STAGES, VICTIMS, Kill, outcome, settings
from tests.cluster.raylets import add_node, raylets
from tests.conftest import SMALL_MODEL

RUN_DEADLINE_S = 1200
MAX_ATTEMPTS = 50
WEIGHTS = {"rollout": 4, "grader": 2, "jail": 2, "learner": 3, "driver": 1, "raylet": 1}
CHECKPOINT_EVERY = 2
NODE = {"num_cpus": 1}
"""A learner, two workers and two graders take 1.4 CPUs: one raylet has no room for all."""
SHARES = {
    "tasks": [{"name": "arithmetic"}, {"name": "code-tiny"}],
    "rollout": {
        "max_new_tokens": 2,
        "num_samples": 3,
        "num_workers": 2,
        "max_workers": 3,
        "cpus_per_worker": 0.4,
        "max_retries": 8,
    },
    "reward": {"num_workers": 2, "cpus_per_worker": 0.1, "max_retries": 8},
    "learner": {"engine": {"micro_batch_tokens": 64, "cpus_per_rank": 0.4, "start_timeout_s": 120}},
    "checkpoint": {"every": CHECKPOINT_EVERY},
}


def plan(rng, steps, num_kills, victims=VICTIMS):
    """Kills at stages that the run passes, in the order of their steps; every stage has its turn."""
    kills = []
    while len(kills) < num_kills:
        stage, step = STAGES[len(kills) % len(STAGES)], rng.randrange(steps)
        if (stage == "evaluate" and step > 0) or (stage == "checkpoint" and (step == 0 or step % CHECKPOINT_EVERY)):
            continue
        victim = rng.choices(victims, weights=[WEIGHTS[victim] for victim in victims])[0]
        kills.append(Kill(victim, stage, step, delay_s=rng.choice((0.0, rng.uniform(0.0, 0.3)))))
    return sorted(kills, key=lambda kill: (kill.step, STAGES.index(kill.stage)))


def disturbed(recipe, kills, folder, look=lambda: None):
    """Starts and resumes one run until it has done all steps; how many kills hit somebody by victim, and attempts.

    `look` is called every now and then.
    """
    record, left = folder / "kills.jsonl", list(kills)
    record.write_text("")
    for attempt in range(MAX_ATTEMPTS):
        command = settings(folder / "settings.json", recipe, kills=left, resume=attempt > 0, record=record)
        status, said = in_a_process(command, folder / "driver.out", look)
        done = [Kill(**json.loads(line)) for line in record.read_text().splitlines()]
        if status == 0:
            return Counter(kill.victim for kill in done), attempt + 1
        if status != -signal.SIGKILL:
            raise RuntimeError(f"the driver ended with {status}:\n{said[-8000:]}")
        left = [kill for kill in left if kill not in done]
    raise RuntimeError(f"the run was not done after {MAX_ATTEMPTS} attempts")


def in_a_process(command, output, look):
    """Exit status and output of a command."""
    until = time.monotonic() + RUN_DEADLINE_S
    with output.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            if time.monotonic() > until:
                process.kill()
                raise RuntimeError(f"the driver was not done within {RUN_DEADLINE_S} s:\n{output.read_text()[-8000:]}")
            look()
            time.sleep(0.5)
    return process.returncode, output.read_text()


class Keeper:
    """Has another raylet join a while after the second one has died; Ray wants that done in the main thread."""

    def __init__(self, cluster, second, rng):
        self._cluster, self._second, self._rng = cluster, second, rng
        self._due = None
        self.num_joined = 0

    def look(self):
        if self._due is None:
            if any(kind == "raylet" for kind, _ in self._second.dead_processes()):
                self._cluster.remove_node(self._second, allow_graceful=False)
                self._due = time.monotonic() + self._rng.uniform(0.0, 15.0)
        elif time.monotonic() > self._due:
            self._second, self._due = add_node(self._cluster, **NODE), None
            self.num_joined += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--per-run", type=int, default=20)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=VICTIMS, action="append", help="Kill no other kind; may be repeated.")
    given = parser.parse_args()
    rng, hit, number, bad = random.Random(given.seed), Counter(), 0, 0
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="unmask-chaos-"))
    denoiser = models.create(models.TINY_CONFIG | SMALL_MODEL, tokenizer=models.character_tokenizer(), seed=7)
    models.save(denoiser, folder / "model")
    with raylets(NODE, NODE) as (cluster, (_, second)):
        look = Keeper(cluster, second, random.Random(given.seed)).look
        address = ray.get_runtime_context().gcs_address

        def recipe(runs):
            return sketch_recipe(folder / "model", folder / runs, address=address, steps=given.steps, **SHARES)

        disturbed(recipe("undisturbed"), [], folder)
        weights, ledger = outcome(folder / "undisturbed" / "chaos")
        print(f"undisturbed: {given.steps} steps, {len(ledger)} answers, {time.monotonic() - start:.0f} s", flush=True)
        while hit.total() < given.kills:
            number += 1
            try:
                kills = plan(rng, given.steps, given.per_run, given.only or VICTIMS)
                of_run, attempts = disturbed(recipe(f"run-{number}"), kills, folder, look)
                found_weights, found_ledger = outcome(folder / f"run-{number}" / "chaos")
                is_same = found_ledger == ledger and np.array_equal(found_weights, weights)
                said = "same weights and ledger" if is_same else "DIFFERS"
            except RuntimeError as error:
                of_run, attempts, is_same, said = Counter(), 0, False, f"BROKE OFF: {error}"
            hit += of_run
            bad += not is_same
            print(
                f"run {number}, {attempts} attempts: {said}; {hit.total()} kills so far "
                f"({', '.join(f'{count} {victim}' for victim, count in sorted(hit.items()))}), "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )
            if bad > 2:
                break
    print(f"{number} runs, {hit.total()} kills, {bad} runs differ or broke off{f': {folder}' if bad else ''}")
    if not bad:
        shutil.rmtree(folder)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    if "RAY_AUTH_MODE" not in os.environ:
        # A token that nobody else has, and no file of it. Ray looks when it is imported, hence the fresh start.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.execv(sys.executable, [sys.executable, "-m", "tests.chaos.campaign", *sys.argv[1:]])
    main()
