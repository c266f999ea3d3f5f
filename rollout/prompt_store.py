"""Keys and values of prompts that several sequences share, in block-causal families.

The finished blocks of a prompt never change, so the samples of one prompt need them computed once. A prompt is kept as
long as sequences that have not yet begun will ask for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from models.cache import KeyValues
from rollout.request import Request
from rollout.row import Row


class PromptStore:
    """Finished prompt blocks by prompt."""

    def __init__(self, requests: Sequence[Request], cache: KeyValues, *, block_length: int) -> None:
        self._waiting = Counter(_key(request) for request in requests)
        self._cache, self._block_length = cache, block_length
        self._kept: dict[tuple[int, ...], tuple[list[torch.Tensor], int]] = {}

    def expect(self, request: Request) -> None:
        """One more sequence will ask for this request's prompt."""
        self._waiting[_key(request)] += 1

    def forget(self, request: Request) -> None:
        """One sequence fewer will ask for this request's prompt."""
        key = _key(request)
        self._waiting[key] -= 1
        if not self._waiting[key]:
            del self._waiting[key]
            self._kept.pop(key, None)

    def clear(self) -> None:
        """Drop what is kept: it was computed by other weights."""
        self._kept.clear()

    def begin(self, row: Row) -> None:
        """Give a new row its prompt's blocks, if they are known."""
        key = _key(row.request)
        if key in self._kept:
            taken, row.kept = self._kept[key]
            self._cache.put(row.slot, taken)
        self.forget(row.request)

    def keep(self, row: Row) -> None:
        """Keep the prompt blocks of a row after its first forward, if other sequences wait for them."""
        key = _key(row.request)
        end = row.prompt_length // self._block_length * self._block_length
        if self._waiting[key] and key not in self._kept and end:
            self._kept[key] = (self._cache.take(row.slot, end), end)


def _key(request: Request) -> tuple[int, ...]:
    return tuple(request.prompt_tokens)
