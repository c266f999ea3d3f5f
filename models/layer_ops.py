"""The arithmetic of a layer beside attention, in two forms: differentiable, and in place where no gradient is wanted.

Both give the stock layer's result; the second may round differently in the last bits. M tokens, D width, H query heads,
K key heads, E channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from models.fused import MAX_TOKENS, AttentionProducts, FeedForwardProducts, Weights
from models.rotary import Rotary


class Differentiable:
    """Stock modules, nothing in place."""

    def padded(self, num_tokens: int) -> int:
        """Tokens that a forward of `num_tokens` is filled up to."""
        return num_tokens

    def begin(self) -> None:
        """Called before each forward."""

    def before(
        self, layer: Any, hidden_MD: torch.Tensor, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What comes before attention: queries (M, H, E), keys (M, K, E), values (M, K, E)."""
        return self.project(layer, self.norm(layer.input_layernorm, hidden_MD), rotary)

    def after(self, layer: Any, hidden_MD: torch.Tensor, attended_MD: torch.Tensor) -> torch.Tensor:
        """What comes after it: hidden states of the next layer."""
        return self.feed_forward(layer, hidden_MD + layer.self_attn.o_proj(attended_MD))

    def norm(self, module: Any, hidden_MD: torch.Tensor) -> torch.Tensor:
        """A norm of the layer."""
        normed_MD: torch.Tensor = module(hidden_MD)
        return normed_MD

    def project(
        self, layer: Any, normed_MD: torch.Tensor, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries (M, H, E), keys (M, K, E), values (M, K, E)."""
        return self.queries(layer, normed_MD, rotary), *self.keys(layer, normed_MD, rotary)

    def queries(self, layer: Any, normed_MD: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """(M, H, E) after the rotary embedding."""
        attention = layer.self_attn
        query_MHE = attention.q_proj(normed_MD).unflatten(-1, (-1, attention.head_dim))
        return self.rotate(_head_norm(attention, "q_norm", query_MHE), rotary)

    def keys(self, layer: Any, normed_MD: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys after the rotary embedding and values, (M, K, E) each."""
        attention = layer.self_attn
        key_MKE = attention.k_proj(normed_MD).unflatten(-1, (-1, attention.head_dim))
        value_MKE = attention.v_proj(normed_MD).unflatten(-1, (-1, attention.head_dim))
        return self.rotate(_head_norm(attention, "k_norm", key_MKE), rotary), value_MKE

    def rotate(self, x_MHE: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """The rotary embedding."""
        return rotate(x_MHE, *rotary)

    def feed_forward(self, layer: Any, hidden_MD: torch.Tensor) -> torch.Tensor:
        """The layer's second half."""
        # Experts want a batch of sequences.
        update_1MD: torch.Tensor = layer.mlp(layer.post_attention_layernorm(hidden_MD)[None])
        return hidden_MD + update_1MD[0]


class InPlace(Differentiable):
    """Without gradients: as few operations as possible, their results written over what is no longer needed.

    In a forward of few tokens an operation costs more to begin than to run, so weights are taken past their modules
    (`models.fused`) and residual sums are part of the product before them.
    """

    def __init__(self) -> None:
        self._weights: Weights | None = None
        self._attending: dict[int, AttentionProducts | None] = {}
        self._gated: dict[int, FeedForwardProducts | None] = {}
        self._constants: dict[float, torch.Tensor] = {}

    def fuse(self, layers: Any) -> None:
        """Lay out the weights of each layer; repeat it after a move to another device."""
        if self._weights is None or not self._weights.are_current:
            self._weights = Weights(layers)

    def begin(self) -> None:
        """See whether the weights are where they were."""
        self._attending, self._gated = {}, {}
        if self._weights is not None and self._weights.are_current:
            self._attending, self._gated = self._weights.attending, self._weights.gated

    def after(self, layer: Any, hidden_MD: torch.Tensor, attended_MD: torch.Tensor) -> torch.Tensor:
        """As `Differentiable`, over `hidden`."""
        own = self._attending.get(id(layer))
        if own is None:
            hidden_MD.add_(layer.self_attn.o_proj(attended_MD))
        else:
            own.output.add_to(hidden_MD, attended_MD)
        return self.feed_forward(layer, hidden_MD)

    def norm(self, module: Any, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Fewer passes over the states; only in float32, where the stock norm has no casts of its own."""
        eps = getattr(module, "variance_epsilon", None)
        if eps is None or hidden_MD.dtype != torch.float32:
            return super().norm(module, hidden_MD)
        if hidden_MD.device.type != "cpu":
            return nn.functional.rms_norm(hidden_MD, module.weight.shape, module.weight, eps)
        length_M1 = torch.linalg.vector_norm(hidden_MD, 2, -1, True)
        scale_M1 = torch.addcmul(self._constant(eps), length_M1, length_M1, value=1 / hidden_MD.shape[-1]).rsqrt_()
        return torch.mul(hidden_MD, scale_M1).mul_(module.weight)

    def project(
        self, layer: Any, normed_MD: torch.Tensor, rotary: Rotary
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As `Differentiable`; one product for few tokens."""
        own = self._attending.get(id(layer))
        if own is None or len(normed_MD) > MAX_TOKENS:
            return super().project(layer, normed_MD, rotary)
        heads_MHE = own.qkv(normed_MD).view(len(normed_MD), -1, own.head_dim)
        if own.has_head_norms:
            query_MHE, key_MKE, value_MKE = heads_MHE.split((own.num_queries, own.num_keys, own.num_keys), 1)
            query_MHE, key_MKE = layer.self_attn.q_norm(query_MHE), layer.self_attn.k_norm(key_MKE)
            return self.rotate(query_MHE, rotary), self.rotate(key_MKE, rotary), value_MKE
        turning_MHE, value_MKE = heads_MHE.split((own.num_queries + own.num_keys, own.num_keys), 1)
        query_MHE, key_MKE = self.rotate(turning_MHE, rotary).split((own.num_queries, own.num_keys), 1)
        return query_MHE, key_MKE, value_MKE

    def queries(self, layer: Any, normed_MD: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """As `Differentiable`."""
        own = self._attending.get(id(layer))
        if own is None:
            return super().queries(layer, normed_MD, rotary)
        query_MHE = own.query(normed_MD).view(len(normed_MD), -1, own.head_dim)
        return self.rotate(_head_norm(layer.self_attn, "q_norm", query_MHE), rotary)

    def keys(self, layer: Any, normed_MD: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Differentiable`; one product for few tokens."""
        own = self._attending.get(id(layer))
        if own is None or len(normed_MD) > MAX_TOKENS:
            return super().keys(layer, normed_MD, rotary)
        key_MKE, value_MKE = own.key_value(normed_MD).view(len(normed_MD), -1, own.head_dim).chunk(2, 1)
        return self.rotate(_head_norm(layer.self_attn, "k_norm", key_MKE), rotary), value_MKE

    def rotate(self, x_MHE: torch.Tensor, rotary: Rotary) -> torch.Tensor:
        """With fewer passes."""
        return rotate_in_place(x_MHE, *rotary)

    def feed_forward(self, layer: Any, hidden_MD: torch.Tensor) -> torch.Tensor:
        """The layer's second half, over `hidden`."""
        normed_MD, own = self.norm(layer.post_attention_layernorm, hidden_MD), self._gated.get(id(layer))
        if own is None:
            return hidden_MD.add_(layer.mlp(normed_MD[None])[0])
        if own.gate_up is not None and len(normed_MD) <= MAX_TOKENS:
            gate, up = own.gate_up(normed_MD).chunk(2, dim=-1)
        else:
            gate, up = own.gate(normed_MD), own.up(normed_MD)
        return own.down.add_to(hidden_MD, nn.functional.silu(gate, inplace=True).mul_(up))

    def _constant(self, value: float) -> torch.Tensor:
        """A number as a tensor; made anew it would cost as much as the sum that it stands in."""
        found = self._constants.get(value)
        if found is None:
            found = self._constants[value] = torch.tensor(value)
        return found


def rotate(x_MHE: torch.Tensor, cos_M1E: torch.Tensor, sin_M1E: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding on the first channels, as many as the model rotates; halves are the pairs."""
    num_rotated = cos_M1E.shape[-1]
    turned = x_MHE[..., :num_rotated]
    first, second = turned.chunk(2, dim=-1)
    rotated = turned * cos_M1E + torch.cat((-second, first), dim=-1) * sin_M1E
    if num_rotated == x_MHE.shape[-1]:
        return rotated
    return torch.cat((rotated, x_MHE[..., num_rotated:]), dim=-1)


def rotate_in_place(x_MHE: torch.Tensor, cos_M1E: torch.Tensor, sin_M1E: torch.Tensor) -> torch.Tensor:
    """`rotate` with fewer passes, into a new tensor or, where only some channels turn, over `x`."""
    num_rotated, channels = cos_M1E.shape[-1], x_MHE.shape[-1]
    turned = x_MHE if num_rotated == channels else x_MHE[..., :num_rotated]
    rotated = turned * cos_M1E
    (first, second), (to_first, to_second) = turned.chunk(2, -1), rotated.chunk(2, -1)
    sin_first, sin_second = sin_M1E.chunk(2, -1)
    to_first.addcmul_(second, sin_first, value=-1)
    to_second.addcmul_(first, sin_second)
    if num_rotated == channels:
        return rotated
    turned.copy_(rotated)
    return x_MHE


def _head_norm(attention: Any, name: str, heads_MHE: torch.Tensor) -> torch.Tensor:
    """Norm of each head, where the family has one."""
    module = getattr(attention, name, None)
    return heads_MHE if module is None else module(heads_MHE)
