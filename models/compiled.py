"""The parts of a layer on either side of attention, compiled by torch.compile.

`default` fuses what stands between the matrix products; `graphs` also replays each part as a CUDA graph, which takes
the place of some twenty launches. Graphs want fixed shapes, so forwards are filled up to a few sizes (at most 1/16 more
tokens) with tokens that nobody attends to; they read the weights where they are, so weights loaded in place need no new
graph. On a processor neither was faster than the layers as they are (see docs/performance.md).
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from models.layer_ops import Differentiable, InPlace
from models.rotary import Rotary

CompileMode = Literal["off", "default", "graphs"]


class Compiled(InPlace):
    """Both parts of every layer but the last compiled; the last runs at few tokens and stays as it is."""

    def __init__(self, mode: CompileMode, *, backend: str = "inductor") -> None:
        super().__init__()
        parts = Differentiable()
        options: dict[str, Any] = {"backend": backend}
        if mode == "graphs":
            options |= {"dynamic": False} | ({"mode": "reduce-overhead"} if backend == "inductor" else {})
        else:
            options |= {"dynamic": True}
        self._mode = mode
        self._before = torch.compile(parts.before, **options)
        self._after = torch.compile(parts.after, **options)

    def padded(self, num_tokens: int) -> int:
        """Tokens of the size that a forward is filled up to: sixteen sizes for every doubling."""
        if self._mode != "graphs":
            return num_tokens
        step = max(16, 1 << max(0, num_tokens.bit_length() - 5))
        return -(-num_tokens // step) * step

    def begin(self) -> None:
        """Tell the graphs that a new forward begins and the results of the last one are no longer needed."""
        super().begin()
        if self._mode == "graphs":
            torch.compiler.cudagraph_mark_step_begin()

    def before(
        self, layer: Any, hidden_MD: torch.Tensor, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Norm, projections and rotary embedding."""
        found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = self._before(layer, hidden_MD, rotary)
        return found

    def after(self, layer: Any, hidden_MD: torch.Tensor, attended_MD: torch.Tensor) -> torch.Tensor:
        """Output projection and the layer's second half."""
        found: torch.Tensor = self._after(layer, hidden_MD, attended_MD)
        return found
