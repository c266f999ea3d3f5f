"""Log-probabilities of answers from rebuilt canvases.

An estimator turns one trajectory into canvases: for each, which slots are masked and which are scored, with what
weight. `plan_canvases` lays the canvases of many trajectories into one flat list, `micro_batches` cuts it by a token
budget, and `score` runs one micro-batch: one pass of the backbone, the vocabulary head at the scored slots only.

    trace_exact   step s: masked where step_map >= s, scored the slots of step s   exact for position-first samplers
    ar_exact      slot k: masked from k on, scored slot k                          exact for left-to-right answers

Both rebuild what the rollout saw: a slot that was never committed (step_map = S) stays masked in every canvas, and in a
block-causal family the canvas ends with the block of its scored slots, because later blocks were absent.

For a rule that chooses positions from the prediction the recorded order is a condition, not part of the likelihood: the
gradient ignores that other weights would rank the slots otherwise.

Symbols: C canvases, M scored slots of all canvases or of one micro-batch, K scored slots of one canvas, P prompt
tokens, T response slots, B canvases of a micro-batch, N canvas tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from models import Denoiser, token_logprobs
from rollout.records import Trajectory

MICRO_BATCH_TOKENS = 16384


@dataclass(frozen=True, slots=True)
class Canvas:
    """One canvas of one answer; the slots that are not masked hold their final tokens."""

    masked_T: np.ndarray
    """(T,) bool."""
    slot_K: np.ndarray
    """(K,) int64, K >= 1. Slots whose final tokens are scored, all of them masked."""
    weight_K: np.ndarray
    """(K,) float32. Factor of each slot's term in an objective; 1 in exact likelihoods."""


Estimator = Callable[[Trajectory, np.ndarray], list[Canvas]]
"""(trajectory, wanted_T) -> canvases that score the wanted slots (bool)."""


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
    if trajectory.top_p < 1 and trajectory.temperature > 0:
        raise ValueError(
            f"top_p is {trajectory.top_p}: the law drawn from was cut off, and other weights would cut it off "
            "elsewhere; answers to be scored must be drawn with temperature alone (top_p: 1)"
        )


def _canvas(masked_T: np.ndarray, slot_K: np.ndarray) -> Canvas:
    return Canvas(masked_T, slot_K, np.ones(len(slot_K), dtype=np.float32))


@dataclass(frozen=True, slots=True)
class CanvasPlan:
    """The canvases of many answers, and their scored slots as flat arrays in the same order."""

    trajectories: Sequence[Trajectory]
    canvases: Sequence[Canvas]
    sample_C: np.ndarray
    """(C,) int64. Which trajectory each canvas belongs to."""
    num_tokens_C: np.ndarray
    """(C,) int64. Tokens of each canvas, the prompt included."""
    block_length_C: np.ndarray
    """(C,) int64. Attention block; 0 in bidirectional families."""
    start_C: np.ndarray
    """(C,) int64. Where the scored slots of each canvas begin in the flat arrays."""
    sample_M: np.ndarray
    slot_M: np.ndarray
    weight_M: np.ndarray

    @property
    def num_slots(self) -> int:
        """M."""
        return len(self.slot_M)


def plan_canvases(
    trajectories: Sequence[Trajectory], wanted: Sequence[np.ndarray], *, estimator: Estimator, block_causal: bool
) -> CanvasPlan:
    """Canvases that score the wanted slots (bool (T,), one array a trajectory)."""
    canvases: list[Canvas] = []
    samples: list[int] = []
    for sample, (trajectory, wanted_T) in enumerate(zip(trajectories, wanted, strict=True)):
        if len(trajectory.prompt_tokens) == 0:
            raise ValueError(f"trajectory {sample} has no prompt tokens: scoring needs at least one before the answer")
        own = estimator(trajectory, wanted_T)
        canvases += own
        samples += [sample] * len(own)
    num_scored_C = np.array([len(canvas.slot_K) for canvas in canvases], dtype=np.int64)
    sample_C = np.array(samples, dtype=np.int64)
    return CanvasPlan(
        trajectories=trajectories,
        canvases=canvases,
        sample_C=sample_C,
        num_tokens_C=np.array(
            [_num_tokens(trajectories[s], c, block_causal) for s, c in zip(samples, canvases, strict=True)],
            dtype=np.int64,
        ),
        block_length_C=np.array([trajectories[s].block_length if block_causal else 0 for s in samples], dtype=np.int64),
        start_C=num_scored_C.cumsum() - num_scored_C,
        sample_M=sample_C.repeat(num_scored_C),
        slot_M=_concatenate([canvas.slot_K for canvas in canvases], np.int64),
        weight_M=_concatenate([canvas.weight_K for canvas in canvases], np.float32),
    )


def _num_tokens(trajectory: Trajectory, canvas: Canvas, block_causal: bool) -> int:
    """The whole canvas, or, where later blocks are invisible, up to the end of the last scored slot's block."""
    num_prompt, length = len(trajectory.prompt_tokens), trajectory.block_length
    whole = num_prompt + len(trajectory.tokens)
    if not block_causal:
        return whole
    last_position = num_prompt + int(canvas.slot_K[-1])
    return min((last_position // length + 1) * length, whole)


def _concatenate(parts: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)


def micro_batches(plan: CanvasPlan, micro_batch_tokens: int) -> list[list[int]]:
    """Indices of canvases in groups whose padded size (canvases x longest) stays within the budget.

    Longest first, so that neighbours are of similar length and memory peaks in the first group. A canvas longer than
    the budget goes alone. A group has one attention block length.
    """
    if micro_batch_tokens < 1:
        raise ValueError(f"micro_batch_tokens must be at least 1, got {micro_batch_tokens}")
    groups: list[list[int]] = []
    for canvas in np.lexsort((-plan.num_tokens_C, plan.block_length_C)).tolist():
        if groups:
            longest = groups[-1][0]
            fits = (len(groups[-1]) + 1) * int(plan.num_tokens_C[longest]) <= micro_batch_tokens
            if fits and plan.block_length_C[longest] == plan.block_length_C[canvas]:
                groups[-1].append(canvas)
                continue
        groups.append([canvas])
    return groups


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
    batch = _collate(denoiser, plan, group)
    block_length = int(plan.block_length_C[group[0]]) or None
    hidden_BND = denoiser.hidden(batch.tokens_BN, valid_BN=batch.valid_BN, block_length=block_length)
    hidden_MD = denoiser.aligned(hidden_BND, batch.row_M, batch.position_M)
    logprob_M, entropy_M = token_logprobs(denoiser, hidden_MD, batch.token_M, temperature=temperature)
    return ScoredSlots(batch.index_M, logprob_M, entropy_M)


@dataclass(frozen=True, slots=True)
class _Batch:
    tokens_BN: torch.Tensor
    valid_BN: torch.Tensor | None
    row_M: torch.Tensor
    position_M: torch.Tensor
    token_M: torch.Tensor
    index_M: torch.Tensor


def _collate(denoiser: Denoiser, plan: CanvasPlan, group: Sequence[int]) -> _Batch:
    """Right-padded canvases with masks in place, and where their scored slots are."""
    num_tokens_B = plan.num_tokens_C[list(group)]
    tokens_BN = np.full((len(group), int(num_tokens_B.max())), denoiser.eos_token_id, dtype=np.int64)
    rows, positions, tokens, indices = [], [], [], []
    for row, index in enumerate(group):
        canvas, trajectory = plan.canvases[index], plan.trajectories[plan.sample_C[index]]
        num_prompt, end = len(trajectory.prompt_tokens), int(plan.num_tokens_C[index])
        response_T = np.where(canvas.masked_T, denoiser.mask_token_id, trajectory.tokens)
        tokens_BN[row, :num_prompt] = trajectory.prompt_tokens
        tokens_BN[row, num_prompt:end] = response_T[: end - num_prompt]
        rows.append(np.full(len(canvas.slot_K), row))
        positions.append(num_prompt + canvas.slot_K)
        tokens.append(trajectory.tokens[canvas.slot_K])
        indices.append(plan.start_C[index] + np.arange(len(canvas.slot_K)))
    valid_BN = np.arange(tokens_BN.shape[1]) < num_tokens_B[:, None]

    def place(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(denoiser.device)

    return _Batch(
        tokens_BN=place(tokens_BN),
        valid_BN=None if valid_BN.all() else place(valid_BN),
        row_M=place(np.concatenate(rows)),
        position_M=place(np.concatenate(positions)),
        token_M=place(np.concatenate(tokens)),
        index_M=torch.from_numpy(np.concatenate(indices)),
    )


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
    plan = plan_canvases(trajectories, wanted, estimator=trace_exact, block_causal=denoiser.family.block_causal)
    parts = [score(denoiser, plan, g, temperature=temperature) for g in micro_batches(plan, micro_batch_tokens)]
    lengths = [len(trajectory.tokens) for trajectory in trajectories]
    flat = torch.zeros(sum(lengths), device=denoiser.device)
    if parts:
        offset_B = np.cumsum(lengths) - lengths
        place_M = torch.from_numpy(offset_B[plan.sample_M] + plan.slot_M)
        index_M = torch.cat([part.index_M for part in parts])
        flat = flat.index_put((place_M[index_M].to(denoiser.device),), torch.cat([part.logprob_M for part in parts]))
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
