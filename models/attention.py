"""Who may attend to whom: attention layouts as pure functions, True = may attend, rows are queries.

B sequences, N canvas positions, L block length. Blocks are counted from position 0, the prompt included.
"""

from __future__ import annotations

import torch


def positions(valid_BN: torch.Tensor) -> torch.Tensor:
    """Positions counted over real tokens only, so that padding on the left moves nothing. (B, N) int64."""
    return (valid_BN.long().cumsum(dim=1) - 1).clamp(min=0)


def canvas_mask(
    position_BN: torch.Tensor, *, valid_BN: torch.Tensor | None = None, block_length: int | None = None
) -> torch.Tensor | None:
    """Mask (B, 1, N, N) of a canvas, or None where every token sees every token.

    A padded query sees itself too, so that no row is empty; no real query ever sees a padded key.
    """
    num_positions = position_BN.shape[1]
    if valid_BN is None and (block_length is None or num_positions <= block_length):
        return None
    mask_BNN = torch.ones(1, num_positions, num_positions, dtype=torch.bool, device=position_BN.device)
    if block_length is not None:
        mask_BNN = block_causal(position_BN, block_length)
    if valid_BN is not None:
        self_NN = torch.eye(num_positions, dtype=torch.bool, device=position_BN.device)
        mask_BNN = (mask_BNN & valid_BN[:, None, :]) | self_NN
    return mask_BNN[:, None]


def block_causal(position_BN: torch.Tensor, block_length: int) -> torch.Tensor:
    """A token sees its own block and every earlier one. (B, N, N) bool."""
    block_BN = position_BN // block_length
    return block_BN[:, None, :] <= block_BN[:, :, None]


def doubled_mask(position_BN: torch.Tensor, block_length: int, *, valid_BN: torch.Tensor | None = None) -> torch.Tensor:
    """Training layout [noisy ; clean] of SDAR and Fast-dLLM v2. (B, 1, 2N, 2N) bool.

    A noisy token sees the noisy tokens of its own block and the clean tokens of earlier blocks: exactly what it sees
    while its block is being denoised. A clean token sees the clean tokens of its own and earlier blocks.
    """
    block_BN = position_BN // block_length
    query_BN1, key_B1N = block_BN[:, :, None], block_BN[:, None, :]
    noisy_noisy = query_BN1 == key_B1N
    noisy_clean = key_B1N < query_BN1
    clean_clean = key_B1N <= query_BN1
    clean_noisy = torch.zeros_like(noisy_noisy)
    mask_BMM = torch.cat([torch.cat([noisy_noisy, noisy_clean], 2), torch.cat([clean_noisy, clean_clean], 2)], 1)
    if valid_BN is not None:
        key_valid_B1M = torch.cat([valid_BN, valid_BN], 1)[:, None, :]
        self_MM = torch.eye(mask_BMM.shape[1], dtype=torch.bool, device=mask_BMM.device)
        mask_BMM = (mask_BMM & key_valid_B1M) | self_MM
    return mask_BMM[:, None]
