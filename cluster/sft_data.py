"""Examples of a supervised run: rows of the tasks with their solutions, as tokens.

Which rows an update trains on follows from (seed, step) alone. Each task has its share of every batch, and repeats no
row before all of its rows were used; every epoch is a fresh permutation.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from cluster.config import SftRecipe
from learner.sft import SftExample, make_example
from models import Denoiser, encode_prompt
from reward.tasks import Task, build


class Examples:
    """Training and held-out examples of the tasks of a recipe.

    `denoiser` tells how text becomes tokens; its weights are not used.
    """

    def __init__(self, recipe: SftRecipe, denoiser: Denoiser) -> None:
        self.tasks: list[Task] = [build(config) for config in recipe.tasks]
        self._denoiser = denoiser
        self._seed = recipe.seed
        self._slots = (recipe.sft.min_new_tokens or recipe.sft.max_new_tokens, recipe.sft.max_new_tokens)
        self._limit = recipe.eval.limit
        self._rows = [task.rows("train") for task in self.tasks]
        self._counts = apportion([config.weight for config in recipe.tasks], recipe.sft.batch_size)
        for config, count in zip(recipe.tasks, self._counts, strict=True):
            if count == 0:
                raise ValueError(
                    f"task {config.name!r} with weight {config.weight} gets no example in a batch of "
                    f"{recipe.sft.batch_size}: raise sft.batch_size or the weight"
                )

    def batch(self, step: int) -> list[SftExample]:
        """The examples of one update, all with the same number of slots."""
        num_slots = int(np.random.default_rng([self._seed, step]).integers(self._slots[0], self._slots[1] + 1))
        return [
            self._example(task, rows[self._row(i, step * count + j)], num_slots)
            for i, (task, rows, count) in enumerate(zip(self.tasks, self._rows, self._counts, strict=True))
            for j in range(count)
        ]

    def held_out(self) -> list[SftExample]:
        """Examples of the test rows that an evaluation looks at."""
        return [
            self._example(task, row, self._slots[1]) for task in self.tasks for row in task.rows("test")[: self._limit]
        ]

    def _row(self, task_index: int, visit: int) -> int:
        num_rows = len(self._rows[task_index])
        epoch, place = divmod(visit, num_rows)
        return int(_permutation(self._seed, self.tasks[task_index].name, epoch, num_rows)[place])

    def _example(self, task: Task, row: Mapping[str, Any], num_slots: int) -> SftExample:
        prompt = task.prompt(row)
        return make_example(
            encode_prompt(self._denoiser, prompt.text, prompt.messages),
            encode_prompt(self._denoiser, task.solution(row)),
            max_new_tokens=num_slots,
            eos_token_id=self._denoiser.eos_token_id,
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
    """Order of a task's rows in one epoch."""
    return np.random.default_rng([seed, zlib.crc32(task.encode()), epoch]).permutation(num_rows)
