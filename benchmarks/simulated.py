"""A cluster that is not there: actors that take time on a virtual clock, for the controller's own code.

The controller's processor time is real. The virtual clock counts it, adds a charge for everything that Ray would have
cost the controller (`RAY_COSTS`, measured), and jumps to the next event when the controller waits. Answers are real
records that are unpickled when their call is collected, as they would be out of an object store.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from unittest import mock

import numpy as np

from cluster.calls import ActorInfo, ActorSpec, CallFailure, Future
from rollout.records import Scored, Trajectory
from rollout.worker import Swap


@dataclass(frozen=True)
class RayCosts:
    """Processor seconds that Ray takes from the process that calls actors."""

    submit_s: float = 340e-6
    """To start one call with small arguments."""
    get_s: float = 130e-6
    """To fetch one result of 10 KB, its unpickling left out of account."""
    wait_per_call_s: float = 0.6e-6
    """To ask which calls have ended, for each call asked about."""
    ask_alone_s: float = 28e-6
    """The same for one call alone, which the controller does not do; for comparison."""


RAY_COSTS = RayCosts()


@dataclass(frozen=True)
class Times:
    """What actors take, in seconds."""

    generate_s: float
    """Median of a call; calls are log-normal around it."""
    sigma: float
    """Standard deviation of the logarithm of a call."""
    grade_s: float
    load_s: float
    """One worker's copy of new weights."""
    seed: int = 0

    def of_call(self, worker: str, number: int) -> float:
        """Seconds of the n-th generate call of a worker."""
        stream = np.random.default_rng([self.seed, int(worker.rpartition("-")[2]), number])
        return float(self.generate_s * np.exp(self.sigma * stream.standard_normal()))


class Clock:
    """Virtual seconds since its making."""

    def __init__(self, *, counts_controller: bool = True) -> None:
        """Without `counts_controller` the controller takes no time at all: the best that these actors could do."""
        self._counts = counts_controller
        self._cpu_start = time.process_time()
        self.charged_s = 0.0
        """What Ray would have cost."""
        self.idle_s = 0.0
        """What the controller waited."""

    @property
    def cpu_s(self) -> float:
        """Processor time of the controller's own code."""
        return time.process_time() - self._cpu_start

    def now(self) -> float:
        """The time."""
        return self.idle_s + (self.cpu_s + self.charged_s if self._counts else 0.0)

    def charge(self, seconds: float) -> None:
        """The controller is busy with Ray."""
        self.charged_s += seconds

    def wait_until(self, moment: float) -> None:
        """The controller waits."""
        self.idle_s += max(0.0, moment - self.now())


@dataclass
class Cluster:
    """Clock, times and the records that its actors hand out."""

    clock: Clock
    times: Times
    answers: Sequence[Trajectory]
    """Answers of one prompt."""
    pickled: dict[int, bytes] = field(default_factory=dict)
    """The same by the version of the weights that made them."""
    late_s: dict[str, list[float]] = field(default_factory=lambda: {"generate": [], "grade": []})
    """How long each ended call lay before the controller took it."""
    generate_s: float = 0.0
    """Seconds that workers were generating, all together."""
    num_calls: int = 0
    mode: Literal["ray"] = "ray"
    """Of `Launcher`, whose place it takes."""

    def answers_with(self, version: int) -> bytes:
        """Pickled answers made with weights of a version."""
        if version not in self.pickled:
            made = [replace(answer, weights_version=(version, version)) for answer in self.answers]
            self.pickled[version] = pickle.dumps(made, protocol=5)
        return self.pickled[version]

    def launch(self, spec: ActorSpec) -> SimulatedHandle:
        """Takes the place of `Launcher.launch`."""
        return SimulatedHandle(spec.name, self)


class SimulatedFuture:
    """A call that ends at a moment of the virtual clock."""

    def __init__(self, cluster: Cluster, method: str, end: float, make: Callable[[], Any]) -> None:
        self.end = end
        self._cluster = cluster
        self._method = method
        self._make = make

    @property
    def remaining_s(self) -> float:
        """Time to its moment."""
        return max(0.0, self.end - self._cluster.clock.now())

    def is_done(self) -> bool:
        """Whether its moment has come."""
        return self.end <= self._cluster.clock.now()

    def outcome(self) -> Any:
        """The value; waits for its moment."""
        clock = self._cluster.clock
        clock.wait_until(self.end)
        clock.charge(RAY_COSTS.get_s)
        if self._method in self._cluster.late_s:
            self._cluster.late_s[self._method].append(clock.now() - self.end)
        return self._make()

    def result(self) -> Any:
        """The value."""
        return self.outcome()


class SimulatedHandle:
    """An actor; calls of one lane end one after the other."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name = name
        self._cluster = cluster
        self._free_at: dict[str, float] = {}
        self._num_generated = 0
        self._version = 0

    def call(
        self, method: str, *args: Any, timeout_s: float, keep: bool = False, lane: str = "work", **kwargs: Any
    ) -> Future:
        """Starts a call."""
        cluster = self._cluster
        cluster.clock.charge(RAY_COSTS.submit_s)
        cluster.num_calls += 1
        seconds, make = self._effect(method, args)
        start = max(cluster.clock.now(), self._free_at.get(lane, 0.0))
        self._free_at[lane] = start + seconds
        return SimulatedFuture(cluster, method, start + seconds, make)

    def _effect(self, method: str, args: Sequence[Any]) -> tuple[float, Callable[[], Any]]:
        """Seconds and value of a call."""
        times = self._cluster.times
        if method == "generate":
            prompts = args[0]
            self._num_generated += 1
            seconds = times.of_call(self.name, self._num_generated)
            self._cluster.generate_s += seconds
            answers = self._cluster.answers_with(self._version)
            return seconds, lambda: [pickle.loads(answers) for _ in prompts]
        if method == "grade":
            scores = [Scored(float(place % 2), {"correct": float(place % 2)}) for place in range(len(args[0]))]
            return times.grade_s, lambda: scores
        if method == "load_weights":
            self._version = args[1]
            return times.load_s, lambda: Swap(1, times.load_s)
        values: Mapping[str, Any] = {"version": self._version, "self_test": [], "metadata": {}}
        return 0.0, lambda: values.get(method)

    def health(self, *, timeout_s: float) -> ActorInfo | CallFailure:
        """Always well."""
        return ActorInfo(0, "nowhere")

    def kill(self) -> None:
        """Nothing to end."""

    def restart(self) -> None:
        """Nothing to start."""


@contextmanager
def virtual_waits(clock: Clock) -> Iterator[None]:
    """The controller's `wait` jumps on the virtual clock, in the files that use it."""

    def wait(futures: Sequence[Any], *, timeout_s: float) -> tuple[list[Any], list[Any]]:
        clock.charge(RAY_COSTS.wait_per_call_s * len(futures))
        if timeout_s > 0 and futures and not any(future.is_done() for future in futures):
            clock.wait_until(min(min(future.end for future in futures), clock.now() + timeout_s))
        now = clock.now()
        return [f for f in futures if f.end <= now], [f for f in futures if f.end > now]

    with mock.patch("cluster.gather.wait", wait), mock.patch("cluster.pool.wait", wait):
        yield


def answers_of(num_samples: int, num_slots: int) -> list[Trajectory]:
    """Answers of one prompt with arrays of the size of real ones."""
    rng = np.random.default_rng(0)
    return [
        Trajectory(
            tokens=rng.integers(0, 30000, num_slots),
            step_map=np.arange(num_slots, dtype=np.int32),
            logprobs=rng.normal(size=num_slots).astype(np.float32),
            entropies=rng.random(num_slots).astype(np.float32),
            num_steps=num_slots,
            num_forwards=num_slots,
            finish_reason="length",
            answer_length=num_slots,
            seed=place,
            sampler="confidence",
            exact_likelihood=True,
            temperature=1.0,
            top_p=1.0,
            block_length=32,
            prompt_tokens=rng.integers(0, 30000, 128),
            sample_index=place,
            text="x" * 800,
        )
        for place in range(num_samples)
    ]
