"""What a sampler is given and what it answers.

R sequences in the batch, L slots of the widest active block, M slots asked for, K slots committed in a step, V
vocabulary, D width.
Rows are sequences; columns count from the start of a sequence's own active block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """What a sampler wants to know of the attention, averaged over the heads of the chosen layers (A).

    `column`: c_j = sum over the masked slots i != j of the same decoding block of A[i, j], how much j is looked at.
    `row`: S_i = sum over the visible unmasked keys k of A[i, k], how much i looks at what is known.
    """

    kind: Literal["column", "row"]
    layers: Literal["last", "all"] | tuple[int, ...]
    local: bool = False
    """Attention normalised over the keys of the decoding block only, instead of over all visible keys."""


class Evaluate(Protocol):
    """One forward of the R active canvases, asked for slot by slot; what nobody asks for is not computed."""

    vocab_size: int

    def hidden(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """Final hidden states (M, D) that predict these slots, rows ascending.

        Asked once a step, for every slot that the step will look at.
        """
        ...

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Logits (M, V), float32, the mask token at -inf. The caller bounds M; the tensor is the caller's."""
        ...

    def attention(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """Sums (M,), float32, that the sampler's `probe` asked for, at these masked slots."""
        ...

    def with_tokens(self, row_K: torch.Tensor, column_K: torch.Tensor, token_K: torch.Tensor) -> Evaluate:
        """Forward of K candidate canvases: canvas row_K[k] with one slot filled. Rows of the answer are 0..K-1."""
        ...


@dataclass(frozen=True, slots=True)
class ResponseView:
    """The whole answers of R sequences, T slots the longest; slots of a shorter one lie at the front."""

    masked_RT: torch.Tensor
    """bool."""
    seen_RT: torch.Tensor
    """bool. Masked slots among these are predicted by the step's forward; none lies left of the active block."""
    length_R: torch.Tensor
    """int64. Slots of each answer."""


@dataclass(frozen=True, slots=True)
class BlockState:
    """The active blocks of R sequences at one denoising step.

    The flags say what some row needs, as Python values, so that a step never waits for the device to find out.
    """

    candidate_RL: torch.Tensor
    """bool. Slots that may be committed now: masked and inside the active block; at least one a row."""
    masked_R: torch.Tensor
    """int64. Masked slots left in the active block, candidates or not."""
    slot_RL: torch.Tensor
    """int64. Index of each column in its own response (0..T-1): names the slot for the random numbers."""
    seed_R: torch.Tensor
    """int64. Each sequence's own seed."""
    step_R: torch.Tensor
    """int64. Denoising steps this sequence has made so far."""
    block_step_R: torch.Tensor
    """int64. Steps made in the active block."""
    block_masked_R: torch.Tensor
    """int64. Masked slots of the active block at its first step."""
    block_steps_R: torch.Tensor
    """int64. Steps planned for the block by a budget (`steps`); 0 where there is none."""
    temperature_R: torch.Tensor
    """float32. Draw temperature; 0 is greedy."""
    top_p_R: torch.Tensor
    """float32. Nucleus mass; 1 keeps the whole law."""
    top_k_R: torch.Tensor
    """int64. Most likely tokens that may be drawn; 0 keeps all."""
    any_temperature: bool
    """Whether some row draws (temperature above 0)."""
    any_greedy: bool
    """Whether some row is greedy (temperature 0)."""
    any_top_p: bool
    """Whether some row's top_p is below 1."""
    max_top_k: int
    """Largest of top_k_R; 0 if no row cuts."""
    any_budget: bool
    """Whether some row has a step budget."""
    stop_ids: tuple[int, ...]
    """End tokens of the model."""
    whole_response: bool
    """Whether the block is the whole response (full diffusion)."""
    ahead_RW: torch.Tensor | None = None
    """bool (R, W), W >= L, for a sampler with a `lookahead`. Masked slots that the forward of a candidate canvas
    predicts: those of the block first, later ones (`lookahead` is "response") behind them."""
    response: ResponseView | None = None
    """The answers as a whole, for a sampler that `observes_response`."""
    memory_RL: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """float32 (R, L) for each name in the sampler's `memory`: what it left at these slots a step ago, 0 at first."""


@dataclass(frozen=True, slots=True)
class Commit:
    """K slots and what they become."""

    row_K: torch.Tensor
    column_K: torch.Tensor
    token_K: torch.Tensor
    logprob_K: torch.Tensor
    """float32. log-probability under the law that was drawn from; at temperature 1 where the draw was greedy."""
    entropy_K: torch.Tensor
    """float32, nats. Entropy of the untempered prediction."""
    position_logprob_R: torch.Tensor | None = None
    """float32. log-probability of the slots, in the order in which they were drawn; None where nothing was drawn."""
    temperature_K: torch.Tensor | None = None
    """float32. Draw temperature of each slot, where the sampler sets its own; None: the request's everywhere."""
    memory_RL: Mapping[str, torch.Tensor] | None = None
    """What to hand back in `BlockState.memory_RL` at the next step; None: nothing changed."""
    extra_forwards_R: torch.Tensor | None = None
    """int64. Forwards of candidate canvases spent on each sequence, beside the step's own."""
    evaluated: tuple[Evaluate, torch.Tensor] | None = None
    """An evaluation of canvases after this commit, and for each of R rows its row in it (-1: none), to be used at the
    next step in place of a forward."""
    notes_R: Mapping[str, torch.Tensor] | None = None
    """Numbers (R,) or (R, n) by name that each sequence's trajectory keeps of this step (`Trajectory.notes`). A sampler
    takes the same notes at every step."""


class StepSampler(Protocol):
    """Anything the engine can decode with."""

    @property
    def name(self) -> str:
        """Name in the registry."""
        ...

    @property
    def exact_likelihood(self) -> bool:
        """Whether replaying the step map gives the exact likelihood at temperature above 0."""
        ...

    @property
    def inexact_because(self) -> str:
        """Why it does not, where it does not: the end of a sentence that begins with the sampler's name."""
        ...

    @property
    def probe(self) -> ProbeSpec | None:
        """Attention sums that `step` asks for; None: none."""
        ...

    @property
    def memory(self) -> tuple[str, ...]:
        """Names of the numbers a slot that the engine keeps from step to step while its block is active."""
        ...

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """Choose and draw what this step commits."""
        ...
