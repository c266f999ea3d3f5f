"""Token draws: greedy, temperature, top-k, nucleus.

K slots, V vocabulary. One uniform number a slot; a token is found by inverting the cumulative law in two levels (sums
of chunks, then inside one chunk), which costs one pass over the probabilities and no noise tensor.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from samplers.records import BlockState
from samplers.truncate import nucleus, top_k

_CHUNK = 128
_CACHE_BYTES = 1073741824


@dataclass(frozen=True, slots=True)
class Law:
    """The laws that K tokens are drawn from: softmax(logits / temperature), cut to top-k, then to the nucleus.

    A greedy row (temperature 0) has the untempered, uncut law; its token is the most likely one.
    """

    temperature_K: torch.Tensor
    top_p_K: torch.Tensor
    top_k_K: torch.Tensor
    any_temperature: bool
    any_greedy: bool
    any_top_p: bool
    max_top_k: int

    @staticmethod
    def of(state: BlockState, row_K: torch.Tensor) -> Law:
        """Laws of slots in these rows."""
        return Law(
            state.temperature_R[row_K],
            state.top_p_R[row_K],
            state.top_k_R[row_K],
            any_temperature=state.any_temperature,
            any_greedy=state.any_greedy,
            any_top_p=state.any_top_p,
            max_top_k=state.max_top_k,
        )

    def at(self, index: slice | torch.Tensor) -> Law:
        """Laws of some of the slots."""
        return replace(
            self,
            temperature_K=self.temperature_K[index],
            top_p_K=self.top_p_K[index],
            top_k_K=self.top_k_K[index],
        )

    def greedy(self) -> torch.Tensor:
        """bool (K,): slots that take the most likely token."""
        return self.temperature_K == 0

    def apply(self, logits_KV: torch.Tensor) -> torch.Tensor:
        """Logits whose softmax is the law; tokens outside it at -inf."""
        if not self.any_temperature:
            return logits_KV
        greedy_K = self.greedy()
        logits_KV = logits_KV / torch.where(greedy_K, 1.0, self.temperature_K)[:, None]
        if self.max_top_k:
            logits_KV = top_k(logits_KV, torch.where(greedy_K, 0, self.top_k_K), largest=self.max_top_k)
        if self.any_top_p:
            logits_KV = nucleus(logits_KV, torch.where(greedy_K, 1.0, self.top_p_K))
        return logits_KV


def invert_cumulative(weight_KV: torch.Tensor, uniform_K: torch.Tensor) -> torch.Tensor:
    """First index whose running sum exceeds uniform * total; never one of weight 0.

    weight_KV are non-negative float32, not all 0 in a row; uniform_K are float64 in [0, 1). Chunks are summed in
    float32, running sums are float64.
    """
    num_rows, vocabulary = weight_KV.shape
    if padding := -vocabulary % _CHUNK:
        weight_KV = torch.nn.functional.pad(weight_KV, (0, padding))
    weight_KCc = weight_KV.view(num_rows, -1, _CHUNK)
    running_KC = weight_KCc.sum(dim=-1).to(torch.float64).cumsum(dim=-1)
    target_K1 = uniform_K[:, None] * running_KC[:, -1:]
    chunk_K1 = _first_above(running_KC, target_K1)
    before_K1 = torch.where(chunk_K1 > 0, running_KC.gather(1, (chunk_K1 - 1).clamp(min=0)), 0.0)
    inside_Kc = weight_KCc.gather(1, chunk_K1[:, :, None].expand(-1, -1, _CHUNK))[:, 0]
    offset_K1 = _first_above(inside_Kc.to(torch.float64).cumsum(dim=-1), target_K1 - before_K1)
    return (chunk_K1 * _CHUNK + offset_K1)[:, 0]


def _first_above(running_KN: torch.Tensor, target_K1: torch.Tensor) -> torch.Tensor:
    """First place where a running sum exceeds a target; rounding may leave the target at the total or just above it,
    then the last place that adds to the sum."""
    last_K1 = torch.searchsorted(running_KN, running_KN[:, -1:].contiguous(), right=False)
    return torch.searchsorted(running_KN, target_K1, right=True).minimum(last_K1)


def draw(logits_KV: torch.Tensor, law: Law, uniform_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token a slot: (token_K int64, logprob_K float32 under the law drawn from).

    A greedy row takes the most likely token (the lowest id of equals) and reports its log-probability at temperature 1
    without truncation.
    """
    parts = [_draw(logits_KV[lot], law.at(lot), uniform_K[lot]) for lot in lots_in_cache(logits_KV)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([token_C for token_C, _ in parts]), torch.cat([logprob_C for _, logprob_C in parts])


def lots_in_cache(logits_MV: torch.Tensor) -> list[slice]:
    """Rows to work on together: on a CPU as few as the processor's cache holds through several passes, else all."""
    number, rows = len(logits_MV), max(1, len(logits_MV))
    if logits_MV.device.type == "cpu":
        rows = max(1, _CACHE_BYTES // (4 * logits_MV.shape[1]))
    return [slice(start, start + rows) for start in range(0, max(1, number), rows)]


def _draw(logits_KV: torch.Tensor, law: Law, uniform_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q_KV = law.apply(logits_KV).softmax(dim=-1)
    if not law.any_temperature:
        token_K = logits_KV.argmax(dim=-1)
    else:
        token_K = invert_cumulative(q_KV, uniform_K)
        if law.any_greedy:
            token_K = torch.where(law.greedy(), logits_KV.argmax(dim=-1), token_K)
    return token_K, q_KV.gather(1, token_K[:, None])[:, 0].log()
