"""One run of the engine over a list of requests: which sequences are active, and what a step does with them.

A active sequences, T response slots. Positions are absolute.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from rollout.canvas import BlockView, Canvases
from rollout.forwards import Forwards
from rollout.records import Trajectory
from rollout.request import Request
from rollout.row import Row
from samplers.records import BlockState, Commit

if TYPE_CHECKING:
    from rollout.engine import Engine


class Batch:
    """The sequences of one run: a queue, the active rows and their canvases.

    `one_block`: a sequence is finished when its first block is; later slots stay masked.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], *, one_block: bool = False) -> None:
        self._engine, self._requests, self._one_block = engine, requests, one_block
        denoiser = engine.denoiser
        lengths = [request.length for request in requests]
        # Longest first, the samples of a prompt together; taken from the end.
        self._queue = sorted(range(len(requests)), key=lambda i: (-lengths[i], tuple(requests[i].prompt_tokens)))
        self._queue.reverse()
        num_slots = self._num_slots(lengths)
        self._free = list(range(num_slots))
        self._rows: list[Row] = []
        self._notes: defaultdict[int, dict[str, list[np.ndarray]]] = defaultdict(dict)
        self._canvases = Canvases(
            num_slots=num_slots,
            max_length=max(lengths),
            mask_id=denoiser.mask_token_id,
            pad_id=denoiser.eos_token_id,
            stop_ids=denoiser.stop_token_ids,
            device=denoiser.device,
            memory=engine.sampler.memory,
        )
        self._forwards = Forwards(
            denoiser,
            self._canvases,
            engine.layout,
            engine.policy,
            requests=requests,
            probe=engine.sampler.probe,
            share_prompts=engine.share_prompts,
            looks_far=getattr(engine.sampler, "lookahead", None) == "response",
        )

    def _num_slots(self, lengths: list[int]) -> int:
        """Sequences that may be active at once. With a cache every slot has room for the longest."""
        engine = self._engine
        each = min(lengths) if engine.policy.kind == "none" else max(lengths)
        return max(1, min(len(lengths), engine.max_batch_rows, engine.max_batch_tokens // each))

    def admit(self) -> bool:
        """Fill free slots from the queue within the token budget; whether anything is active."""
        engine = self._engine
        used = sum(row.length for row in self._rows)
        while self._queue and self._free:
            request = self._requests[self._queue[-1]]
            if self._rows and used + request.length > engine.max_batch_tokens:
                break
            used += request.length
            slot = heapq.heappop(self._free)
            row = Row.of(self._queue.pop(), request, slot, engine.layout, version=engine.weights_version)
            self._canvases.place(slot, request)
            self._forwards.begin(row)
            self._rows.append(row)
        # Rows of equal length, or neighbours in the cache, attend in one call.
        by_length = engine.policy.kind == "none"
        self._rows.sort(key=lambda row: (-row.length if by_length else 0, row.slot))
        return bool(self._rows)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Trajectory]]:
        """Run one forward for every active sequence and commit; give the answers that are finished."""
        view = BlockView(self._canvases, self._rows, self._engine.layout)
        commit = self._engine.sampler.step(self._state(view), self._forwards.evaluate(self._rows, view))
        self._canvases.commit(view, commit)
        self._count(commit)
        return self._advance(view)

    def _state(self, view: BlockView) -> BlockState:
        """What the sampler is told; one that looks ahead also hears which slots a candidate's forward predicts."""
        lookahead = getattr(self._engine.sampler, "lookahead", None)
        if lookahead is None:
            return view.state
        if lookahead == "block":
            return replace(view.state, ahead_RW=view.masked_AL)
        policy, shift = self._engine.policy, self._engine.denoiser.family.shift
        stops = [row.candidate_span(0, policy, shift=shift).stop for row in self._rows]
        width = max(stop - row.block[0] for row, stop in zip(self._rows, stops, strict=True))
        position_AW = view.start_A[:, None] + torch.arange(width, device=view.start_A.device)
        seen_AW = position_AW < torch.tensor(stops, device=position_AW.device)[:, None]
        last = self._canvases.masked_SN.shape[1] - 1
        masked_AW = self._canvases.masked_SN[view.slot_A[:, None], position_AW.clamp(max=last)]
        return replace(view.state, ahead_RW=masked_AW & seen_AW)

    def _count(self, commit: Commit) -> None:
        """Count the step, its candidate forwards, and keep the evaluations it leaves for the next one."""
        extra = [0] * len(self._rows) if commit.extra_forwards_R is None else commit.extra_forwards_R.tolist()
        kept = [-1] * len(self._rows)
        if commit.evaluated is not None:
            evaluate, row_R = commit.evaluated
            kept = row_R.tolist()
        for name, note_R in (commit.notes_R or {}).items():
            for row, note in zip(self._rows, note_R.cpu().numpy(), strict=True):
                self._notes[row.index].setdefault(name, []).append(note)
        if commit.position_logprob_R is not None:
            for row, logprob in zip(self._rows, commit.position_logprob_R.tolist(), strict=True):
                row.position_logprobs.append(logprob)
        for row, forwards, place in zip(self._rows, extra, kept, strict=True):
            row.step += 1
            row.block_step += 1
            row.num_forwards += forwards
            row.evaluated = None if place < 0 else (evaluate, place)

    def _advance(self, view: BlockView) -> list[tuple[int, Trajectory]]:
        """Move rows on; take out those that are finished."""
        far = self._canvases.token_SN.shape[1]
        finished, staying = [], []
        for row, first_masked, ended in zip(self._rows, *self._canvases.progress(view), strict=True):
            if ended or first_masked == far or (self._one_block and first_masked >= row.block[1]):
                finished.append(row)
                continue
            if first_masked >= row.block[1]:
                row.enter_block_of(first_masked, self._engine.layout)
            staying.append(row)
        self._rows = staying
        for row in finished:
            heapq.heappush(self._free, row.slot)
        return [(row.index, self._record(row)) for row in finished]

    def _record(self, row: Row) -> Trajectory:
        engine, canvases, request = self._engine, self._canvases, row.request
        where = (row.slot, slice(row.prompt_length, row.length))
        masked_T, token_T = canvases.masked_SN[where].cpu(), canvases.token_SN[where].cpu()
        stop_T = ~masked_T & torch.isin(token_T, torch.tensor(engine.denoiser.stop_token_ids))
        ended = bool(stop_T.any())
        token_T = torch.where(masked_T, engine.denoiser.eos_token_id, token_T)
        step_map_T = torch.where(masked_T, row.step, canvases.step_map_SN[where].cpu())
        return Trajectory(
            tokens=token_T.numpy(),
            step_map=step_map_T.to(torch.int32).numpy(),
            logprobs=torch.where(masked_T, 0.0, canvases.logprob_SN[where].cpu()).numpy(),
            entropies=torch.where(masked_T, 0.0, canvases.entropy_SN[where].cpu()).numpy(),
            num_steps=row.step,
            num_forwards=row.num_forwards,
            finish_reason="eos" if ended else "length",
            answer_length=int(stop_T.to(torch.int64).argmax()) if ended else len(token_T),
            seed=request.seed,
            sampler=engine.sampler.name,
            exact_likelihood=engine.sampler.exact_likelihood or request.temperature == 0,
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            position_logprobs=np.asarray(row.position_logprobs, dtype=np.float32),
            block_length=engine.layout.block_length or len(token_T),
            cache=engine.policy.describe(),
            computed=np.asarray(row.computed, dtype=np.int32).reshape(-1, 2),
            weights_version=(row.first_version, engine.weights_version),
            prompt_tokens=np.asarray(request.prompt_tokens, dtype=np.int64),
            prompt_id=request.prompt_id,
            sample_index=request.sample_index,
            notes={name: np.stack(values) for name, values in self._notes.pop(row.index, {}).items()},
        )
