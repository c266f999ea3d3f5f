import itertools

import pytest
import torch

import models
from benchmarks.finding import prompts
from benchmarks.model_watch import ModelWatch


@pytest.fixture
def watch():
    """With a clock that is a second later each time it is read: a visit lasts one second, a nested one adds two."""
    ticks = itertools.count()
    return ModelWatch(clock=lambda: float(next(ticks)))


def test_every_way_into_the_model_is_counted_once(small, watch):
    with torch.no_grad(), watch.watching():
        hidden_BND = small.hidden(prompts(1, 6))
        small.head(hidden_BND[0])
        small.logits(prompts(1, 6))  # backbone, then head
    assert watch.inside_s == 4.0


def test_nothing_is_watched_outside(small, watch):
    before = models.Denoiser.hidden
    with watch.watching():
        assert models.Denoiser.hidden is not before
    assert models.Denoiser.hidden is before
    with torch.no_grad():
        small.hidden(prompts(1, 6))
    assert watch.inside_s == 0.0
