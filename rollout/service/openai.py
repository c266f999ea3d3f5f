"""Answers in OpenAI's form, whole and in pieces."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rollout.service.work import Accepted, Done, Stepped

_REASON = {"eos": "stop", "stop": "stop", "length": "length"}


@dataclass
class Usage:
    """Tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    num_forwards: int = 0

    def add_prompt(self, accepted: Accepted) -> None:
        """Count a prompt, once however many samples it has."""
        self.prompt_tokens += accepted.num_prompt_tokens

    def add(self, done: Done) -> None:
        """Count a sample."""
        self.completion_tokens += done.length
        self.num_forwards += done.num_forwards

    def as_json(self) -> dict[str, int]:
        """OpenAI's field, and the forwards spent."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "num_forwards": self.num_forwards,
        }


@dataclass(frozen=True)
class Form:
    """How one of the two endpoints writes its choices."""

    kind: Literal["chat", "text"]
    model: str
    seed: int
    wants_logprobs: bool
    echo: bool = False
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, choices: Sequence[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        """An answer that is not streamed."""
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": [*choices], "usage": usage.as_json(), "unmask": {"seed": self.seed}}

    def choice(self, index: int, done: Done, prompt: str) -> dict[str, Any]:
        """One whole choice."""
        logprobs = self._logprobs(done, prompt) if self.wants_logprobs else None
        common = {"index": index, "logprobs": logprobs, "finish_reason": _REASON[done.finish_reason]}
        if self.kind == "chat":
            return {**common, "message": {"role": "assistant", "content": done.text, "refusal": None}}
        return {**common, "text": (prompt if self.echo else "") + done.text}

    def first(self, index: int, prompt: str) -> dict[str, Any] | None:
        """What a stream begins a choice with, if anything."""
        if self.kind == "chat":
            return self._chunk(index, {"role": "assistant", "content": ""})
        return self._chunk(index, prompt) if self.echo else None

    def piece(self, index: int, heard: Stepped | Done, prompt: str) -> list[dict[str, Any]]:
        """What a stream tells of a step, or of the end, of a choice."""
        chunks = []
        if heard.delta:
            chunks.append(self._chunk(index, {"content": heard.delta} if self.kind == "chat" else heard.delta))
        if isinstance(heard, Done):
            last = self._chunk(index, {} if self.kind == "chat" else "")
            last["choices"][0]["finish_reason"] = _REASON[heard.finish_reason]
            if self.wants_logprobs:
                last["choices"][0]["logprobs"] = self._logprobs(heard, prompt)
            chunks.append(last)
        return chunks

    def usage_chunk(self, usage: Usage) -> dict[str, Any]:
        """The chunk after the last choice."""
        return {**self._head(self._chunk_name), "choices": [], "usage": usage.as_json()}

    @property
    def _chunk_name(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def _head(self, name: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.kind == "chat" else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": name, "created": self.created, "model": self.model}

    def _chunk(self, index: int, what: Any) -> dict[str, Any]:
        body = {"delta": what} if self.kind == "chat" else {"text": what}
        choice = {"index": index, **body, "logprobs": None, "finish_reason": None}
        return {**self._head(self._chunk_name), "choices": [choice]}

    def _logprobs(self, done: Done, prompt: str) -> dict[str, Any]:
        """Log-probabilities of the answer's tokens under the law that each was drawn from, when it was drawn."""
        texts, logprobs = done.texts[: done.length], done.logprobs[: done.length]
        if self.kind == "chat":
            content = [
                {"token": text, "logprob": logprob, "bytes": [*text.encode("utf-8", "replace")], "top_logprobs": []}
                for text, logprob in zip(texts, logprobs, strict=True)
            ]
            return {"content": content, "refusal": None}
        offsets, at = [], len(prompt) if self.echo else 0
        for text in texts:
            offsets.append(at)
            at += len(text)
        return {"tokens": texts, "token_logprobs": logprobs, "top_logprobs": None, "text_offset": offsets}
