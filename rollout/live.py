"""The engine for requests that come and go: each has its own sampler, law, blocks, cache and length.

    engine = LiveEngine(denoiser)
    number = engine.submit(Request(...), Decoding("confidence", {"tokens_per_step": 2}, block_length=8))
    while engine.is_busy:
        for event in engine.step(): ...        Committed of sequences that listen, Finished of every one

Sequences join and leave between steps. Those that may share a forward do (`rollout.lane`); a step is one forward of
each lane that has rows. The answer to a request depends on its own fields only, as in `rollout.Engine`, which gives the
same.

Not thread-safe: whoever owns it calls it from one thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import samplers
from models import Denoiser
from models.probe import layer_set
from rollout.cache_policy import CachePolicy
from rollout.chains import Answer, settle
from rollout.lane import Committed, Kind, Lane
from rollout.layout import Layout
from rollout.records import Trajectory
from rollout.request import FieldError, Request, about
from samplers.records import StepSampler
from samplers.sequence_chain import SequenceChain

_KEPT_SAMPLERS = 256
_NO_CACHE = CachePolicy()


@dataclass(frozen=True, slots=True)
class Decoding:
    """How one request is decoded, beside the law in the request itself."""

    sampler: str = "confidence"
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of the sampler (`samplers.options`)."""
    block_length: int | None = None
    """As in `rollout.Engine`."""
    cache: CachePolicy = _NO_CACHE


@dataclass(frozen=True, slots=True)
class Finished:
    """A sequence has its answer."""

    index: int
    trajectory: Trajectory


Event = Committed | Finished


@dataclass
class _Sequence:
    """A request on its way: waiting, or in a lane."""

    index: int
    request: Request
    sampler: StepSampler
    layout: Layout
    kind: Kind
    listens: bool
    one_block: bool = False
    chain: _Chain | None = None
    """The chain that this run belongs to."""


@dataclass
class _Chain:
    """A request answered by chains over runs (`samplers.sequence_chain`), its runs of this round, and their answers."""

    index: int
    answer: Answer
    sampler: SequenceChain
    waiting: set[int]
    like: _Sequence
    listens: bool
    found: dict[int, Trajectory] = field(default_factory=dict)


class LiveEngine:
    """Denoise requests as they come.

    `max_batch_tokens` and `max_batch_rows`: canvas positions, and sequences, that are active at once; the others wait
    in the order of their coming. `max_length`: longest canvas, the model's window if not given. `max_lanes`: kinds of
    forward alive at once; with a cache a lane keeps keys and values of `max_batch_tokens` positions.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        max_batch_tokens: int = 16384,
        max_batch_rows: int = 64,
        max_length: int | None = None,
        max_lanes: int = 8,
    ) -> None:
        denoiser.stack.fuse()
        self.denoiser = denoiser
        self.max_length = min(max_length or denoiser.max_length, denoiser.max_length)
        self.weights_version = 0
        """Version of the weights in the denoiser; recorded with each trajectory."""
        self._max_tokens, self._max_rows, self._max_lanes = max_batch_tokens, max_batch_rows, max_lanes
        self._lanes: dict[Kind, Lane] = {}
        self._active: dict[int, _Sequence] = {}
        self._queue: dict[int, _Sequence] = {}
        self._chains: dict[int, _Chain] = {}
        self._samplers: dict[str, StepSampler] = {}
        self._next = 0

    @property
    def num_active(self) -> int:
        """Sequences that the next step works on, as far as known now."""
        return len(self._active)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a place."""
        return len(self._queue)

    @property
    def is_busy(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._active or self._queue)

    def check(self, request: Request, decoding: Decoding) -> None:
        """Raise FieldError, a ValueError, if the request cannot be answered; the text says what to change."""
        request.check(max_length=self.max_length, vocab_size=self.denoiser.vocab_size)
        with about("cache"):
            decoding.cache.check(block_causal=self.denoiser.family.block_causal)
        if decoding.block_length is not None and decoding.block_length < 1:
            raise FieldError("block_length", f"block_length is {decoding.block_length}; it must be at least 1, or None")
        if request.fixed and self.denoiser.family.block_causal:
            raise FieldError(
                "prompt",
                "this model attends block by block from left to right, so a hole does not see the text after it; "
                "infill needs a bidirectional family (LLaDA, Dream)",
            )
        with about("sampler"):
            sampler = self._sampler(decoding)
            if sampler.probe is not None:
                layer_set(sampler.probe.layers, self.denoiser.num_layers)
            if request.fixed and isinstance(sampler, SequenceChain):
                raise ValueError(f"sampler {sampler.name!r} cuts an answer at its blocks; it cannot fill holes")

    def submit(self, request: Request, decoding: Decoding, *, listens: bool = False) -> int:
        """Queue a request; its number, under which events speak of it."""
        self.check(request, decoding)
        sampler = self._sampler(decoding)
        layout = self._layout(decoding)
        step_sampler = sampler.run if isinstance(sampler, SequenceChain) else sampler
        kind = Kind.of(step_sampler, layout, decoding.cache)
        sequence = _Sequence(self._number(), request, step_sampler, layout, kind, listens)
        if isinstance(sampler, SequenceChain):
            runs = 1 + sampler.candidates * (request.temperature > 0)
            sequence.listens, sequence.one_block = False, sampler.level == "block"
            chain = _Chain(sequence.index, Answer(request, runs), sampler, set(), sequence, listens)
            self._chains[chain.index] = chain
            self._begin_round(chain)
        else:
            self._wait(sequence)
        return sequence.index

    def cancel(self, index: int) -> bool:
        """Take a request out, its place free at once; whether it was still there."""
        chain = self._chains.pop(index, None)
        if chain is not None:
            for run in list(chain.waiting):
                self.cancel(run)
            return True
        waiting = self._queue.pop(index, None)
        if waiting is not None:
            if lane := self._lanes.get(waiting.kind):
                lane.forget(waiting.request)
            return True
        active = self._active.pop(index, None)
        return active is not None and self._lanes[active.kind].remove(index)

    def update_weights(self, change: Callable[[Denoiser], None], version: int) -> None:
        """Change the denoiser's weights between two steps; sequences under way go on with the new ones."""
        change(self.denoiser)
        self.weights_version = version
        for lane in self._lanes.values():
            lane.weights_changed()

    def step(self) -> list[Event]:
        """Admit what fits, and make one step of every sequence."""
        self._admit()
        events: list[Event] = []
        for lane in self._lanes.values():
            if lane.rows:
                finished = lane.step(version=self.weights_version)
                events += lane.commits
                for index, trajectory in finished:
                    events += self._finish(self._active.pop(index), trajectory)
        return events

    def _finish(self, sequence: _Sequence, trajectory: Trajectory) -> list[Event]:
        chain = sequence.chain
        if chain is None:
            return [Finished(sequence.index, trajectory)]
        chain.found[sequence.index] = trajectory
        if len(chain.found) < len(chain.waiting):
            return []
        settle(chain.answer, [chain.found[index] for index in sorted(chain.waiting)], chain.sampler)
        events: list[Event] = list(self._told(chain)) if chain.listens else []
        if not chain.answer.is_done:
            self._begin_round(chain)
            return events
        del self._chains[chain.index]
        layout = chain.like.layout
        merged = chain.answer.merged(block_length=layout.block_length)
        return [*events, Finished(chain.index, merged)]

    def _told(self, chain: _Chain) -> list[Committed]:
        """The steps of the run that a chain has settled on; nothing of a run is final before."""
        part = chain.answer.parts[-1]
        first_slot = chain.answer.num_slots - len(part.tokens)
        first_step = sum(earlier.num_steps for earlier in chain.answer.parts[:-1])
        told = []
        for step in range(part.num_steps):
            slots = [slot for slot, at in enumerate(part.step_map.tolist()) if at == step]
            values = (
                [getattr(part, name)[slot].item() for slot in slots] for name in ("tokens", "logprobs", "entropies")
            )
            where = [first_slot + slot for slot in slots]
            told.append(Committed(chain.index, first_step + step, chain.answer.num_forwards, where, *values))
        return told

    def _begin_round(self, chain: _Chain) -> None:
        chain.waiting, chain.found = set(), {}
        like = chain.like
        for request in chain.answer.runs():
            run = _Sequence(self._number(), request, like.sampler, like.layout, like.kind, False, like.one_block, chain)
            chain.waiting.add(run.index)
            self._wait(run)

    def _wait(self, sequence: _Sequence) -> None:
        self._queue[sequence.index] = sequence
        if lane := self._lanes.get(sequence.kind):
            lane.expect(sequence.request)

    def _admit(self) -> None:
        """Let waiting sequences in, oldest first, within the budgets.

        One that waits for a place in a full lane lets later ones of other lanes pass; one that waits for tokens does
        not, or a long one would wait for ever.
        """
        tokens = sum(sequence.request.length for sequence in self._active.values())
        for sequence in list(self._queue.values()):
            request = sequence.request
            if len(self._active) >= self._max_rows or (self._active and tokens + request.length > self._max_tokens):
                return
            lane = self._lane(sequence.kind)
            if lane is None or not lane.has_room:
                continue
            del self._queue[sequence.index]
            self._active[sequence.index] = sequence
            tokens += request.length
            lane.add(
                sequence.index,
                request,
                sequence.sampler,
                sequence.layout,
                version=self.weights_version,
                one_block=sequence.one_block,
                listens=sequence.listens,
            )

    def _lane(self, kind: Kind) -> Lane | None:
        """The lane of a kind, made if there is none; None while too many others are in use."""
        if kind not in self._lanes:
            if len(self._lanes) >= self._max_lanes:
                idle = next((other for other, lane in self._lanes.items() if not lane.rows), None)
                if idle is None:
                    return None
                del self._lanes[idle]
            has_cache = kind.policy.kind != "none"
            slots = min(self._max_rows, max(1, self._max_tokens // self.max_length)) if has_cache else self._max_rows
            waiting = [sequence.request for sequence in self._queue.values() if sequence.kind == kind]
            self._lanes[kind] = Lane(self.denoiser, kind, num_slots=slots, max_length=self.max_length, waiting=waiting)
        return self._lanes[kind]

    def _layout(self, decoding: Decoding) -> Layout:
        family = self.denoiser.family
        length = decoding.block_length
        if family.block_causal and length is None:
            length = self.denoiser.block_length
        return Layout(length, family.block_causal, None, family.first_slot_alone)

    def _sampler(self, decoding: Decoding) -> StepSampler:
        """The sampler of a request; requests that ask for the same one share it, and so a call of it."""
        key = json.dumps([decoding.sampler, decoding.options], sort_keys=True, default=str)
        if key not in self._samplers:
            made = samplers.build(decoding.sampler, **decoding.options)
            while len(self._samplers) >= _KEPT_SAMPLERS:
                del self._samplers[next(iter(self._samplers))]
            self._samplers[key] = made
        return self._samplers[key]

    def _number(self) -> int:
        self._next += 1
        return self._next
