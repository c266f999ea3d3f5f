"""One run of the engine over a list of requests: a queue in front of one lane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rollout.lane import Kind, Lane
from rollout.records import Trajectory
from rollout.request import Request

if TYPE_CHECKING:
    from rollout.canvas import BlockView
    from rollout.engine import Engine
    from samplers.records import BlockState, Commit, Evaluate


class Batch:
    """The sequences of one run.

    `one_block`: a sequence is finished when its first block is; later slots stay masked.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], *, one_block: bool = False) -> None:
        self._engine, self._requests, self._one_block = engine, requests, one_block
        lengths = [request.length for request in requests]
        # Longest first, the samples of a prompt together; taken from the end.
        self._queue = sorted(range(len(requests)), key=lambda i: (-lengths[i], tuple(requests[i].prompt_tokens)))
        self._queue.reverse()
        self._lane = Lane(
            engine.denoiser,
            Kind.of(engine.sampler, engine.layout, engine.policy),
            num_slots=self._num_slots(lengths),
            max_length=max(lengths),
            share_prompts=engine.share_prompts,
            waiting=requests,
        )

    def _num_slots(self, lengths: list[int]) -> int:
        """Sequences that may be active at once. With a cache every slot has room for the longest."""
        engine = self._engine
        each = min(lengths) if engine.policy.kind == "none" else max(lengths)
        return max(1, min(len(lengths), engine.max_batch_rows, engine.max_batch_tokens // each))

    def admit(self) -> bool:
        """Fill free slots from the queue within the token budget; whether anything is active."""
        engine, lane = self._engine, self._lane
        used = lane.num_tokens
        while self._queue and lane.has_room:
            request = self._requests[self._queue[-1]]
            if lane.rows and used + request.length > engine.max_batch_tokens:
                break
            used += request.length
            lane.add(
                self._queue.pop(),
                request,
                engine.sampler,
                engine.layout,
                version=engine.weights_version,
                one_block=self._one_block,
            )
        return bool(lane.rows)

    @property
    def active(self) -> list[int]:
        """Index of the request of each active sequence, in the order of rows."""
        return [row.index for row in self._lane.rows]

    def look(self) -> tuple[BlockView, BlockState, Evaluate]:
        """The first half of a step, where somebody else decides: one forward for every active sequence."""
        return self._lane.look()

    def take(self, view: BlockView, commit: Commit) -> list[tuple[int, Trajectory]]:
        """The second half: commit what was decided; give the answers that are finished."""
        return self._lane.take(view, commit, version=self._engine.weights_version)

    def weights_changed(self) -> None:
        """Take nothing from forwards of the old weights."""
        self._lane.weights_changed()

    def step(self) -> list[tuple[int, Trajectory]]:
        """Run one forward for every active sequence and commit; give the answers that are finished."""
        return self._lane.step(version=self._engine.weights_version)
