"""The canvases of the active sequences: what is masked, what was committed and how.

S slots (places for sequences, some of them empty), N canvas positions, A active sequences, L columns of the widest
active block. Everything here lives on the model's device; where each sequence stands is kept on the host
(`rollout.row`), so laying out a step reads nothing back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rollout.layout import Layout
from rollout.request import Request
from rollout.row import Row
from samplers.records import BlockState, Commit, ResponseView


class Canvases:
    """Preallocated tensors, one row a slot."""

    def __init__(
        self,
        *,
        num_slots: int,
        max_length: int,
        mask_id: int,
        pad_id: int,
        stop_ids: tuple[int, ...],
        device: torch.device,
        memory: tuple[str, ...] = (),
    ) -> None:
        shape = (num_slots, max_length)
        self.mask_id, self.stop_ids, self.device = mask_id, stop_ids, device
        self.token_SN = torch.full(shape, pad_id, dtype=torch.int64, device=device)
        self.masked_SN = torch.zeros(shape, dtype=torch.bool, device=device)
        self.step_map_SN = torch.zeros(shape, dtype=torch.int64, device=device)
        self.logprob_SN = torch.zeros(shape, device=device)
        self.entropy_SN = torch.zeros(shape, device=device)
        self.memory_SN: dict[str, torch.Tensor] = {}
        self.remember(memory)
        self._stop_ids = torch.tensor(stop_ids, device=device)
        self._position_N = torch.arange(max_length, device=device)

    def remember(self, names: Sequence[str]) -> None:
        """Keep numbers of these names a slot for the sampler."""
        for name in names:
            if name not in self.memory_SN:
                self.memory_SN[name] = torch.zeros(self.token_SN.shape, device=self.device)

    def place(self, slot: int, request: Request) -> None:
        """Lay out a fresh canvas: the prompt, then masks and what is given between them."""
        prompt_length, length = len(request.prompt_tokens), request.length
        self.token_SN[slot, :prompt_length] = torch.as_tensor(
            request.prompt_tokens, dtype=torch.int64, device=self.device
        )
        self.token_SN[slot, prompt_length:length] = self.mask_id
        self.masked_SN[slot] = False
        self.masked_SN[slot, prompt_length:length] = True
        if request.fixed:
            given = torch.tensor(list(request.fixed), device=self.device) + prompt_length
            self.token_SN[slot, given] = torch.tensor(list(request.fixed.values()), device=self.device)
            self.masked_SN[slot, given] = False
        for memory_SN in self.memory_SN.values():
            memory_SN[slot] = 0

    def commit(self, view: BlockView, commit: Commit) -> None:
        """Write what a step decided."""
        slot_K = view.slot_A[commit.row_K]
        position_K = view.start_A[commit.row_K] + commit.column_K
        where = (slot_K, position_K)
        self.token_SN[where] = commit.token_K
        self.masked_SN[where] = False
        self.step_map_SN[where] = view.state.step_R[commit.row_K]
        self.logprob_SN[where] = commit.logprob_K
        self.entropy_SN[where] = commit.entropy_K
        if commit.memory_RL:
            row_I, column_I = view.inside_AL.nonzero(as_tuple=True)
            for name, memory_AL in commit.memory_RL.items():
                self.memory_SN[name][view.slot_A[row_I], view.start_A[row_I] + column_I] = memory_AL[row_I, column_I]

    def progress(self, view: BlockView) -> tuple[list[int], list[bool]]:
        """First masked position of each active sequence (N if none), and whether an end token stands before it.

        The one place where a step reads from the device.
        """
        position_N, far = self._position_N, self.token_SN.shape[1]
        first_masked_A = torch.where(self.masked_SN[view.slot_A], position_N, far).amin(dim=1)
        before_A = first_masked_A.minimum(view.length_A)
        stands_AN = (position_N >= view.prompt_A[:, None]) & (position_N < before_A[:, None])
        ended_A = (stands_AN & torch.isin(self.token_SN[view.slot_A], self._stop_ids)).any(dim=1)
        first, ended = zip(*(divmod(code, 2) for code in ended_A.add(first_masked_A, alpha=2).tolist()), strict=True)
        return list(first), [bool(flag) for flag in ended]


class BlockView:
    """The active blocks of one step, as the sampler sees them and as the canvases are written."""

    def __init__(self, canvases: Canvases, rows: Sequence[Row], layout: Layout) -> None:
        device = canvases.device
        requests = [row.request for row in rows]
        whole = torch.tensor(
            [
                (
                    row.slot,
                    row.block[0],
                    row.block[1],
                    row.prompt_length,
                    row.length,
                    row.step,
                    row.block_step,
                    row.block_masked,
                    row.block_steps,
                    row.request.seed,
                    row.request.top_k,
                )
                for row in rows
            ],
            device=device,
        )
        (
            self.slot_A, self.start_A, self.end_A, self.prompt_A, self.length_A,
            step_A, block_step_A, block_masked_A, block_steps_A, seed_A, top_k_A,
        ) = whole.unbind(dim=1)  # fmt: skip
        law_A2 = torch.tensor([(r.temperature, r.top_p) for r in requests], dtype=torch.float32, device=device)
        width = max(row.block[1] - row.block[0] for row in rows)
        position_AL = self.start_A[:, None] + torch.arange(width, device=device)
        self.inside_AL = position_AL < self.end_A[:, None]
        self.position_AL = position_AL.clamp(max=canvases.token_SN.shape[1] - 1)
        place = (self.slot_A[:, None], self.position_AL)
        masked_AL = canvases.masked_SN[place] & self.inside_AL
        self.masked_AL = masked_AL
        self.state = BlockState(
            candidate_RL=self._candidates(masked_AL, layout),
            masked_R=masked_AL.sum(dim=1),
            slot_RL=self.position_AL - self.prompt_A[:, None],
            seed_R=seed_A,
            step_R=step_A,
            block_step_R=block_step_A,
            block_masked_R=block_masked_A,
            block_steps_R=block_steps_A,
            temperature_R=law_A2[:, 0],
            top_p_R=law_A2[:, 1],
            top_k_R=top_k_A,
            stop_ids=canvases.stop_ids,
            whole_response=layout.decode_length() is None,
            any_temperature=any(r.temperature > 0 for r in requests),
            any_greedy=any(r.temperature == 0 for r in requests),
            any_top_p=any(r.top_p < 1 and r.temperature > 0 for r in requests),
            max_top_k=max(r.top_k for r in requests),
            any_budget=any(r.steps is not None for r in requests),
            memory_RL={name: memory_SN[place] for name, memory_SN in canvases.memory_SN.items()},
        )

    def response(self, canvases: Canvases, stops: Sequence[int], *, width: int) -> ResponseView:
        """The answers as a whole, `width` slots the longest; `stops`: end of what the step's forward predicts."""
        length_A = self.length_A - self.prompt_A
        position_AT = self.prompt_A[:, None] + torch.arange(width, device=length_A.device)
        inside_AT = position_AT < self.length_A[:, None]
        last = canvases.token_SN.shape[1] - 1
        masked_AT = canvases.masked_SN[self.slot_A[:, None], position_AT.clamp(max=last)] & inside_AT
        seen_AT = position_AT < torch.tensor(stops, device=length_A.device)[:, None]
        return ResponseView(masked_AT, seen_AT, length_A)

    def _candidates(self, masked_AL: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Masked slots; only a block's first one where the family commits it by itself."""
        if not layout.first_slot_alone or layout.block_length is None:
            return masked_AL
        opens_AL = masked_AL & (self.position_AL % layout.block_length == 0)
        return torch.where(opens_AL.any(dim=1, keepdim=True), opens_AL, masked_AL)
