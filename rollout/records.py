"""The records that cross processes: frozen dataclasses of numpy arrays and plain values, no torch.

T is the number of response slots of the canvas (`max_new_tokens`), P the number of prompt tokens and S the number of
denoising steps taken (`num_steps`).

Worked example: a prompt of two tokens, four slots, the sampler commits slot 1, then slot 0, then slot 2 with the end
token; slot 3 is never evaluated:

    tokens   = [17, 5, EOS, EOS]    step_map = [1, 0, 2, 3]    num_steps = 3
    logprobs = [-0.1, -0.7, -0.2, 0.0]    answer tokens = tokens[:2]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

FinishReason = Literal["eos", "length"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One task row as it goes to the rollout pool."""

    id: str
    """Unique within a run; names the row of the task, never its text."""
    task: str
    text: str | None = None
    """Plain prompt, tokenised as it stands; exactly one of `text` and `messages` is given."""
    messages: tuple[Mapping[str, str], ...] | None = None
    """Chat turns with `role` and `content`, rendered by the model's chat template."""
    gold: Mapping[str, Any] = field(default_factory=dict)
    """The row that the task's grader needs; never shown to the model."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.messages is None):
            raise ValueError(f"prompt {self.id!r}: give exactly one of text and messages")


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One answer with everything needed to replay how it was denoised."""

    tokens: np.ndarray
    """(T,) int64. Every slot of the canvas; slots never committed hold the end token."""
    step_map: np.ndarray
    """(T,) int32. Step 0..S-1 at which the slot was committed; S where it never was (filled after the end token)."""
    logprobs: np.ndarray
    """(T,) float32. Log-probability of the token under the law it was drawn from (temperature 1 if greedy), at its
    step; 0 where never committed."""
    entropies: np.ndarray
    """(T,) float32, nats. Entropy of the untempered prediction at commit; 0 where never committed."""
    num_steps: int
    """S."""
    num_forwards: int
    """Model calls spent on this sequence, candidates included."""
    finish_reason: FinishReason
    """`eos`: an end token was committed with nothing masked before it. `length`: all T slots are content."""
    answer_length: int
    """Slots before the first end token (T if there is none)."""
    seed: int
    """Seed of this sequence's own random numbers: the same prompt with it gives the same answer in any batch."""
    sampler: str
    exact_likelihood: bool
    """Whether replaying the step map gives the exact likelihood of the answer under the sampler."""
    temperature: float
    top_p: float
    block_length: int
    top_k: int = 0
    """Most likely tokens drawn from; 0 is all of them."""
    position_logprobs: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """(S,) float32. Log-probability of each step's choice of slots, where the sampler draws it; empty otherwise."""
    cache: str = "none"
    """Reuse of keys and values: `none` and `block` are exact; `prefix...` and `dual...` (with their refresh rule) are
    not, so `logprobs` are those of the law drawn from, which a replay without the cache only approximates."""
    computed: np.ndarray = field(default_factory=lambda: np.zeros((0, 2), dtype=np.int32))
    """(S, 2) int32. First and end position that each step's forward computed; the rest came from the cache. Empty
    without a cache."""
    weights_version: tuple[int, int] = (0, 0)
    """Version of the weights at the first and at the last forward."""
    prompt_tokens: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(P,) int64."""
    prompt_id: str = ""
    sample_index: int = 0
    notes: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What a sampler has noted, by name: (S,) or (S, n), a row a step, for instance the acceptances of a Metropolis
    chain; names that begin with `chain_` have a row a chain over runs (docs/samplers.md). Empty for most samplers."""
    text: str = ""
    """The answer, decoded up to the first end token; never contains the prompt."""

    @property
    def exact_cache(self) -> bool:
        """Whether every forward gave what a forward of the whole canvas gives."""
        return self.cache in ("none", "block")

    @property
    def committed(self) -> np.ndarray:
        """(T,) bool: slots that a denoising step has filled."""
        return self.step_map < self.num_steps

    @property
    def scored(self) -> np.ndarray:
        """(T,) bool: committed slots up to and including the first end token; the ones an objective may train."""
        return self.committed & (np.arange(len(self.tokens)) <= self.answer_length)


@dataclass(frozen=True, slots=True)
class Scored:
    """A grader's verdict as a number."""

    value: float
    parts: Mapping[str, float] = field(default_factory=dict)
    """Named components for the metrics, for instance `correct` and `format`."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A grader (or a worker) could not do its work. Never a number: the sample leaves its group and is counted."""

    kind: str
    """Short stable name that becomes the metric `failure/<kind>`."""
    why: str


Score = Scored | Failed


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt visit with its G trajectories and their scores, in the same order."""

    prompt: Prompt
    trajectories: Sequence[Trajectory]
    scores: Sequence[Score]

    def __post_init__(self) -> None:
        if len(self.trajectories) != len(self.scores):
            raise ValueError(
                f"group {self.prompt.id!r}: {len(self.trajectories)} trajectories but {len(self.scores)} scores"
            )
