"""Which slots of a supervised example are masked, and with what weight they count.

    random      t ~ U(t_min, t_max), each slot masked with t; weight 1 / (t T)       the bound on -log p / T (LLaDA)
    stepwise    step s of a step map: slots of later steps masked, of its own slots a random part; the mean over these
                    step map = block index                            blockwise (semi-autoregressive) fine-tuning
                    step map = attention-guided order, weights        AGDO-SFT (`learner.agdo_sft`)

In a family with block-causal attention a slot sees its own block and the clean blocks before it. Random masks are then
drawn with a rate a block, one canvas a block (block diffusion's bound, 2503.09573): the sum over blocks of each one's
bound given the blocks before it.

Rates of one batch are stratified: one from each of equally many parts of (t_min, t_max), in random order. Each of them
alone is still uniform, so the expected loss is the same, but its variance between batches is much lower.

Masks depend on (seed, step) and on the place in the global batch alone: the number of ranks and micro-batches does not
change them.

Symbols: B examples, C canvases of one, T response slots, K scored slots of a canvas, R rates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from learner.agdo import guided_masks
from learner.config import AgdoConfig
from learner.plan import Canvas
from learner.sft import MaskedExample, SftExample
from learner.sft_config import BlockwiseMasking, RandomMasking

BLOCK_LENGTH = 16
RANDOM_MASK = AgdoConfig(num_canvases=None)
"""How a random part of a step is drawn; nothing else of it is read here."""


def stratified_rates(num_rates: int, *, t_min: float, t_max: float = 1.0, generator: torch.Generator) -> torch.Tensor:
    """rate_R: one uniform draw from each of R equal parts of (t_min, t_max), in random order."""
    part_R = torch.randperm(num_rates, generator=generator)
    within_R = torch.rand(num_rates, generator=generator)
    return t_min + (t_max - t_min) * (part_R + within_R) / num_rates


def random_mask(rate_B: torch.Tensor, num_slots: int, *, generator: torch.Generator) -> torch.Tensor:
    """masked_BT: each slot of row b is masked with probability rate_B[b], independently."""
    return torch.rand(len(rate_B), num_slots, generator=generator) < rate_B[:, None]


def random_canvases(
    examples: Sequence[SftExample], masking: RandomMasking, *, seed: int, step: int
) -> list[MaskedExample]:
    """`masking.num_canvases` independently masked canvases of each example; those without a mask are left out."""
    generator = torch.Generator().manual_seed(_mix(seed, step))
    part_BT = [_parts(example) for example in examples]
    num_parts_R = [1 + int(part_T[-1]) for part_T in part_BT for _ in range(masking.num_canvases)]
    rates = stratified_rates(sum(num_parts_R), t_min=masking.t_min, t_max=masking.t_max, generator=generator)
    num_slots = max(len(example.tokens) for example in examples)
    draw_RT = torch.rand(len(num_parts_R), num_slots, generator=generator).numpy()
    rate_of_R = [rate.numpy() for rate in rates.split(num_parts_R)]
    masked = []
    for b, example in enumerate(examples):
        canvases: list[Canvas] = []
        for r in range(b * masking.num_canvases, (b + 1) * masking.num_canvases):
            rate_T = rate_of_R[r][part_BT[b]]
            masked_T = draw_RT[r, : len(example.tokens)] < rate_T
            weight_T = 1.0 / (rate_T * len(rate_T) * masking.num_canvases)
            if masking.weight == "mean":
                weight_T = np.full(len(rate_T), 1.0 / (max(int(masked_T.sum()), 1) * masking.num_canvases))
            canvases += _canvas_of_each_part(masked_T, weight_T.astype(np.float32), part_BT[b])
        masked.append(MaskedExample(example, tuple(canvases)))
    return masked


def blockwise_canvases(
    examples: Sequence[SftExample], masking: BlockwiseMasking, *, seed: int, step: int
) -> list[MaskedExample]:
    """One canvas a block of each example."""
    masked = []
    for b, example in enumerate(examples):
        length = masking.block_length or example.block_length or BLOCK_LENGTH
        scored_T = scored_slots(example, masking.post_num)
        step_T, num_steps = compressed(block_index(example, length), scored_T)
        unit_T = np.ones(len(step_T), dtype=np.float32)
        canvases = step_canvases(step_T, num_steps, unit_T, generator_of(seed, step, b), RANDOM_MASK)
        masked.append(MaskedExample(example, canvases))
    return masked


def step_canvases(
    step_T: np.ndarray, num_steps: int, weight_T: np.ndarray, random: np.random.Generator, config: AgdoConfig
) -> tuple[Canvas, ...]:
    """One canvas a step: the mean over canvases of the weighted mean over their scored slots.

    Slots of step `num_steps` are the tail: always masked and never scored.
    """
    drawn = guided_masks(step_T, num_steps, random, config=config)
    return tuple(
        Canvas(masked_T, slot_K, weight_T[slot_K] / np.float32(len(slot_K) * len(drawn))) for masked_T, slot_K in drawn
    )


def block_index(example: SftExample, block_length: int) -> np.ndarray:
    """(T,) int64. Block of each slot: counted from the first slot, or as attention blocks are, from position 0."""
    num_prompt, slot_T = len(example.prompt_tokens), np.arange(len(example.tokens))
    if not example.block_length:
        return slot_T // block_length
    own = example.block_length
    length = min(block_length, own)
    if own % length:
        raise ValueError(
            f"sft.masking.block_length {length} does not divide the attention block of {own} positions: give a divisor"
        )
    return (num_prompt + slot_T) // length - num_prompt // length


def scored_slots(example: SftExample, post_num: int | None) -> np.ndarray:
    """(T,) bool. All slots, or those up to the first end token and `post_num` more."""
    last = len(example.tokens) if post_num is None else example.answer_length + post_num
    return np.arange(len(example.tokens)) <= last


def compressed(key_T: np.ndarray, scored_T: np.ndarray) -> tuple[np.ndarray, int]:
    """Steps 0..S-1 in the order of the scored slots' keys, S for the other slots; and S."""
    keys, step_K = np.unique(key_T[scored_T], return_inverse=True)
    step_T = np.full(len(key_T), len(keys))
    step_T[scored_T] = step_K
    return step_T, len(keys)


def generator_of(seed: int, step: int, index: int) -> np.random.Generator:
    """Random numbers of one example of one batch."""
    return np.random.default_rng([seed, step, index])


def _parts(example: SftExample) -> np.ndarray:
    """(T,) Slots that share a rate and a canvas: all, or those of one attention block."""
    if not example.block_length:
        return np.zeros(len(example.tokens), dtype=np.int64)
    return block_index(example, example.block_length)


def _canvas_of_each_part(masked_T: np.ndarray, weight_T: np.ndarray, part_T: np.ndarray) -> list[Canvas]:
    """Parts before a canvas's own are clean in it, parts after it not seen."""
    canvases = []
    for part in np.unique(part_T[masked_T]):
        own_T = masked_T & (part_T == part)
        slot_K = np.flatnonzero(own_T)
        canvases.append(Canvas(own_T, slot_K, weight_T[slot_K]))
    return canvases


def _mix(seed: int, step: int) -> int:
    """A generator seed of its own for each step of each run."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, dtype=np.uint64)[0] >> np.uint64(1))
