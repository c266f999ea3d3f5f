"""The vocabulary head where it is asked for: float32, in chunks, the mask token never a candidate.

The stock head is a `models.vocabulary.VocabularyHead`, which works out gradients chunk by chunk. A head that is wrapped
(by a low-rank adapter) gives logits only: there each chunk is computed again in the backward pass.

M wanted positions, m positions of one chunk, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.checkpoint import checkpoint

from models.denoiser import Denoiser
from models.vocabulary import Scoring, VocabularyHead, chunks

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
    here nor in the backward pass: memory is that of a few chunks of `chunk_bytes`. A float64 model gives float64.
    """
    if hidden_MD.shape[:1] != token_M.shape:
        raise ValueError(f"hidden {tuple(hidden_MD.shape)} and token {tuple(token_M.shape)} must agree in M")
    if temperature < 0:
        raise ValueError(f"temperature = {temperature}; it must be at least 0")
    if len(token_M) == 0:
        empty_M = hidden_MD.sum(dim=-1).float()
        return empty_M, empty_M.detach()
    head, temperature = denoiser.backbone.lm_head, temperature or 1.0
    if isinstance(head, VocabularyHead):
        scoring = Scoring(token_M, denoiser.mask_token_id, temperature, chunk_bytes, torch.is_grad_enabled())
        logprob_M, entropy_M = head(hidden_MD, scoring)
        return logprob_M, entropy_M
    return _recomputed(denoiser, hidden_MD, token_M, temperature, chunk_bytes)


@torch.no_grad()
def logit_chunks(
    denoiser: Denoiser, hidden_MD: torch.Tensor, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Float32 logits of some positions after the others, the mask token at -inf: (which of M, logits (m, V)).

    The caller owns each chunk and may change it in place.
    """
    for part in chunks(len(hidden_MD), denoiser.vocab_size, chunk_bytes):
        yield part, _masked_logits(denoiser, hidden_MD[part]).float()


def _recomputed(
    denoiser: Denoiser, hidden_MD: torch.Tensor, token_M: torch.Tensor, temperature: float, chunk_bytes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Through any head that gives logits; with gradients each chunk is computed twice."""
    scored = [
        _chunk_logprobs(denoiser, hidden_MD[part], token_M[part], temperature)
        if not torch.is_grad_enabled()
        else checkpoint(_chunk_logprobs, denoiser, hidden_MD[part], token_M[part], temperature, use_reentrant=False)
        for part in chunks(len(token_M), denoiser.vocab_size, chunk_bytes)
    ]
    return torch.cat([logprob for logprob, _ in scored]), torch.cat([entropy for _, entropy in scored])


def _masked_logits(denoiser: Denoiser, hidden_mD: torch.Tensor) -> torch.Tensor:
    logits_mV = denoiser.head(hidden_mD)
    logits_mV = logits_mV.to(torch.promote_types(logits_mV.dtype, torch.float32))
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
    return -(logprob_mV.exp() * logprob_mV.clamp(min=torch.finfo(logprob_mV.dtype).min)).sum(dim=1)
