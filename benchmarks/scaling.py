"""`unmask bench scaling`: how many rollout workers one controller can feed.

The controller's own code (cursor, buffer, pools, gathering, advantages, metrics) runs steps of training
with simulated actors (`benchmarks/simulated.py`). The load grows with the cluster: each worker gets one call of
`--prompts` prompts a step, one grader stands beside eight workers, and an update takes as long whatever the size, as
it does with a learner that grows too. Said for each size:

    against free    step time over that of a controller that takes no time
    busy            what the controller works of a step: its own processor time, and Ray's calls at measured cost
    late            how long ended calls lay before the controller took them

and, by arithmetic alone, how long a version of the weights takes to reach all nodes.
"""

from __future__ import annotations

import argparse
import math
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from benchmarks.simulated import RAY_COSTS, Clock, Cluster, SimulatedFuture, Times, answers_of, virtual_waits
from benchmarks.timing import machine
from cluster.actors import Launcher
from cluster.buffer import GroupBuffer
from cluster.config import TrainRecipe
from cluster.cursor import Cursor
from cluster.gather import Gatherer
from cluster.grader_pool import GraderPool
from cluster.loop import with_advantages
from cluster.metrics import step_metrics
from cluster.rollout_pool import RolloutPool
from cluster.stopwatch import Stopwatch
from cluster.transport import Published
from learner.records import BatchStats, balance
from reward.config import RewardConfig
from rollout.records import Prompt

WORKERS_PER_NODE = 8


class Rows:
    """A task of endless rows."""

    name = "rows"

    def rows(self, split: Any) -> Sequence[Any]:
        """So many that no epoch ends."""
        return range(10**5)

    def prompt(self, row: Any) -> Prompt:
        """A prompt of 400 letters."""
        return Prompt(id=f"rows/{row}", task="rows", text="x" * 400, gold={"row": row})


@dataclass(frozen=True)
class Size:
    """What a cluster of one size did, per step where nothing else is said."""

    num_workers: int
    step_s: float
    cpu_s: float
    ray_s: float
    late_p95_s: float
    late_max_s: float
    grade_late_p95_s: float
    calls: float
    utilisation: float
    """Share of the workers' time in which they generated."""

    @property
    def busy(self) -> float:
        """Share of the step in which the controller worked."""
        return (self.cpu_s + self.ray_s) / self.step_s


def simulate(num_workers: int, options: argparse.Namespace, *, counts_controller: bool = True) -> Size:
    """Train some steps after a first one that is not counted."""
    clock = Clock(counts_controller=counts_controller)
    times = Times(options.generate_s, options.sigma, options.grade_s, options.load_s)
    # Where the controller's time does not count, it is not spent on large records either.
    sizes = (options.num_samples, options.slots) if counts_controller else (2, 1)
    cluster = Cluster(clock, times, answers_of(*sizes))
    controller = _controller(num_workers, options, cluster)
    with virtual_waits(clock):
        controller.rollouts.start()
        controller.graders.start()
        controller.step(0)
        start = (clock.now(), clock.cpu_s, clock.charged_s, cluster.num_calls, cluster.generate_s)
        for late in cluster.late_s.values():
            late.clear()
        for step in range(1, options.steps + 1):
            controller.step(step)
        end = (clock.now(), clock.cpu_s, clock.charged_s, cluster.num_calls, cluster.generate_s)
    step_s, cpu_s, ray_s, calls, generate_s = ((b - a) / options.steps for a, b in zip(start, end, strict=True))
    late, graded = cluster.late_s["generate"], cluster.late_s["grade"]
    return Size(
        num_workers=num_workers,
        step_s=step_s,
        cpu_s=cpu_s,
        ray_s=ray_s,
        late_p95_s=float(np.percentile(late, 95)),
        late_max_s=max(late),
        grade_late_p95_s=float(np.percentile(graded, 95)),
        calls=calls,
        utilisation=generate_s / (num_workers * step_s),
    )


@dataclass
class Controller:
    """The parts of `cluster.loop` that do not need a learner."""

    options: argparse.Namespace
    cluster: Cluster
    cursor: Cursor
    buffer: GroupBuffer
    rollouts: RolloutPool
    graders: GraderPool
    gatherer: Gatherer
    num_ranks: int

    @property
    def clock(self) -> Clock:
        """The virtual one."""
        return self.cluster.clock

    def step(self, step: int) -> None:
        """One step of `cluster.loop.train`; the learner's work is a wait."""
        watch = Stopwatch()
        gathered = self.gatherer.step(step, watch)
        samples = with_advantages(gathered.groups, self.gatherer._recipe)
        stats = BatchStats.of(samples)
        for share in balance(samples, self.num_ranks):
            pickle.dumps((share, stats), protocol=5)
            self.clock.charge(RAY_COSTS.submit_s)
        self._while_the_learner_works(self.options.update_s)
        self.buffer.commit(gathered.visits)
        self.cursor.finish(gathered.visits)
        self._while_the_learner_works(self.options.publish_s)
        self.rollouts.sync(Published(step + 1, step + 1, None))
        step_metrics(gathered.groups, times=watch.lap(), learner={}, weights_version=step, failures=gathered.failures)

    def _while_the_learner_works(self, seconds: float) -> None:
        """Keeps the pools busy as far as the staleness allows, as `LearnerGroup.alongside` does."""
        learner = SimulatedFuture(self.cluster, "update", self.clock.now() + seconds, lambda: None)
        while not learner.is_done():
            self.gatherer.turn(self.rollouts.version, [learner])


def _controller(num_workers: int, options: argparse.Namespace, cluster: Cluster) -> Controller:
    recipe = TrainRecipe.model_validate(
        {
            "tasks": [{"name": "arithmetic"}],
            "prompts_per_step": num_workers * options.prompts,
            "staleness": options.staleness,
            "rollout": {"num_samples": options.num_samples, "num_workers": num_workers},
        }
    )
    launcher = cast("Launcher", cluster)
    rollouts = RolloutPool(recipe.model, recipe.rollout, launcher=launcher, transport=_Sends())
    num_graders = max(1, num_workers // WORKERS_PER_NODE)
    graders = GraderPool((), RewardConfig(num_workers=num_graders), launcher=launcher)
    cursor = Cursor([Rows()], [1.0], seed=0)
    per_step = recipe.prompts_per_step
    ahead = options.staleness
    buffer = GroupBuffer(groups_per_step=per_step, staleness=ahead, max_in_flight=(ahead + 1) * per_step)
    gatherer = Gatherer(recipe, cursor=cursor, buffer=buffer, rollouts=rollouts, graders=graders)
    num_ranks = max(1, num_workers // WORKERS_PER_NODE)
    return Controller(options, cluster, cursor, buffer, rollouts, graders, gatherer, num_ranks)


class _Sends:
    """A transport whose publishing is waited for elsewhere."""

    def publish(self, version: int) -> Published:
        """Nothing to gather."""
        return Published(version, version, None)

    def forget(self) -> None:
        """Nothing is kept."""

    def send(self, handle: Any, published: Published, *, timeout_s: float, between_forwards: bool = False) -> Any:
        """As `ObjectStoreTransport` does."""
        weights = (published.reference, published.version, published.serial)
        handle.call("fetch_weights", published.reference, timeout_s=timeout_s, lane="transfer")
        return handle.call("load_weights", *weights, timeout_s=timeout_s)


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each size."""
    options = parser().parse_args(argv)
    print(machine(), flush=True)
    print(
        f"a call of {options.prompts} prompts x {options.num_samples} answers x {options.slots} slots: "
        f"{options.generate_s:g} s (sigma {options.sigma:g}); grade {options.grade_s:g} s, "
        f"update {options.update_s:g} s, publish {options.publish_s:g} s, load {options.load_s:g} s; "
        f"{options.steps} steps\n"
    )
    print(
        "| workers | step, s | against free | busy | of it Ray | late p95, max, s | graded late p95, s | calls a step |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for num_workers in options.workers:
        size = simulate(num_workers, options)
        free = simulate(num_workers, options, counts_controller=False)
        print(
            f"| {num_workers} | {size.step_s:.1f} | {size.step_s / free.step_s:.2f} | {size.busy:.1%} | "
            f"{size.ray_s / (size.cpu_s + size.ray_s):.0%} | {size.late_p95_s:.2f}, {size.late_max_s:.2f} | "
            f"{size.grade_late_p95_s:.2f} | {size.calls:.0f} |",
            flush=True,
        )
    print()
    print(fan_out(options))
    return 0


def fan_out(options: argparse.Namespace) -> str:
    """How long one version takes to reach all nodes: arithmetic, not a measurement."""
    one_s = options.weights_gb * 8 / options.gbps
    lines = [
        f"{options.weights_gb:g} GB of weights, {options.gbps:g} Gbit/s a node, {WORKERS_PER_NODE} workers a node",
        "| workers | nodes | every node from the learner's, s | handed on by those that have it, s |",
        "|---|---|---|---|",
    ]
    for num_workers in options.workers:
        others = math.ceil(num_workers / WORKERS_PER_NODE)
        # After each round twice as many have it; the learner's node is one of them from the start.
        rounds = math.ceil(math.log2(others + 1))
        lines.append(f"| {num_workers} | {others} | {one_s * others:.1f} | {one_s * rounds:.1f} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Options and their defaults."""
    found = argparse.ArgumentParser(
        prog="unmask bench scaling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--workers", type=int, nargs="+", default=[8, 32, 128, 512, 2048])
    found.add_argument("--steps", type=int, default=1, help="counted steps, after one that is not")
    found.add_argument("--prompts", type=int, default=1, help="prompts a worker and step")
    found.add_argument("--staleness", type=int, default=0)
    found.add_argument("--num-samples", type=int, default=8)
    found.add_argument("--slots", type=int, default=256, help="of an answer")
    found.add_argument("--generate-s", type=float, default=60.0, help="median seconds of a worker's call")
    found.add_argument("--sigma", type=float, default=0.2, help="spread of the calls: of their logarithm")
    found.add_argument("--grade-s", type=float, default=0.5)
    found.add_argument("--update-s", type=float, default=60.0)
    found.add_argument("--publish-s", type=float, default=2.0)
    found.add_argument("--load-s", type=float, default=2.0)
    found.add_argument("--weights-gb", type=float, default=16.0)
    found.add_argument("--gbps", type=float, default=100.0, help="network of a node")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
