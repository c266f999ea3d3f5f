"""Tiny random models of three kinds of family, and ragged prompts."""

import pytest
import torch

import models

SIZES = {"llada": "bidirectional", "dream": "shifted", "sdar": "block-causal"}

LLADA = {
    "model_type": "llada", "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 48,
    "vocab_size": 40, "embedding_size": 40, "mask_token_id": 39, "eos_token_id": 38, "pad_token_id": 38,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_sequence_length": 128, "weight_tying": False,
    "include_bias": False, "include_qkv_bias": False, "layer_norm_type": "rms", "activation_type": "silu",
    "block_type": "llama", "rope": True,
}  # fmt: skip
QWEN = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 40, "mask_token_id": 39, "eos_token_id": 38, "pad_token_id": 38,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 128, "tie_word_embeddings": False,
    "hidden_act": "silu",
}  # fmt: skip
CONFIGS = {
    "llada": LLADA,
    "dream": QWEN | {"model_type": "Dream"},
    "sdar": QWEN | {"model_type": "sdar", "head_dim": 8, "block_size": 4},
    "fast_dllm_v2": QWEN | {"model_type": "Fast_dLLM_Qwen", "bd_size": 4},
}


def sharpened(name: str) -> models.Denoiser:
    """A random model whose predictions are spread like a trained one's (not near uniform)."""
    denoiser = models.create(CONFIGS[name], tokenizer=None, seed=3)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5.0)
    return denoiser.eval()


@pytest.fixture(scope="session")
def denoisers() -> dict[str, models.Denoiser]:
    return {name: sharpened(name) for name in CONFIGS}


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    return [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], [12, 13, 14, 15, 16], [3, 2, 1, 17]]
