"""Models of the benchmarks' two kinds, as small as they come."""

import pytest

import models
from benchmarks.models import llada_config, on_device, sdar_config
from benchmarks.stock import Stock


@pytest.fixture(scope="session")
def small() -> models.Denoiser:
    return on_device(llada_config(width=32, layers=2, heads=2, ffn=48, vocabulary=4096))


@pytest.fixture(scope="session")
def stock(small) -> Stock:
    return Stock(small)


@pytest.fixture(scope="session")
def small_block_causal() -> models.Denoiser:
    return on_device(sdar_config(width=32, layers=2, heads=2, kv_heads=1, ffn=48, vocabulary=4096))
