"""How large a checkpoint is, from its config.json alone and without allocating it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from models.build import meta_backbone
from models.config import LoraConfig
from models.family import family_of
from models.lora import check_targets

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class ModelSize:
    """Counts that decide the memory of a run."""

    num_parameters: int
    num_trainable: int
    """The same without adapters; with them, the adapters' parameters only."""
    weight_bytes: int
    """Weights and adapters in the given precision."""
    num_layers: int
    width: int
    vocab_size: int


def estimate_bytes(
    config: dict[str, Any], *, dtype: Literal["float32", "bfloat16"] = "float32", lora: LoraConfig | None = None
) -> ModelSize:
    """Size of the model that a published config.json describes, adapters included."""
    family = family_of(config)
    backbone = meta_backbone(family, config)
    num_base = sum(parameter.numel() for parameter in backbone.parameters())
    num_adapter = 0
    if lora is not None:
        check_targets(backbone, lora)
        shapes = {name: tuple(value.shape) for name, value in backbone.named_parameters() if value.dim() == 2}
        targets = {f".{target}.weight" for target in lora.target_modules}
        num_adapter = sum(
            lora.rank * sum(shape) for name, shape in shapes.items() if any(name.endswith(target) for target in targets)
        )
    return ModelSize(
        num_parameters=num_base + num_adapter,
        num_trainable=num_adapter if lora is not None else num_base,
        weight_bytes=(num_base + num_adapter) * BYTES[dtype],
        num_layers=int(backbone.config.num_hidden_layers),
        width=int(backbone.config.hidden_size),
        vocab_size=int(backbone.config.vocab_size),
    )


def readable_bytes(num_bytes: float) -> str:
    """`16.1 GB`: three digits and a decimal unit."""
    if num_bytes < 1000:
        return f"{num_bytes:.0f} B"
    power = min(int(math.log10(num_bytes) // 3), 4)
    return f"{num_bytes / 1000**power:.1f} {' kMGT'[power]}B"
