"""Attention-guided order and influence (AGDO, arXiv 2606.12273): pure functions of attention matrices.

A is the attention of the finished text, prompt and answer, averaged over heads: rows are queries and sum to 1. Two
opposite sums of it guide the training:

    order      a slot that looks mostly at what is known comes early: S_i = sum over known k of A[i, k], a row sum
    influence  a slot that is looked at a lot weighs more:            I_k = sum over queries i of A[i, k], a column sum

The trace (Algorithm 1) starts with the prompt as what is known, and takes the `slots_per_rank` slots of highest S
again and again, each of them known from then on. It is block-major: blocks come from left to right, and inside a
block the ranks decide.

    A = | .55 .05 .10 .30 |   position 0 is the prompt; one slot a rank, one block:
        | .50 .20 .20 .10 |   S = (.5, .1, .2) -> slot 0; then (-, .7, .3) -> slot 1; then slot 2
        | .10 .60 .20 .10 |   influence over all queries: (.95, 1.10, .60)
        | .20 .10 .60 .10 |

`guided_masks` turns the steps of a trace into the masks of its canvases:

    step t:   masked = slots of later steps and RandomMask(slots of step t);   scored = RandomMask(slots of step t)

Ours where the paper is silent: blocks count from the first response slot (in block-causal families from position 0,
as their attention does); slots after the answer's end are not ranked, are no queries of the influence, and stay masked
in every canvas; an empty RandomMask is drawn again.

Symbols: B texts, P prompt tokens, T response slots, N = P + T, K scored slots of one canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from learner.config import AgdoConfig


@dataclass(frozen=True, slots=True)
class Guide:
    """What the attention of one finished text says about its response."""

    ranked_T: np.ndarray
    """(T,) bool. Slots that were ordered."""
    step_T: np.ndarray
    """(T,) int64. Step 0..S-1 of each ranked slot; S for the others."""
    num_steps: int
    """S."""
    influence_T: np.ndarray
    """(T,) float32. I of each ranked slot; 0 for the others."""
    row_mass_T: np.ndarray
    """(T,) float32. S of each ranked slot when it was chosen; 0 for the others."""


def greedy_trace(
    attention_BTT: torch.Tensor, prompt_mass_BT: torch.Tensor, turn_BT: torch.Tensor, *, slots_per_rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank of each slot (int64, from 0), and its row mass when it was chosen (Algorithm 1, lines 1 to 9).

    `attention_BTT`: attention of slots (rows) to slots. `prompt_mass_BT`: row mass on the prompt, where the greedy
    choice begins. `turn_BT`: int64, slots of turn 0 are chosen before those of turn 1 and so on; -1 is never chosen and
    gets rank -1. Ties go to the lower slot. The mass is kept up to date by adding the columns of what was chosen.
    """
    mass_BT = prompt_mass_BT.clone()
    rank_BT, chosen_mass_BT = torch.full_like(turn_BT, -1), torch.zeros_like(mass_BT)
    left_BT = turn_BT >= 0
    rank, last = 0, int(turn_BT.max()) + 1
    while bool(left_BT.any()):
        now_B1 = torch.where(left_BT, turn_BT, last).amin(dim=1, keepdim=True)
        eligible_BT = left_BT & (turn_BT == now_B1)
        order_BT = torch.where(eligible_BT, mass_BT, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        first_BK = order_BT[:, :slots_per_rank]
        is_chosen_BK = eligible_BT.gather(1, first_BK)
        chosen_BT = torch.zeros_like(left_BT).scatter(1, first_BK, is_chosen_BK)
        rank_BT[chosen_BT] = rank
        chosen_mass_BT[chosen_BT] = mass_BT[chosen_BT]
        column_BTK = attention_BTT.gather(2, first_BK[:, None, :].expand(-1, attention_BTT.shape[1], -1))
        mass_BT = mass_BT + (column_BTK * is_chosen_BK[:, None, :]).sum(dim=2)
        left_BT, rank = left_BT & ~chosen_BT, rank + 1
    return rank_BT, chosen_mass_BT


def influence(attention_NN: torch.Tensor, query_N: torch.Tensor, *, config: AgdoConfig) -> torch.Tensor:
    """I_k of every position: the column sum over the queries, cut off at `influence_cap` and scaled if configured."""
    column_N = attention_NN[query_N].sum(dim=0)
    if config.influence_cap is not None:
        column_N = column_N.clamp(max=config.influence_cap)
    return column_N


def guides(
    attentions: Sequence[torch.Tensor],
    ranked: Sequence[np.ndarray],
    *,
    config: AgdoConfig,
    attention_block_length: int | None = None,
) -> list[Guide]:
    """Order and influence of several texts.

    `attentions`: (N, N) each; the last T positions are the response, T the length of the text's `ranked` (bool).
    `attention_block_length`: of a block-causal family; blocks of the order then count from position 0.
    """
    if not attentions:
        return []
    num_slots = max(len(ranked_T) for ranked_T in ranked)
    size, like = len(attentions), attentions[0]
    attention_BTT, prompt_mass_BT = like.new_zeros(size, num_slots, num_slots), like.new_zeros(size, num_slots)
    turn_BT = torch.full((size, num_slots), -1, dtype=torch.int64, device=like.device)
    blocks = []
    for b, (matrix_NN, ranked_T) in enumerate(zip(attentions, ranked, strict=True)):
        length = len(ranked_T)
        start = len(matrix_NN) - length
        if start < 1:
            raise ValueError(f"text {b} has {len(matrix_NN)} tokens, {length} of them slots: it needs a prompt")
        attention_BTT[b, :length, :length] = matrix_NN[start:, start:]
        prompt_mass_BT[b, :length] = matrix_NN[start:, :start].sum(dim=1)
        block_T = _blocks(length, start, config, attention_block_length)
        turn_T = block_T if config.within_block else np.zeros(length, dtype=np.int64)
        turn_BT[b, :length] = torch.from_numpy(np.where(ranked_T, turn_T, -1)).to(like.device)
        blocks.append(block_T)
    rank_BT, mass_BT = greedy_trace(attention_BTT, prompt_mass_BT, turn_BT, slots_per_rank=config.slots_per_rank)
    found = zip(attentions, ranked, blocks, rank_BT.cpu().numpy(), mass_BT.float().cpu().numpy(), strict=True)
    return [_guide(*parts, config=config) for parts in found]


def _blocks(num_slots: int, start: int, config: AgdoConfig, attention_block_length: int | None) -> np.ndarray:
    """Which block of the order each slot is in."""
    if attention_block_length is not None:
        return (start + np.arange(num_slots)) // attention_block_length
    return np.arange(num_slots) // (config.block_length or max(num_slots, 1))


def _guide(
    attention_NN: torch.Tensor,
    ranked_T: np.ndarray,
    block_T: np.ndarray,
    rank_T: np.ndarray,
    mass_T: np.ndarray,
    *,
    config: AgdoConfig,
) -> Guide:
    length = len(ranked_T)
    key_T = block_T * (length + 1) + rank_T[:length]
    steps, compressed = np.unique(key_T[ranked_T], return_inverse=True)
    step_T = np.full(length, len(steps), dtype=np.int64)
    step_T[ranked_T] = compressed
    query_N = np.concatenate([np.ones(len(attention_NN) - length, dtype=bool), ranked_T])
    influence_N = influence(attention_NN, torch.from_numpy(query_N).to(attention_NN.device), config=config)
    influence_T = np.where(ranked_T, influence_N.float().cpu().numpy()[-length:] if length else 0.0, 0.0)
    if config.normalise_influence and ranked_T.any():
        influence_T = influence_T / influence_T[ranked_T].mean()
    row_mass_T = np.where(ranked_T, mass_T[:length], 0.0)
    return Guide(
        ranked_T=ranked_T,
        step_T=step_T,
        num_steps=len(steps),
        influence_T=influence_T.astype(np.float32),
        row_mass_T=row_mass_T.astype(np.float32),
    )


# ---- from steps to masks


def merged(step_T: np.ndarray, num_steps: int, *, most: int | None) -> tuple[np.ndarray, int]:
    """Consecutive steps joined into at most `most` of about equal numbers of steps; and how many there are then.

    Slots of step `num_steps` (those that are not ranked) stay behind all others.
    """
    if most is None or num_steps <= most:
        return step_T, num_steps
    return np.where(step_T >= num_steps, most, step_T * most // num_steps), most


def random_subset(slot_K: np.ndarray, random: np.random.Generator, *, config: AgdoConfig) -> np.ndarray:
    """RandomMask: each slot has its own rate p ~ U(rate_low, rate_high) and is kept with probability p.

    An empty draw is drawn again (`empty: redraw`) or returned as it is (`empty: skip`).
    """
    while True:
        rate_K = random.uniform(config.rate_low, config.rate_high, len(slot_K))
        kept_K = slot_K[random.random(len(slot_K)) < rate_K]
        if len(kept_K) or len(slot_K) == 0 or config.empty == "skip":
            return kept_K


def guided_masks(
    step_T: np.ndarray, num_steps: int, random: np.random.Generator, *, config: AgdoConfig
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(masked_T bool, scored slots K) of each step's canvas; steps without a scored slot have none."""
    step_T, num_steps = merged(step_T, num_steps, most=config.num_canvases)
    canvases = []
    for step in range(num_steps):
        scored_K = random_subset(np.flatnonzero(step_T == step), random, config=config)
        if len(scored_K):
            masked_T = step_T > step
            masked_T[scored_K] = True
            canvases.append((masked_T, scored_K))
    return canvases


# ---- what to look at: whether a sink takes the attention


def guide_statistics(guide: Guide) -> dict[str, float]:
    """Mean, quantiles and largest entry of influence and row mass over the ranked slots of one text.

    `influence_top_share` is the share of the largest entry in their sum: near 1, one column (a sink) has it all.
    """
    if not guide.ranked_T.any():
        return {}
    found = {"steps": float(guide.num_steps)}
    for name, value_T in (("influence", guide.influence_T), ("row_mass", guide.row_mass_T)):
        value_K = value_T[guide.ranked_T].astype(np.float64)
        low, middle, high = np.quantile(value_K, (0.1, 0.5, 0.9))
        found |= {f"{name}_mean": float(value_K.mean()), f"{name}_q10": float(low), f"{name}_q50": float(middle)}
        found |= {f"{name}_q90": float(high), f"{name}_max": float(value_K.max())}
    total = float(guide.influence_T.sum())
    found["influence_top_share"] = float(guide.influence_T.max()) / total if total > 0 else 0.0
    return found
