"""From commits to text: one sample on its way, its readable beginning, and where a stop text ends it.

Tokens are committed in any order. The text grows where nothing is masked to its left, so a client that reads plain
deltas sees only what is final.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rollout.lane import Committed

_UNFINISHED = "�"


class Assembly:
    """The slots of one sample."""

    def __init__(
        self, num_slots: int, *, stop: Sequence[str], stop_ids: Sequence[int], decode: Callable[[list[int]], str]
    ) -> None:
        self._stop, self._stop_ids, self._decode = tuple(stop), frozenset(stop_ids), decode
        self._tokens: list[int | None] = [None] * num_slots
        self._steps = [0] * num_slots
        self._logprobs = [0.0] * num_slots
        self._entropies = [0.0] * num_slots
        self._ready = 0
        self._told = ""
        self.num_steps = self.num_forwards = 0
        self.text: str | None = None
        """The whole text once a stop text has been found."""
        self.length = 0
        """Tokens of that text."""

    def add(self, committed: Committed) -> str:
        """Write a step; what the text has grown by."""
        self.num_steps, self.num_forwards = committed.step + 1, committed.num_forwards
        for slot, token, logprob, entropy in zip(
            committed.slots, committed.tokens, committed.logprobs, committed.entropies, strict=True
        ):
            self._tokens[slot], self._steps[slot] = token, committed.step
            self._logprobs[slot], self._entropies[slot] = logprob, entropy
        before = self._ready
        while self._ready < len(self._tokens) and self._is_content(self._tokens[self._ready]):
            self._ready += 1
        if self._ready == before or self.text is not None:
            return ""
        whole = self._decode(self.tokens(self._ready))
        return self._grow(self._cut(whole), is_last=self.text is not None)

    def finish(self, text: str) -> str:
        """The rest of the text, given whole."""
        return self._grow(self.text if self.text is not None else self._cut(text, is_last=True), is_last=True)

    def tokens(self, number: int) -> list[int]:
        """The first tokens, which are committed."""
        return [token for token in self._tokens[:number] if token is not None]

    def history(self, number: int) -> tuple[list[int], list[float], list[float]]:
        """Steps, log-probabilities and entropies of the first tokens."""
        return self._steps[:number], self._logprobs[:number], self._entropies[:number]

    def _is_content(self, token: int | None) -> bool:
        return token is not None and token not in self._stop_ids

    def _cut(self, whole: str, *, is_last: bool = False) -> str:
        """The text before the first stop text, which is noted."""
        found = [at for at in (whole.find(stop) for stop in self._stop) if at >= 0]
        if not found:
            return whole
        self.text = whole[: min(found)]
        self.length = self._tokens_of(self.text)
        return self.text

    def _tokens_of(self, text: str) -> int:
        """Fewest first tokens that hold a text."""
        return next((n for n in range(self._ready) if self._decode(self.tokens(n)).startswith(text)), self._ready)

    def _grow(self, whole: str, *, is_last: bool) -> str:
        """What may be told beyond what was: half a character, and what may become a stop text, wait."""
        if not is_last:
            whole = whole.rstrip(_UNFINISHED)
            whole = whole[: len(whole) - self._held_back(whole)]
        if len(whole) <= len(self._told) or not whole.startswith(self._told):
            return ""
        delta, self._told = whole[len(self._told) :], whole
        return delta

    def _held_back(self, whole: str) -> int:
        """Longest end of the text that a stop text begins with."""
        sizes = (n for stop in self._stop for n in range(1, len(stop)) if whole.endswith(stop[:n]))
        return max(sizes, default=0)
