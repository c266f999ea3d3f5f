"""The attention probe against matrices: one worked out by hand, and the ones of real layers."""

import pytest
import torch
from transformers import AttentionInterface
from transformers.models.llama.modeling_llama import eager_attention_forward

from models.probe import Probe, layer_set

MATRIX = torch.tensor(
    [[0.55, 0.05, 0.10, 0.30], [0.50, 0.20, 0.20, 0.10], [0.10, 0.60, 0.20, 0.10], [0.20, 0.10, 0.60, 0.10]]
)


def probe_matrix(matrix_NN, rows, cols):
    """Sums of a given attention matrix: q = log A and k = I make the scores q k^T = log A, whose softmax is A."""
    num_positions = len(matrix_NN)
    rows_BN, cols_BN = (torch.isin(torch.arange(num_positions), torch.tensor(chosen))[None] for chosen in (rows, cols))
    probe = Probe(rows_BN, cols_BN, frozenset({0}))
    probe.add(matrix_NN.log()[None, None], torch.eye(num_positions)[None, None], None, 1.0)
    return probe.sums()


def test_sums_of_a_matrix_worked_out_by_hand():
    sums = probe_matrix(MATRIX, rows=[0, 1, 2, 3], cols=[0])
    # first column, and 0.55 + 0.50 + 0.10 + 0.20 = 1.35 etc.
    assert sums.row_sum_BT[0].tolist() == pytest.approx([0.55, 0.50, 0.10, 0.20])
    assert sums.col_sum_BT[0].tolist() == pytest.approx([1.35, 0.95, 1.10, 0.60])
    assert sums.self_BT[0].tolist() == pytest.approx([0.55, 0.20, 0.20, 0.10])


def test_query_left_out_of_the_rows_counts_nowhere():
    sums = probe_matrix(MATRIX, rows=[0, 1, 2], cols=[0])
    assert sums.col_sum_BT[0].tolist() == pytest.approx([1.15, 0.85, 0.50, 0.50])
    assert sums.row_sum_BT[0].tolist() == pytest.approx([0.55, 0.50, 0.10, 0.0])


def test_slots_looked_at_by_other_slots():
    sums = probe_matrix(MATRIX, rows=[1, 2, 3], cols=[1, 2, 3])
    # columns over rows 1..3 without the own entry: .6 + .1, .2 + .6, .1 + .1
    assert (sums.col_sum_BT - sums.self_BT)[0, 1:].tolist() == pytest.approx([0.7, 0.8, 0.2])


def materialised(denoiser, tokens_BN, layers, **options):
    """Mean attention matrix by transformers' own eager attention, which keeps it whole."""
    kept = []

    def record(module, query, key, value, attention_mask, *, scaling, **_):
        additive = None
        if attention_mask is not None:
            additive = torch.zeros(attention_mask.shape).masked_fill(~attention_mask, -1e30)
        output, weights = eager_attention_forward(module, query, key, value, additive, scaling=scaling)
        kept.append(weights.mean(1))
        return output, weights

    AttentionInterface.register("recorded", record)
    own = denoiser.backbone.config._attn_implementation
    denoiser.backbone.config._attn_implementation = "recorded"
    denoiser.hidden(tokens_BN, **options)
    denoiser.backbone.config._attn_implementation = own
    return torch.stack([kept[layer] for layer in layers]).mean(0)


@torch.no_grad()
@pytest.mark.parametrize("layers", ["last", "all", (0,), (0, -1)])
def test_sums_equal_the_materialised_matrix_with_left_padding_and_blocks(denoiser, layers):
    generator = torch.Generator().manual_seed(1)
    tokens_BN = torch.randint(0, 29, (2, 11), generator=generator)
    valid_BN = torch.ones_like(tokens_BN).bool()
    valid_BN[1, :3] = False
    rows_BN, cols_BN = torch.rand(2, 2, 11, generator=generator) < 0.5
    indices = sorted(layer_set(layers, denoiser.num_layers))
    matrix_BNN = materialised(denoiser, tokens_BN, indices, valid_BN=valid_BN, block_length=4)
    picked_BNN = matrix_BNN * (rows_BN & valid_BN)[:, :, None]
    sums = denoiser.attention_sums(
        tokens_BN, rows=rows_BN, cols=cols_BN, layers=layers, valid_BT=valid_BN, block_length=4
    )
    assert (sums.row_sum_BT - (picked_BNN * (cols_BN & valid_BN)[:, None]).sum(2)).abs().max() < 1e-5
    assert (sums.col_sum_BT - picked_BNN.sum(1)).abs().max() < 1e-5
    assert (sums.self_BT - picked_BNN.diagonal(dim1=1, dim2=2)).abs().max() < 1e-5


def test_left_padding_changes_no_sum(denoiser):
    tokens_BN = torch.randint(0, 29, (1, 8), generator=torch.Generator().manual_seed(2))
    plain = denoiser.attention_sums(tokens_BN, rows=None, block_length=4)
    valid_BN = torch.nn.functional.pad(torch.ones_like(tokens_BN), (3, 0)).bool()
    padded_BN = torch.nn.functional.pad(tokens_BN, (3, 0), value=denoiser.eos_token_id)
    padded = denoiser.attention_sums(padded_BN, rows=None, valid_BT=valid_BN, block_length=4)
    assert (padded.col_sum_BT[:, 3:] - plain.col_sum_BT).abs().max() < 1e-5
    assert padded.col_sum_BT[:, :3].abs().max() == 0


def test_every_row_sums_to_one_over_all_keys(denoiser):
    tokens_BN = torch.randint(0, 29, (2, 9), generator=torch.Generator().manual_seed(3))
    sums = denoiser.attention_sums(tokens_BN, rows=None, layers="all", block_length=4)
    assert torch.allclose(sums.row_sum_BT, torch.ones(2, 9), atol=1e-5)


def test_no_rows_give_zero_sums(load_family):
    tokens_BN = torch.zeros(1, 4, dtype=torch.long)
    sums = load_family("dream").attention_sums(tokens_BN, rows=torch.zeros(1, 4, dtype=torch.bool))
    assert sums.row_sum_BT.tolist() == sums.col_sum_BT.tolist() == [[0.0] * 4]


def test_probing_leaves_the_prediction_as_it_is(denoiser):
    tokens_BN = torch.randint(0, 29, (1, 8), generator=torch.Generator().manual_seed(4))
    before = denoiser.logits(tokens_BN)
    denoiser.attention_sums(tokens_BN, rows=None)
    assert torch.equal(denoiser.logits(tokens_BN), before)


@pytest.mark.parametrize("layers", ["first", [], [7]])
def test_unknown_layers_are_named_with_what_is_allowed(load_family, layers):
    with pytest.raises(ValueError, match="layers = "):
        load_family("dream").attention_sums(torch.zeros(1, 4, dtype=torch.long), rows=None, layers=layers)


def test_wrong_shape_of_rows_is_named(load_family):
    with pytest.raises(ValueError, match=r"rows \(1, 3\) must have the shape \(1, 4\) of tokens"):
        load_family("dream").attention_sums(
            torch.zeros(1, 4, dtype=torch.long), rows=torch.ones(1, 3, dtype=torch.bool)
        )
