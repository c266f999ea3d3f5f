"""One sequence to denoise, and the seed that belongs to it alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

MIN_TEMPERATURE = 1e-4
"""Below it, and not 0, logits leave the range of float32."""
MIN_TOP_P = 1e-6
"""Below it a nucleus is empty in float32."""


class FieldError(ValueError):
    """A field of a request is wrong. `field` is its name, as in `Request` and `rollout.live.Decoding`."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field = field

    def __str__(self) -> str:
        return str(self.args[1])


class TooLongError(FieldError):
    """Prompt and response together are longer than the window."""


@contextmanager
def about(field: str) -> Iterator[None]:
    """A ValueError of the body is about this field."""
    try:
        yield
    except FieldError:
        raise
    except ValueError as error:
        raise FieldError(field, str(error)) from error


def sequence_seed(seed: int, *key: int | str) -> int:
    """Derive the 63-bit seed of one sequence from the run's seed and whatever names the sequence.

    A cryptographic hash, so that neighbouring seeds and keys have nothing in common, on every platform.
    """
    text = "\x1f".join([str(seed), *(f"{type(part).__name__}:{part}" for part in key)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True, slots=True)
class Request:
    """What the engine needs to know about one sequence; everything else of an answer follows from it."""

    prompt_tokens: Sequence[int]
    max_new_tokens: int
    seed: int
    """The sequence's own seed (see `sequence_seed`)."""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    """Most likely tokens to draw from; 0 is all of them."""
    steps: int | None = None
    """Denoising steps for the whole answer; None leaves the number to the sampler."""
    prompt_id: str = ""
    sample_index: int = 0
    bars_end: bool = False
    """Whether end tokens are never drawn, so that every slot is content."""
    fixed: Mapping[int, int] = field(default_factory=dict)
    """Response slots that are given, with their tokens: the text between and after the holes of an infill. Every other
    slot is filled; an end token in a hole ends nothing."""

    @property
    def length(self) -> int:
        """Canvas positions: prompt and response."""
        return len(self.prompt_tokens) + self.max_new_tokens

    @property
    def first_free(self) -> int:
        """First response slot to fill."""
        return next(slot for slot in range(self.max_new_tokens) if slot not in self.fixed)

    def check(self, *, max_length: int, vocab_size: int) -> None:
        """Raise FieldError, a ValueError, if a model of this window and vocabulary cannot denoise the sequence."""
        name = f"prompt {self.prompt_id!r}" if self.prompt_id else "prompt"
        if not self.prompt_tokens and not self.fixed:
            raise FieldError("prompt", f"{name} is empty; it must hold at least one token")
        given = [*self.prompt_tokens, *self.fixed.values()]
        if min(given) < 0 or max(given) >= vocab_size:
            raise FieldError("prompt", f"{name} holds a token id outside 0..{vocab_size - 1}")
        if self.max_new_tokens < 1:
            raise FieldError("max_new_tokens", f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.fixed and not (min(self.fixed) >= 0 and max(self.fixed) < self.max_new_tokens > len(self.fixed)):
            raise FieldError(
                "prompt",
                f"{len(self.fixed)} of {self.max_new_tokens} response slots are fixed; they must lie in the response "
                "and leave at least one slot to fill",
            )
        length = len(self.prompt_tokens) + self.max_new_tokens
        if length > max_length:
            raise TooLongError(
                "prompt",
                f"{name} has {len(self.prompt_tokens)} tokens and max_new_tokens is {self.max_new_tokens}: together "
                f"{length}, but the model's window is {max_length}. Shorten the prompt or lower max_new_tokens.",
            )
        if not (self.temperature == 0 or self.temperature >= MIN_TEMPERATURE):
            raise FieldError(
                "temperature",
                f"temperature is {self.temperature}; it must be 0 (greedy), or {MIN_TEMPERATURE:g} or more",
            )
        if not MIN_TOP_P <= self.top_p <= 1:
            raise FieldError(
                "top_p", f"top_p is {self.top_p}; it must be above 0 ({MIN_TOP_P:g} or more) and at most 1"
            )
        if self.top_k < 0:
            raise FieldError("top_k", f"top_k is {self.top_k}; it must be at least 1, or 0 for the whole vocabulary")
        if self.steps is not None and self.steps < 1:
            raise FieldError("steps", f"steps is {self.steps}; it must be at least 1, or None")
