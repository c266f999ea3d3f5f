"""The vocabulary head where it is asked for: float32, in chunks, the mask token never a candidate.

M wanted positions, m positions of one chunk, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.checkpoint import checkpoint

from models.denoiser import Denoiser

CHUNK_BYTES = 64 * 2**20


def token_logprobs(
    denoiser: Denoiser,
    hidden_MD: torch.Tensor,
    token_M: torch.Tensor,
    *,
    temperature: float = 1.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each token at `temperature`, and entropy (nats, detached) of the untempered law. (M,) float32.

    Temperature 0 means 1: a greedy answer is scored under the plain law. The (M, V) logits never exist whole, neither
    here nor in the backward pass, which computes each chunk of at most `chunk_bytes` again.
    """
    if hidden_MD.shape[:1] != token_M.shape:
        raise ValueError(f"hidden {tuple(hidden_MD.shape)} and token {tuple(token_M.shape)} must agree in M")
    if temperature < 0:
        raise ValueError(f"temperature = {temperature}; it must be at least 0")
    if len(token_M) == 0:
        empty_M = hidden_MD.sum(dim=-1).float()
        return empty_M, empty_M.detach()
    scored = [
        _chunk_logprobs(denoiser, hidden_MD[part], token_M[part], temperature or 1.0)
        if not torch.is_grad_enabled()
        else checkpoint(
            _chunk_logprobs, denoiser, hidden_MD[part], token_M[part], temperature or 1.0, use_reentrant=False
        )
        for part in _chunks(len(token_M), denoiser.vocab_size, chunk_bytes)
    ]
    return torch.cat([logprob for logprob, _ in scored]), torch.cat([entropy for _, entropy in scored])


@torch.no_grad()
def logit_chunks(
    denoiser: Denoiser, hidden_MD: torch.Tensor, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Float32 logits of some positions after the others, the mask token at -inf: (which of M, logits (m, V)).

    The caller owns each chunk and may change it in place.
    """
    for part in _chunks(len(hidden_MD), denoiser.vocab_size, chunk_bytes):
        yield part, _masked_logits(denoiser, hidden_MD[part])


def _chunks(num_positions: int, vocab_size: int, chunk_bytes: int) -> list[slice]:
    size = max(1, chunk_bytes // (4 * vocab_size))
    return [slice(start, min(start + size, num_positions)) for start in range(0, num_positions, size)]


def _masked_logits(denoiser: Denoiser, hidden_mD: torch.Tensor) -> torch.Tensor:
    logits_mV = denoiser.head(hidden_mD).float()
    logits_mV[:, denoiser.mask_token_id] = float("-inf")
    return logits_mV


def _chunk_logprobs(
    denoiser: Denoiser, hidden_mD: torch.Tensor, token_m: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_mV = _masked_logits(denoiser, hidden_mD)
    tempered_mV = logits_mV / temperature if temperature != 1.0 else logits_mV
    logprob_m = tempered_mV.gather(1, token_m[:, None])[:, 0] - tempered_mV.logsumexp(dim=1)
    return logprob_m, _entropy(logits_mV.detach())


def _entropy(logits_mV: torch.Tensor) -> torch.Tensor:
    """-sum p log p with 0 log 0 = 0."""
    logprob_mV = logits_mV.log_softmax(dim=1)
    return -(logprob_mV.exp() * logprob_mV.clamp(min=torch.finfo(torch.float32).min)).sum(dim=1)
