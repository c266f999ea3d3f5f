"""Clusters of several raylets on one machine, in a process of their own: the tests' own process is in another cluster.

`python -m tests.cluster.raylets WHAT FOLDER` prints one JSON line.
"""

import json
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import ray

from cluster.actors import Launcher
from cluster.bundles import Need
from cluster.calls import ActorSpec
from cluster.config import TrainRecipe
from cluster.placement import reserve
from cluster.tracking import read_metrics
from cluster.train_run import run_train
from tests.chaos.monkey import outcome, settings

WAIT_S = 180
LINK = "to-other"
"""Of a network namespace, to the other one."""


class Where:
    """Tells where it lives."""

    def place(self):
        context = ray.get_runtime_context()
        return context.get_node_id(), context.get_accelerator_ids().get("GPU", [])


@contextmanager
def raylets(*nodes):
    """A cluster with a raylet for each set of resources, the first being the head's; this process is its driver."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        added = [add_node(cluster, **node) for node in nodes]
        cluster.wait_for_nodes(timeout=WAIT_S)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster, added
    finally:
        ray.shutdown()
        cluster.shutdown()


def add_node(cluster, **node):
    """One more raylet."""
    return cluster.add_node(include_dashboard=False, object_store_memory=200 * 2**20, **node)


def places(kind, *needs):
    """Node and GPUs of every actor that is placed so."""
    needs = [Need(role, count, 1, gpus, strategy, "") for role, count, gpus, strategy in needs]
    launcher = Launcher(mode="ray")
    with ExitStack() as stack:
        placement = stack.enter_context(reserve("test", needs, timeout_s=WAIT_S, kind=kind))
        actors = {}
        for need in needs:
            for number in range(need.count):
                place = placement.bundle(need.role, number)
                spec = ActorSpec(f"{need.role}-{number}", Where, num_cpus=1, num_gpus=need.num_gpus, bundle=place)
                actors[spec.name] = launcher.launch(spec)
        found = {name: actor.call("place", timeout_s=WAIT_S) for name, actor in actors.items()}
        found = {name: future.result() for name, future in found.items()}
        for actor in actors.values():
            actor.kill()
    return found


def placement(folder):
    """Every kind on two nodes of four CPUs and two GPUs each; the GPUs are only counted."""
    with raylets({"num_cpus": 4, "num_gpus": 2}, {"num_cpus": 4, "num_gpus": 2}):
        return {
            "colocated": places("colocated", ("learner", 2, 0.5, "PACK"), ("rollout", 2, 0.5, "PACK")),
            "split": places("split", ("learner", 1, 1, "PACK"), ("rollout", 1, 1, "PACK")),
            "spread": places("spread", ("learner", 1, 1, "PACK"), ("rollout", 2, 1, "SPREAD")),
        }


def death(folder):
    """A training run that loses the second node's raylet, with the rollout worker there, after its first step."""
    with raylets({"num_cpus": 3}, {"num_cpus": 1}) as (cluster, (_, second)):
        return train_and_lose(folder, lambda: cluster.remove_node(second, allow_graceful=False))


def vanish(folder):
    """The same on the cluster of the network namespace that this runs in, whose link to the second node goes down."""
    ray.init(address="auto", log_to_driver=False)
    try:
        return train_and_lose(folder, lambda: subprocess.run(["ip", "link", "set", LINK, "down"], check=True))
    finally:
        ray.shutdown()


def elastic(folder):
    """A run of engines without a model, told to stop after a node was added, taken away and added again."""
    recipe = TrainRecipe.model_validate(json.loads((folder / "recipe.json").read_text()))
    run_dir, seen = Path(recipe.runs_dir) / recipe.name, []
    with raylets({"num_cpus": 3}) as (cluster, _):
        joined = recipe.cluster.model_copy(update={"address": cluster.address})
        command = settings(folder / "settings.json", recipe.model_copy(update={"cluster": joined}))
        with (folder / "driver.out").open("w") as output:
            driver = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

        def wait_for(num_ready):
            until = time.monotonic() + WAIT_S
            while not (rows := steps_of(run_dir)) or rows[-1]["pool/ready"] != num_ready:
                if time.monotonic() > until or driver.poll() is not None:
                    raise RuntimeError((folder / "driver.out").read_text()[-4000:] + f"{rows[-1:]}, {seen}")
                time.sleep(0.2)
            seen.append(num_ready)

        try:
            wait_for(1)
            second = add_node(cluster, num_cpus=1)
            wait_for(2)
            cluster.remove_node(second, allow_graceful=False)
            wait_for(1)
            add_node(cluster, num_cpus=1)
            wait_for(2)
            driver.terminate()
            status = driver.wait(timeout=WAIT_S)
        finally:
            driver.kill()
    rows = steps_of(run_dir)
    _, ledger = outcome(run_dir)
    spans = (run_dir / "logs" / "latest" / "rollout-1.spans.jsonl").read_text()
    return {
        "status": status,
        "ready": seen,
        "steps": len(rows),
        "trained": rows[-1]["prompts/trained"],
        "failed": rows[-1]["prompts/failed"],
        "joined": rows[-1]["pool/joined"],
        "staleness": max(row["staleness/max"] for row in rows),
        "num_trained": len(ledger),
        "num_distinct": len({tuple(entry) for entry in ledger}),
        "calls_of_the_second": spans.count('"generate"'),
    }


def steps_of(run_dir):
    """Rows of the steps done so far."""
    if not (run_dir / "metrics.jsonl").is_file():
        return []
    return [row for row in read_metrics(run_dir) if "prompts/trained" in row]


def train_and_lose(folder, lose):
    """What a run comes to that loses a node after its first step."""
    recipe = TrainRecipe.model_validate(json.loads((folder / "recipe.json").read_text()))
    metrics = Path(recipe.runs_dir) / recipe.name / "metrics.jsonl"
    before = []

    def lose_node():
        until = time.monotonic() + WAIT_S
        while not (metrics.is_file() and '"train/loss"' in metrics.read_text()):
            if time.monotonic() > until:
                return
            time.sleep(0.05)
        before.append(num_alive())
        lose()

    killer = threading.Thread(target=lose_node, daemon=True)
    killer.start()
    summary = run_train(recipe)
    killer.join(timeout=WAIT_S)
    until = time.monotonic() + WAIT_S
    while num_alive() > 1 and time.monotonic() < until:
        time.sleep(0.2)
    rows = [row for row in read_metrics(summary.run_dir) if "prompts/trained" in row]
    return {
        "steps_done": summary.steps_done,
        "nodes_before": before,
        "nodes_after": num_alive(),
        "trained": rows[-1]["prompts/trained"],
        "drawn": rows[-1]["prompts/drawn"],
        "failed": rows[-1]["prompts/failed"],
        "restarts": max(row["pool/restarts"] for row in rows),
        "reissued": max(row["pool/reissued"] for row in rows),
    }


def num_alive():
    return sum(node["Alive"] for node in ray.nodes())


if __name__ == "__main__":
    what = {"placement": placement, "death": death, "vanish": vanish, "elastic": elastic}[sys.argv[1]]
    print(json.dumps(what(Path(sys.argv[2]))), flush=True)
