"""Whether two decoders draw from the same law: their answers counted on a model small enough to count them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

import samplers
from benchmarks.models import random_llada
from benchmarks.plain_decoder import decode
from benchmarks.stock import Stock
from rollout import Engine


def law_distance(*, number: int, sampler: str = "lcr") -> tuple[float, float]:
    """Total variation between the answers of engine and plain decoder (`lcr`), and that of chance alone.

    `number` answers of each. The second number is the distance between two lots of the engine's own answers.
    """
    denoiser = random_llada(width=64, layers=1, vocabulary=6)
    prompt = [1, 2, 3]
    engine = Engine(denoiser, samplers.build(sampler), block_length=3, max_batch_tokens=2**20)
    answers = engine.generate([prompt], num_samples=2 * number, max_new_tokens=3, temperature=1.0, seed=1)
    ours = [tuple(answer.tokens.tolist()) for answer in answers]
    prompt_BP = torch.tensor([prompt]).expand(number, -1)
    plain = decode(Stock(denoiser), prompt_BP, max_new_tokens=3, steps=3, block_length=3, temperature=1.0, seed=2)
    theirs = [tuple(row) for row in plain.tolist()]
    return _total_variation(ours[:number], theirs), _total_variation(ours[:number], ours[number:])


def _total_variation(a: Sequence[tuple[int, ...]], b: Sequence[tuple[int, ...]]) -> float:
    count_a, count_b = Counter(a), Counter(b)
    keys = set(count_a) | set(count_b)
    return sum(abs(count_a[key] / len(a) - count_b[key] / len(b)) for key in keys) / 2
