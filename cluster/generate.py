"""Answers without training: prompts from the command line or a JSONL file, through the same engine as a run.

A prompt row: `{"id": "p1", "prompt": "37+485="}`, or with `messages` (chat turns) in place of `prompt`; `sampler` and
`seed` of a row replace those of the command. The answer to a row depends on its id, its seed and the number of the
sample, not on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import nearest
from rollout.config import DecodingConfig
from rollout.records import Prompt, Trajectory

if TYPE_CHECKING:
    from models import Denoiser
    from rollout.request import Request

_FIELDS = ("id", "prompt", "messages", "sampler", "seed")
_ALLOWED = (
    '{"id"?: text, "prompt": text, "sampler"?: name, "seed"?: whole number}, or "messages": [{"role", "content"}, ..] '
    'in place of "prompt"'
)


@dataclass(frozen=True)
class PromptRow:
    """One prompt and what it sets for itself."""

    prompt: Prompt
    where: str
    """For error texts: `prompts.jsonl, line 3`."""
    sampler: str | None = None
    seed: int | None = None


def prompts_of(texts: Sequence[str]) -> list[PromptRow]:
    """Prompts as given on the command line."""
    return [
        PromptRow(Prompt(id=f"prompt-{number}", task="", text=text), where=f"--prompt number {number}")
        for number, text in enumerate(texts, start=1)
    ]


def read_prompts(path: Path) -> list[PromptRow]:
    """Rows of a JSONL file; an error names file and line."""
    from reward.files import read_jsonl

    rows: dict[str, PromptRow] = {}
    for line, fields in read_jsonl(path, allowed=_ALLOWED):
        where = f"{path}, line {line}"
        row = _row(where, fields, default_id=f"prompt-{line}")
        if row.prompt.id in rows:
            raise ValueError(
                f"{where}: id {row.prompt.id!r} is that of {rows[row.prompt.id].where} too; make ids differ"
            )
        rows[row.prompt.id] = row
    return list(rows.values())


def answer(
    denoiser: Denoiser,
    rows: Sequence[PromptRow],
    decoding: DecodingConfig,
    *,
    num_samples: int = 1,
    seed: int = 0,
    max_batch_tokens: int = 16384,
) -> list[list[Trajectory]]:
    """Answers of each row, with their text. Rows of one sampler are denoised together."""
    import samplers
    from models import decode_answer
    from rollout.engine import Engine

    requests = [_requests(denoiser, row, decoding, num_samples=num_samples, seed=seed) for row in rows]
    answers: dict[int, list[Trajectory]] = {}
    for name in dict.fromkeys(row.sampler for row in rows):
        options = decoding.sampler.options if name in (None, decoding.sampler.name) else {}
        engine = Engine(
            denoiser,
            samplers.build(name or decoding.sampler.name, **options),
            block_length=decoding.block_length,
            cache=decoding.cache.policy(),
            max_batch_tokens=max_batch_tokens,
        )
        places = [place for place, row in enumerate(rows) if row.sampler == name]
        drawn = iter(engine.run([request for place in places for request in requests[place]]))
        answers |= {place: [next(drawn) for _ in range(num_samples)] for place in places}
    return [
        [replace(t, text=decode_answer(denoiser, t.tokens[: t.answer_length].tolist())) for t in answers[place]]
        for place in range(len(rows))
    ]


def check_rows(model: str, rows: Sequence[PromptRow], decoding: DecodingConfig) -> None:
    """Refuse rows that the model cannot answer and decoding that does not fit it, without loading its weights."""
    import samplers
    from models import family_of, read_config
    from models.build import meta_backbone
    from models.denoiser import Denoiser
    from models.source import adapter_base, resolve
    from models.tokenizer import load_tokenizer

    config = read_config(model)
    family = family_of(config)
    tokenizer = load_tokenizer(resolve(adapter_base(model) or model))
    shapes = Denoiser(meta_backbone(family, config), family=family, config=config, tokenizer=tokenizer, source=model)
    decoding.cache.policy().check(block_causal=family.block_causal)
    samplers.build(decoding.sampler.name, **decoding.sampler.options)
    for row in rows:
        _requests(shapes, row, decoding, num_samples=1, seed=0)


def as_json(trajectory: Trajectory) -> dict[str, Any]:
    """One trajectory as a JSON object: every field of the record, the prompt id first."""
    return {
        "id": trajectory.prompt_id,
        "sample_index": trajectory.sample_index,
        "text": trajectory.text,
        "finish_reason": trajectory.finish_reason,
        "answer_length": trajectory.answer_length,
        "num_forwards": trajectory.num_forwards,
        "num_steps": trajectory.num_steps,
        "sampler": trajectory.sampler,
        "exact_likelihood": trajectory.exact_likelihood,
        "seed": trajectory.seed,
        "temperature": trajectory.temperature,
        "top_p": trajectory.top_p,
        "cache": trajectory.cache,
        "block_length": trajectory.block_length,
        "weights_version": list(trajectory.weights_version),
        "prompt_tokens": trajectory.prompt_tokens.tolist(),
        "tokens": trajectory.tokens.tolist(),
        "step_map": trajectory.step_map.tolist(),
        "logprobs": trajectory.logprobs.tolist(),
        "entropies": trajectory.entropies.tolist(),
    }


def _row(where: str, fields: Mapping[str, Any], *, default_id: str) -> PromptRow:
    for name in fields:
        hint = "" if name in _FIELDS else nearest(name, _FIELDS)
        if hint:
            raise ValueError(f"{where}: unknown field {name!r}{hint}; allowed: {_ALLOWED}")
    text, messages = fields.get("prompt"), fields.get("messages")
    if (text is None) == (messages is None):
        raise ValueError(f"{where}: give exactly one of prompt and messages; allowed: {_ALLOWED}")
    if text is not None and not (isinstance(text, str) and text):
        raise ValueError(f"{where}: prompt is {text!r}; it must be a text that is not empty")
    if messages is not None and not (isinstance(messages, list) and messages and all(map(_is_turn, messages))):
        raise ValueError(f"{where}: messages is {messages!r:.200}; allowed: {_ALLOWED}")
    sampler, seed = fields.get("sampler"), fields.get("seed")
    if sampler is not None:
        _check_sampler(where, sampler)
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
        raise ValueError(f"{where}: seed is {seed!r}; it must be a whole number from 0 on")
    row_id = fields.get("id")
    prompt = Prompt(
        id=default_id if row_id is None else str(row_id),
        task="",
        text=text,
        messages=None if messages is None else tuple(messages),
    )
    return PromptRow(prompt, where, sampler, seed)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _check_sampler(where: str, name: Any) -> None:
    import samplers

    if name not in samplers.names():
        raise ValueError(
            f"{where}: unknown sampler {name!r}{nearest(str(name), samplers.names())}; "
            f"known: {', '.join(samplers.names())}"
        )


def _requests(
    denoiser: Denoiser, row: PromptRow, decoding: DecodingConfig, *, num_samples: int, seed: int
) -> list[Request]:
    from models import encode_prompt
    from rollout.request import Request, sequence_seed

    try:
        tokens = encode_prompt(denoiser, row.prompt.text, row.prompt.messages)
        requests = [
            Request(
                prompt_tokens=tokens,
                max_new_tokens=decoding.max_new_tokens,
                seed=sequence_seed(seed if row.seed is None else row.seed, row.prompt.id, sample_index),
                temperature=decoding.temperature,
                top_p=decoding.top_p,
                top_k=decoding.top_k,
                steps=decoding.steps,
                prompt_id=row.prompt.id,
                sample_index=sample_index,
            )
            for sample_index in range(num_samples)
        ]
        requests[0].check(max_length=denoiser.max_length, vocab_size=denoiser.vocab_size)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error
    return requests
