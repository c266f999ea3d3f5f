"""What a sampler is given and what it answers.

R sequences in the batch, L slots of the widest active block, K slots committed in a step, V vocabulary.
Rows are sequences; columns count from the start of a sequence's own active block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


class Evaluate(Protocol):
    """The model's prediction on the current canvas; the vocabulary head runs only at the slots asked for."""

    vocab_size: int

    def __call__(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """Logits (M, V), float32, aligned to the slots, the mask token at -inf."""
        ...


@dataclass(frozen=True, slots=True)
class BlockState:
    """The active blocks of R sequences at one denoising step."""

    candidate_RL: torch.Tensor
    """bool. Slots that may be committed now: masked and inside the active block; at least one a row."""
    masked_R: torch.Tensor
    """int64. Masked slots left in the active block, candidates or not."""
    slot_RL: torch.Tensor
    """int64. Index of each column in its own response (0..T-1): names the slot for the random numbers."""
    seed_R: torch.Tensor
    """int64. Each sequence's own seed."""
    step_R: torch.Tensor
    """int64. Denoising steps this sequence has made so far."""
    block_step_R: torch.Tensor
    """int64. Steps made in the active block."""
    block_masked_R: torch.Tensor
    """int64. Masked slots of the active block at its first step."""
    block_steps_R: torch.Tensor
    """int64. Steps planned for the block by a budget (`steps`); 0 where there is none."""
    temperature_R: torch.Tensor
    """float32. Draw temperature; 0 is greedy."""
    top_p_R: torch.Tensor
    """float32. Nucleus mass; 1 keeps the whole law."""
    stop_ids: tuple[int, ...]
    """End tokens of the model."""
    whole_response: bool
    """Whether the block is the whole response (full diffusion)."""


@dataclass(frozen=True, slots=True)
class Commit:
    """K slots and what they become."""

    row_K: torch.Tensor
    column_K: torch.Tensor
    token_K: torch.Tensor
    logprob_K: torch.Tensor
    """float32. log-probability under the law that was drawn from; at temperature 1 where the draw was greedy."""
    entropy_K: torch.Tensor
    """float32, nats. Entropy of the untempered prediction."""
