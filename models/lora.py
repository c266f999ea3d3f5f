"""Low-rank adapters by peft, put into the stock backbone in place.

The backbone stays the stock class and keeps its parameter names, except that an adapted layer's own weight moves to
`<layer>.base_layer.weight` and its adapter is `<layer>.lora_A.default.weight` and `<layer>.lora_B.default.weight`.
On disk an adapter has peft's layout over the stock module names, with the base checkpoint named in adapter_config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedModel

from models.config import LoraConfig
from models.denoiser import Denoiser
from models.family import ModelError
from models.source import ADAPTER_CONFIG, write_json
from models.weights import write_tensors

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."


def apply_lora(denoiser: Denoiser, config: LoraConfig, *, seed: int = 0) -> None:
    """Adds fresh adapters (no effect until trained) and freezes everything else. The same seed, the same adapters."""
    if has_lora(denoiser):
        raise ModelError("the model has adapters already; merge them first (models.merge_lora)")
    check_targets(denoiser.backbone, config)
    _inject(
        denoiser,
        peft.LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]
            lora_dropout=config.dropout,
            target_modules=list(config.target_modules),
            base_model_name_or_path=denoiser.source,
        ),
        seed,
    )


def check_targets(backbone: PreTrainedModel, config: LoraConfig) -> None:
    """Refuses layers that the backbone has not, and the feed-forward layers of models with experts.

    The experts of a layer are one tensor, not linear layers: their adapters would need a layout of their own.
    """
    allowed = {name.rpartition(".")[2] for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    if any(name.endswith("experts.gate_up_proj") for name, _ in backbone.named_parameters()):
        allowed -= {"gate_proj", "up_proj", "down_proj"}
    refused = [name for name in config.target_modules if name not in allowed]
    if refused:
        raise ModelError(
            f"model.lora.target_modules: {', '.join(refused)} cannot be adapted in {type(backbone).__name__};"
            f" choose from {', '.join(sorted(allowed))}"
        )


def has_lora(denoiser: Denoiser) -> bool:
    """Whether adapters are in the backbone."""
    return any(isinstance(module, LoraLayer) for module in denoiser.backbone.modules())


def lora_state(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    """The adapters' parameters by backbone name; `load_named` takes exactly these."""
    return {name: value for name, value in denoiser.backbone.named_parameters() if is_adapter(name)}


def is_adapter(name: str) -> bool:
    """Whether a backbone parameter belongs to an adapter."""
    return ".lora_" in name


@torch.no_grad()
def merge_lora(denoiser: Denoiser) -> None:
    """Adds the adapters to the weights and removes them; the model computes the same as before."""
    for name, layer in list(denoiser.backbone.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            owner, _, leaf = name.rpartition(".")
            setattr(denoiser.backbone.get_submodule(owner), leaf, layer.get_base_layer())
    del denoiser.backbone.peft_config
    denoiser.requires_grad_(True)


def merged_deltas(denoiser: Denoiser, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What `merge_lora` would add to each stock weight, by stock name; `weights` overrides the adapters' values."""
    state = {**lora_state(denoiser), **weights}
    return {
        f"{name}.weight": (
            state[f"{name}.lora_B.default.weight"].detach().float()
            @ state[f"{name}.lora_A.default.weight"].detach().float()
            * layer.scaling["default"]
        )
        for name, layer in denoiser.backbone.named_modules()
        if isinstance(layer, LoraLayer)
    }


def save_adapter(denoiser: Denoiser, folder: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes adapter_model.safetensors and adapter_config.json; `weights` overrides the adapters' values."""
    given = {name.removeprefix("backbone."): value for name, value in (weights or {}).items()}
    state = get_peft_model_state_dict(
        denoiser.backbone, state_dict=lora_state(denoiser) | given, save_embedding_layers=False
    )
    tensors = {f"{_PREFIX}{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / ADAPTER_WEIGHTS, tensors)
    config: Any = denoiser.backbone.peft_config["default"]
    write_json(folder / ADAPTER_CONFIG, {key: _plain(value) for key, value in sorted(config.to_dict().items())})


def load_adapter(denoiser: Denoiser, folder: Path) -> None:
    """Puts a saved adapter into the backbone."""
    try:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / ADAPTER_WEIGHTS}: missing, corrupt or truncated ({error})") from error
    _inject(denoiser, peft.LoraConfig.from_pretrained(str(folder)), seed=0)
    result: Any = set_peft_model_state_dict(
        denoiser.backbone, {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
    )
    missing = [name for name in result.missing_keys if is_adapter(name)]
    if missing or result.unexpected_keys:
        raise ModelError(
            f"{folder / ADAPTER_WEIGHTS}: does not fit the base model; missing: {', '.join(missing[:5]) or 'none'};"
            f" surplus: {', '.join(result.unexpected_keys[:5]) or 'none'}"
        )


def _inject(denoiser: Denoiser, config: peft.LoraConfig, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, denoiser.backbone)


def _plain(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    return getattr(value, "value", value)
