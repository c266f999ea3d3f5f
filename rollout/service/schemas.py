"""Bodies of the interface: OpenAI's fields and ours. What is not served is refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator

from rollout.cache_policy import CacheKind
from rollout.request import MIN_TOP_P

MAX_SEED = 2**53 - 1
"""Largest whole number that every JSON reader keeps."""


def _is_text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds half a surrogate pair; send whole characters") from None
    return text


Text = Annotated[str, AfterValidator(_is_text)]
StopText = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_is_text)]
_CONFIG = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SamplerChoice(BaseModel):
    """A sampler with options."""

    model_config = _CONFIG

    name: str = Field(max_length=64)
    options: dict[str, JsonValue] = Field(default_factory=dict, max_length=16)


class StreamOptions(BaseModel):
    """What a stream tells beside the text."""

    model_config = _CONFIG

    include_usage: bool = False
    include_obfuscation: bool = False
    include_steps: bool = False
    """Ours: `event: step` messages between the deltas, with position, token and probability of each commit."""


class Message(BaseModel):
    """A turn of a chat."""

    model_config = _CONFIG

    role: Literal["system", "developer", "user", "assistant"]
    content: Text
    name: str | None = Field(default=None, max_length=64)


class Sampling(BaseModel):
    """How answers are drawn; the same in every request."""

    model_config = _CONFIG

    model: str | None = Field(default=None, max_length=256)
    """The first model of `/v1/models` if not given."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    top_p: float = Field(default=1.0, ge=MIN_TOP_P, le=1)
    top_k: int = Field(default=0, ge=0, le=1 << 20)
    """Most likely tokens to draw from; 0 is all of them."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    """The same seed gives the same answer; drawn afresh, and told, if not given."""
    sampler: str | SamplerChoice = Field(default="confidence", union_mode="left_to_right")
    """A name of `/v1/samplers`, or `{"name", "options"}`."""
    block_length: int | None = Field(default=None, ge=1, le=1 << 20)
    """Slots per semi-autoregressive block; the whole answer if not given."""
    steps: int | None = Field(default=None, ge=1, le=1 << 20)
    """Denoising steps for the whole answer; the sampler decides if not given."""
    cache: CacheKind = "none"
    stream: bool = False
    user: str | None = Field(default=None, max_length=256)

    @property
    def sampler_name(self) -> str:
        """Name of the sampler."""
        return self.sampler if isinstance(self.sampler, str) else self.sampler.name

    @property
    def sampler_options(self) -> dict[str, Any]:
        """Its options."""
        return {} if isinstance(self.sampler, str) else dict(self.sampler.options)


class _OpenAI(Sampling):
    """What the two OpenAI endpoints share. Fields that would change the answer and are not served have one value."""

    n: int = Field(default=1, ge=1)
    stop: StopText | Annotated[list[StopText], Field(max_length=8)] | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Literal[0] = 0
    frequency_penalty: Literal[0] = 0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def options_of_stream(self) -> StreamOptions:
        """Of the stream, or the defaults."""
        return self.stream_options or StreamOptions()


class CompletionBody(_OpenAI):
    """`POST /v1/completions`."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1)]
        | Annotated[list[int], Field(min_length=1)]
        | Annotated[list[Annotated[list[int], Field(min_length=1)]], Field(min_length=1)]
    )
    """A text, several texts, token ids, or several lists of token ids."""
    max_tokens: int = Field(default=64, ge=1)
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=1)
    """0 or 1: log-probabilities of the committed tokens. Those of other tokens are not kept."""
    best_of: Literal[1] | None = None
    suffix: None = None
    """Not here: `/v1/infill` fills text between a prefix and a suffix."""

    def prompts(self) -> Iterator[str | tuple[int, ...]]:
        """Each prompt, as text or as token ids."""
        if isinstance(self.prompt, str):
            yield self.prompt
        elif isinstance(self.prompt[0], int):
            yield tuple(token for token in self.prompt if isinstance(token, int))
        else:
            for prompt in self.prompt:
                assert not isinstance(prompt, int)
                yield prompt if isinstance(prompt, str) else tuple(prompt)


class ChatBody(_OpenAI):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: Literal[0] | None = None
    """Log-probabilities of tokens that were not committed are not kept."""
    response_format: dict[Literal["type"], Literal["text"]] | None = None

    @property
    def num_slots(self) -> int:
        """Slots of an answer."""
        return self.max_completion_tokens or self.max_tokens or 64


class RolloutBody(Sampling):
    """`POST /v1/rollouts`: samples of one prompt with their whole history."""

    prompt: Text | None = None
    messages: Annotated[list[Message], Field(min_length=1)] | None = None
    num_samples: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    task: dict[str, JsonValue] | None = Field(default=None, max_length=8)
    """`{"name": task, "row": {...}}`: grade the answers as that task does."""

    @model_validator(mode="after")
    def _one_prompt(self) -> RolloutBody:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        return self


class TextSegment(BaseModel):
    """Text that stands."""

    model_config = _CONFIG

    text: Text


class HoleSegment(BaseModel):
    """Slots to fill."""

    model_config = _CONFIG

    hole: int = Field(ge=1)
    """Their number."""


class InfillBody(Sampling):
    """`POST /v1/infill`: `segments`, or `prefix` and `suffix` around one hole."""

    segments: Annotated[list[TextSegment | HoleSegment], Field(min_length=1, max_length=128)] | None = None
    prefix: Text | None = None
    suffix: Text | None = None
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Slots of the hole between prefix and suffix; 32 if not given."""
    allow_end: bool = False
    """Whether an end token may be drawn in a hole and leave the rest of it empty; else every slot is content."""
    num_samples: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _one_form(self) -> InfillBody:
        has_ends = self.prefix is not None or self.suffix is not None
        if (self.segments is None) != has_ends:
            raise ValueError("give either segments, or prefix and suffix")
        if self.segments is not None and self.max_new_tokens is not None:
            raise ValueError("max_new_tokens goes with prefix and suffix; a hole of segments has its own number")
        if self.segments is not None and not any(isinstance(segment, HoleSegment) for segment in self.segments):
            raise ValueError('segments has no hole to fill; add {"hole": number of tokens}')
        return self

    def parts(self) -> tuple[str | int, ...]:
        """Texts and sizes of holes in order."""
        if self.segments is None:
            return (self.prefix or "", self.max_new_tokens or 32, self.suffix or "")
        return tuple(segment.text if isinstance(segment, TextSegment) else segment.hole for segment in self.segments)
