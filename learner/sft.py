"""Supervised fine-tuning by random masking: the 1/t bound on the negative log-likelihood.

Symbols: B examples, P prompt tokens, T response slots, N = P + T, K masked slots of an example, W those of a
micro-batch.

For each example a rate t ~ U(t_min, 1) is drawn, each response slot is masked with probability t (the prompt never),
and

    loss = mean over examples of (1 / t) * sum over masked slots of -log p(token | canvas) / T

Shorter answers are filled up to T slots with the end token, which is a target like any other. The rates of one batch
are stratified: one from each of B equal parts of (t_min, 1), in random order. Each of them alone is still uniform, so
the expected loss is the same, but its variance between batches is much lower.

Masks depend on (seed, step) and on the place in the global batch alone: the number of ranks and micro-batches does not
change them. Families with block-causal attention are refused: their slots of one block must see the earlier blocks
clean, which one canvas with masks everywhere cannot show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from learner.layout import Layout, Spans
from models import Denoiser, token_logprobs


@dataclass(frozen=True, slots=True)
class SftExample:
    """A prompt and its right answer, as tokens."""

    prompt_tokens: np.ndarray
    """(P,) int64."""
    answer_tokens: np.ndarray
    """(T,) int64. The answer, then end tokens up to the last slot."""


@dataclass(frozen=True, slots=True)
class SftCanvas:
    """An example with its masks drawn: what a rank trains on."""

    prompt_tokens: np.ndarray
    """(P,) int64."""
    answer_tokens: np.ndarray
    """(T,) int64. The targets."""
    masked: np.ndarray
    """(T,) bool. Slots that the model sees as masks and has to predict."""
    weight: float
    """Factor of the sum of cross entropies over masked slots: 1 / (t T)."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.prompt_tokens) + len(self.answer_tokens)


def make_example(
    prompt_tokens: Sequence[int], answer_tokens: Sequence[int], *, max_new_tokens: int, eos_token_id: int
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
    return SftExample(np.asarray(prompt_tokens, dtype=np.int64), np.asarray(filled, dtype=np.int64))


def stratified_rates(num_examples: int, *, t_min: float, generator: torch.Generator) -> torch.Tensor:
    """rate_B: one uniform draw from each of B equal parts of (t_min, 1), in random order."""
    part_B = torch.randperm(num_examples, generator=generator)
    within_B = torch.rand(num_examples, generator=generator)
    return t_min + (1.0 - t_min) * (part_B + within_B) / num_examples


def random_mask(rate_B: torch.Tensor, num_slots: int, *, generator: torch.Generator) -> torch.Tensor:
    """masked_BT: each slot of row b is masked with probability rate_B[b], independently."""
    return torch.rand(len(rate_B), num_slots, generator=generator) < rate_B[:, None]


def mask_examples(examples: Sequence[SftExample], *, t_min: float, seed: int, step: int) -> list[SftCanvas]:
    """Canvases of one global batch, masks drawn from (seed, step) alone."""
    lengths = {len(example.answer_tokens) for example in examples}
    if len(lengths) != 1:
        raise ValueError(f"examples of one batch must have the same number of slots, got {sorted(lengths)}")
    num_slots = lengths.pop()
    generator = torch.Generator().manual_seed(_mix(seed, step))
    rate_B = stratified_rates(len(examples), t_min=t_min, generator=generator)
    masked_BT = random_mask(rate_B, num_slots, generator=generator).numpy()
    weight_B = (1.0 / (rate_B * num_slots)).tolist()
    return [
        SftCanvas(example.prompt_tokens, example.answer_tokens, masked_BT[b], weight_B[b])
        for b, example in enumerate(examples)
    ]


def micro_batches(canvases: Sequence[SftCanvas], micro_batch_tokens: int) -> list[list[SftCanvas]]:
    """Canvases in groups whose tokens together stay within the budget, longest first.

    Canvases without a masked slot have no loss and are left out. A canvas longer than the budget goes alone.
    """
    kept = sorted((canvas for canvas in canvases if canvas.masked.any()), key=lambda canvas: -canvas.num_tokens)
    groups: list[list[SftCanvas]] = []
    load = 0
    for canvas in kept:
        load += canvas.num_tokens
        if not groups or load > micro_batch_tokens:
            groups.append([])
            load = canvas.num_tokens
        groups[-1].append(canvas)
    return groups


def sft_loss(denoiser: Denoiser, canvases: Sequence[SftCanvas]) -> torch.Tensor:
    """Sum over canvases of weight * cross entropy of the masked slots: divide by the examples of the global batch."""
    if denoiser.family.block_causal:
        raise ValueError(
            f"supervised fine-tuning by random masking needs a family with full attention, got "
            f"{denoiser.family.name!r}, whose attention is block-causal"
        )
    layout, weight_W = _lay_out(denoiser, canvases)
    hidden_WD = denoiser.start(layout.token_M, layout.packing).hidden(layout.flat_W, layout.counts)
    logprob_W, _ = token_logprobs(denoiser, hidden_WD, layout.target_W)
    return -(weight_W * logprob_W).sum()


def _lay_out(denoiser: Denoiser, canvases: Sequence[SftCanvas]) -> tuple[Layout, torch.Tensor]:
    """Canvases side by side with masks in place, and the weight of each wanted hidden state."""
    spans, weights = Spans(), []
    for canvas in canvases:
        slot_K = np.flatnonzero(canvas.masked)
        response_T = np.where(canvas.masked, denoiser.mask_token_id, canvas.answer_tokens)
        number = spans.add(0, np.concatenate([canvas.prompt_tokens, response_T]))
        position_K = len(canvas.prompt_tokens) + slot_K - int(denoiser.family.shift)
        spans.want(number, position_K, canvas.answer_tokens[slot_K], slot_K)
        weights.append(np.full(len(slot_K), canvas.weight, dtype=np.float32))
    layout = spans.layout(denoiser.packing(spans.spans))
    return layout, torch.from_numpy(np.concatenate(weights)).to(denoiser.device)


def _mix(seed: int, step: int) -> int:
    """A generator seed of its own for each step of each run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, dtype=np.uint64)[0] >> np.uint64(1))
