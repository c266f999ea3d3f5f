"""The statistics of an evaluation: estimates from samples of rows, and how sure they are.

R rows, n graded answers of a row, c of them right, S bootstrap resamples. Rows are the independent trials: intervals
are over rows, and two samplers that answered the same rows are compared row by row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
NUM_RESAMPLES = 10_000
_CHUNK_PICKS = 4_000_000
"""Row numbers drawn at a time; 32 MB."""
Interval = tuple[float, float]


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Unbiased estimate for one row: 1 - C(n - c, k) / C(n, k); 1 where fewer than k samples are wrong."""
    if not 1 <= k <= num_samples or not 0 <= num_right <= num_samples:
        raise ValueError(f"pass@{k} of {num_right} right among {num_samples}: k must be in 1..{num_samples}")
    return 1.0 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def majority(answers: Sequence[tuple[str, bool]]) -> bool:
    """Whether the most frequent of a row's (answer, right) pairs is right; of equally frequent ones the first seen.

    a, b, b, a with a right: a and b have two votes each, a was seen first, so the vote is right.
    """
    votes = Counter(text for text, _ in answers)
    winner = max(votes, key=lambda text: votes[text])  # a Counter keeps the order in which its keys were seen
    return next(right for text, right in answers if text == winner)


def wilson(share: float, num_trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval of a share of trials; nan without trials."""
    if num_trials == 0:
        return math.nan, math.nan
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    shrink = 1 + z**2 / num_trials
    centre = (share + z**2 / (2 * num_trials)) / shrink
    half = z * math.sqrt(share * (1 - share) / num_trials + (z / (2 * num_trials)) ** 2) / shrink
    # At the ends the bounds are exact; computed, they would be off by a rounding error.
    return 0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half


def bootstrap(above_R: np.ndarray, below_R: np.ndarray, generator: np.random.Generator) -> Interval:
    """Percentile interval of sum(above) / sum(below) over resampled rows; nan without rows."""
    number = len(above_R)
    if number == 0:
        return math.nan, math.nan
    both_R2 = np.stack([above_R, below_R], axis=1).astype(float)
    sums = []
    size = max(1, _CHUNK_PICKS // number)
    for start in range(0, NUM_RESAMPLES, size):
        picked_SR = generator.integers(number, size=(min(size, NUM_RESAMPLES - start), number))
        sums.append(both_R2[picked_SR].sum(axis=1))
    above_S, below_S = np.concatenate(sums).T
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(above_S / below_S, [tail, 1 - tail])
    return float(low), float(high)


def paired(one_R: np.ndarray, other_R: np.ndarray, generator: np.random.Generator) -> tuple[float, Interval]:
    """Mean of one - other over the same rows, and its interval from rows resampled as pairs; nan without rows."""
    difference_R = np.asarray(one_R, dtype=float) - np.asarray(other_R, dtype=float)
    mean = float(difference_R.mean()) if len(difference_R) else math.nan
    return mean, bootstrap(difference_R, np.ones_like(difference_R), generator)
