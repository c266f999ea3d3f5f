"""What an update computes without an optimizer: the learner's gradient, added up in the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

import models
from learner import BatchStats, Sample, policy_update
from learner.config import ObjectiveConfig

T = TypeVar("T")


class GradientSink:
    """A trainer that only adds gradients up."""

    def __init__(self, denoiser: models.Denoiser) -> None:
        self.denoiser = denoiser

    def evaluate(self, compute: Callable[[], T]) -> T:
        """One pass without gradients."""
        with torch.no_grad():
            return compute()

    def backward(self, compute: Callable[[], torch.Tensor]) -> float:
        """One pass and its backward pass."""
        loss = compute()
        loss.backward()
        return float(loss.detach())

    def align(self) -> None:
        """There is one rank."""

    def step(self) -> dict[str, float]:
        """Leave the gradients where they are."""
        return {"grad_norm": 0.0, "lr": 0.0}

    @contextmanager
    def reference(self) -> Iterator[models.Denoiser]:
        """The weights never move."""
        yield self.denoiser

    def sum_over_ranks(self, values: dict[str, float]) -> dict[str, float]:
        """There is one rank."""
        return values

    max_over_ranks = sum_over_ranks


class ForwardSink(GradientSink):
    """Passes without their backward pass."""

    def backward(self, compute: Callable[[], torch.Tensor]) -> float:
        """One pass."""
        return float(self.evaluate(compute))


def learner_gradient(
    denoiser: models.Denoiser, samples: Sequence[Sample], *, micro_batch_tokens: int, likelihood: str = "ar_exact"
) -> None:
    """Add the gradient of the loss to the weights' `.grad`, by the learner's own update."""
    _update(GradientSink(denoiser), samples, micro_batch_tokens, likelihood)


def no_gradient(
    denoiser: models.Denoiser, samples: Sequence[Sample], *, micro_batch_tokens: int, likelihood: str = "ar_exact"
) -> None:
    """The forward passes of the same update."""
    _update(ForwardSink(denoiser), samples, micro_batch_tokens, likelihood)


def _update(sink: GradientSink, samples: Sequence[Sample], micro_batch_tokens: int, likelihood: str) -> None:
    objective = ObjectiveConfig.model_validate({"likelihood": likelihood, "normaliser": "sequence"})
    policy_update(sink, samples, BatchStats.of(samples), objective, micro_batch_tokens=micro_batch_tokens)
