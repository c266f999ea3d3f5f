"""What the cases of `unmask bench rollout` share: their result, their timing, their distance from the floor.

All seconds are processor time of this process. Both sides of a comparison take turns with each other and with matrix
products of the model's shapes, whose best speed of the round is what the floor is counted with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from benchmarks import floor
from benchmarks.timing import Timings, in_turn
from rollout import Trajectory


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and answers, and the decoding block."""

    prompt: int = 128
    answer: int = 128
    block: int = 32

    def __str__(self) -> str:
        return f"prompt {self.prompt}, answer {self.answer}, block {self.block}"


@dataclass(frozen=True)
class Finding:
    """What a case found."""

    name: str
    ratios: Mapping[str, float]
    """Larger is better."""
    report: str
    differences: tuple[str, ...] = ()
    """Promises of equal tokens that do not hold."""


@dataclass(frozen=True)
class Measured:
    """Seconds of several ways to do the same work, and of matrix products beside them."""

    timings: Timings
    products: floor.Products
    product_s: Sequence[float]
    """The fastest of each round: a floor counted with a disturbed one would be too easy to reach."""

    @staticmethod
    def of(products: floor.Products, runs: Mapping[str, Callable[[], object]], repetitions: int) -> Measured:
        """Time the runs, products before and after each."""
        interleaved: dict[str, Callable[[], object]] = {}
        for name, run in runs.items():
            interleaved |= {f"products before {name}": products.run, name: run}
        interleaved["products at the end"] = products.run
        seconds = in_turn(interleaved, repetitions=repetitions, clock=time.process_time).seconds
        product_s = zip(*(values for name, values in seconds.items() if name not in runs), strict=True)
        own = Timings({name: seconds[name] for name in runs})
        return Measured(own, products, [min(values) for values in product_s])

    def times_floor(self, flops: int, name: str) -> float:
        """How many times the floor of so many operations a run took: median over the rounds."""
        return median(floor.floor_ratios(flops, self.products, self.product_s, self.timings.seconds[name]))

    def floor_line(self, flops: int, *names: str) -> str:
        """A sentence that says how far runs are from the floor."""
        speed = median(self.products.flops / seconds for seconds in self.product_s) / 1e9
        times = ", ".join(f"{name} {self.times_floor(flops, name):.2f} times the floor" for name in names)
        return f"needed work {flops / 1e9:.0f} GFLOP, matrix products {speed:.0f} GFLOP/s: {times}"


def prompts(number: int, length: int, *, vocabulary: int = 4000, seed: int = 0) -> torch.Tensor:
    """Random prompts (B, P); the first rows are the same for every number of them."""
    return torch.randint(vocabulary, (number, length), generator=torch.Generator().manual_seed(seed))


def trace(trajectory: Trajectory) -> tuple[Any, int, int]:
    """What the counting functions of `floor` ask of an answer."""
    return trajectory.step_map, trajectory.num_steps, trajectory.block_length


def number_differing(ours: Sequence[Sequence[int]], theirs: Sequence[Sequence[int]]) -> int:
    """How many answers are not the same."""
    return sum(list(a) != list(b) for a, b in zip(ours, theirs, strict=True))


def identity(name: str, differing: int, number: int, reference: str) -> tuple[str, tuple[str, ...]]:
    """A sentence on equal tokens, and the promise it breaks if some differ."""
    line = f"tokens: {number - differing} of {number} answers identical to {reference}"
    return line, (f"{name}: {differing} of {number} answers differ from {reference}",) * bool(differing)
