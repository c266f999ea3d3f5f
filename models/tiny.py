"""The built-in character-level model: its published-style configuration, and the untrained model itself."""

from __future__ import annotations

from typing import Any

from models.build import create
from models.denoiser import Denoiser
from models.tokenizer import CHARACTERS, character_tokenizer

VOCAB_SIZE = 3 + len(CHARACTERS)

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "activation_type": "silu",
    "alibi": False,
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 128,
    "embedding_size": VOCAB_SIZE,
    "eos_token_id": 0,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_std": 0.02,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "mask_token_id": 1,
    "max_sequence_length": 512,
    "mlp_hidden_size": 352,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 6,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_theta": 10000.0,
    "scale_logits": False,
    "torch_dtype": "float32",
    "vocab_size": VOCAB_SIZE,
    "weight_tying": False,
}


def create_tiny(seed: int) -> Denoiser:
    """The built-in model before any training."""
    return create(TINY_CONFIG, tokenizer=character_tokenizer(), seed=seed)
