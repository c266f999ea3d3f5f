"""AGDO-SFT (2606.12273): masks along an attention-guided order, weights by influence.

    L = mean over steps t of  - 1 / |Msub_t| * sum over k in Msub_t of (1 + gamma I_k) log p(x_k | canvas of step t)

The order and the influences come from the model as it is (`learner.guide`): one forward without gradients an example.
Influences are constants of the gradient, and the weights are not scaled back to a mean of 1: with AdamW and clipping
the common factor cancels, and their ratios do not.

    gamma 0                          the order alone
    gamma 0, step map = block index  blockwise fine-tuning, to the last bit
    every I equal to 1               (1 + gamma) times the order alone

In families with block-causal attention the blocks of the order are those of the attention, and steps are merged inside
a block only: a slot there never sees a masked slot of an earlier block.

Symbols: T response slots.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from learner.agdo import Guide, guide_statistics, merged
from learner.guide import FinishedText
from learner.masking import block_index, compressed, generator_of, scored_slots, step_canvases
from learner.sft import MaskedExample, SftExample
from learner.sft_config import AgdoMasking

_CONTROL = 1
"""Random numbers of the control arms have a stream of their own, so that all arms draw the same masks in a step."""


def finished_texts(examples: Sequence[SftExample], masking: AgdoMasking) -> list[FinishedText]:
    """What the guide looks at: the whole example, of which the scored slots are ordered."""
    return [
        FinishedText(
            example.prompt_tokens, example.tokens, scored_slots(example, masking.post_num), example.block_length
        )
        for example in examples
    ]


def agdo_canvases(
    examples: Sequence[SftExample], guides: Sequence[Guide], masking: AgdoMasking, *, seed: int, step: int
) -> list[MaskedExample]:
    """Canvases of each example along its guide, or along the control that `masking` asks for."""
    masked = []
    for b, (example, guide) in enumerate(zip(examples, guides, strict=True)):
        control = np.random.default_rng([seed, step, b, _CONTROL])
        step_T, num_steps = guide.step_T, guide.num_steps
        if masking.order == "random":
            step_T, num_steps = _random_order(example, guide, masking, control)
        step_T, num_steps = _merge(example, step_T, num_steps, masking)
        weight_T = influence_weights(guide, masking, control)
        unmerged = masking.model_copy(update={"num_canvases": None})
        canvases = step_canvases(step_T, num_steps, weight_T, generator_of(seed, step, b), unmerged)
        masked.append(MaskedExample(example, canvases))
    return masked


def influence_weights(guide: Guide, masking: AgdoMasking, random: np.random.Generator) -> np.ndarray:
    """(T,) float32. 1 + gamma I of each slot; `shuffled`: the influences of the ordered slots change places."""
    influence_T = guide.influence_T.astype(np.float32)
    if masking.weights == "shuffled":
        influence_T = influence_T.copy()
        influence_T[guide.ranked_T] = random.permutation(influence_T[guide.ranked_T])
    return (1.0 + np.float32(masking.gamma) * influence_T).astype(np.float32)


def mean_statistics(guides: Sequence[Guide]) -> dict[str, float]:
    """Statistics of influence and row mass: means over the examples, of the largest entries the largest."""
    found = [numbers for guide in guides if (numbers := guide_statistics(guide))]
    names = found[0] if found else {}
    return {
        name: float((np.max if name.endswith("_max") else np.mean)([numbers[name] for numbers in found]))
        for name in names
    }


def _random_order(
    example: SftExample, guide: Guide, masking: AgdoMasking, random: np.random.Generator
) -> tuple[np.ndarray, int]:
    """As the trace: blocks from left to right, `slots_per_rank` slots a rank, but the ranks are drawn."""
    num_slots = len(example.tokens)
    rank_T = np.zeros(num_slots, dtype=np.int64)
    ranked = np.flatnonzero(guide.ranked_T)
    rank_T[random.permutation(ranked)] = np.arange(len(ranked)) // masking.slots_per_rank
    length = masking.block_length or num_slots
    block_T = block_index(example, example.block_length or length)
    return compressed(block_T * (num_slots + 1) + rank_T, guide.ranked_T)


def _merge(example: SftExample, step_T: np.ndarray, num_steps: int, masking: AgdoMasking) -> tuple[np.ndarray, int]:
    """At most `num_canvases` steps; in block-causal families an equal share for each attention block, at least one."""
    if not example.block_length or masking.num_canvases is None:
        return merged(step_T, num_steps, most=masking.num_canvases)
    block_T, ranked_T = block_index(example, example.block_length), step_T < num_steps
    blocks = np.unique(block_T[ranked_T])
    most = max(1, masking.num_canvases // max(len(blocks), 1))
    key_T = np.zeros(len(step_T), dtype=np.int64)
    for block in blocks:
        own_T = ranked_T & (block_T == block)
        key_T[own_T] = block * (most + 1) + merged(*compressed(step_T, own_T), most=most)[0][own_T]
    return compressed(key_T, ranked_T)
