"""Where the tokens of a micro-batch of canvases lie, and which of their hidden states are wanted.

    whole    each canvas a sequence of its own, side by side
    shared   block-causal families: each prompt's blocks once, each answer's clean blocks once after them, and after
             those a copy of each canvas's block with its masks (`learner.plan.Share`)

Symbols: M tokens of the micro-batch, W wanted hidden states in the order of their spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from learner.plan import CanvasPlan, prompt_blocks
from models import Denoiser
from models.packing import Packing, Span
from models.shared_packing import SharedPacking


@dataclass(frozen=True, slots=True)
class Layout:
    """A packed forward and what it is for."""

    token_M: torch.Tensor
    packing: Packing
    flat_W: torch.Tensor
    """Places of the hidden states that predict the scored slots."""
    counts: Sequence[int]
    """How many of each span."""
    target_W: torch.Tensor
    """The tokens they have to predict."""
    index_W: torch.Tensor
    """int64, on the CPU. Places of the slots in the plan's flat arrays."""


def lay_out(denoiser: Denoiser, plan: CanvasPlan, group: Sequence[int]) -> Layout:
    """One micro-batch of canvases, all of one kind."""
    spans = Spans()
    block_length = int(plan.block_length_C[group[0]]) or None
    if plan.share_C[group[0]] is None:
        _whole(spans, denoiser.mask_token_id, plan, group)
        packing = denoiser.packing(spans.spans, block_length=block_length)
    else:
        assert block_length is not None
        _shared(spans, denoiser.mask_token_id, plan, group)
        packing = SharedPacking(spans.spans, spans.after, device=denoiser.device, block_length=block_length)
    return spans.layout(packing)


@dataclass
class _Wanted:
    """What is wanted of one span."""

    place: list[np.ndarray] = field(default_factory=list)
    """From the span's first token."""
    target: list[np.ndarray] = field(default_factory=list)
    index: list[np.ndarray] = field(default_factory=list)


@dataclass
class Spans:
    """Spans in the order of the packing, with their tokens and what is wanted of them."""

    spans: list[Span] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    tokens: list[np.ndarray] = field(default_factory=list)
    wanted: list[_Wanted] = field(default_factory=list)

    def add(self, start: int, tokens: np.ndarray, *, after: int = -1) -> int:
        """A further span; returns its number."""
        stop = start + len(tokens)
        self.spans.append(Span(0, start, stop, stop))
        self.after.append(after)
        self.tokens.append(tokens)
        self.wanted.append(_Wanted())
        return len(self.spans) - 1

    def want(self, number: int, position: np.ndarray, target: np.ndarray, index: np.ndarray) -> None:
        """Ask for hidden states of one span by their positions in the sequence."""
        wanted = self.wanted[number]
        wanted.place.append(position - self.spans[number].start)
        wanted.target.append(target)
        wanted.index.append(index)

    def layout(self, packing: Packing) -> Layout:
        """The arrays of a forward."""
        places = [offset + p for offset, w in zip(packing.offsets, self.wanted, strict=True) for p in w.place]

        def put(arrays: Sequence[np.ndarray]) -> torch.Tensor:
            return torch.from_numpy(np.concatenate(arrays)).to(packing.device)

        return Layout(
            token_M=put(self.tokens),
            packing=packing,
            flat_W=put(places),
            counts=[sum(len(place) for place in wanted.place) for wanted in self.wanted],
            target_W=put([target for wanted in self.wanted for target in wanted.target]),
            index_W=torch.from_numpy(np.concatenate([index for wanted in self.wanted for index in wanted.index])),
        )


@dataclass(frozen=True, slots=True)
class _Rebuilt:
    """A canvas with its masks in place, and its scored slots."""

    token_N: np.ndarray
    position_K: np.ndarray
    """Positions whose hidden states predict them."""
    target_K: np.ndarray
    index_K: np.ndarray


def _rebuild(mask_token_id: int, plan: CanvasPlan, index: int) -> _Rebuilt:
    canvas, trajectory = plan.canvases[index], plan.trajectories[plan.sample_C[index]]
    response_T, prompt_P = np.where(canvas.masked_T, mask_token_id, trajectory.tokens), trajectory.prompt_tokens
    if canvas.prompt_masked_P is not None:
        prompt_P = np.where(canvas.prompt_masked_P, mask_token_id, prompt_P)
    token_N = np.concatenate([prompt_P, response_T])[: plan.num_tokens_C[index]]
    return _Rebuilt(
        token_N=token_N,
        position_K=len(trajectory.prompt_tokens) + canvas.slot_K - plan.shift,
        target_K=trajectory.tokens[canvas.slot_K],
        index_K=plan.start_C[index] + np.arange(len(canvas.slot_K)),
    )


def _whole(spans: Spans, mask_token_id: int, plan: CanvasPlan, group: Sequence[int]) -> None:
    for index in group:
        canvas = _rebuild(mask_token_id, plan, index)
        number = spans.add(0, canvas.token_N)
        spans.want(number, canvas.position_K, canvas.target_K, canvas.index_K)


def _shared(spans: Spans, mask_token_id: int, plan: CanvasPlan, group: Sequence[int]) -> None:
    clean = _Clean(spans, plan, group)
    copies = []
    for index in group:
        sample, share = int(plan.sample_C[index]), plan.share_C[index]
        assert share is not None
        canvas = _rebuild(mask_token_id, plan, index)
        is_clean_K = np.ones(len(canvas.position_K), dtype=bool)
        for start, stop in share.blocks:
            is_here_K = (start <= canvas.position_K) & (canvas.position_K < stop)
            is_clean_K &= ~is_here_K
            copies.append((clean.before(sample, start), start, stop, canvas, is_here_K))
        clean.want(sample, canvas, is_clean_K)
    # Copies after one parent, in the order of their blocks, share their attention tiles.
    for parent, start, stop, canvas, is_here_K in sorted(copies, key=lambda copy: copy[:2]):
        number = spans.add(start, canvas.token_N[start:stop], after=parent)
        spans.want(number, canvas.position_K[is_here_K], canvas.target_K[is_here_K], canvas.index_K[is_here_K])


class _Clean:
    """The spans of clean tokens: one a prompt, then one an answer, each only as far as any canvas needs it."""

    def __init__(self, spans: Spans, plan: CanvasPlan, group: Sequence[int]) -> None:
        self._spans, self._plan = spans, plan
        stops: dict[int, int] = {}
        for index in group:
            sample, share = int(plan.sample_C[index]), plan.share_C[index]
            assert share is not None
            stops[sample] = max(stops.get(sample, 0), share.clean_stop)
        self._prompt_span = self._add_prompts(stops)
        self._answer_span: dict[int, int] = {}
        for sample, stop in stops.items():
            trajectory, start = plan.trajectories[sample], prompt_blocks(plan.trajectories[sample])
            if stop > start:
                token_N = np.concatenate([trajectory.prompt_tokens, trajectory.tokens])
                self._answer_span[sample] = spans.add(start, token_N[start:stop], after=self._prompt_span[sample])

    def _add_prompts(self, stops: dict[int, int]) -> dict[int, int]:
        """Span of each sample's prompt blocks; -1 where none are needed."""
        prompts = {sample: self._plan.trajectories[sample].prompt_tokens for sample in stops}
        longest: dict[bytes, int] = {}
        for sample, stop in stops.items():
            in_prompt = min(stop, prompt_blocks(self._plan.trajectories[sample]))
            key = prompts[sample].tobytes()
            longest[key] = max(longest.get(key, 0), in_prompt)
        numbers: dict[bytes, int] = {}
        for prompt in prompts.values():
            key = prompt.tobytes()
            if key not in numbers:
                numbers[key] = self._spans.add(0, prompt[: longest[key]]) if longest[key] else -1
        return {sample: numbers[prompt.tobytes()] for sample, prompt in prompts.items()}

    def before(self, sample: int, start: int) -> int:
        """The span that a copy of the block at `start` stands after."""
        in_prompt = prompt_blocks(self._plan.trajectories[sample])
        return self._answer_span[sample] if start > in_prompt else self._prompt_span[sample]

    def want(self, sample: int, canvas: _Rebuilt, chosen_K: np.ndarray) -> None:
        """Ask for hidden states whose own block is clean."""
        in_prompt = prompt_blocks(self._plan.trajectories[sample])
        in_prompt_K = canvas.position_K < in_prompt
        for numbers, part_K in (
            (self._prompt_span, chosen_K & in_prompt_K),
            (self._answer_span, chosen_K & ~in_prompt_K),
        ):
            if part_K.any():
                part = canvas.position_K[part_K], canvas.target_K[part_K], canvas.index_K[part_K]
                self._spans.want(numbers[sample], *part)
