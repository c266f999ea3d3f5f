"""Sizes from config.json alone."""

import pytest

import models
from models.config import LoraConfig
from models.estimate import readable_bytes


def test_count_is_that_of_the_loaded_model(denoiser):
    size = models.estimate_bytes(denoiser.config)
    assert size.num_parameters == size.num_trainable == sum(value.numel() for value in denoiser.parameters())
    assert size.weight_bytes == 4 * size.num_parameters


def test_adapters_are_counted_as_peft_makes_them(denoiser):
    lora = LoraConfig(rank=3, target_modules=("q_proj", "o_proj"))
    size = models.estimate_bytes(denoiser.config, dtype="bfloat16", lora=lora)
    models.apply_lora(denoiser, lora)
    assert size.num_parameters == sum(value.numel() for value in denoiser.parameters())
    assert size.num_trainable == sum(value.numel() for value in denoiser.parameters() if value.requires_grad)
    assert size.weight_bytes == 2 * size.num_parameters


def test_published_llada_8b_is_counted_without_allocating_it(folder_of):
    published = {"d_model": 4096, "n_heads": 32, "n_kv_heads": 32, "n_layers": 32, "mlp_hidden_size": 12288}
    config = models.read_config(folder_of("llada")) | published | {"vocab_size": 126464, "embedding_size": 126464}
    # embedding and head 2 * 126464 * 4096; a layer 4 * 4096^2 + 3 * 4096 * 12288 + 2 * 4096; the final norm 4096
    want = 2 * 126464 * 4096 + 32 * (4 * 4096**2 + 3 * 4096 * 12288 + 2 * 4096) + 4096
    assert models.estimate_bytes(config | {"mask_token_id": 126336}).num_parameters == want


@pytest.mark.parametrize(
    ("num_bytes", "text"), [(12, "12 B"), (16_030_000_000, "16.0 GB"), (1000, "1.0 kB"), (2_500_000, "2.5 MB")]
)
def test_sizes_are_readable(num_bytes, text):
    assert readable_bytes(num_bytes) == text
