"""Examples of a supervised run: rows of tasks with their solutions, and conversations, as tokens.

Which rows an update trains on follows from (seed, step) alone. Each source has its share of every batch, and repeats no
row before all of its rows were used; every epoch is a fresh permutation.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from cluster.chat_rows import ChatData, ChatRow, read_split
from cluster.config import SftRecipe
from learner.sft import SftExample, make_example
from models import Denoiser, encode_prompt
from reward.tasks import Task, build

logger = logging.getLogger(__name__)

Pair = tuple[list[int], list[int]]
"""Tokens of a prompt and of its answer, without the end tokens that are filled in."""


class Source(Protocol):
    """Where examples come from."""

    name: str
    weight: float
    num_rows: int

    def pair(self, index: int) -> Pair:
        """A row to train on."""

    def held_out(self) -> list[Pair]:
        """Rows for the held-out loss."""


class Examples:
    """Training and held-out examples of the tasks and the data of a recipe.

    `denoiser` tells how text becomes tokens; its weights are not used.
    """

    def __init__(self, recipe: SftRecipe, denoiser: Denoiser) -> None:
        self.tasks: list[Task] = [build(config) for config in recipe.tasks]
        self._denoiser = denoiser
        self._seed, self._sft = recipe.seed, recipe.sft
        self._sources: list[Source] = [
            TaskSource(task, config.weight, denoiser, recipe.eval.limit)
            for task, config in zip(self.tasks, recipe.tasks, strict=True)
        ]
        self._sources += [ChatSource(data, recipe, denoiser) for data in recipe.data]
        self._counts = apportion([source.weight for source in self._sources], recipe.sft.batch_size)
        for source, count in zip(self._sources, self._counts, strict=True):
            if count == 0:
                raise ValueError(
                    f"task {source.name!r} with weight {source.weight} gets no example in a batch of "
                    f"{recipe.sft.batch_size}: raise sft.batch_size or the weight"
                )

    def batch(self, step: int) -> list[SftExample]:
        """The examples of one update."""
        sft = self._sft
        least = sft.min_new_tokens or sft.max_new_tokens
        num_slots = int(np.random.default_rng([self._seed, step]).integers(least, sft.max_new_tokens + 1))
        pairs = [
            source.pair(self._row(source, step * count + j))
            for source, count in zip(self._sources, self._counts, strict=True)
            for j in range(count)
        ]
        return self._examples(pairs, num_slots)

    def held_out(self) -> list[SftExample]:
        """Examples of the rows that an evaluation looks at."""
        pairs = [pair for source in self._sources for pair in source.held_out()]
        return self._examples(pairs, self._sft.max_new_tokens)

    def _row(self, source: Source, visit: int) -> int:
        epoch, place = divmod(visit, source.num_rows)
        return int(_permutation(self._seed, source.name, epoch, source.num_rows)[place])

    def _examples(self, pairs: Sequence[Pair], num_slots: int) -> list[SftExample]:
        """With end tokens as `sft.end_tokens` says, never past `num_slots`."""
        longest = max((len(answer) for _, answer in pairs), default=0)

        def slots(answer: Sequence[int]) -> int:
            match self._sft.end_tokens:
                case "fill":
                    return num_slots
                case "batch":
                    return min(longest + 1, num_slots)
                case int(number):
                    return min(len(answer) + number, num_slots)

        family = self._denoiser.family
        block_length = self._denoiser.block_length if family.block_causal else None
        return [
            make_example(
                prompt,
                answer,
                max_new_tokens=slots(answer),
                eos_token_id=self._denoiser.eos_token_id,
                block_length=block_length or 0,
            )
            for prompt, answer in pairs
        ]


class TaskSource:
    """Rows of a task and its own solutions."""

    def __init__(self, task: Task, weight: float, denoiser: Denoiser, limit: int | None) -> None:
        self.name, self.weight = task.name, weight
        self._task, self._denoiser, self._limit = task, denoiser, limit
        self._rows = task.rows("train")
        self.num_rows = len(self._rows)

    def pair(self, index: int) -> Pair:
        """A training row."""
        return self._pair(self._rows[index])

    def held_out(self) -> list[Pair]:
        """Test rows up to the limit."""
        return [self._pair(row) for row in self._task.rows("test")[: self._limit]]

    def _pair(self, row: object) -> Pair:
        prompt = self._task.prompt(row)  # type: ignore[arg-type]
        solution = self._task.solution(row)  # type: ignore[arg-type]
        return encode_prompt(self._denoiser, prompt.text, prompt.messages), encode_prompt(self._denoiser, solution)


class ChatSource:
    """Conversations, all of them tokens from the start: what does not fit is known before the first update."""

    def __init__(self, data: ChatData, recipe: SftRecipe, denoiser: Denoiser) -> None:
        self.name, self.weight = data.source, data.weight
        train, held_out = read_split(data, seed=recipe.seed)
        window = min(denoiser.max_length, recipe.model.max_length or denoiser.max_length)
        self._train = _fitting(train, recipe, denoiser, window)
        self._held_out = _fitting(held_out, recipe, denoiser, window)
        self.num_rows = len(self._train)
        if not self._train:
            raise ValueError(
                f"data {data.source}: no row fits sft.max_new_tokens {recipe.sft.max_new_tokens} and the window of "
                f"{window} tokens; raise sft.max_new_tokens, or use a model with a longer window"
            )

    def pair(self, index: int) -> Pair:
        """A training row."""
        return self._train[index]

    def held_out(self) -> list[Pair]:
        """Rows set aside."""
        return self._held_out


def _fitting(rows: Sequence[ChatRow], recipe: SftRecipe, denoiser: Denoiser, window: int) -> list[Pair]:
    """Rows as tokens; those that do not fit are an error or left out, as `sft.too_long` says."""
    slots, kept = recipe.sft.max_new_tokens, []
    for row in rows:
        prompt, answer = encode_row(denoiser, row)
        if len(answer) <= slots and len(prompt) + slots <= window:
            kept.append((prompt, answer))
        elif recipe.sft.too_long == "refuse":
            raise ValueError(
                f"{row.place}: the prompt has {len(prompt)} tokens and the answer {len(answer)}, but "
                f"sft.max_new_tokens is {slots} and the window {window}.\nRaise sft.max_new_tokens, shorten the row, "
                "or set sft.too_long to drop"
            )
    if len(kept) < len(rows):
        logger.warning("%d of %d rows are too long and left out", len(rows) - len(kept), len(rows))
    return kept


def encode_row(denoiser: Denoiser, row: ChatRow) -> Pair:
    """Prompt as the chat template renders it; the assistant's text, and the token that ends its turn if it has one."""
    try:
        if isinstance(row.prompt, str):
            return encode_prompt(denoiser, row.prompt), encode_prompt(denoiser, row.answer)
        prompt = encode_prompt(denoiser, messages=row.prompt)
        text, tail = _rendered_answer(denoiser, row)
        ending = [] if not tail else encode_prompt(denoiser, tail)[:1]
        return prompt, encode_prompt(denoiser, text) + [token for token in ending if token in denoiser.stop_token_ids]
    except ValueError as error:
        raise ValueError(f"{row.place}: {error}") from error


def _rendered_answer(denoiser: Denoiser, row: ChatRow) -> tuple[str, str]:
    """The answer as the template writes it (some trim it), and what the template writes behind it."""
    tokenizer = denoiser.tokenizer
    assert tokenizer is not None
    before = [dict(turn) for turn in row.prompt if isinstance(turn, dict)]
    prompt = str(tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True))
    turns = [*before, {"role": "assistant", "content": row.answer}]
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    rest = whole[len(prompt) :]
    for text in (row.answer, row.answer.strip()):
        if whole.startswith(prompt) and rest.startswith(text):
            return text, rest[len(text) :].lstrip()
    raise ValueError(
        "the chat template writes the turns in another form once the answer is there, so it is not known where the "
        "answer begins; give the row as prompt and completion texts"
    )


def apportion(weights: Sequence[float], total: int) -> list[int]:
    """Whole counts proportional to weights that add up to `total`, by largest remainder (ties: the first)."""
    shares = [weight / sum(weights) * total for weight in weights]
    counts = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


@lru_cache(maxsize=16)
def _permutation(seed: int, task: str, epoch: int, num_rows: int) -> np.ndarray:
    """Order of a source's rows in one epoch."""
    return np.random.default_rng([seed, zlib.crc32(task.encode()), epoch]).permutation(num_rows)
