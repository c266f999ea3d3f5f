"""Token draws: greedy, temperature, nucleus.

K slots, V vocabulary. One uniform number a slot; a token is found by inverting the cumulative law in two levels (sums
of chunks, then inside one chunk), which costs one pass over the probabilities and no noise tensor.
"""

from __future__ import annotations

import torch

_CHUNK = 128


def nucleus(logits_KV: torch.Tensor, top_p_K: torch.Tensor) -> torch.Tensor:
    """Keep the smallest set of most likely tokens whose mass reaches top_p; the others become -inf.

    The most likely token always stays. Rows with top_p = 1 are returned unchanged.
    """
    sorted_KV, order_KV = logits_KV.sort(dim=-1, descending=True, stable=True)
    p_KV = sorted_KV.softmax(dim=-1)
    mass_before_KV = p_KV.cumsum(dim=-1) - p_KV
    drop_KV = (mass_before_KV >= top_p_K[:, None]) & (top_p_K < 1)[:, None]
    drop_KV[:, 0] = False
    return logits_KV.masked_fill(torch.zeros_like(drop_KV).scatter(1, order_KV, drop_KV), -torch.inf)


def invert_cumulative(weight_KV: torch.Tensor, uniform_K: torch.Tensor) -> torch.Tensor:
    """First index whose running sum exceeds uniform * total; never one of weight 0.

    weight_KV are non-negative float32, not all 0 in a row; uniform_K are float64 in [0, 1). Sums are float64.
    """
    num_rows, vocabulary = weight_KV.shape
    num_chunks = -(-vocabulary // _CHUNK)
    padded_KCc = torch.nn.functional.pad(weight_KV, (0, num_chunks * _CHUNK - vocabulary)).view(
        num_rows, num_chunks, -1
    )
    running_KC = padded_KCc.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target_K1 = (uniform_K * running_KC[:, -1])[:, None]
    chunk_K1 = torch.searchsorted(running_KC, target_K1, right=True).clamp(max=num_chunks - 1)
    before_K1 = torch.where(chunk_K1 > 0, running_KC.gather(1, (chunk_K1 - 1).clamp(min=0)), 0.0)
    inside_Kc = padded_KCc.gather(1, chunk_K1[:, :, None].expand(-1, -1, _CHUNK))[:, 0]
    running_Kc = inside_Kc.to(torch.float64).cumsum(dim=-1)
    # Rounding may leave the target at or just above the chunk's own sum: stay on its last token of positive weight.
    last_K1 = torch.searchsorted(running_Kc, running_Kc[:, -1:].contiguous(), right=False)
    offset_K1 = torch.searchsorted(running_Kc, target_K1 - before_K1, right=True).minimum(last_K1)
    return (chunk_K1 * _CHUNK + offset_K1)[:, 0]


def draw(
    logits_KV: torch.Tensor, temperature_K: torch.Tensor, top_p_K: torch.Tensor, uniform_K: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token a slot: (token_K int64, logprob_K float32 under the law drawn from).

    Temperature 0 takes the most likely token (the lowest id of equals) and reports its log-probability at temperature 1
    without truncation.
    """
    greedy_K = temperature_K == 0
    scaled_KV = logits_KV / torch.where(greedy_K, 1.0, temperature_K)[:, None]
    if bool(((top_p_K < 1) & ~greedy_K).any()):
        scaled_KV = nucleus(scaled_KV, torch.where(greedy_K, 1.0, top_p_K))
    log_q_KV = scaled_KV.log_softmax(dim=-1)
    token_K = logits_KV.argmax(dim=-1)
    if not bool(greedy_K.all()):
        token_K = torch.where(greedy_K, token_K, invert_cumulative(log_q_KV.exp(), uniform_K))
    return token_K, log_q_KV.gather(1, token_K[:, None])[:, 0]
