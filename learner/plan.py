"""Canvases of many answers as one flat list, cut into micro-batches by a token budget.

In a block-causal family canvases of one answer share what is clean in them. A hidden state depends on its own block and
on the blocks before it, and those hold final tokens; so a canvas needs one noisy copy of the block of its scored slots,
beside clean tokens that are computed once for the whole answer, and once for the whole group as far as the prompt's
blocks go (the two-copy layout of SDAR and Fast-dLLM v2, with as many noisy copies as there are canvases). `Share` says
what a canvas needs of that; `learner.layout` lays it out.

Symbols: C canvases, M scored slots of all canvases, K scored slots of one canvas, P prompt tokens, T response slots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from models import Family
from rollout.records import Trajectory


@dataclass(frozen=True, slots=True)
class Canvas:
    """One canvas of one answer; the slots that are not masked hold their final tokens."""

    masked_T: np.ndarray
    """(T,) bool."""
    slot_K: np.ndarray
    """(K,) int64, K >= 1. Slots whose final tokens are scored, all of them masked."""
    weight_K: np.ndarray
    """(K,) float32. Factor of each slot's term in an objective; 1 in exact likelihoods."""
    prompt_masked_P: np.ndarray | None = None
    """(P,) bool. Prompt tokens that are hidden; none if not given."""


class Answer(Protocol):
    """What canvases need of the answer that they hide parts of; a `Trajectory` is one, a supervised example another."""

    @property
    def prompt_tokens(self) -> np.ndarray:
        """(P,) int64."""

    @property
    def tokens(self) -> np.ndarray:
        """(T,) int64. Final tokens of the response slots."""

    @property
    def block_length(self) -> int:
        """Attention block in families with block-causal attention."""


Estimator = Callable[[Trajectory, np.ndarray], list[Canvas]]
"""(trajectory, wanted_T) -> canvases that score the wanted slots (bool)."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a canvas computes when its clean tokens are computed elsewhere."""

    blocks: tuple[tuple[int, int], ...]
    """Start and end positions of the blocks that hold masks, each computed in a copy of its own."""
    clean_stop: int
    """Positions before this one are needed clean: those that the copies see, and those that predict without a copy."""


@dataclass(frozen=True, slots=True)
class CanvasPlan:
    """The canvases of many answers, and their scored slots as flat arrays in the same order."""

    trajectories: Sequence[Answer]
    canvases: Sequence[Canvas]
    shift: int
    """1 where the hidden state one position earlier predicts a slot, else 0."""
    sample_C: np.ndarray
    """(C,) int64. Which trajectory each canvas belongs to."""
    num_tokens_C: np.ndarray
    """(C,) int64. Tokens of each canvas, the prompt included."""
    block_length_C: np.ndarray
    """(C,) int64. Attention block; 0 in bidirectional families."""
    share_C: Sequence[Share | None]
    """None: the canvas is computed whole."""
    start_C: np.ndarray
    """(C,) int64. Where the scored slots of each canvas begin in the flat arrays."""
    canvas_M: np.ndarray
    sample_M: np.ndarray
    slot_M: np.ndarray
    weight_M: np.ndarray

    @property
    def num_slots(self) -> int:
        """M."""
        return len(self.slot_M)


def plan_canvases(
    trajectories: Sequence[Trajectory], wanted: Sequence[np.ndarray], *, estimator: Estimator, family: Family
) -> CanvasPlan:
    """Canvases that score the wanted slots (bool (T,), one array a trajectory)."""
    for sample, trajectory in enumerate(trajectories):
        if len(trajectory.prompt_tokens) == 0:
            raise ValueError(f"trajectory {sample} has no prompt tokens: scoring needs at least one before the answer")
    canvases = [estimator(trajectory, wanted_T) for trajectory, wanted_T in zip(trajectories, wanted, strict=True)]
    return plan_given(trajectories, canvases, family=family)


def plan_given(answers: Sequence[Answer], canvases_B: Sequence[Sequence[Canvas]], *, family: Family) -> CanvasPlan:
    """The given canvases of each answer as one plan."""
    canvases = [canvas for own in canvases_B for canvas in own]
    samples = [sample for sample, own in enumerate(canvases_B) for _ in own]
    num_scored_C = np.array([len(canvas.slot_K) for canvas in canvases], dtype=np.int64)
    sample_C = np.array(samples, dtype=np.int64)
    shift, block_causal = int(family.shift), family.block_causal
    pairs = [(answers[s], c) for s, c in zip(samples, canvases, strict=True)]
    return CanvasPlan(
        trajectories=answers,
        canvases=canvases,
        shift=shift,
        sample_C=sample_C,
        num_tokens_C=np.array([_num_tokens(*pair, block_causal=block_causal) for pair in pairs], dtype=np.int64),
        block_length_C=np.array([t.block_length if block_causal else 0 for t, _ in pairs], dtype=np.int64),
        share_C=[share_of(*pair, shift=shift) if block_causal else None for pair in pairs],
        start_C=num_scored_C.cumsum() - num_scored_C,
        canvas_M=np.arange(len(canvases)).repeat(num_scored_C),
        sample_M=sample_C.repeat(num_scored_C),
        slot_M=_concatenate([canvas.slot_K for canvas in canvases], np.int64),
        weight_M=_concatenate([canvas.weight_K for canvas in canvases], np.float32),
    )


def _num_tokens(trajectory: Answer, canvas: Canvas, *, block_causal: bool) -> int:
    """The whole canvas, or, where later blocks are invisible, up to the end of the last scored slot's block."""
    num_prompt, length = len(trajectory.prompt_tokens), trajectory.block_length
    whole = num_prompt + len(trajectory.tokens)
    if not block_causal:
        return whole
    last_position = num_prompt + int(canvas.slot_K[-1])
    return min((last_position // length + 1) * length, whole)


def share_of(trajectory: Answer, canvas: Canvas, *, shift: int) -> Share | None:
    """What a canvas of a block-causal family needs; None if a block before that of a scored slot holds a mask."""
    if canvas.prompt_masked_P is not None:
        return None
    num_prompt, length = len(trajectory.prompt_tokens), trajectory.block_length
    whole = num_prompt + len(trajectory.tokens)
    masked_slot = np.flatnonzero(canvas.masked_T)
    first_mask = num_prompt + int(masked_slot[0])
    blocks, clean_stop = [], 0
    for number in np.unique((num_prompt + canvas.slot_K - shift) // length).tolist():
        start, stop = number * length, min((number + 1) * length, whole)
        if first_mask < start:
            return None
        if first_mask < stop:
            blocks.append((start, stop))
        clean_stop = max(clean_stop, start if first_mask < stop else stop)
    return Share(tuple(blocks), clean_stop)


def _concatenate(parts: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)


# ---- micro-batches


def micro_batches(plan: CanvasPlan, micro_batch_tokens: int) -> list[list[int]]:
    """Indices of canvases in groups whose computed tokens stay within the budget.

    Canvases computed whole: longest first, so that equal lengths stand together and memory peaks in the first group.
    Canvases that share: answer by answer, answers of one prompt together. A canvas longer than the budget goes alone. A
    group has one attention block length, and canvases of one of the two kinds.
    """
    if micro_batch_tokens < 1:
        raise ValueError(f"micro_batch_tokens must be at least 1, got {micro_batch_tokens}")
    groups: list[list[int]] = []
    load = _Load(plan)
    for canvas in _ordered(plan):
        fits = bool(groups) and _kind(plan, groups[-1][0]) == _kind(plan, canvas)
        if not fits or load.add(canvas) > micro_batch_tokens:
            load = _Load(plan)
            load.add(canvas)
            groups.append([])
        groups[-1].append(canvas)
    return groups


def num_computed(plan: CanvasPlan, group: Sequence[int]) -> int:
    """Tokens that the forward of a micro-batch computes."""
    load = _Load(plan)
    return max([load.add(canvas) for canvas in group], default=0)


def prompt_blocks(trajectory: Answer) -> int:
    """Positions of the blocks that lie wholly in the prompt."""
    return len(trajectory.prompt_tokens) // trajectory.block_length * trajectory.block_length


def _kind(plan: CanvasPlan, canvas: int) -> tuple[int, bool]:
    return int(plan.block_length_C[canvas]), plan.share_C[canvas] is None


def _ordered(plan: CanvasPlan) -> list[int]:
    prompts: dict[bytes, int] = {}
    prompt_B = [prompts.setdefault(t.prompt_tokens.tobytes(), len(prompts)) for t in plan.trajectories]

    def place(canvas: int) -> tuple[int, ...]:
        length, is_whole = _kind(plan, canvas)
        if is_whole:
            return length, 1, -int(plan.num_tokens_C[canvas]), canvas
        sample = int(plan.sample_C[canvas])
        return length, 0, prompt_B[sample], sample, int(plan.num_tokens_C[canvas]), canvas

    return sorted(range(len(plan.canvases)), key=place)


@dataclass
class _Load:
    """Tokens of a growing micro-batch."""

    plan: CanvasPlan
    _num_own: int = 0
    _clean: dict[int, int] = field(default_factory=dict)
    """Tokens of each answer's clean blocks after those of its prompt."""
    _prompts: dict[bytes, int] = field(default_factory=dict)

    def add(self, canvas: int) -> int:
        """All tokens, with this canvas."""
        share, sample = self.plan.share_C[canvas], int(self.plan.sample_C[canvas])
        if share is None:
            self._num_own += int(self.plan.num_tokens_C[canvas])
        else:
            trajectory = self.plan.trajectories[sample]
            prompt, in_prompt = trajectory.prompt_tokens.tobytes(), prompt_blocks(trajectory)
            self._num_own += sum(stop - start for start, stop in share.blocks)
            self._clean[sample] = max(self._clean.get(sample, 0), share.clean_stop - in_prompt)
            self._prompts[prompt] = max(self._prompts.get(prompt, 0), min(share.clean_stop, in_prompt))
        return self._num_own + sum(self._clean.values()) + sum(self._prompts.values())
