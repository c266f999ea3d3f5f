"""Cosines and sines of the rotary embedding, worked out once for every position instead of in every forward.

M tokens, N positions, E rotated channels.
"""

from __future__ import annotations

from typing import Any

import torch

Rotary = tuple[torch.Tensor, torch.Tensor]
"""cos and sin, (M, 1, E) each: one for all heads."""

FIXED = ("default", "linear", "llama3", "yarn")
"""Kinds whose frequencies do not depend on how long the sequences of a forward are."""
_FEWEST = 256


def fresh(module: Any, like_MD: torch.Tensor, position_M: torch.Tensor) -> Rotary:
    """As the stock module gives them."""
    cos_1ME, sin_1ME = module(like_MD[None], position_M[None])
    return cos_1ME[0, :, None], sin_1ME[0, :, None]


class RotaryTable:
    """Those of all positions up to a power of two, looked up; equal to the fresh ones to the last bit."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._is_fixed = getattr(module, "rope_type", None) in FIXED
        self._cos_N1E = self._sin_N1E = torch.empty(0)

    def at(self, like_MD: torch.Tensor, position_M: torch.Tensor, end: int) -> Rotary:
        """Those of some positions, all below `end`, in the dtype and on the device of `like`."""
        if not self._is_fixed:
            return fresh(self._module, like_MD, position_M)
        cos_N1E = self._cos_N1E
        if len(cos_N1E) < end or cos_N1E.dtype != like_MD.dtype or cos_N1E.device != like_MD.device:
            self._fill(like_MD, max(_FEWEST, 1 << (end - 1).bit_length()))
        return self._cos_N1E.index_select(0, position_M), self._sin_N1E.index_select(0, position_M)

    def _fill(self, like_MD: torch.Tensor, num_positions: int) -> None:
        position_N = torch.arange(num_positions, device=like_MD.device)
        self._cos_N1E, self._sin_N1E = fresh(self._module, like_MD, position_N)
