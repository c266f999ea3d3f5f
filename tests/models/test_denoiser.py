"""What a canvas may and may not change in the predictions."""

import pytest
import torch

import models


@pytest.fixture(name="tokens_BN")
def two_rows():
    return torch.randint(0, 29, (2, 10), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_padding_on_either_side_changes_no_real_prediction(denoiser, tokens_BN):
    want_BND = denoiser.hidden(tokens_BN, block_length=4)
    for left, right in ((3, 0), (0, 5), (2, 1)):
        padded_BN = torch.nn.functional.pad(tokens_BN, (left, right), value=denoiser.eos_token_id)
        valid_BN = torch.nn.functional.pad(torch.ones_like(tokens_BN), (left, right)).bool()
        got_BND = denoiser.hidden(padded_BN, valid_BN=valid_BN, block_length=4)
        assert (got_BND[:, left : left + 10] - want_BND).abs().max() < 1e-5
        assert got_BND.isfinite().all()


@torch.no_grad()
def test_rows_of_unequal_length_do_not_see_each_other(denoiser, tokens_BN):
    valid_BN = torch.ones_like(tokens_BN).bool()
    valid_BN[1, 6:] = False
    together_BND = denoiser.hidden(tokens_BN, valid_BN=valid_BN)
    assert (together_BND[0] - denoiser.hidden(tokens_BN[:1])[0]).abs().max() < 1e-5
    assert (together_BND[1, :6] - denoiser.hidden(tokens_BN[1:, :6])[0]).abs().max() < 1e-5


@torch.no_grad()
def test_later_blocks_are_invisible_in_block_causal_families_only(denoiser, tokens_BN):
    changed_BN = tokens_BN.clone()
    changed_BN[:, 9] = (changed_BN[:, 9] + 1) % 29
    moved_BND = (denoiser.hidden(tokens_BN, block_length=5) - denoiser.hidden(changed_BN, block_length=5)).abs()
    moved_N = moved_BND.amax((0, 2)) > 1e-5
    # positions 0..4 are block 0, 5..9 are block 1
    assert moved_N[5:].all()
    assert bool(moved_N[:5].any()) == (not denoiser.family.block_causal)


@torch.no_grad()
def test_all_valid_is_the_same_as_no_padding(denoiser, tokens_BN):
    assert torch.equal(denoiser.hidden(tokens_BN, valid_BN=torch.ones_like(tokens_BN)), denoiser.hidden(tokens_BN))


@torch.no_grad()
def test_aligned_state_is_one_to_the_left_where_the_family_shifts(denoiser, tokens_BN):
    hidden_BND = denoiser.hidden(tokens_BN)
    row_M, position_M = torch.tensor([0, 1, 1]), torch.tensor([0, 4, 9])
    source_M = torch.tensor([0, 3, 8]) if denoiser.family.shift else position_M
    assert torch.equal(denoiser.aligned(hidden_BND, row_M, position_M), hidden_BND[row_M, source_M])


@torch.no_grad()
def test_head_at_some_positions_equals_the_whole_logits(denoiser, tokens_BN):
    hidden_BND = denoiser.hidden(tokens_BN)
    assert torch.allclose(denoiser.head(hidden_BND[0, 3:5]), denoiser.logits(tokens_BN)[0, 3:5], atol=1e-5)


def test_casting_keeps_rotary_frequencies_and_the_router_bias_exact(denoiser):
    before = {name: value.clone() for name, value in denoiser.named_buffers()}
    denoiser.to(torch.bfloat16)
    assert all(parameter.dtype == torch.bfloat16 for parameter in denoiser.parameters())
    assert any(name.endswith("inv_freq") for name in before)
    for name, value in denoiser.named_buffers():
        assert torch.equal(value, before[name])
        assert value.dtype == before[name].dtype


def test_gradients_with_activation_checkpointing_equal_those_without(denoiser, tokens_BN):
    def gradients():
        denoiser.zero_grad()
        hidden_BND = denoiser.hidden(tokens_BN, block_length=4)
        models.token_logprobs(denoiser, hidden_BND.flatten(0, 1), tokens_BN.flatten())[0].sum().backward()
        return {name: value.grad.clone() for name, value in denoiser.named_parameters() if value.grad is not None}

    plain = gradients()
    denoiser.backbone.activation_checkpointing_enable({"use_reentrant": False})
    again = gradients()
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[name], again[name], atol=1e-5) for name in plain)


def test_padding_token_is_trained_like_any_other(load_family):
    denoiser = load_family("llada")
    denoiser.hidden(torch.full((1, 4), denoiser.eos_token_id)).sum().backward()
    assert denoiser.backbone.model.embed_tokens.weight.grad[denoiser.eos_token_id].abs().sum() > 0
