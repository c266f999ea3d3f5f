"""What the baselines compute with: the backbone as transformers ships it, with weights of its own.

A copy, so that nothing done to a denoiser to make it faster makes a baseline faster. Attention is torch's fused kernel
without a mask, as in the released decoders.

B sequences, N positions, M positions of any shape, D width, V vocabulary.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import models

_ATTENTION = "benchmark_sdpa"


class Stock:
    """A bidirectional backbone and its head."""

    def __init__(self, denoiser: models.Denoiser) -> None:
        if denoiser.family.block_causal or denoiser.family.shift:
            raise ValueError(f"the baselines decode LLaDA's kind of model, not {denoiser.family.name!r}")
        config = copy.deepcopy(denoiser.backbone.config)
        config._attn_implementation = _ATTENTION
        backbone_class: Any = getattr(transformers, denoiser.family.backbone)
        self.backbone = backbone_class(config).eval().requires_grad_(False)
        for parameter in self.backbone.parameters():
            parameter.data = parameter.data.to(denoiser.device, denoiser.backbone.lm_head.weight.dtype)
        self.backbone.load_state_dict(denoiser.backbone.state_dict())
        self.mask_token_id = denoiser.mask_token_id
        self.eos_token_id = denoiser.eos_token_id

    def hidden(self, token_BN: torch.Tensor) -> torch.Tensor:
        """Hidden states (B, N, D) after the final norm."""
        hidden_BND: torch.Tensor = self.backbone.model(input_ids=token_BN, use_cache=False).last_hidden_state
        return hidden_BND

    def head(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Logits (M, V)."""
        logits_MV: torch.Tensor = self.backbone.lm_head(hidden_MD)
        return logits_MV

    def logits(self, token_BN: torch.Tensor) -> torch.Tensor:
        """Logits (B, N, V) at every position."""
        return self.head(self.hidden(token_BN))


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, is_causal=False
    )
    return output


def _no_mask(**_: Any) -> None:
    return


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, _no_mask)
