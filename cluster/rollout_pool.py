"""The rollout workers of a run: prompts in, answers out, every answer with weights of a known version.

A worker serves only after it has itself reported the version it should have; one that was lost loads the checkpoint,
takes the newest published weights, and reports, before it gets a prompt, and so does one that joins in mid-run. Which
worker answers does not matter: an answer follows from the seed, the prompt's id and the number of the sample.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.actors import Launcher
from cluster.calls import ActorSpec, CallFailure, Future, Handle
from cluster.memory_watch import MemoryWatch
from cluster.placement import Placement
from cluster.places import Growth, Place
from cluster.pool import WorkerPool
from cluster.transport import Published, WeightTransport
from models.config import ModelConfig
from rollout.config import DecodingConfig, RolloutConfig
from rollout.records import Prompt, Trajectory
from rollout.worker import RolloutWorker, Swap

logger = logging.getLogger(__name__)

MAX_ANSWERS_PER_CALL = 256
"""Bounds the time of one call, and what is drawn again if its worker is lost."""


@dataclass(frozen=True)
class Ask:
    """One prompt to be answered."""

    prompt: Prompt
    num_samples: int
    seed: int
    decoding: DecodingConfig
    key: int = -1
    """Whatever the asker knows it by."""


Answers = list[Trajectory]


class RolloutPool(WorkerPool[Ask, Answers]):
    """Rollout workers behind one queue."""

    def __init__(
        self,
        model: ModelConfig,
        rollout: RolloutConfig,
        *,
        launcher: Launcher,
        transport: WeightTransport | None = None,
        placement: Placement | None = None,
        start_timeout_s: float = 600,
        worker: Callable[..., Any] = RolloutWorker,
        growth: Growth | None = None,
    ) -> None:
        """Without a transport the workers answer with the checkpoint they load; `worker` makes one.

        With `growth` workers join, up to `rollout.max_workers`, when machines have room for them.
        """
        place = placement or Placement()

        def spec(index: int, bundle: Place | None) -> ActorSpec:
            return ActorSpec(
                f"rollout-{index}",
                worker,
                (model, rollout),
                num_cpus=rollout.cpus_per_worker,
                num_gpus=rollout.gpus_per_worker,
                bundle=bundle,
            )

        super().__init__(
            [spec(index, place.bundle("rollout", index)) for index in range(rollout.num_workers)],
            launcher,
            max_retries=rollout.max_retries,
            straggler_factor=rollout.straggler_factor,
            place_timeout_s=start_timeout_s,
        )
        self._spec = spec
        # In one process all workers have one memory, and a fresh object in it gives nothing back.
        self._memory = MemoryWatch(None if launcher.mode == "local" else rollout.max_memory_growth)
        self._growth = growth
        self._config = rollout
        self._transport = transport
        self._start_timeout_s = start_timeout_s
        self._published: Published | None = None
        self._loads: list[tuple[Swap, float]] = []
        """What each worker that took the newest weights says of it, and the seconds from telling it to its answer."""
        self._told: dict[str, Published | None] = {}
        """The weights that each worker was last given, or was to load, by its name; None: its checkpoint's."""

    @property
    def version(self) -> int:
        """Version of the weights that a ready worker has."""
        return self._published.version if self._published else 0

    def sync(self, published: Published) -> dict[str, float]:
        """Gives all workers new weights; returns when those that had nothing to do have reported the version.

        One that is at work takes them after its call or, with `rollout.on_update` keep, between two forwards of it, and
        gets no other prompt before it has reported the version.
        """
        assert self._transport is not None, "a pool without a transport serves the checkpoint only"
        self._published = published
        self._loads = []
        for member in self._members:
            # A process in its first preparation takes the newest weights when that is over (`_missing`): queued behind
            # it, they would pile up.
            if not member.is_gone and not member.is_new:
                self._begin(member, self._weights(member.handle))
        self._settle(with_new=False)
        if not self._loads:
            return {}
        return {
            "weights/load_p95_s": float(np.percentile([seconds for _, seconds in self._loads], 95)),
            "weights/swap_p95_s": float(np.percentile([swap.seconds for swap, _ in self._loads], 95)),
            "weights/bytes": float(max(swap.num_bytes for swap, _ in self._loads)),
            "pool/memory_bytes": float(max(swap.own_bytes for swap, _ in self._loads)),
        }

    def ask(self, asks: Sequence[Ask]) -> None:
        """Queues prompts of like decoding, an even share for each worker that can take them."""
        if not asks:
            return
        num_workers = max(1, self.num_ready)
        num_calls = num_workers * math.ceil(len(asks) * asks[0].num_samples / (num_workers * MAX_ANSWERS_PER_CALL))
        size = math.ceil(len(asks) / num_calls)
        for start in range(0, len(asks), size):
            self.submit(asks[start : start + size])

    def generate(
        self, prompts: Sequence[Prompt], num_samples: int, seed: int, decoding: DecodingConfig
    ) -> list[Answers]:
        """Answers of each prompt, in order; none for a prompt that failed after the last retry. Waits for them."""
        asks = [Ask(prompt, num_samples, seed, decoding) for prompt in prompts]
        self.ask(asks)
        answers = self.finish(asks)
        for ask, outcome in zip(asks, answers, strict=True):
            if isinstance(outcome, CallFailure):
                logger.error("prompt %s has no answer: %s", ask.prompt.id, outcome.headline)
        return [[] if isinstance(outcome, CallFailure) else outcome for outcome in answers]

    def _more(self) -> ActorSpec | None:
        # Those that are gone for good count: a machine on which none works is not tried again and again.
        if self._growth is None or len(self._members) >= (self._config.max_workers or 0):
            return None
        place = self._growth.place()
        return None if place is None else self._spec(len(self._members), place)

    def _prepare(self, handle: Handle) -> list[Future]:
        self._memory.forget(handle.name)
        return [handle.call("load", timeout_s=self._start_timeout_s), *self._weights(handle)]

    def _weights(self, handle: Handle) -> list[Future]:
        calls = []
        timeout_s = self._start_timeout_s + self._config.timeout_s  # it may have to end a call first
        self._told[handle.name] = self._published
        if self._published is not None:
            assert self._transport is not None
            calls.append(
                self._transport.send(
                    handle, self._published, timeout_s=timeout_s, between_forwards=self._config.on_update == "keep"
                )
            )
        return [*calls, handle.call("version", timeout_s=timeout_s)]

    def _wrong_with(self, handle: Handle, answers: Sequence[Any]) -> str:
        published = self._told[handle.name]
        told = published.version if published else 0
        return "" if answers[-1] == told else f"it has weights {answers[-1]}, and should have {told}"

    def _worn_out(self, handle: Handle, answers: Sequence[Any]) -> str:
        taken = answers[0]  # of a fresh process the first call is `load`, which says nothing
        return self._memory.report(handle.name, taken.own_bytes) if isinstance(taken, Swap) else ""

    def _missing(self, handle: Handle) -> list[Future]:
        return [] if self._told[handle.name] is self._published else self._weights(handle)

    def _prepared(self, answers: Sequence[Any], seconds: float) -> None:
        if isinstance(answers[0], Swap):  # of a fresh process the first call is `load`, which says nothing
            self._loads.append((answers[0], seconds))

    def _call(self, handle: Handle, items: Sequence[Ask]) -> Future:
        first = items[0]
        return handle.call(
            "generate",
            [ask.prompt for ask in items],
            num_samples=first.num_samples,
            seed=[ask.seed for ask in items],
            decoding=first.decoding,
            timeout_s=self._config.timeout_s,
        )

    def _results(self, items: Sequence[Ask], value: list[Answers]) -> list[Answers]:
        return value
