"""Stock backbones from published configurations."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from models.denoiser import Denoiser
from models.family import Family, ModelError, family_of
from models.probe import ATTENTION


def create(
    config: dict[str, Any],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> Denoiser:
    """Denoiser with random weights from a published-style config.json; the global random state stays as it is."""
    family = family_of(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _backbone_class(family)(stock_config(family, config))
    for parameter in backbone.parameters():
        parameter.data = parameter.data.to(dtype)
    return Denoiser(backbone.eval(), family=family, config=copy.deepcopy(config), tokenizer=tokenizer)


def meta_backbone(family: Family, config: dict[str, Any]) -> PreTrainedModel:
    """Backbone whose tensors have shapes but no memory."""
    with torch.device("meta"):
        backbone: PreTrainedModel = _backbone_class(family)(stock_config(family, config)).eval()
    return backbone


def stock_config(family: Family, config: dict[str, Any]) -> PreTrainedConfig:
    """Configuration of the stock class: never causal, no cache, attention that the probe can see.

    The padding token stays unset: these models learn padding as an ordinary token, and `nn.Embedding` would freeze it.
    """
    unset = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "use_cache": False}
    config_class: Any = _backbone_class(family).config_class
    try:
        stock: PreTrainedConfig = config_class(**family.stock_fields(config), **unset)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise error if isinstance(error, ModelError) else ModelError(f"config.json: {error}") from error
    stock.is_causal = False
    stock._attn_implementation = ATTENTION
    return stock


def _backbone_class(family: Family) -> type[PreTrainedModel]:
    backbone: type[PreTrainedModel] = getattr(transformers, family.backbone)
    return backbone
