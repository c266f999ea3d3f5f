"""Group-relative advantages.

B prompts, G answers per prompt. A failed answer has no score and takes no part in its group: it is not a score of 0.
"""

from __future__ import annotations

from typing import Literal

import torch

STD_EPSILON = 1e-4


def group_advantages(
    score_BG: torch.Tensor,
    valid_BG: torch.Tensor,
    *,
    kind: Literal["mean", "std", "loo", "softmax"],
    min_valid: int = 2,
    temperature: float = 1.0,
) -> torch.Tensor:
    """How much better each valid answer is than the other answers to its prompt; 0 where there is nothing to compare.

    With n valid answers of mean mu and sample standard deviation s (n - 1):

        mean: R - mu      std: (R - mu) / (s + 1e-4)      loo: R - mean of the others = n / (n - 1) * (R - mu)

        softmax: softmax(A / psi) - softmax(-A / psi) over the group, A = R - mu, psi = `temperature` (wd1, 2507.08838)

    A group with fewer than `min_valid` valid answers, or whose valid scores are all equal, gets exactly 0 everywhere.
    Invariant: for each prompt the advantages of its valid answers sum to zero.
    """
    _check(score_BG, valid_BG, kind=kind, min_valid=min_valid)
    num_valid_B1 = valid_BG.sum(dim=1, keepdim=True)
    above_mean_BG = torch.where(valid_BG, score_BG, 0.0)
    above_mean_BG = above_mean_BG - above_mean_BG.sum(dim=1, keepdim=True) / num_valid_B1.clamp(min=1)
    above_mean_BG = torch.where(valid_BG, above_mean_BG, 0.0)
    num_others_B1 = (num_valid_B1 - 1).clamp(min=1)
    if kind == "std":
        variance_B1 = above_mean_BG.square().sum(dim=1, keepdim=True) / num_others_B1
        advantage_BG = above_mean_BG / (variance_B1.sqrt() + STD_EPSILON)
    elif kind == "loo":
        advantage_BG = above_mean_BG * num_valid_B1 / num_others_B1
    elif kind == "softmax":
        advantage_BG = _softmax_difference(above_mean_BG / temperature, valid_BG)
    else:
        advantage_BG = above_mean_BG
    comparable_B1 = (num_valid_B1 >= min_valid) & ~_all_equal(score_BG, valid_BG)
    return torch.where(comparable_B1, advantage_BG, 0.0)


def _softmax_difference(value_BG: torch.Tensor, valid_BG: torch.Tensor) -> torch.Tensor:
    """Weight of each valid answer among the good ones minus its weight among the bad ones."""
    good_BG, bad_BG = (torch.where(valid_BG, sign * value_BG, -torch.inf).softmax(dim=1) for sign in (1.0, -1.0))
    return torch.where(valid_BG, good_BG - bad_BG, 0.0)


def _all_equal(score_BG: torch.Tensor, valid_BG: torch.Tensor) -> torch.Tensor:
    """(B, 1) bool. Compared directly: the mean of equal numbers may differ from them in the last bit."""
    highest_B1 = torch.where(valid_BG, score_BG, -torch.inf).amax(dim=1, keepdim=True)
    lowest_B1 = torch.where(valid_BG, score_BG, torch.inf).amin(dim=1, keepdim=True)
    return highest_B1 <= lowest_B1


def _check(score_BG: torch.Tensor, valid_BG: torch.Tensor, *, kind: str, min_valid: int) -> None:
    if score_BG.ndim != 2 or score_BG.shape != valid_BG.shape:
        raise ValueError(f"score {tuple(score_BG.shape)} and valid {tuple(valid_BG.shape)} must have one shape (B, G)")
    if valid_BG.dtype != torch.bool:
        raise ValueError(f"valid must be a bool tensor, got {valid_BG.dtype}")
    if kind not in ("mean", "std", "loo", "softmax"):
        raise ValueError(f"advantage kind {kind!r} is unknown: choose mean, std, loo or softmax")
    if min_valid < 2:
        raise ValueError(f"min_valid must be at least 2, got {min_valid}: one answer has nothing to be compared with")
    if not bool(torch.isfinite(score_BG[valid_BG]).all()):
        raise ValueError("a valid score is not finite: mark the answer as failed (valid = False) instead")
