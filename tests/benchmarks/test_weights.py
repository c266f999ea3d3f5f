"""Weights carried between real actors arrive whole, on every way that is compared."""

import argparse

import pytest

from benchmarks import weights, weights_ray
from benchmarks.models import llada_config

SMALL = llada_config(width=32, layers=1, heads=2, ffn=64, vocabulary=64)


def options(**changes):
    return argparse.Namespace(**({"repetitions": 1, "workers": 2, "record": False} | changes))


@pytest.mark.ray
def test_every_way_brings_all_weights_to_every_worker(local_ray, capsys):
    assert weights.between_actors(options(), SMALL) == 0
    printed = capsys.readouterr().out
    assert "every weight arrived" in printed
    assert all(f"| {way} |" in printed for way in (weights_ray.VIEWS, weights_ray.COPIES, weights_ray.TENSORS))


def test_a_single_changed_bit_shows_in_the_sum():
    denoiser = weights_ray.empty_model(SMALL)
    for parameter in denoiser.backbone.parameters():
        parameter.data.fill_(1.0)
    before = weights_ray.sum_of_bits(denoiser)
    next(denoiser.backbone.parameters()).data.view(-1)[7] = 1.0078125  # the next bfloat16 above 1
    assert weights_ray.sum_of_bits(denoiser) == before + 1


def test_the_model_of_the_measurement_has_a_gibibyte_of_weights():
    # per layer 4 * 1536^2 + 3 * 1536 * 4608 + 2 * 1536, sixteen of them; two matrices of 16384 * 1536; the last norm
    num_weights = 16 * (4 * 1536**2 + 3 * 1536 * 4608 + 2 * 1536) + 2 * 16384 * 1536 + 1536
    assert 2 * num_weights >= 2**30
    from models.build import meta_backbone
    from models.family import family_of

    backbone = meta_backbone(family_of(weights_ray.GIGABYTE_MODEL), weights_ray.GIGABYTE_MODEL)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == num_weights
