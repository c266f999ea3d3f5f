"""Log-probabilities of answers from rebuilt canvases.

An estimator turns one trajectory into canvases: for each, which slots are masked and which are scored, with what
weight. `plan_canvases` lays the canvases of many trajectories into one flat list, `micro_batches` cuts it by a token
budget (`learner.plan`), and `score` runs one micro-batch: one pass of the backbone over packed tokens, the last layer's
queries and feed-forward and the vocabulary head at the scored slots only.

    trace_exact   step s: masked where step_map >= s, scored the slots of step s   exact for position-first samplers
    ar_exact      slot k: masked from k on, scored slot k                          exact for left-to-right answers

Both rebuild what the rollout saw: a slot that was never committed (step_map = S) stays masked in every canvas, and in a
block-causal family the canvas ends with the block of its scored slots, because later blocks were absent.

For a rule that chooses positions from the prediction the recorded order is a condition, not part of the likelihood: the
gradient ignores that other weights would rank the slots otherwise.

Symbols: M scored slots of all canvases or of one micro-batch, W those of one in the order of its tokens, K scored slots
of one canvas, T response slots, B trajectories, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from learner.layout import lay_out
from learner.plan import Canvas, CanvasPlan, Estimator, micro_batches, plan_canvases
from models import Denoiser, token_logprobs
from rollout.records import Trajectory

MICRO_BATCH_TOKENS = 16384


def trace_exact(trajectory: Trajectory, wanted_T: np.ndarray) -> list[Canvas]:
    """One canvas a denoising step, as it was: exact for every position-first sampler, parallel commits included."""
    require_exact(trajectory)
    step_map = trajectory.step_map
    steps = np.unique(step_map[wanted_T])
    return [_canvas(step_map >= step, np.flatnonzero(wanted_T & (step_map == step))) for step in steps]


def ar_exact(trajectory: Trajectory, wanted_T: np.ndarray) -> list[Canvas]:
    """One canvas a slot, everything from it on masked (JustGRPO): exact for answers drawn left to right."""
    require_exact(trajectory)
    num_committed = int(trajectory.committed.sum())
    left_to_right = np.arange(num_committed)
    if not np.array_equal(trajectory.step_map[:num_committed], left_to_right):
        raise ValueError(
            "likelihood 'ar_exact' needs answers drawn left to right, one token a step, but sampler "
            f"{trajectory.sampler!r} committed its first slots at steps {trajectory.step_map[:8].tolist()}: use "
            "sampler 'ar' with tokens_per_step 1, or likelihood 'trace_exact'"
        )
    slot_T = np.arange(len(trajectory.tokens))
    return [_canvas(slot_T >= slot, np.array([slot])) for slot in np.flatnonzero(wanted_T)]


ESTIMATORS: dict[str, Estimator] = {"trace_exact": trace_exact, "ar_exact": ar_exact}


def require_exact(trajectory: Trajectory) -> None:
    """Refuse answers whose tokens were not drawn from a law that a rebuilt canvas gives."""
    if not trajectory.exact_likelihood:
        raise ValueError(
            f"sampler {trajectory.sampler!r} draws tokens before it chooses positions, so its answers have no exact "
            "likelihood at temperature > 0; use a position-first sampler: ar, random, confidence, margin, entropy or "
            "threshold"
        )
    if (trajectory.top_p < 1 or trajectory.top_k > 0) and trajectory.temperature > 0:
        cut = f"top_p is {trajectory.top_p}" if trajectory.top_p < 1 else f"top_k is {trajectory.top_k}"
        raise ValueError(
            f"{cut}: the law drawn from was cut off, and other weights would cut it off elsewhere; answers to be "
            "scored must be drawn with temperature alone (top_p: 1, top_k: 0)"
        )


def _canvas(masked_T: np.ndarray, slot_K: np.ndarray) -> Canvas:
    return Canvas(masked_T, slot_K, np.ones(len(slot_K), dtype=np.float32))


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
