"""The policy network: one DiT block that reads how sure the model is of every slot, and no token.

R sequences, T response slots, n probabilities a slot, D width, H heads. For slot k with probabilities c_k, mask bit m_k
and elapsed fraction t of the answer's steps:

    h_k = Linear(c_k)        e_k = Embedding(m_k) + MLP(sin, cos of t)
    (shift, scale, gate) x 2 = Linear(SiLU(e_k))                                    adaLN, per slot
    h <- h + (1 + gate_1) * Attention(LN(h) * (1 + scale_1) + shift_1)              full attention, RoPE
    h <- h + (1 + gate_2) * FFN(LN(h) * (1 + scale_2) + shift_2)
    b_k = Linear(LN(h))_k

The modulation begins at zero, so the block begins as a plain pre-LN block, and the output bias at -2: each slot is
committed with probability sigmoid(-2) = 0.119. With the default sizes there are 331265 parameters (2512.09106, released
form). The scale of t inside the sines and the activation of the FFN (tanh GELU) are ours.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from samplers.policy.config import NetworkConfig

TIME_SCALE = 10.0
"""Radians that the fastest sine turns during an answer: slow enough to mean the same at other lengths."""
_LONGEST_PERIOD = 10000.0


class PolicyNetwork(nn.Module):
    """Logits of committing each slot."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        if config.width % (2 * config.num_heads):
            raise ValueError(
                f"width {config.width} with num_heads {config.num_heads}: width must be a multiple of 2 * num_heads"
            )
        width = config.width
        self.config = config
        self.read = nn.Linear(config.num_probs, width)
        self.mask_embedding = nn.Embedding(2, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Linear(width, 6 * width)
        self.attention_norm, self.ffn_norm, self.output_norm = (nn.LayerNorm(width) for _ in range(3))
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)
        self.ffn = nn.Sequential(
            nn.Linear(width, config.ffn_width), nn.GELU(approximate="tanh"), nn.Linear(config.ffn_width, width)
        )
        self.output = nn.Linear(width, 1)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        nn.init.constant_(self.output.bias, config.output_bias)

    def forward(
        self, prob_RTn: torch.Tensor, masked_RT: torch.Tensor, elapsed_R: torch.Tensor, valid_RT: torch.Tensor
    ) -> torch.Tensor:
        """Logits b (R, T), float32. `valid_RT`: slots that exist, the first ones of each row, at least one."""
        config, width = self.config, self.config.width
        if not config.sees_mask:
            masked_RT = torch.zeros_like(masked_RT)
        if not config.sees_time:
            elapsed_R = torch.zeros_like(elapsed_R)
        hidden_RTD = self.read(prob_RTn)
        about_RTD = self.mask_embedding(masked_RT.long()) + self.time(sines(elapsed_R, width))[:, None]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(F.silu(about_RTD)).chunk(6, dim=-1)
        input_RTD = self.attention_norm(hidden_RTD) * (1 + scale_1) + shift_1
        hidden_RTD = hidden_RTD + (1 + gate_1) * self._attend(input_RTD, valid_RT)
        input_RTD = self.ffn_norm(hidden_RTD) * (1 + scale_2) + shift_2
        hidden_RTD = hidden_RTD + (1 + gate_2) * self.ffn(input_RTD)
        logit_RT1: torch.Tensor = self.output(self.output_norm(hidden_RTD))
        return logit_RT1[:, :, 0].float()

    def _attend(self, input_RTD: torch.Tensor, valid_RT: torch.Tensor) -> torch.Tensor:
        rows, slots, width = input_RTD.shape
        q, k, v = self.qkv(input_RTD).view(rows, slots, 3, self.config.num_heads, -1).permute(2, 0, 3, 1, 4)
        turn = rotation(slots, q.shape[-1], device=input_RTD.device)
        attended = F.scaled_dot_product_attention(
            rotate(q, turn), rotate(k, turn), v, attn_mask=valid_RT[:, None, None, :]
        )
        output_RTD: torch.Tensor = self.project(attended.transpose(1, 2).reshape(rows, slots, width))
        return output_RTD


def sines(elapsed_R: torch.Tensor, width: int) -> torch.Tensor:
    """cos and sin of t at frequencies from `TIME_SCALE` downwards, (R, D)."""
    half = width // 2
    exponent_F = torch.arange(half, device=elapsed_R.device, dtype=torch.float32) / half
    angle_RF = TIME_SCALE * elapsed_R.float()[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * exponent_F)
    return torch.cat([angle_RF.cos(), angle_RF.sin()], dim=1)


def rotation(slots: int, head_width: int, *, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of the rotary angles, (T, head width / 2) each."""
    exponent_F = torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width
    angle_TF = torch.arange(slots, device=device, dtype=torch.float32)[:, None] * _LONGEST_PERIOD**-exponent_F
    return angle_TF.cos(), angle_TF.sin()


def rotate(x: torch.Tensor, turn: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotary embedding of (..., T, head width): the first half pairs with the second."""
    cos_TF, sin_TF = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos_TF - second * sin_TF, second * cos_TF + first * sin_TF], dim=-1)
