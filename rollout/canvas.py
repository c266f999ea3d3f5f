"""The canvases of the active sequences: what is masked, where each sequence stands, and how it moves on.

R active sequences, N canvas positions (prompt, response, right padding), L columns of the widest active block.
Positions are absolute; in the record of a sequence slot t is position P + t.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from rollout.request import Request
from samplers.records import BlockState, Commit


@dataclass(frozen=True, slots=True)
class Layout:
    """How a response is cut into blocks.

    In bidirectional families blocks are counted from the response start and the whole canvas is visible. In
    block-causal families they are counted from position 0, prompt included, and later blocks are absent.
    """

    block_length: int | None
    """None: the whole response is one block."""
    block_causal: bool
    sub_block_length: int | None = None
    """Slots decoded together inside a block; None: the block."""
    first_slot_alone: bool = False
    """Whether a block's first slot is committed by itself (its prediction comes from the block before)."""

    def decode_length(self) -> int | None:
        """Slots that compete with each other."""
        return self.sub_block_length or self.block_length

    def block_of(self, position: int, prompt_length: int, length: int) -> tuple[int, int]:
        """Bounds of the decoding block that holds an absolute position, clipped to the response."""
        size = self.decode_length()
        if size is None:
            return prompt_length, length
        origin = 0 if self.block_causal else prompt_length
        start = origin + (position - origin) // size * size
        return max(start, prompt_length), min(start + size, length)

    def visible_until(self, position: int, length: int) -> int:
        """End of what a forward must hold to predict the block of an absolute position."""
        if not self.block_causal or self.block_length is None:
            return length
        return min((position // self.block_length + 1) * self.block_length, length)

    def num_blocks(self, prompt_length: int, length: int) -> int:
        """Decoding blocks that the response touches."""
        size = self.decode_length()
        if size is None:
            return 1
        origin = 0 if self.block_causal else prompt_length
        return (length - 1 - origin) // size - (prompt_length - origin) // size + 1


@dataclass
class Canvases:
    """Tensors of the active sequences, one row each; a row leaves by being left out of `keep`."""

    token_RN: torch.Tensor
    masked_RN: torch.Tensor
    step_map_RN: torch.Tensor
    logprob_RN: torch.Tensor
    entropy_RN: torch.Tensor
    prompt_length_R: torch.Tensor
    length_R: torch.Tensor
    block_start_R: torch.Tensor
    block_end_R: torch.Tensor
    visible_R: torch.Tensor
    step_R: torch.Tensor
    block_step_R: torch.Tensor
    block_masked_R: torch.Tensor
    block_steps_R: torch.Tensor
    seed_R: torch.Tensor
    temperature_R: torch.Tensor
    top_p_R: torch.Tensor

    @staticmethod
    def of(requests: list[Request], layout: Layout, *, mask_id: int, pad_id: int, device: torch.device) -> Canvases:
        """Lay out fresh canvases: prompt, then masks, then padding on the right."""
        lengths = [len(request.prompt_tokens) + request.max_new_tokens for request in requests]
        token_RN = torch.full((len(requests), max(lengths)), pad_id, dtype=torch.int64)
        for row, (request, length) in enumerate(zip(requests, lengths, strict=True)):
            token_RN[row, : len(request.prompt_tokens)] = torch.as_tensor(request.prompt_tokens)
            token_RN[row, len(request.prompt_tokens) : length] = mask_id
        prompt_lengths = [len(request.prompt_tokens) for request in requests]
        blocks = [layout.block_of(p, p, n) for p, n in zip(prompt_lengths, lengths, strict=True)]
        steps = [
            0 if r.steps is None else -(-r.steps // layout.num_blocks(p, n))
            for r, p, n in zip(requests, prompt_lengths, lengths, strict=True)
        ]

        def integers(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int64)

        position_N = torch.arange(token_RN.shape[1])
        response_RN = position_N >= integers(prompt_lengths)[:, None]
        zeros_RN = torch.zeros(token_RN.shape)
        canvases = Canvases(
            token_RN=token_RN,
            masked_RN=response_RN & (position_N < integers(lengths)[:, None]),
            step_map_RN=torch.full(token_RN.shape, -1, dtype=torch.int64),
            logprob_RN=zeros_RN,
            entropy_RN=zeros_RN.clone(),
            prompt_length_R=integers(prompt_lengths),
            length_R=integers(lengths),
            block_start_R=integers([start for start, _ in blocks]),
            block_end_R=integers([end for _, end in blocks]),
            visible_R=integers([layout.visible_until(p, n) for p, n in zip(prompt_lengths, lengths, strict=True)]),
            step_R=integers([0] * len(requests)),
            block_step_R=integers([0] * len(requests)),
            block_masked_R=integers([end - start for start, end in blocks]),
            block_steps_R=integers(steps),
            seed_R=integers([request.seed for request in requests]),
            temperature_R=torch.tensor([request.temperature for request in requests], dtype=torch.float32),
            top_p_R=torch.tensor([request.top_p for request in requests], dtype=torch.float32),
        )
        for item in fields(canvases):
            setattr(canvases, item.name, getattr(canvases, item.name).to(device))
        return canvases

    def keep(self, row_K: torch.Tensor) -> None:
        """Drop every row but these, and the columns that none of them needs."""
        width = int(self.length_R[row_K].max()) if len(row_K) else 0
        for item in fields(self):
            value = getattr(self, item.name)[row_K]
            setattr(self, item.name, value[:, :width] if value.ndim == 2 else value)

    def extend(self, other: Canvases, *, pad_id: int) -> None:
        """Append the rows of other canvases."""
        width = max(self.token_RN.shape[1], other.token_RN.shape[1])
        for item in fields(self):
            fill = pad_id if item.name == "token_RN" else 0
            parts = [getattr(self, item.name), getattr(other, item.name)]
            if parts[0].ndim == 2:
                parts = [torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts]
            setattr(self, item.name, torch.cat(parts))

    def block_state(self, layout: Layout, *, stop_ids: tuple[int, ...]) -> BlockState:
        """View the active blocks as the sampler sees them."""
        width = int((self.block_end_R - self.block_start_R).max())
        column_L = torch.arange(width, device=self.token_RN.device)
        position_RL = self.block_start_R[:, None] + column_L
        inside_RL = position_RL < self.block_end_R[:, None]
        position_RL = position_RL.clamp(max=self.token_RN.shape[1] - 1)
        masked_RL = self.masked_RN.gather(1, position_RL) & inside_RL
        candidate_RL = masked_RL
        if layout.first_slot_alone and layout.block_length is not None:
            opens_RL = masked_RL & (position_RL % layout.block_length == 0)
            candidate_RL = torch.where(opens_RL.any(dim=1, keepdim=True), opens_RL, masked_RL)
        return BlockState(
            candidate_RL=candidate_RL,
            masked_R=masked_RL.sum(dim=1),
            slot_RL=position_RL - self.prompt_length_R[:, None],
            seed_R=self.seed_R,
            step_R=self.step_R,
            block_step_R=self.block_step_R,
            block_masked_R=self.block_masked_R,
            block_steps_R=self.block_steps_R,
            temperature_R=self.temperature_R,
            top_p_R=self.top_p_R,
            stop_ids=stop_ids,
            whole_response=layout.decode_length() is None,
        )

    def commit(self, commit: Commit) -> None:
        """Write what a step decided and count the step."""
        position_K = self.block_start_R[commit.row_K] + commit.column_K
        where = (commit.row_K, position_K)
        self.token_RN[where] = commit.token_K
        self.masked_RN[where] = False
        self.step_map_RN[where] = self.step_R[commit.row_K]
        self.logprob_RN[where] = commit.logprob_K
        self.entropy_RN[where] = commit.entropy_K
        self.step_R += 1
        self.block_step_R += 1

    def finished(self, stop_ids_S: torch.Tensor) -> torch.Tensor:
        """bool (R,): an end token stands with nothing masked before it, or nothing is masked."""
        far = self.token_RN.shape[1]
        position_N = torch.arange(far, device=self.token_RN.device)
        response_RN = (position_N >= self.prompt_length_R[:, None]) & (position_N < self.length_R[:, None])
        stop_RN = response_RN & ~self.masked_RN & torch.isin(self.token_RN, stop_ids_S)
        first_stop_R = torch.where(stop_RN, position_N, far).amin(dim=1)
        first_masked_R = torch.where(self.masked_RN, position_N, far).amin(dim=1)
        return (first_stop_R < first_masked_R) | (first_masked_R == far)

    def advance(self, layout: Layout) -> None:
        """Move sequences whose block holds no mask to the block of their first masked slot."""
        far = self.token_RN.shape[1]
        position_N = torch.arange(far, device=self.token_RN.device)
        first_masked_R = torch.where(self.masked_RN, position_N, far).amin(dim=1)
        for row in (first_masked_R >= self.block_end_R).nonzero()[:, 0].tolist():
            position, length = int(first_masked_R[row]), int(self.length_R[row])
            start, end = layout.block_of(position, int(self.prompt_length_R[row]), length)
            self.block_start_R[row], self.block_end_R[row] = start, end
            self.visible_R[row] = layout.visible_until(position, length)
            self.block_step_R[row] = 0
            self.block_masked_R[row] = int(self.masked_RN[row, start:end].sum())
