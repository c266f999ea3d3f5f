"""Supervised fine-tuning: examples, their masked canvases, and the loss.

    example    a prompt and its right answer, end tokens behind it
    canvases   what the model sees of an example (`learner.masking`): some slots masked, some of those scored
    loss       - mean over examples of the sum over scored slots of weight * log p(token | canvas)

The prompt is never masked and never scored. Canvases of different lengths lie side by side in one packed forward, so no
token is spent on padding. In families with block-causal attention the clean part of an example is computed once for all
its canvases (`learner.plan`), as in the two-copy layout that they were trained with.

Symbols: B examples, P prompt tokens, T response slots, N = P + T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from learner.likelihood import score
from learner.plan import Canvas, CanvasPlan, plan_given
from models import Denoiser, Family


@dataclass(frozen=True, slots=True)
class SftExample:
    """A prompt and its right answer, as tokens; an `Answer` to `learner.plan`."""

    prompt_tokens: np.ndarray
    """(P,) int64."""
    tokens: np.ndarray
    """(T,) int64. The targets: the answer, then end tokens."""
    answer_length: int
    """Tokens before the first end token that was filled in."""
    block_length: int = 0
    """Attention block in families with block-causal attention, counted from position 0; 0 in the others."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.prompt_tokens) + len(self.tokens)


@dataclass(frozen=True, slots=True)
class MaskedExample:
    """An example with its masks drawn: what a rank trains on."""

    example: SftExample
    canvases: tuple[Canvas, ...]
    """Their weights already hold everything but the division by the number of examples."""

    @property
    def num_scored(self) -> int:
        """Slots scored in all canvases."""
        return sum(len(canvas.slot_K) for canvas in self.canvases)


def make_example(
    prompt_tokens: Sequence[int],
    answer_tokens: Sequence[int],
    *,
    max_new_tokens: int,
    eos_token_id: int,
    block_length: int = 0,
) -> SftExample:
    """The answer followed by end tokens up to `max_new_tokens` slots."""
    num_fill = max_new_tokens - len(answer_tokens)
    if num_fill < 0:
        raise ValueError(
            f"the answer has {len(answer_tokens)} tokens but sft.max_new_tokens is {max_new_tokens}: "
            "raise sft.max_new_tokens or leave the row out"
        )
    if not prompt_tokens:
        raise ValueError("the prompt has no tokens: every example needs at least one, before its first response slot")
    filled = [*answer_tokens, *[eos_token_id] * num_fill]
    return SftExample(
        np.asarray(prompt_tokens, dtype=np.int64),
        np.asarray(filled, dtype=np.int64),
        answer_length=len(answer_tokens),
        block_length=block_length,
    )


def plan_masked(masked: Sequence[MaskedExample], *, family: Family) -> CanvasPlan:
    """The canvases of masked examples as one plan, to be cut into micro-batches (`learner.plan.micro_batches`)."""
    return plan_given([one.example for one in masked], [one.canvases for one in masked], family=family)


def sft_loss(denoiser: Denoiser, plan: CanvasPlan, group: Sequence[int]) -> torch.Tensor:
    """Sum over the canvases of one micro-batch of weight * cross entropy: divide by the examples of the whole batch."""
    scored = score(denoiser, plan, group, temperature=1.0)
    weight_M = torch.from_numpy(plan.weight_M)[scored.index_M].to(scored.logprob_M.device)
    return -(weight_M * scored.logprob_M).sum()
