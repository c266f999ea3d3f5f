"""The model of the benchmarks: LLaDA's architecture with random weights."""

from __future__ import annotations

import torch

import models


def random_llada(*, width: int, layers: int, vocabulary: int, seed: int = 0, window: int = 1024) -> models.Denoiser:
    """A model whose predictions are as uneven as a trained one's and that never ends an answer."""
    config = {
        "model_type": "llada",
        "d_model": width,
        "n_layers": layers,
        "n_heads": max(1, width // 64),
        "n_kv_heads": max(1, width // 64),
        "mlp_hidden_size": width * 11 // 4,
        "vocab_size": vocabulary,
        "embedding_size": vocabulary,
        "mask_token_id": vocabulary - 1,
        "eos_token_id": vocabulary - 2,
        "max_sequence_length": window,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "weight_tying": False,
    }
    denoiser = models.create(config, tokenizer=None, seed=seed)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    # The mask token is never drawn, so nothing ends an answer.
    denoiser.stop_token_ids = (denoiser.mask_token_id,)
    return denoiser.eval()
