"""The active sequences that share a forward: one step of them, whatever sampler each has.

A active sequences, K committed slots, T response slots. Positions are absolute.

One forward predicts every row's canvas. Each sampler then looks at its own rows only: it is told of their blocks, asks
for hidden states at their slots, and commits into them. What the rows of a lane must have in common is what the forward
depends on: the cache policy, the attention block of a block-causal family, and the attention sums to be taken.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from models import Denoiser
from rollout.cache_policy import CachePolicy
from rollout.canvas import BlockView, Canvases
from rollout.evaluation import Barred, Selected
from rollout.forwards import Forwards
from rollout.layout import Layout
from rollout.recording import record
from rollout.records import Trajectory
from rollout.request import Request
from rollout.row import Row
from samplers.records import BlockState, Commit, Evaluate, ProbeSpec, StepSampler


@dataclass(frozen=True, slots=True)
class Committed:
    """What one step committed in one sequence; a list each, in the order of slots."""

    index: int
    """Of the sequence, as whoever added it counts."""
    step: int
    num_forwards: int
    """Forwards spent on the sequence so far."""
    slots: list[int]
    """Response slots from 0; of an infill, counted over the slots of its holes."""
    tokens: list[int]
    logprobs: list[float]
    entropies: list[float]


@dataclass(frozen=True, slots=True)
class Kind:
    """What the rows of a lane have in common."""

    layout: Layout
    """Its attention block is every row's; how a row's response is cut into blocks is the row's own matter."""
    policy: CachePolicy
    probe: ProbeSpec | None = None
    looks_far: bool = False

    @staticmethod
    def of(sampler: StepSampler, layout: Layout, policy: CachePolicy) -> Kind:
        """The lane in which rows of this sampler, layout and cache go."""
        if not layout.block_causal:
            layout = Layout(None, block_causal=False)
        return Kind(layout, policy, sampler.probe, getattr(sampler, "lookahead", None) == "response")


class Lane:
    """Slots of canvases (and of a cache), the rows in them, and their steps."""

    def __init__(
        self,
        denoiser: Denoiser,
        kind: Kind,
        *,
        num_slots: int,
        max_length: int,
        share_prompts: bool = True,
        waiting: Sequence[Request] = (),
    ) -> None:
        self.kind, self.rows = kind, list[Row]()
        self.commits = list[Committed]()
        """What the last step has committed in rows that listen."""
        self._denoiser = denoiser
        self._free = list(range(num_slots))
        self._notes: defaultdict[int, dict[str, list[np.ndarray]]] = defaultdict(dict)
        self._canvases = Canvases(
            num_slots=num_slots,
            max_length=max_length,
            mask_id=denoiser.mask_token_id,
            pad_id=denoiser.eos_token_id,
            stop_ids=denoiser.stop_token_ids,
            device=denoiser.device,
        )
        self._forwards = Forwards(
            denoiser,
            self._canvases,
            kind.layout,
            kind.policy,
            requests=waiting,
            probe=kind.probe,
            share_prompts=share_prompts,
            looks_far=kind.looks_far,
        )

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        return bool(self._free)

    @property
    def num_tokens(self) -> int:
        """Canvas positions of all rows."""
        return sum(row.length for row in self.rows)

    def expect(self, request: Request) -> None:
        """Hear of a request that will be added, so that what it shares with others is kept for it."""
        self._forwards.expect(request)

    def forget(self, request: Request) -> None:
        """An expected request will not come."""
        self._forwards.forget(request)

    def add(
        self,
        index: int,
        request: Request,
        sampler: StepSampler,
        layout: Layout,
        *,
        version: int,
        one_block: bool = False,
        listens: bool = False,
    ) -> None:
        """Put a request that was expected into a free slot."""
        row = Row.of(index, request, heapq.heappop(self._free), layout, version=version)
        row.sampler, row.one_block, row.listens = sampler, one_block, listens
        self._canvases.remember(sampler.memory)
        self._canvases.place(row.slot, request)
        self._forwards.begin(row)
        self.rows.append(row)

    def remove(self, index: int) -> bool:
        """Take a sequence out, finished or not; whether it was there."""
        staying = [row for row in self.rows if row.index != index]
        for row in self.rows:
            if row.index == index:
                heapq.heappush(self._free, row.slot)
                self._notes.pop(index, None)
        found = len(staying) < len(self.rows)
        self.rows = staying
        return found

    def weights_changed(self) -> None:
        """Take nothing from forwards of the old weights."""
        self._forwards.weights_changed()
        for row in self.rows:
            row.forget_forwards()

    @torch.inference_mode()
    def step(self, *, version: int) -> list[tuple[int, Trajectory]]:
        """Run one forward for every row and commit; give the answers that are finished, which leave."""
        whole, evaluate = self._forward()
        parts = self._parts()
        for members in parts:
            rows = [self.rows[place] for place in members]
            view, seen = whole, evaluate
            if len(parts) > 1:
                view = BlockView(self._canvases, rows, rows[0].layout)
                seen = Selected(evaluate, members, view.slot_A.device)
            self._step_part(rows, view, seen)
        return self._advance(whole, version)

    def look(self) -> tuple[BlockView, BlockState, Evaluate]:
        """The first half of a step, for a lane of one sampler that decides elsewhere (`rollout.stepwise`)."""
        view, evaluate = self._forward()
        return view, self._state(self.rows, view), evaluate

    def take(self, view: BlockView, commit: Commit, *, version: int) -> list[tuple[int, Trajectory]]:
        """The second half: write what was decided; give the answers that are finished."""
        self._canvases.commit(view, commit)
        self._count(self.rows, commit)
        return self._advance(view, version)

    def _forward(self) -> tuple[BlockView, Evaluate]:
        self.commits = []
        # Rows of equal length, or neighbours in the cache, attend in one call.
        by_length = self.kind.policy.kind == "none"
        self.rows.sort(key=lambda row: (-row.length if by_length else 0, row.slot))
        whole = BlockView(self._canvases, self.rows, self.rows[0].layout)
        return whole, self._forwards.evaluate(self.rows, whole)

    def _parts(self) -> list[list[int]]:
        """Places of the rows that one call of one sampler decodes."""
        parts: dict[tuple[int, Layout, bool], list[int]] = {}
        for place, row in enumerate(self.rows):
            parts.setdefault((id(row.sampler), row.layout, row.request.bars_end), []).append(place)
        return list(parts.values())

    def _step_part(self, rows: Sequence[Row], view: BlockView, evaluate: Evaluate) -> None:
        sampler = rows[0].sampler
        assert sampler is not None
        if rows[0].request.bars_end:
            evaluate = Barred(evaluate, self._denoiser.stop_token_ids)
        commit = sampler.step(self._state(rows, view), evaluate)
        self._canvases.commit(view, commit)
        self._count(rows, commit)
        if any(row.listens for row in rows):
            self._tell(rows, view, commit)

    def _state(self, rows: Sequence[Row], view: BlockView) -> BlockState:
        """What the sampler is told; one that looks ahead also hears which slots a candidate's forward predicts."""
        if rows[0].observes_response:
            stops = [row.seen_until(self.kind.policy) for row in rows]
            width = max(row.length - row.prompt_length for row in rows)
            return replace(view.state, response=view.response(self._canvases, stops, width=width))
        lookahead = getattr(rows[0].sampler, "lookahead", None)
        if lookahead is None:
            return view.state
        if lookahead == "block":
            return replace(view.state, ahead_RW=view.masked_AL)
        policy, shift = self.kind.policy, self._denoiser.family.shift
        stops = [row.candidate_span(0, policy, shift=shift).stop for row in rows]
        width = max(stop - row.block[0] for row, stop in zip(rows, stops, strict=True))
        position_AW = view.start_A[:, None] + torch.arange(width, device=view.start_A.device)
        seen_AW = position_AW < torch.tensor(stops, device=position_AW.device)[:, None]
        last = self._canvases.masked_SN.shape[1] - 1
        masked_AW = self._canvases.masked_SN[view.slot_A[:, None], position_AW.clamp(max=last)]
        return replace(view.state, ahead_RW=masked_AW & seen_AW)

    def _count(self, rows: Sequence[Row], commit: Commit) -> None:
        """Count the step, its candidate forwards, and keep the evaluations it leaves for the next one."""
        extra = [0] * len(rows) if commit.extra_forwards_R is None else commit.extra_forwards_R.tolist()
        kept = [-1] * len(rows)
        if commit.evaluated is not None:
            evaluate, row_R = commit.evaluated
            kept = row_R.tolist()
        for name, note_R in (commit.notes_R or {}).items():
            for row, note in zip(rows, note_R.cpu().numpy(), strict=True):
                self._notes[row.index].setdefault(name, []).append(note)
        if commit.position_logprob_R is not None:
            for row, logprob in zip(rows, commit.position_logprob_R.tolist(), strict=True):
                row.position_logprobs.append(logprob)
        for row, forwards, place in zip(rows, extra, kept, strict=True):
            row.step += 1
            row.block_step += 1
            row.num_forwards += forwards
            row.evaluated = None if place < 0 else (evaluate, place)

    def _tell(self, rows: Sequence[Row], view: BlockView, commit: Commit) -> None:
        """Note the commits of rows that listen."""
        row_K, slot_K = commit.row_K.tolist(), view.state.slot_RL[commit.row_K, commit.column_K].tolist()
        token_K, logprob_K = commit.token_K.tolist(), commit.logprob_K.tolist()
        of_row: defaultdict[int, list[tuple[int, int, float, float]]] = defaultdict(list)
        for row, *what in zip(row_K, slot_K, token_K, logprob_K, commit.entropy_K.tolist(), strict=True):
            of_row[row].append((what[0], what[1], what[2], what[3]))
        for place, row in enumerate(rows):
            if row.listens:
                slots, tokens, logprobs, entropies = map(list, zip(*sorted(of_row[place]), strict=True))
                if row.request.fixed:
                    slots = [slot - sum(other < slot for other in row.request.fixed) for slot in slots]
                self.commits.append(
                    Committed(row.index, row.step - 1, row.num_forwards, slots, tokens, logprobs, entropies)
                )

    def _advance(self, view: BlockView, version: int) -> list[tuple[int, Trajectory]]:
        """Move rows on; take out those that are finished."""
        far = self._canvases.token_SN.shape[1]
        finished, staying = [], []
        for row, first_masked, ended in zip(self.rows, *self._canvases.progress(view), strict=True):
            ended = ended and not row.request.fixed
            # Steps that may commit nothing end with as many steps as there are slots.
            idled = getattr(row.sampler, "may_idle", False) and row.step >= row.length - row.prompt_length
            if ended or idled or first_masked == far or (row.one_block and first_masked >= row.block[1]):
                finished.append(row)
                continue
            if first_masked >= row.block[1]:
                row.enter_block_of(first_masked)
            staying.append(row)
        self.rows = staying
        for row in finished:
            heapq.heappush(self._free, row.slot)
        return [(row.index, self._record(row, version)) for row in finished]

    def _record(self, row: Row, version: int) -> Trajectory:
        notes = self._notes.pop(row.index, {})
        return record(row, self._canvases, self._denoiser, self.kind.policy, version=version, notes=notes)
