"""Where a checkpoint is: a folder, a hub id, or the built-in model. Imports no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.family import ModelError

TINY = "tiny"
ADAPTER_CONFIG = "adapter_config.json"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


def resolve(path: str | Path) -> Path:
    """Local folder of a checkpoint; a hub id is downloaded (weights and tokenizer, never code)."""
    if str(path) == TINY:
        folder = Path(__file__).parent / "tiny"
    elif Path(path).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        folder = Path(path)
    else:
        folder = _download(str(path))
    if str(path) == TINY and not folder.is_dir():
        raise ModelError(f"the built-in model is missing ({folder}); reinstall unmask, or rebuild it by its recipe")
    if not folder.is_dir():
        raise ModelError(f"model {str(path)!r}: no such folder; give a folder with config.json, a hub id, or 'tiny'")
    if not (folder / "config.json").exists():
        raise ModelError(f"model {str(path)!r}: {folder / 'config.json'} is missing; is this a model folder?")
    return folder


def read_config(path: str | Path) -> dict[str, Any]:
    """Published config.json of a folder, hub id or `tiny`, as it stands; of an adapter's folder, that of its base."""
    base = adapter_base(path)
    return read_config(base) if base is not None else read_json(resolve(path) / "config.json")


def adapter_base(path: str | Path) -> str | None:
    """Base checkpoint of a folder that holds a LoRA adapter only; None for a whole model."""
    adapter_config = Path(path) / ADAPTER_CONFIG
    if not adapter_config.exists() or (Path(path) / "config.json").exists():
        return None
    base = read_json(adapter_config).get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{adapter_config}: base_model_name_or_path is missing; write the base model's folder there")
    return str(base)


def read_json(path: Path) -> dict[str, Any]:
    """JSON object in a file; an error that names the file otherwise."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds a {type(value).__name__}; it must be a JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """JSON file that appears under its name only when it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model {repository!r}: no such folder here, and the hub did not give it ({first_line});"
            " check the spelling, the network, or download it elsewhere and give the folder"
        ) from error
