"""Answers of our own endpoints: rollouts and infills, with their whole history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rollout.service import sse
from rollout.service.usage import Usage
from rollout.service.work import Accepted, Done, Job, Stepped


@dataclass(frozen=True)
class NativeForm:
    """How our own endpoints write the one job of a request (`rollout.service.answers.Form`)."""

    job: Job

    def accepted(self, number: int, heard: Accepted) -> list[bytes]:
        """Nothing."""
        return []

    def stepped(self, number: int, heard: Stepped) -> list[bytes]:
        """The commits of a step."""
        return [sse.message(stepped(heard, self.job), event="step")]

    def done(self, number: int, heard: Done, extra: Mapping[str, Any]) -> list[bytes]:
        """The whole sample."""
        return [sse.message(self.choice(number, heard, extra), event="done")]

    def end(self, usage: Usage) -> list[bytes]:
        """Nothing."""
        return []

    def choice(self, number: int, heard: Done, extra: Mapping[str, Any]) -> dict[str, Any]:
        """The whole sample."""
        return done(heard, self.job) | dict(extra)

    def whole(self, choices: Sequence[Mapping[str, Any]], usage: Usage) -> dict[str, Any]:
        """All samples."""
        name = "rollouts" if self.job.segments is None else "infills"
        head = {"object": name, "model": self.job.model, "seed": self.job.seed}
        return {**head, name: [*choices], "usage": usage.as_json()}


def stepped(heard: Stepped, job: Job) -> dict[str, Any]:
    """One step of a sample."""
    name = "infill.step" if job.segments is not None else "rollout.step"
    commits = [
        {
            "position": slot,
            "token_id": token,
            "token": text,
            "probability": math.exp(logprob),
            "logprob": logprob,
            "entropy": entropy,
            **_segment(slot, job),
        }
        for slot, token, text, logprob, entropy in zip(
            heard.slots, heard.tokens, heard.texts, heard.logprobs, heard.entropies, strict=True
        )
    ]
    return {
        "object": name,
        "index": heard.sample,
        "step": heard.step,
        "commits": commits,
        "num_forwards": heard.num_forwards,
    }


def done(heard: Done, job: Job) -> dict[str, Any]:
    """A finished sample. Lists are over all slots; slots that no step has committed hold the end token, and their place
    in `step_map` is `num_steps`."""
    body: dict[str, Any] = {
        "object": "infill.done" if job.segments is not None else "rollout.done",
        "index": heard.sample,
        "text": heard.text,
        "finish_reason": heard.finish_reason,
        "answer_length": heard.length,
        "tokens": heard.tokens,
        "token_texts": heard.texts,
        "step_map": heard.step_map,
        "logprobs": heard.logprobs,
        "entropies": heard.entropies,
        "num_steps": heard.num_steps,
        "num_forwards": heard.num_forwards,
        "weights_version": list(heard.weights_version),
        "exact_likelihood": heard.exact_likelihood,
        "seed": job.seed,
        "sampler": heard.sampler,
    }
    if heard.segments is not None:
        assert job.segments is not None
        body["segments"] = [
            {"text": text, "is_hole": isinstance(part, int)}
            for text, part in zip(heard.segments, job.segments, strict=True)
        ]
    return body


def _segment(slot: int, job: Job) -> dict[str, int]:
    """Number of the segment that holds a slot, counted over all segments; nothing for a rollout."""
    if job.segments is None:
        return {}
    end = 0
    for number, part in enumerate(job.segments):
        end += part if isinstance(part, int) else 0
        if slot < end:
            return {"segment": number}
    raise AssertionError(f"slot {slot} is in no hole")
