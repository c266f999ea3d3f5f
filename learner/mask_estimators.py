"""Estimators that draw masks of their own, whatever order an answer was made in.

With T' wanted slots, of which a canvas hides and scores the set M (weights in brackets; n draws):

    one_step(p)     [1]                all slots, and each prompt token with probability p        diffu-GRPO 2504.12216
    coupled         [1/2]              all slots; then                                          coupled-GRPO 2506.20639
                    [1/(2r)]           M of rate r ~ U(low, high), and
                    [1/(2 (1-r))]      its complement
    random_mask(n)  [T'/(n |M|)]       each slot with rate t ~ U(low, high)                          UniGRPO 2505.15809
    elbo(n)         [T'/(n l)]         size l ~ U{1..T'}, M of that size                               LLaDA 2502.09992
    elbo_pair(n)    [(T'+1)/(2 n l)]   size l ~ U{0..T'}, M of that size, and                           ESPO 2512.03759
                    [(T'+1)/(2 n (T'-l))]  its complement
    block_mask(n)   [T'/(n |M|)]       a random block: each of its slots with rate t ~ U(0, 1), all      SPG 2510.09541
                                       later slots, and tokens of prompt and earlier blocks with probability p

The weights of an answer sum to T', in expectation or exactly, so every normaliser means with them what it means with
an exact likelihood. The mean of `elbo` and of `elbo_pair` over their draws is a lower bound on log p of any-order
decoding, reached when the model's conditionals are those of one joint law.

Slots that are not wanted (after the answer's end) are masked in every canvas and never scored. In a family with
block-causal attention a canvas becomes one for each block, with the blocks before it clean (`by_block`): its own
blocks are what such a model conditions on, and the weights hold, because restricting a uniformly random set to a block
leaves it uniformly random.

Symbols: K scored slots of one canvas, P prompt tokens, T response slots.
"""

from __future__ import annotations

import numpy as np

from learner.objective_config import EstimatorConfig
from learner.plan import Canvas
from learner.replay import weighted_canvas
from rollout.records import Trajectory

PROMPT_RATE = 0.15
"""Of d1's recipe and of SPG."""


def one_step(
    trajectory: Trajectory, wanted_T: np.ndarray, config: EstimatorConfig, random: np.random.Generator
) -> list[Canvas]:
    """Everything from one canvas of masks: the model's marginals, as if slots were independent given the prompt."""
    slot_K = np.flatnonzero(wanted_T)
    if len(slot_K) == 0:
        return []
    rate = PROMPT_RATE if config.prompt_mask_rate is None else config.prompt_mask_rate
    return [weighted_canvas(np.ones(len(wanted_T), dtype=bool), slot_K, 1.0, _hidden(trajectory, rate, random))]


def coupled(
    trajectory: Trajectory, wanted_T: np.ndarray, config: EstimatorConfig, random: np.random.Generator
) -> list[Canvas]:
    """All slots, and an antithetic pair of masks: each slot is scored twice."""
    slot_K = np.flatnonzero(wanted_T)
    rate = random.uniform(*config.rates("coupled"))
    is_first_K = random.random(len(slot_K)) < rate
    parts = (
        (slot_K, 0.5),
        (slot_K[is_first_K], 0.5 / rate),
        (slot_K[~is_first_K], 0.5 / (1 - rate)),
    )
    return [_canvas(wanted_T, scored_K, weight) for scored_K, weight in parts if len(scored_K)]


def random_mask(
    trajectory: Trajectory, wanted_T: np.ndarray, config: EstimatorConfig, random: np.random.Generator
) -> list[Canvas]:
    """n canvases of random rates; the mean over canvases of the mean over their masked slots, times T'."""
    slot_K = np.flatnonzero(wanted_T)
    if len(slot_K) == 0:
        return []
    low, high = config.rates("random_mask")
    canvases = []
    for place in spread(config.num_draws, random):
        scored_K = _nonempty(slot_K, low + place * (high - low), random)
        weight = len(slot_K) / (config.num_draws * len(scored_K))
        hidden_P = _hidden(trajectory, config.prompt_mask_rate or 0.0, random)
        canvases.append(_canvas(wanted_T, scored_K, weight, hidden_P))
    return canvases


def elbo(
    trajectory: Trajectory, wanted_T: np.ndarray, config: EstimatorConfig, random: np.random.Generator
) -> list[Canvas]:
    """n canvases of a random number of masked slots, each size equally likely."""
    slot_K = np.flatnonzero(wanted_T)
    canvases = []
    for place in spread(config.num_draws if len(slot_K) else 0, random):
        size = 1 + int(place * len(slot_K))
        scored_K = np.sort(random.choice(slot_K, size, replace=False))
        canvases.append(_canvas(wanted_T, scored_K, len(slot_K) / (config.num_draws * size)))
    return canvases


def elbo_pair(
    trajectory: Trajectory, wanted_T: np.ndarray, config: EstimatorConfig, random: np.random.Generator
) -> list[Canvas]:
    """n pairs of a mask and its complement; together they score each slot once a pair."""
    slot_K = np.flatnonzero(wanted_T)
    length, canvases = len(slot_K), []
    for place in spread(config.num_draws if length else 0, random):
        size = int(place * (length + 1))
        shuffled_K = random.permutation(slot_K)
        for scored_K in (shuffled_K[:size], shuffled_K[size:]):
            if len(scored_K):
                weight = (length + 1) / (2 * config.num_draws * len(scored_K))
                canvases.append(_canvas(wanted_T, np.sort(scored_K), weight))
    return canvases


def block_mask(
    trajectory: Trajectory, wanted_T: np.ndarray, config: EstimatorConfig, random: np.random.Generator
) -> list[Canvas]:
    """n canvases as semi-autoregressive decoding meets them: a random block in the middle of being denoised."""
    slot_K = np.flatnonzero(wanted_T)
    if len(slot_K) == 0:
        return []
    rate = PROMPT_RATE if config.prompt_mask_rate is None else config.prompt_mask_rate
    block_K = slot_K // trajectory.block_length
    canvases = []
    for _ in range(config.num_draws):
        block = random.choice(np.unique(block_K))
        inside_K = _nonempty(slot_K[block_K == block], random.random(), random)
        before_K = slot_K[block_K < block]
        before_K = before_K[random.random(len(before_K)) < rate]
        scored_K = np.concatenate([before_K, inside_K, slot_K[block_K > block]])
        weight = len(slot_K) / (config.num_draws * len(scored_K))
        canvases.append(_canvas(wanted_T, scored_K, weight, _hidden(trajectory, rate, random)))
    return canvases


def by_block(trajectory: Trajectory, canvases: list[Canvas]) -> list[Canvas]:
    """Each canvas as one canvas for each attention block that it scores slots of, with the blocks before it clean."""
    parts = []
    for canvas in canvases:
        block_T = (len(trajectory.prompt_tokens) + np.arange(len(canvas.masked_T))) // trajectory.block_length
        for block in np.unique(block_T[canvas.slot_K]).tolist():
            is_here_K = block_T[canvas.slot_K] == block
            masked_T = canvas.masked_T & (block_T >= block)
            parts.append(Canvas(masked_T, canvas.slot_K[is_here_K], canvas.weight_K[is_here_K], canvas.prompt_masked_P))
    return parts


def spread(num_draws: int, random: np.random.Generator) -> np.ndarray:
    """n numbers in [0, 1), each uniform, one in each n-th part, in random order: draws of low discrepancy."""
    return (random.permutation(num_draws) + random.random(num_draws)) / max(num_draws, 1)


def _canvas(
    wanted_T: np.ndarray, scored_K: np.ndarray, weight: float, prompt_masked_P: np.ndarray | None = None
) -> Canvas:
    """Masked: what is scored, and what is not wanted."""
    masked_T = ~wanted_T
    masked_T[scored_K] = True
    return weighted_canvas(masked_T, scored_K, weight, prompt_masked_P)


def _hidden(trajectory: Trajectory, rate: float, random: np.random.Generator) -> np.ndarray | None:
    """Prompt tokens to hide."""
    hidden_P = random.random(len(trajectory.prompt_tokens)) < rate
    return hidden_P if hidden_P.any() else None


def _nonempty(slot_K: np.ndarray, rate: float, random: np.random.Generator) -> np.ndarray:
    """Each slot with one probability; where that leaves none, one slot at random (the law at vanishing rates)."""
    kept_K = slot_K[random.random(len(slot_K)) < rate]
    return kept_K if len(kept_K) else slot_K[random.integers(len(slot_K), size=1)]
