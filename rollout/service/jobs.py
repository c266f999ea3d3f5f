"""From a body to jobs, within the limits."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from rollout.service.config import Limits
from rollout.service.errors import ApiError
from rollout.service.schemas import MAX_SEED, ChatBody, CompletionBody, InfillBody, Message, RolloutBody, Sampling
from rollout.service.work import Job


def completion_jobs(body: CompletionBody, limits: Limits, *, model: str, seed: int) -> list[Job]:
    """One job a prompt; choices count over all of them."""
    prompts = list(body.prompts())
    if len(prompts) > limits.max_prompts:
        raise too_large("prompt", f"holds {len(prompts)} prompts", limits.max_prompts)
    _check_samples("n", len(prompts) * body.n, limits)
    _check_slots("max_tokens", body.max_tokens, limits)
    jobs = []
    for prompt in prompts:
        _check_prompt("prompt", len(prompt), limits)
        jobs.append(
            Job(
                model,
                seed,
                body.max_tokens,
                text=prompt if isinstance(prompt, str) else None,
                tokens=None if isinstance(prompt, str) else prompt,
                num_samples=body.n,
                stop=body.stops,
                **sampling(body, limits),
            )
        )
    return jobs


def chat_job(body: ChatBody, limits: Limits, *, model: str, seed: int) -> Job:
    """The job of a chat."""
    _check_samples("n", body.n, limits)
    _check_slots("max_completion_tokens", body.num_slots, limits)
    messages = turns(body.messages, limits)
    return Job(
        model, seed, body.num_slots, messages=messages, num_samples=body.n, stop=body.stops, **sampling(body, limits)
    )


def rollout_job(body: RolloutBody, limits: Limits, *, model: str, seed: int) -> Job:
    """The job of a group of rollouts."""
    _check_samples("num_samples", body.num_samples, limits)
    _check_slots("max_new_tokens", body.max_new_tokens, limits)
    _check_prompt("prompt", len(body.prompt or ""), limits)
    return Job(
        model,
        seed,
        body.max_new_tokens,
        text=body.prompt,
        messages=None if body.messages is None else turns(body.messages, limits),
        num_samples=body.num_samples,
        **sampling(body, limits),
    )


def infill_job(body: InfillBody, limits: Limits, *, model: str, seed: int) -> Job:
    """The job of an infill."""
    parts = body.parts()
    slots = sum(part for part in parts if isinstance(part, int))
    _check_samples("num_samples", body.num_samples, limits)
    _check_slots("max_new_tokens" if body.segments is None else "segments", slots, limits)
    _check_prompt("segments", sum(len(part) for part in parts if isinstance(part, str)), limits)
    settings = {"bars_end": not body.allow_end, **sampling(body, limits)}
    return Job(model, seed, slots, segments=parts, num_samples=body.num_samples, **settings)


def seed_of(body: Sampling) -> int:
    """The seed asked for, or a fresh one."""
    return secrets.randbelow(MAX_SEED) if body.seed is None else body.seed


def sampling(body: Sampling, limits: Limits) -> dict[str, Any]:
    """What every job takes from its body."""
    return {
        "sampler": body.sampler_name,
        "options": body.sampler_options,
        "block_length": body.block_length,
        "cache": body.cache,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "steps": body.steps,
        "streams": body.stream,
        "timeout_s": limits.request_timeout_s,
    }


def turns(messages: Sequence[Message], limits: Limits) -> tuple[dict[str, str], ...]:
    """Chat turns as templates read them; a developer's turn is a system turn."""
    _check_prompt("messages", sum(len(message.content) for message in messages), limits)
    return tuple(
        {"role": "system" if message.role == "developer" else message.role, "content": message.content}
        for message in messages
    )


def too_large(param: str, what: str, limit: int) -> ApiError:
    """A field beyond its limit."""
    return ApiError(400, f"{param} {what}; this server allows at most {limit}", code="limit_exceeded", param=param)


def _check_prompt(param: str, size: int, limits: Limits) -> None:
    if size > limits.max_prompt_chars:
        raise too_large(param, f"has a length of {size}", limits.max_prompt_chars)


def _check_samples(param: str, number: int, limits: Limits) -> None:
    if number > limits.max_samples:
        raise too_large(param, f"asks for {number} answers", limits.max_samples)


def _check_slots(param: str, number: int, limits: Limits) -> None:
    if number > limits.max_new_tokens:
        raise too_large(param, f"asks for {number} tokens", limits.max_new_tokens)
