"""Random numbers that belong to a sequence, not to a batch.

A counter-based generator: the number for (seed, step, slot, stream) is a hash of exactly these, so a sequence meets the
same numbers whatever else is in the batch, whichever worker runs it and in whatever order, with no generator state to
carry. The mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
number generators"), applied once per coordinate.
"""

from __future__ import annotations

import torch

TOKEN_STREAM = 0
POSITION_STREAM = 1
CHAIN_STREAM = 1 << 16
"""First of the streams of Metropolis chains: two a candidate, one to draw it and one to accept it."""

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift; torch's >> repeats the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: torch.Tensor) -> torch.Tensor:
    """Scramble int64 values bijectively (arithmetic is modulo 2^64)."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniform(seed_M: torch.Tensor, step_M: torch.Tensor, slot_M: torch.Tensor, *, stream: int) -> torch.Tensor:
    """Return one float64 in [0, 1) for each (seed, step, slot) of int64 tensors; streams are independent."""
    key = mix(seed_M + _GOLDEN)
    key = mix(key ^ (step_M * _GOLDEN + stream + 1))
    key = mix(key + slot_M * _GOLDEN)
    return _shift_right(key, 11).to(torch.float64) * 2.0**-53
