"""A policy on disk: `policy.safetensors` with its settings in the file's own header, and `README.md`, its card.

The one that comes with the package lies in `samplers/policy/tiny`; it was trained for the built-in model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from samplers.policy.config import PolicySettings
from samplers.policy.network import PolicyNetwork

SHIPPED = Path(__file__).parent / "tiny"
WEIGHTS, CARD = "policy.safetensors", "README.md"
_FORMAT = "unmask-policy-1"


def save_policy(
    folder: Path, weights: Mapping[str, torch.Tensor], settings: PolicySettings, *, card: str | None = None
) -> Path:
    """Write a policy into a folder, which is made; float32, and the card where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in weights.items()}
    temporary = folder / f"{WEIGHTS}.partial"
    save_file(tensors, temporary, metadata={"format": _FORMAT, "settings": settings.model_dump_json()})
    temporary.replace(folder / WEIGHTS)
    if card is not None:
        (folder / CARD).write_text(card, encoding="utf-8")
    return folder


def load_policy(path: str | Path | None = None) -> tuple[PolicyNetwork, PolicySettings]:
    """A policy from its folder or its safetensors file; the one that comes with the package if None.

    Raises ValueError that says what is wrong with the file.
    """
    file = SHIPPED if path is None else Path(path)
    if file.is_dir():
        file = file / WEIGHTS
    if not file.is_file():
        raise ValueError(
            f"no unmasking policy at {file}: give a folder with {WEIGHTS} as `unmask policy` writes it "
            "(runs/<name>/checkpoints/<step>/alpha_<alpha>), or leave path out for the built-in one"
        )
    try:
        with safe_open(file, framework="pt") as content:
            header = content.metadata() or {}
            weights = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a safetensors file ({error})") from None
    if header.get("format") != _FORMAT:
        raise ValueError(f"{file} holds no unmasking policy: its header has no format {_FORMAT!r}")
    try:
        settings = PolicySettings.model_validate(json.loads(header["settings"]))
        network = PolicyNetwork(settings.network)
        network.load_state_dict(weights)
    except (KeyError, ValidationError, json.JSONDecodeError, RuntimeError) as error:
        raise ValueError(f"{file} is damaged or of another version: {error}") from None
    return network.eval().requires_grad_(False), settings
