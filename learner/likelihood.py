"""Log-probabilities of answers from rebuilt canvases.

An estimator (`learner.estimators`) turns one trajectory into canvases: for each, which slots are masked and which are
scored, with what weight. `plan_canvases` lays the canvases of many trajectories into one flat list, `micro_batches`
cuts it by a token budget (`learner.plan`), and `score` runs one micro-batch: one pass of the backbone over packed
tokens, the last layer's queries and feed-forward and the vocabulary head at the scored slots only.

In a block-causal family a canvas ends with the block of its scored slots, because later blocks were absent.

Symbols: M scored slots of all canvases or of one micro-batch, W those of one in the order of its tokens, K scored slots
of one canvas, T response slots, B trajectories, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from learner.layout import lay_out
from learner.plan import CanvasPlan, micro_batches, plan_canvases
from learner.replay import trace_exact
from models import Denoiser, token_logprobs
from rollout.records import Trajectory

MICRO_BATCH_TOKENS = 16384


@dataclass(frozen=True, slots=True)
class ScoredSlots:
    """What one micro-batch found, M of the plan's slots."""

    index_M: torch.Tensor
    """int64, on the CPU. Places in the plan's flat arrays."""
    logprob_M: torch.Tensor
    """float32, differentiable."""
    entropy_M: torch.Tensor
    """float32, nats, detached. Entropy of the untempered prediction."""


def score(denoiser: Denoiser, plan: CanvasPlan, group: Sequence[int], *, temperature: float) -> ScoredSlots:
    """Log-probabilities of the slots that one micro-batch of canvases scores."""
    layout = lay_out(denoiser, plan, group)
    hidden_WD = denoiser.start(layout.token_M, layout.packing).hidden(layout.flat_W, layout.counts)
    logprob_W, entropy_W = token_logprobs(denoiser, hidden_WD, layout.target_W, temperature=temperature)
    return ScoredSlots(layout.index_W, logprob_W, entropy_W)


def sequence_logprobs(
    denoiser: Denoiser,
    prompts: Sequence[Sequence[int]],
    trajectories: Sequence[Trajectory],
    *,
    temperature: float,
    micro_batch_tokens: int = MICRO_BATCH_TOKENS,
) -> list[torch.Tensor]:
    """Log-probability of every committed token at its own step, float32 (T,) a trajectory; 0 where never committed.

    With the weights and the temperature of the rollout this equals the recorded `logprobs`. Temperature 0 is scored as
    1, like the record of a greedy answer. There is one prompt a trajectory, or one for each run of `num_samples`
    trajectories, as `Engine.generate` returns them. Differentiable; the graph then holds all micro-batches at once, so
    training goes through `policy_update` instead.
    """
    trajectories = [_with_prompt(t, p) for t, p in zip(trajectories, _repeated(prompts, trajectories), strict=True)]
    wanted = [trajectory.committed for trajectory in trajectories]
    plan = plan_canvases(trajectories, wanted, estimator=trace_exact, family=denoiser.family)
    parts = [score(denoiser, plan, g, temperature=temperature) for g in micro_batches(plan, micro_batch_tokens)]
    lengths = [len(trajectory.tokens) for trajectory in trajectories]
    if not parts:
        return [torch.zeros(length, device=denoiser.device) for length in lengths]
    offset_B = np.cumsum(lengths) - lengths
    place_M = torch.from_numpy(offset_B[plan.sample_M] + plan.slot_M)
    index_M, logprob_M = (torch.cat(found) for found in zip(*((p.index_M, p.logprob_M) for p in parts), strict=True))
    flat = logprob_M.new_zeros(sum(lengths)).index_put((place_M[index_M].to(denoiser.device),), logprob_M)
    return list(flat.split(lengths))


def _repeated(prompts: Sequence[Sequence[int]], trajectories: Sequence[Trajectory]) -> list[Sequence[int]]:
    if not trajectories and not prompts:
        return []
    if not prompts or len(trajectories) % len(prompts):
        raise ValueError(
            f"{len(prompts)} prompts for {len(trajectories)} trajectories: give one prompt a trajectory, or one for "
            "each group, all groups of one size"
        )
    num_samples = len(trajectories) // len(prompts)
    return [prompt for prompt in prompts for _ in range(num_samples)]


def _with_prompt(trajectory: Trajectory, prompt: Sequence[int]) -> Trajectory:
    """The trajectory, checked against the prompt it is said to answer."""
    tokens = np.asarray(prompt, dtype=np.int64)
    recorded = trajectory.prompt_tokens
    if len(recorded) and not np.array_equal(recorded, tokens):
        raise ValueError(
            f"a trajectory of prompt {recorded[:8].tolist()}... was given with prompt {tokens[:8].tolist()}...: "
            "prompts and trajectories must be in the same order"
        )
    return replace(trajectory, prompt_tokens=tokens)
