"""Adapters: no effect until trained, saved alone, merged on request."""

import json

import pytest
import torch
from safetensors.torch import load_file

import models
from models.config import LoraConfig

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TOKENS = torch.arange(8).view(2, 4)


def adapt(denoiser, *, trained):
    """Adapters on the attention of a denoiser, moved away from zero if `trained`."""
    models.apply_lora(denoiser, LoraConfig(rank=2, alpha=4.0, target_modules=ATTENTION))
    if trained:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for value in models.lora_state(denoiser).values():
                value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return denoiser


@torch.no_grad()
def test_fresh_adapters_change_nothing(denoiser):
    before = denoiser.logits(TOKENS)
    assert torch.equal(adapt(denoiser, trained=False).logits(TOKENS), before)


def test_only_adapters_are_trained(denoiser):
    adapt(denoiser, trained=False)
    trainable = {name for name, value in denoiser.backbone.named_parameters() if value.requires_grad}
    assert trainable == models.lora_state(denoiser).keys()
    # two layers, four projections, an A and a B each
    assert len(trainable) == 2 * 4 * 2


def test_same_seed_gives_the_same_adapters_and_leaves_the_global_state(load_family):
    before = torch.get_rng_state()
    first, second = (models.lora_state(adapt(load_family("llada"), trained=False)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), before)


@torch.no_grad()
def test_saved_adapter_loads_on_its_base(denoiser, tmp_path):
    adapt(denoiser, trained=True)
    models.save(denoiser, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    names = load_file(tmp_path / "adapter_model.safetensors").keys()
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["base_model_name_or_path"]) == ("LORA", 2, denoiser.source)
    loaded = models.load(tmp_path)
    assert torch.equal(loaded.logits(TOKENS), denoiser.logits(TOKENS))
    assert models.read_config(tmp_path) == denoiser.config


@torch.no_grad()
def test_merged_save_is_a_whole_model_and_leaves_the_live_one(denoiser, tmp_path):
    adapt(denoiser, trained=True)
    want = denoiser.logits(TOKENS)
    models.save(denoiser, tmp_path, merged=True)
    assert torch.equal(denoiser.logits(TOKENS), want)
    merged = models.load(tmp_path)
    assert not models.lora_state(merged)
    assert (merged.logits(TOKENS) - want).abs().max() < 1e-4


@torch.no_grad()
def test_merging_keeps_the_function_and_the_stock_names(denoiser, load_family):
    names = set(denoiser.backbone.state_dict())
    want = adapt(denoiser, trained=True).logits(TOKENS)
    models.merge_lora(denoiser)
    assert set(denoiser.backbone.state_dict()) == names
    assert all(value.requires_grad for value in denoiser.parameters())
    assert (denoiser.logits(TOKENS) - want).abs().max() < 1e-4


@torch.no_grad()
def test_adapters_alone_travel_by_name(load_family):
    source, target = adapt(load_family("dream"), trained=True), adapt(load_family("dream"), trained=False)
    models.load_named(target, models.lora_state(source))
    assert torch.equal(target.logits(TOKENS), source.logits(TOKENS))
    state = models.lora_state(source)
    dropped = state.popitem()[0]
    with pytest.raises(models.ModelError, match=f"missing: {dropped.replace('.', '[.]')}; surplus: none"):
        models.load_named(target, state)


def test_experts_are_not_adapted_and_the_error_says_what_can_be(load_family):
    with pytest.raises(
        models.ModelError, match=r"gate_proj, up_proj, down_proj cannot be adapted .*choose from k_proj"
    ):
        models.apply_lora(load_family("sdar_moe"), LoraConfig())


def test_unknown_layer_is_named(load_family):
    with pytest.raises(models.ModelError, match="target_modules: attn_out cannot be adapted"):
        models.apply_lora(load_family("llada"), LoraConfig(target_modules=("attn_out",)))


def test_adapters_on_adapters_are_refused(load_family):
    denoiser = adapt(load_family("llada"), trained=False)
    with pytest.raises(models.ModelError, match="has adapters already"):
        models.apply_lora(denoiser, LoraConfig())


def test_adapter_without_its_weights_is_named(load_family, tmp_path):
    models.save(adapt(load_family("llada"), trained=False), tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(models.ModelError, match=r"adapter_model\.safetensors: missing, corrupt or truncated"):
        models.load(tmp_path)
