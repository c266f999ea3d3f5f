"""Reading and writing checkpoints: what is wrong in a folder is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import models


@pytest.fixture
def folder(folder_of, tmp_path):
    """A copy of a checkpoint that a test may damage."""
    return shutil.copytree(folder_of("llada"), tmp_path / "llada")


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_missing_weight_is_named(folder):
    rewrite(folder, lambda w: w.pop("model.transformer.blocks.1.attn_out.weight"))
    with pytest.raises(
        models.ModelError, match=r"missing: model\.transformer\.blocks\.1\.attn_out\.weight; surplus: no"
    ):
        models.load(folder)


def test_surplus_weight_is_named(folder):
    rewrite(folder, lambda w: w.update({"model.transformer.extra.weight": torch.zeros(2)}))
    with pytest.raises(models.ModelError, match=r"missing: none; surplus: model\.transformer\.extra\.weight"):
        models.load(folder)


def test_wrong_shape_is_named_with_both_shapes(folder):
    rewrite(folder, lambda w: w.update({"model.transformer.ln_f.weight": torch.ones(7)}))
    with pytest.raises(models.ModelError, match=r"ln_f\.weight has shape \(7,\); config\.json says \(32,\)"):
        models.load(folder)


def test_truncated_file_is_named(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(models.ModelError, match=r"model\.safetensors: corrupt or truncated"):
        models.load(folder)


def test_file_of_something_else_is_named(folder):
    (folder / "model.safetensors").write_bytes(b"not a safetensors file at all")
    with pytest.raises(models.ModelError, match=r"model\.safetensors: corrupt or truncated"):
        models.load(folder)


def test_missing_weights_file_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(models.ModelError, match=r"model\.safetensors: missing"):
        models.load(folder)


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(models.ModelError, match=r"nowhere': no such folder; give a folder with config.json, a hub id"):
        models.load(tmp_path / "nowhere")


def test_missing_config_is_named(folder):
    (folder / "config.json").unlink()
    with pytest.raises(models.ModelError, match=r"config\.json is missing"):
        models.load(folder)


def test_broken_config_is_named(folder):
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(models.ModelError, match=r"config\.json: cannot be read as JSON"):
        models.load(folder)


def test_hub_id_without_network_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        models.ModelError, match="'nobody/no-such-model': no such folder here, and the hub did not give it"
    ):
        models.load("nobody/no-such-model")


@pytest.mark.parametrize("family", ["llada", "llada2", "sdar_moe", "open_dllm"])
def test_sharded_checkpoint_equals_the_single_file(load_family, folder_of, tmp_path, family):
    denoiser = load_family(family, dtype=torch.bfloat16)
    models.save(denoiser, tmp_path, max_shard_bytes=8000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert {path.name for path in shards} == set(index["weight_map"].values())
    assert shards[-1].name == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    published = load_file(folder_of(family) / "model.safetensors")
    together = {name: value for path in shards for name, value in load_file(path).items()}
    assert together.keys() == published.keys() == index["weight_map"].keys()
    assert all(torch.equal(together[name], published[name]) for name in published)
    again = models.load(tmp_path, dtype=torch.bfloat16).backbone.state_dict()
    assert all(torch.equal(again[name], value) for name, value in denoiser.backbone.state_dict().items())


def test_missing_shard_is_named(load_family, tmp_path):
    models.save(load_family("llada"), tmp_path, max_shard_bytes=20_000)
    next(iter(sorted(tmp_path.glob("model-*.safetensors")))).unlink()
    with pytest.raises(models.ModelError, match=r"model-00001-of-\d+\.safetensors: missing"):
        models.load(tmp_path)


def test_saving_over_an_older_checkpoint_leaves_none_of_its_weights(load_family, tmp_path):
    (tmp_path / "README.md").write_text("a card")
    models.save(load_family("llada"), tmp_path, max_shard_bytes=20_000)
    models.save(load_family("llada"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_tied_head_is_not_written_and_follows_the_embedding(load_family, tmp_path):
    denoiser = load_family("open_dllm")
    assert denoiser.backbone.lm_head.weight is denoiser.backbone.model.embed_tokens.weight
    models.save(denoiser, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")


def test_tied_head_that_is_in_the_file_all_the_same_must_equal_the_embedding(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("open_dllm"), tmp_path / "model")
    rewrite(folder, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    models.load(folder)
    rewrite(folder, lambda w: w["lm_head.weight"].add_(1))
    with pytest.raises(models.ModelError, match=r"surplus: lm_head\.weight"):
        models.load(folder)


def test_saved_precision_is_that_of_the_weights(load_family, tmp_path):
    models.save(load_family("llada", dtype=torch.float32), tmp_path)
    assert load_file(tmp_path / "model.safetensors")["model.transformer.ln_f.weight"].dtype == torch.float32
    assert models.read_config(tmp_path)["torch_dtype"] == "float32"


def test_weights_gathered_elsewhere_are_written_instead_of_the_live_ones(load_family, tmp_path):
    denoiser = load_family("llada2")
    gathered = {f"backbone.{n}": value.detach() + 1 for n, value in denoiser.backbone.named_parameters()}
    models.save(denoiser, tmp_path, weights=gathered)
    for name, value in models.load(tmp_path).backbone.named_parameters():
        assert torch.equal(value, gathered[f"backbone.{name}"])


def test_created_model_depends_on_the_seed_alone_and_leaves_the_global_state(folder_of):
    config = models.read_config(folder_of("sdar_moe"))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (models.create(config, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    name = "model.layers.0.self_attn.q_proj.weight"
    value = first.backbone.state_dict()[name]
    assert torch.equal(value, second.backbone.state_dict()[name])
    assert not torch.equal(value, other.backbone.state_dict()[name])


def test_created_model_survives_the_disk(denoiser, tmp_path):
    created = models.create(denoiser.config, seed=3)
    models.save(created, tmp_path)
    loaded = models.load(tmp_path)
    tokens_BT = torch.arange(8).view(2, 4)
    assert torch.equal(loaded.logits(tokens_BT), created.logits(tokens_BT))


def test_named_weights_are_copied_in_place(load_family):
    source, target = load_family("llada"), load_family("llada")
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    storage = target.backbone.lm_head.weight.data_ptr()
    models.load_named(target, dict(source.named_parameters()))  # `backbone.` in front
    assert target.backbone.lm_head.weight.data_ptr() == storage
    models.load_named(target, dict(source.backbone.named_parameters()))
    for name, value in target.named_parameters():
        assert torch.equal(value, source.get_parameter(name))


def test_named_weights_that_do_not_fit_are_named(load_family):
    denoiser = load_family("llada")
    named = dict(denoiser.backbone.named_parameters())
    norm = named.pop("model.norm.weight")
    with pytest.raises(models.ModelError, match=r"missing: model\.norm\.weight; surplus: model\.nrom\.weight"):
        models.load_named(denoiser, named | {"model.nrom.weight": norm})
    with pytest.raises(models.ModelError, match=r"model\.norm\.weight has shape \(3,\); the model has \(32,\)"):
        models.load_named(denoiser, named | {"model.norm.weight": torch.ones(3)})
