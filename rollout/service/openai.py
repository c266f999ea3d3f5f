"""Answers in OpenAI's form, whole and in pieces."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rollout.service import native, sse
from rollout.service.schemas import ChatBody, CompletionBody, StreamOptions
from rollout.service.usage import Usage
from rollout.service.work import Accepted, Done, Job, Stepped

_REASON = {"eos": "stop", "stop": "stop", "length": "length"}


@dataclass(frozen=True)
class OpenAIForm:
    """How one of the two endpoints writes its choices, which are numbered over all prompts
    (`rollout.service.answers.Form`)."""

    kind: Literal["chat", "text"]
    jobs: Sequence[Job]
    wants_logprobs: bool
    echo: bool = False
    options: StreamOptions = field(default_factory=StreamOptions)
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    _prompts: dict[int, str] = field(default_factory=dict)

    @staticmethod
    def of(body: CompletionBody | ChatBody, jobs: Sequence[Job]) -> OpenAIForm:
        """The form that a body asks for."""
        if isinstance(body, ChatBody):
            return OpenAIForm("chat", jobs, body.logprobs, options=body.options_of_stream)
        wants_logprobs = body.logprobs is not None
        return OpenAIForm("text", jobs, wants_logprobs, echo=body.echo, options=body.options_of_stream)

    def accepted(self, number: int, heard: Accepted) -> list[bytes]:
        """The role, or the prompt where it is echoed, of each choice."""
        self._prompts[number] = heard.prompt
        if self.kind == "text" and not self.echo:
            return []
        first: Any = {"role": "assistant", "content": ""} if self.kind == "chat" else heard.prompt
        choices = range(self.jobs[number].num_samples)
        return [sse.message(self._chunk(self._index(number, sample), first)) for sample in choices]

    def stepped(self, number: int, heard: Stepped) -> list[bytes]:
        """What the text has grown by, after the commits of the step where they are asked for."""
        index, lines = self._index(number, heard.sample), list[bytes]()
        if self.options.include_steps:
            lines.append(sse.message(native.stepped(heard, self.jobs[number]) | {"index": index}, event="step"))
        return lines + self._delta(index, heard.delta)

    def done(self, number: int, heard: Done, extra: Mapping[str, Any]) -> list[bytes]:
        """The rest of the text, and why it ends."""
        index = self._index(number, heard.sample)
        last = self._chunk(index, {} if self.kind == "chat" else "")
        last["choices"][0]["finish_reason"] = _REASON[heard.finish_reason]
        if self.wants_logprobs:
            last["choices"][0]["logprobs"] = self._logprobs(heard, self._prompts[number])
        return [*self._delta(index, heard.delta), sse.message(last)]

    def end(self, usage: Usage) -> list[bytes]:
        """The usage, where it is asked for."""
        if not self.options.include_usage:
            return []
        return [sse.message({**self._head(self._chunk_name), "choices": [], "usage": usage.as_json()})]

    def choice(self, number: int, heard: Done, extra: Mapping[str, Any]) -> dict[str, Any]:
        """One whole choice."""
        prompt = self._prompts[number]
        common = {
            "index": self._index(number, heard.sample),
            "logprobs": self._logprobs(heard, prompt) if self.wants_logprobs else None,
            "finish_reason": _REASON[heard.finish_reason],
        }
        if self.kind == "chat":
            return {**common, "message": {"role": "assistant", "content": heard.text, "refusal": None}}
        return {**common, "text": (prompt if self.echo else "") + heard.text}

    def whole(self, choices: Sequence[Mapping[str, Any]], usage: Usage) -> dict[str, Any]:
        """An answer that is not streamed."""
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        seed = self.jobs[0].seed
        return {**self._head(name), "choices": [*choices], "usage": usage.as_json(), "unmask": {"seed": seed}}

    def _index(self, number: int, sample: int) -> int:
        return number * self.jobs[number].num_samples + sample

    def _delta(self, index: int, delta: str) -> list[bytes]:
        if not delta:
            return []
        return [sse.message(self._chunk(index, {"content": delta} if self.kind == "chat" else delta))]

    @property
    def _chunk_name(self) -> str:
        return "chat.completion.chunk" if self.kind == "chat" else "text_completion"

    def _head(self, name: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.kind == "chat" else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": name, "created": self.created, "model": self.jobs[0].model}

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
