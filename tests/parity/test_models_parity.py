"""`models/` against the published modelling code: logits 1e-4, attention 1e-5, padded, block and training layouts.

The committed fixtures always run; the larger published ones where they lie beside the checkout.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import models
from models.attention import doubled_mask

ROOTS = [Path(__file__).parent / "fixtures", Path(__file__).parents[3] / "shared" / "parity"]
FOLDERS = [path.parent for root in ROOTS for path in sorted(root.glob("*/config.json"))]
SHIFTED = {"dream", "open_dllm", "fast_dllm_v2"}


def case_list(*, train):
    """(folder, case) pairs."""
    found = []
    for folder in FOLDERS:
        names = {name.partition(".")[0] for name in load_file(folder / "expected.safetensors")}
        found += [
            pytest.param(folder, name, id=f"{folder.parent.name}-{folder.name}-{name}")
            for name in sorted(names)
            if (name == "train") == train
        ]
    return found


def load(folder):
    """The published mask id is an argument of the sampler where config.json lacks it."""
    if "mask_token_id" in json.loads((folder / "config.json").read_text()):
        return models.load(folder)
    args = json.loads((folder / "expected_generate.json").read_text())["runs"][0]["args"]
    return models.load(folder, mask_token_id=args.get("mask_token_id", args.get("mask_id")))


def fields(folder, case):
    tensors = load_file(folder / "expected.safetensors")
    return {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith(f"{case}.")}


def options(want):
    """What the denoiser is told about padding and blocks."""
    mask, tokens = want.get("attention_mask"), want["input_ids"]
    told = {}
    if mask is not None and mask.shape == tokens.shape:
        told["valid_BT"] = mask.bool()
    if "block_length" in want:
        told["block_length"] = int(want["block_length"])
    elif mask is None:
        told["block_length"] = tokens.shape[1]  # `full`: one block; no effect on the bidirectional families
    return told


@torch.no_grad()
@pytest.mark.parametrize(("folder", "case"), case_list(train=False))
def test_logits_equal_the_published_ones(folder, case):
    want = fields(folder, case)
    told = options(want)
    logits_BTV = load(folder).logits(want["input_ids"], **told)
    real_BT = told.get("valid_BT", torch.ones_like(want["input_ids"], dtype=torch.bool))
    assert (logits_BTV - want["logits"])[real_BT].abs().max() < 1e-4


@pytest.mark.parametrize(("folder", "case"), case_list(train=False))
def test_last_layer_attention_equals_the_published_one(folder, case):
    want = fields(folder, case)
    denoiser, told, tokens_BT = load(folder), options(want), want["input_ids"]
    # One copy of each sequence per key set {k}: the row sums are then the k-th column of the matrix.
    num_positions = tokens_BT.shape[1]
    key_BT = torch.eye(num_positions, dtype=torch.bool).repeat(len(tokens_BT), 1)
    copies = {name: value.repeat_interleave(num_positions, 0) for name, value in told.items() if name == "valid_BT"}
    sums = denoiser.attention_sums(
        tokens_BT.repeat_interleave(num_positions, 0), rows=None, cols=key_BT, **{**told, **copies}
    )
    matrix_BTT = sums.row_sum_BT.view(len(tokens_BT), num_positions, num_positions).transpose(1, 2)
    assert (matrix_BTT - want["attn_last"]).abs().max() < 1e-5
    self_BT = sums.self_BT.view(len(tokens_BT), num_positions, num_positions)[:, 0]
    assert (self_BT - want["attn_last"].diagonal(dim1=1, dim2=2)).abs().max() < 1e-5


@pytest.mark.parametrize(("folder", "case"), case_list(train=False))
def test_row_and_column_sums_over_sets_equal_sums_of_the_published_matrix(folder, case):
    want = fields(folder, case)
    told, tokens_BT = options(want), want["input_ids"]
    real_BT = told.get("valid_BT", torch.ones_like(tokens_BT, dtype=torch.bool))
    generator = torch.Generator().manual_seed(0)
    rows_BT, cols_BT = (torch.rand(2, *tokens_BT.shape, generator=generator) < 0.5) & real_BT
    sums = load(folder).attention_sums(tokens_BT, rows=rows_BT, cols=cols_BT, **told)
    picked_BTT = want["attn_last"] * rows_BT[:, :, None]
    assert (sums.row_sum_BT - (picked_BTT * cols_BT[:, None]).sum(2)).abs().max() < 1e-5
    assert (sums.col_sum_BT - picked_BTT.sum(1)).abs().max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("folder", "case"), case_list(train=True))
def test_doubled_training_layout_equals_the_published_one(folder, case):
    want = fields(folder, case)
    denoiser, noisy_BT = load(folder), want["noisy_input_ids"]
    clean_BT = want["input_ids"].repeat(len(noisy_BT) // len(want["input_ids"]), 1)
    position_1T = torch.arange(noisy_BT.shape[1])[None]
    mask = doubled_mask(position_1T, int(want["block_length"]))
    assert torch.equal(mask[0, 0], want["attention_mask"])
    hidden_BMD = denoiser.hidden(
        torch.cat([noisy_BT, clean_BT], 1), attention_mask=mask, position_ids=position_1T.repeat(1, 2)
    )
    logits_BTV = denoiser.head(hidden_BMD[:, : noisy_BT.shape[1]])
    assert (logits_BTV - want["logits"]).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize(("folder", "case"), case_list(train=True))
def test_noisy_half_of_the_doubled_layout_equals_denoising_that_block(folder, case):
    want = fields(folder, case)
    denoiser, noisy_BT, length = load(folder), want["noisy_input_ids"], int(want["block_length"])
    clean_BT = want["input_ids"].repeat(len(noisy_BT) // len(want["input_ids"]), 1)
    # While block 1 is denoised, block 0 is finished (clean) and the canvas ends with block 1.
    canvas_BN = torch.cat([clean_BT[:, :length], noisy_BT[:, length : 2 * length]], 1)
    logits_BNV = denoiser.logits(canvas_BN, block_length=length)
    assert (logits_BNV[:, length:] - want["logits"][:, length : 2 * length]).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("folder", [pytest.param(f, id=f"{f.parent.name}-{f.name}") for f in FOLDERS])
def test_saving_gives_back_the_published_names_and_bits(folder, tmp_path):
    published = load_file(folder / "model.safetensors")
    dtype = next(
        value.dtype
        for name, value in published.items()
        if name.endswith("embed_tokens.weight") or "wte" in name or "word_emb" in name
    )
    mask_token_id = load(folder).mask_token_id
    denoiser = models.load(folder, dtype=dtype, mask_token_id=mask_token_id)
    models.save(denoiser, tmp_path)
    again = load_file(tmp_path / "model.safetensors")
    assert again.keys() == published.keys()
    assert all(
        torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in published.items()
    )
    config, before = (json.loads((path / "config.json").read_text()) for path in (tmp_path, folder))
    assert config == before | {"mask_token_id": mask_token_id}


@pytest.mark.parametrize("folder", [pytest.param(f, id=f"{f.parent.name}-{f.name}") for f in FOLDERS])
def test_family_facts_are_those_of_the_checkpoint(folder):
    denoiser = load(folder)
    name = {"llada_gqa": "llada"}.get(folder.name, folder.name)
    assert denoiser.family.name == name
    assert denoiser.family.shift == (name in SHIFTED)
    assert denoiser.family.block_causal == (name in {"sdar", "sdar_moe", "fast_dllm_v2", "llada2"})
    assert denoiser.family.first_slot_alone == (name == "fast_dllm_v2")
    assert (denoiser.block_length is not None) == denoiser.family.block_causal
    assert denoiser.vocab_size == denoiser.head(torch.zeros(1, denoiser.backbone.config.hidden_size)).shape[1]
