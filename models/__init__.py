"""Diffusion language models as stock transformers backbones.

Names are imported when first used, so that `models.config` and `unmask --help` need neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.build import create
    from models.checkpoint import load, load_named, save
    from models.denoiser import Denoiser
    from models.estimate import ModelSize, estimate_bytes
    from models.family import Family, ModelError, family_of
    from models.head import logit_chunks, token_logprobs
    from models.lora import apply_lora, lora_state, merge_lora
    from models.probe import AttentionSums
    from models.source import read_config
    from models.tiny import TINY_CONFIG, create_tiny
    from models.tokenizer import character_tokenizer, decode_answer, encode_prompt

_HOMES = {
    "TINY_CONFIG": "tiny",
    "AttentionSums": "probe",
    "Denoiser": "denoiser",
    "Family": "family",
    "ModelError": "family",
    "ModelSize": "estimate",
    "apply_lora": "lora",
    "character_tokenizer": "tokenizer",
    "create": "build",
    "create_tiny": "tiny",
    "decode_answer": "tokenizer",
    "encode_prompt": "tokenizer",
    "estimate_bytes": "estimate",
    "family_of": "family",
    "load": "checkpoint",
    "load_named": "checkpoint",
    "logit_chunks": "head",
    "lora_state": "lora",
    "merge_lora": "lora",
    "read_config": "source",
    "save": "checkpoint",
    "token_logprobs": "head",
}

__all__ = [
    "TINY_CONFIG",
    "AttentionSums",
    "Denoiser",
    "Family",
    "ModelError",
    "ModelSize",
    "apply_lora",
    "character_tokenizer",
    "create",
    "create_tiny",
    "decode_answer",
    "encode_prompt",
    "estimate_bytes",
    "family_of",
    "load",
    "load_named",
    "logit_chunks",
    "lora_state",
    "merge_lora",
    "read_config",
    "save",
    "token_logprobs",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'models' has no attribute {name!r}")
    return getattr(importlib.import_module(f"models.{_HOMES[name]}"), name)
