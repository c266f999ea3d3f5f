"""What passes between the HTTP side and the engine side: a job, and what is heard of it. Plain values, no torch."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rollout.cache_policy import CacheKind

Segment = str | int
"""A text, or a hole of so many tokens."""


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt and how its samples are to be drawn."""

    model: str
    seed: int
    max_new_tokens: int = 0
    """Response slots; of an infill it follows from the holes."""
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    messages: tuple[Mapping[str, str], ...] | None = None
    segments: tuple[Segment, ...] | None = None
    """Of an infill. Exactly one of `text`, `tokens`, `messages` and `segments` is given."""
    num_samples: int = 1
    sampler: str = "confidence"
    options: Mapping[str, Any] = field(default_factory=dict)
    block_length: int | None = None
    cache: CacheKind = "none"
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    steps: int | None = None
    bars_end: bool = False
    """Whether end tokens are never drawn."""
    stop: tuple[str, ...] = ()
    streams: bool = False
    """Whether each step is told."""
    timeout_s: float = 600.0

    @property
    def prompt_field(self) -> str:
        """Name of the field that holds what the model reads."""
        if self.messages is not None:
            return "messages"
        return "prompt" if self.segments is None else "segments"


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job waits for its first step."""

    num_prompt_tokens: int
    prompt: str
    """The prompt as the model reads it."""


@dataclass(frozen=True, slots=True)
class Stepped:
    """One denoising step of one sample."""

    sample: int
    step: int
    num_forwards: int
    slots: list[int]
    tokens: list[int]
    texts: list[str]
    logprobs: list[float]
    entropies: list[float]
    delta: str
    """What the answer's text has grown by: it grows where nothing is masked to its left."""


@dataclass(frozen=True, slots=True)
class Done:
    """A sample is finished."""

    sample: int
    text: str
    delta: str
    """What the last `Stepped` had not told of the text."""
    length: int
    """Slots of the answer: up to the end token, without it; an infill: every slot of the holes."""
    tokens: list[int]
    """Every slot, as in `Trajectory`; where a stop text ended the answer, those before it."""
    texts: list[str]
    step_map: list[int]
    logprobs: list[float]
    entropies: list[float]
    num_steps: int
    num_forwards: int
    finish_reason: Literal["eos", "length", "stop"]
    weights_version: tuple[int, int]
    exact_likelihood: bool
    sampler: str
    segments: tuple[str, ...] | None = None
    """Texts of an infill, its holes filled."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The job is not, or no longer, answered. A value, because exceptions lose their type between processes."""

    kind: Literal["invalid", "too_long", "unknown_model", "overloaded", "timeout", "lost", "failed"]
    why: str
    param: str | None = None


Heard = Accepted | Stepped | Done | Refused


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model that can be asked for."""

    name: str
    families: tuple[str, ...] = ()
    max_length: int | None = None
    """Prompt and response tokens together; None: not loaded yet, so not known."""
    block_causal: bool | None = None
    block_length: int | None = None
    can_infill: bool | None = None
    weights_version: int | None = None
    is_loaded: bool = False


@dataclass(frozen=True, slots=True)
class EngineState:
    """Numbers of one engine, for `/metrics` and for the choice of a replica."""

    replica: str = "local"
    pid: int = 0
    active: int = 0
    waiting: int = 0
    steps: int = 0
    forwards: int = 0
    tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    busy_s: float = 0.0
    """Time spent inside steps."""
    weights_version: int = 0
    is_healthy: bool = True


class Backend(Protocol):
    """Where jobs are answered."""

    def run(self, job: Job) -> AsyncGenerator[Sequence[Heard], None]:
        """What is heard of a job, ending after its last `Done` or a `Refused`; closing the iterator calls it off."""
        ...

    async def models(self) -> list[ModelCard]:
        """Models that can be asked for, the default one first."""
        ...

    async def states(self) -> list[EngineState]:
        """One for each engine that is known of."""
        ...
