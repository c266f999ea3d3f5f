"""Whether a micro-batch's activations fit into the memory that is left."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from learner.activations import Widths, saved_bytes_per_token
from models import Denoiser

CGROUP = Path("/sys/fs/cgroup")
SHARE = 0.8
"""Of the memory that is left, what activations may take; the rest is for temporary tensors and fragmentation."""


def has_room(denoiser: Denoiser, *, num_tokens: int, pending_bytes: int, num_sharing: int) -> bool:
    """Whether a micro-batch's activations fit beside `pending_bytes` that are still to be allocated.

    `num_sharing`: processes that have to divide the device's memory among themselves.
    """
    weight = denoiser.backbone.lm_head.weight
    wanted = num_tokens * saved_bytes_per_token(Widths.of(denoiser), weight.element_size(), recompute=False)
    return wanted <= SHARE * (available_bytes(denoiser.device) / num_sharing - pending_bytes)


def available_bytes(device: torch.device) -> int:
    """Memory that this process could still get: of its GPU, or of this machine within its control group's limit."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = int(psutil.virtual_memory().available)
    limit, used = (_number(CGROUP / name) for name in ("memory.max", "memory.current"))
    return free if limit is None or used is None else min(free, limit - used)


def _number(file: Path) -> int | None:
    """None for no file, and for `max`."""
    text = file.read_text().strip() if file.exists() else ""
    return int(text) if text.isdigit() else None
