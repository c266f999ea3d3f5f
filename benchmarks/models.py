"""The models of the benchmarks: published architectures with random weights.

Weights are normal with deviation 1.4 / sqrt(inputs) and the vocabulary head is eight times that, so that predictions
are as uneven as a trained model's (10, 50 and 90 % of the highest probabilities near 0.5, 0.8 and 0.99). The head's
rows of the mask and of the end token are zero, so neither is ever predicted and no answer ends by itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch

import models
from models.build import meta_backbone

GAIN, HEAD_GAIN = 1.4, 8.0


def tiny() -> models.Denoiser:
    """LLaDA's architecture, width 256, 6 layers, vocabulary 4096, float32: small enough to time on one core."""
    return on_device(llada_config(width=256, layers=6, heads=8, ffn=768, vocabulary=4096))


def hundred_million() -> models.Denoiser:
    """LLaDA's architecture with 105 million weights in bfloat16; the head has LLaDA-8B's share of the arithmetic."""
    config = llada_config(width=768, layers=12, heads=12, ffn=2304, vocabulary=8192)
    return on_device(config, dtype=torch.bfloat16)


def tiny_block_causal() -> models.Denoiser:
    """SDAR's architecture in the size of `tiny`, blocks of 4, four query heads to a key head."""
    return on_device(sdar_config(width=256, layers=6, heads=8, kv_heads=2, ffn=768, vocabulary=4096))


def llada_config(*, width: int, layers: int, heads: int, ffn: int, vocabulary: int) -> dict[str, Any]:
    """A config.json of LLaDA's kind; the last two tokens are the mask and the end."""
    return {
        "model_type": "llada",
        "d_model": width,
        "n_layers": layers,
        "n_heads": heads,
        "n_kv_heads": heads,
        "mlp_hidden_size": ffn,
        "vocab_size": vocabulary,
        "embedding_size": vocabulary,
        "mask_token_id": vocabulary - 1,
        "eos_token_id": vocabulary - 2,
        "max_sequence_length": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "weight_tying": False,
    }


def sdar_config(
    *, width: int, layers: int, heads: int, kv_heads: int, ffn: int, vocabulary: int, block_length: int = 4
) -> dict[str, Any]:
    """A config.json of SDAR's kind; the last two tokens are the mask and the end."""
    return {
        "model_type": "sdar",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width // heads,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
        "mask_token_id": vocabulary - 1,
        "eos_token_id": vocabulary - 2,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "block_size": block_length,
    }


@torch.no_grad()
def on_device(
    config: dict[str, Any], *, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> models.Denoiser:
    """A model with random weights, made where it will stay: an 8B model never exists on the host or in float32."""
    family = models.family_of(config)
    backbone: Any = meta_backbone(family, config)
    backbone = backbone.to(dtype).to_empty(device=device)
    # Rotary frequencies are in no checkpoint, and a tensor without memory has forgotten them.
    backbone.model.rotary_emb = type(backbone.model.rotary_emb)(config=backbone.config).to(device)
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in backbone.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            gain = HEAD_GAIN * GAIN if name.startswith("lm_head") else GAIN
            parameter.normal_(std=gain / math.sqrt(parameter.shape[-1]), generator=generator)
    denoiser = models.Denoiser(backbone.eval(), family=family, config=config)
    backbone.lm_head.weight[[denoiser.mask_token_id, denoiser.eos_token_id]] = 0.0
    return denoiser.requires_grad_(False)


def random_llada(*, width: int, layers: int, vocabulary: int, seed: int = 0, window: int = 1024) -> models.Denoiser:
    """LLaDA's architecture in float32 with the library's own random weights times 4; for gradients and counted laws.

    Unlike the models above it may draw any token but the mask, and no token ends an answer.
    """
    heads = max(1, width // 64)
    config = llada_config(width=width, layers=layers, heads=heads, ffn=width * 11 // 4, vocabulary=vocabulary)
    denoiser = models.create(config | {"max_sequence_length": window}, tokenizer=None, seed=seed)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    denoiser.stop_token_ids = (denoiser.mask_token_id,)
    return denoiser.eval()
