"""The arithmetic of a layer beside attention, in two forms: differentiable, and in place where no gradient is wanted.

Both give the stock layer's result; the second may round differently in the last bits. M tokens, D width, H query heads,
K key heads, E channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models.fused import MAX_TOKENS, FusedLinear, fuse, store_inputs_first

Rotary = tuple[torch.Tensor, torch.Tensor]
"""cos and sin, (1, M, rotated channels) each."""


class Differentiable:
    """Stock modules, nothing in place."""

    def padded(self, num_tokens: int) -> int:
        """Tokens that a forward of `num_tokens` is filled up to."""
        return num_tokens

    def begin(self) -> None:
        """Called before each forward."""

    def before(
        self, layer: Any, hidden_1MD: torch.Tensor, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What comes before attention: queries (M, H, E), keys (M, K, E), values (M, K, E)."""
        return self.project(layer, self.norm(layer.input_layernorm, hidden_1MD), rotary)

    def after(self, layer: Any, hidden_1MD: torch.Tensor, attended_1MD: torch.Tensor) -> torch.Tensor:
        """What comes after it: hidden states of the next layer."""
        return self.feed_forward(layer, self.add(hidden_1MD, layer.self_attn.o_proj(attended_1MD)))

    def norm(self, module: Any, hidden_1MD: torch.Tensor) -> torch.Tensor:
        """A norm of the layer."""
        normed_1MD: torch.Tensor = module(hidden_1MD)
        return normed_1MD

    def project(
        self, layer: Any, normed_1MD: torch.Tensor, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (M, H, E), keys (M, K, E), values (M, K, E)."""
        return self.queries(layer, normed_1MD, rotary), *self.keys(layer, normed_1MD, rotary)

    def queries(self, layer: Any, normed_1MD: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """(M, H, E) after the rotary embedding."""
        attention = layer.self_attn
        query_1MHE = attention.q_proj(normed_1MD).unflatten(-1, (-1, attention.head_dim))
        return self.rotate(_head_norm(attention, "q_norm", query_1MHE), rotary)[0]

    def keys(self, layer: Any, normed_1MD: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys after the rotary embedding and values, (M, K, E) each."""
        attention = layer.self_attn
        key_1MKE = attention.k_proj(normed_1MD).unflatten(-1, (-1, attention.head_dim))
        value_MKE = attention.v_proj(normed_1MD).unflatten(-1, (-1, attention.head_dim))[0]
        return self.rotate(_head_norm(attention, "k_norm", key_1MKE), rotary)[0], value_MKE

    def rotate(self, x_1MHE: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """The rotary embedding."""
        return rotate(x_1MHE, *rotary)

    def add(self, hidden_1MD: torch.Tensor, update_1MD: torch.Tensor) -> torch.Tensor:
        """The residual sum."""
        return hidden_1MD + update_1MD

    def feed_forward(self, layer: Any, hidden_1MD: torch.Tensor) -> torch.Tensor:
        """The layer's second half."""
        update_1MD: torch.Tensor = layer.mlp(layer.post_attention_layernorm(hidden_1MD))
        return hidden_1MD + update_1MD


class InPlace(Differentiable):
    """Without gradients: results written over what is no longer needed, and few, larger products for few tokens."""

    def __init__(self) -> None:
        self._qkv: dict[int, FusedLinear | None] = {}
        self._gate_up: dict[int, FusedLinear | None] = {}

    def fuse(self, layers: Any) -> None:
        """Join the projections of each layer (see `models.fused`); repeat it after a move to another device."""
        for layer in layers:
            attention, feed_forward = layer.self_attn, layer.mlp
            if not _is_current(self._qkv.get(id(layer))):
                self._qkv[id(layer)] = fuse((attention.q_proj, attention.k_proj, attention.v_proj))
            # One product of twice the width is slower than two on a processor, whose cache holds one of them.
            joins = _is_gated(feed_forward) and feed_forward.up_proj.weight.device.type != "cpu"
            if joins and not _is_current(self._gate_up.get(id(layer))):
                self._gate_up[id(layer)] = fuse((feed_forward.gate_proj, feed_forward.up_proj))
            for module in (attention.o_proj, *_projections(feed_forward)):
                store_inputs_first(module)

    def norm(self, module: Any, hidden_1MD: torch.Tensor) -> torch.Tensor:
        """Fewer passes over the states; only in float32, where the stock norm has no casts of its own."""
        eps = getattr(module, "variance_epsilon", None)
        if eps is None or hidden_1MD.dtype != torch.float32:
            return super().norm(module, hidden_1MD)
        if hidden_1MD.device.type != "cpu":
            return nn.functional.rms_norm(hidden_1MD, module.weight.shape, module.weight, eps)
        scale_1M1 = torch.linalg.vector_norm(hidden_1MD, dim=-1, keepdim=True)
        scale_1M1 = scale_1M1.square_().div_(hidden_1MD.shape[-1]).add_(eps).rsqrt_()
        return torch.mul(hidden_1MD, scale_1M1).mul_(module.weight)

    def project(
        self, layer: Any, normed_1MD: torch.Tensor, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `Differentiable`; one product for few tokens."""
        fused, attention = self._qkv.get(id(layer)), layer.self_attn
        if normed_1MD.shape[1] > MAX_TOKENS or fused is None or not fused.is_current:
            return super().project(layer, normed_1MD, rotary)
        heads_1MHE = fused(normed_1MD).unflatten(-1, (-1, attention.head_dim))
        num_keys = attention.k_proj.out_features // attention.head_dim
        num_queries = heads_1MHE.shape[2] - 2 * num_keys
        value_MKE = heads_1MHE[0, :, num_queries + num_keys :]
        if getattr(attention, "q_norm", None) is None:
            rotated_MHE = self.rotate(heads_1MHE[:, :, : num_queries + num_keys], rotary)[0]
            return rotated_MHE[:, :num_queries], rotated_MHE[:, num_queries:], value_MKE
        query_1MHE = attention.q_norm(heads_1MHE[:, :, :num_queries])
        key_1MKE = attention.k_norm(heads_1MHE[:, :, num_queries : num_queries + num_keys])
        return self.rotate(query_1MHE, rotary)[0], self.rotate(key_1MKE, rotary)[0], value_MKE

    def rotate(self, x_1MHE: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """With fewer passes."""
        return rotate_in_place(x_1MHE, *rotary)

    def add(self, hidden_1MD: torch.Tensor, update_1MD: torch.Tensor) -> torch.Tensor:
        """The residual sum, over `hidden`."""
        return hidden_1MD.add_(update_1MD)

    def feed_forward(self, layer: Any, hidden_1MD: torch.Tensor) -> torch.Tensor:
        """The layer's second half, over `hidden`."""
        normed_1MD, feed_forward = self.norm(layer.post_attention_layernorm, hidden_1MD), layer.mlp
        if not _is_gated(feed_forward):
            return hidden_1MD.add_(feed_forward(normed_1MD))
        fused = self._gate_up.get(id(layer))
        if normed_1MD.shape[1] <= MAX_TOKENS and fused is not None and fused.is_current:
            gate, up = fused(normed_1MD).chunk(2, dim=-1)
        else:
            gate, up = feed_forward.gate_proj(normed_1MD), feed_forward.up_proj(normed_1MD)
        gated = nn.functional.silu(gate, inplace=True).mul_(up)
        return hidden_1MD.add_(feed_forward.down_proj(gated))


def rotate(x_1MHE: torch.Tensor, cos_1ME: torch.Tensor, sin_1ME: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding on the first channels, as many as the model rotates; halves are the pairs."""
    num_rotated = cos_1ME.shape[-1]
    cos, sin = cos_1ME[:, :, None], sin_1ME[:, :, None]
    turned = x_1MHE[..., :num_rotated]
    first, second = turned.chunk(2, dim=-1)
    rotated = turned * cos + torch.cat((-second, first), dim=-1) * sin
    if num_rotated == x_1MHE.shape[-1]:
        return rotated
    return torch.cat((rotated, x_1MHE[..., num_rotated:]), dim=-1)


def rotate_in_place(x_1MHE: torch.Tensor, cos_1ME: torch.Tensor, sin_1ME: torch.Tensor) -> torch.Tensor:
    """`rotate` with fewer passes, into a new tensor or, where only some channels turn, over `x`."""
    num_rotated = cos_1ME.shape[-1]
    half = num_rotated // 2
    cos, sin = cos_1ME[:, :, None], sin_1ME[:, :, None]
    turned = x_1MHE[..., :num_rotated]
    rotated = turned * cos
    rotated[..., :half].addcmul_(turned[..., half:], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(turned[..., :half], sin[..., half:])
    if num_rotated == x_1MHE.shape[-1]:
        return rotated
    turned.copy_(rotated)
    return x_1MHE


def _head_norm(attention: Any, name: str, heads_1MHE: torch.Tensor) -> torch.Tensor:
    """Norm of each head, where the family has one."""
    module = getattr(attention, name, None)
    return heads_1MHE if module is None else module(heads_1MHE)


def _projections(feed_forward: Any) -> tuple[Any, ...]:
    parts = ("gate_proj", "up_proj", "down_proj")
    return tuple(getattr(feed_forward, part) for part in parts) if _is_gated(feed_forward) else ()


def _is_gated(feed_forward: Any) -> bool:
    """Whether it is the plain gated layer with SiLU (experts are not)."""
    parts = ("gate_proj", "up_proj", "down_proj", "act_fn")
    return all(hasattr(feed_forward, name) for name in parts) and type(feed_forward.act_fn).__name__ in (
        "SiLU",
        "SiLUActivation",
    )


def _is_current(fused: FusedLinear | None) -> bool:
    return fused is not None and fused.is_current
