"""The probe benchmark measures the sums that it says."""

import torch

from benchmarks import probe
from benchmarks.models import llada_config, on_device

SMALL = llada_config(width=32, layers=2, heads=4, ffn=48, vocabulary=64)


def test_its_sums_are_those_of_the_materialised_matrix() -> None:
    case = probe.Case(on_device(SMALL))
    sums = case.run("column", "all")
    tokens_BN = case.token_M.view(probe.ROWS, probe.CANVAS)
    rows_BN = torch.zeros_like(tokens_BN, dtype=torch.bool)
    rows_BN[:, -probe.BLOCK :] = case.masked_BL
    expected = case.denoiser.attention_sums(tokens_BN, rows=rows_BN, layers="all")
    column_BL = (expected.col_sum_BT - expected.self_BT)[:, -probe.BLOCK :]
    torch.testing.assert_close(sums, torch.where(case.masked_BL, column_BL, 0.0), atol=1e-5, rtol=1e-4)


def test_every_variant_is_timed_against_the_plain_forward() -> None:
    found = probe.overheads(on_device(SMALL), repetitions=1)
    assert list(found) == list(probe.VARIANTS)
    assert all(ratio > 0 for ratio in found.values())
