"""The policy network: its size, its start, and what it must not depend on."""

import math

import pytest
import torch

from samplers.policy.config import NetworkConfig
from samplers.policy.network import PolicyNetwork, rotate, rotation


def made(seed: int = 0, **fields) -> PolicyNetwork:
    """A network whose modulation is not zero, as after training."""
    torch.manual_seed(seed)
    network = PolicyNetwork(NetworkConfig(**fields))
    with torch.no_grad():
        network.modulation.weight.normal_(std=0.1)
    return network.eval()


def inputs(rows: int = 3, slots: int = 7, probs: int = 1):
    torch.manual_seed(1)
    return (
        torch.rand(rows, slots, probs),
        torch.rand(rows, slots) < 0.5,
        torch.rand(rows),
        torch.ones(rows, slots, dtype=torch.bool),
    )


def test_released_form_has_331265_parameters() -> None:
    # read 2*128, mask embedding 2*128, time MLP 2*(128*128 + 128), modulation 128*768 + 768, three norms 3*256,
    # qkv 128*384 + 384, projection 128*128 + 128, FFN 128*512 + 512 + 512*128 + 128, output 129
    by_hand = 256 + 256 + 33024 + 99072 + 768 + 49536 + 16512 + 131712 + 129
    assert by_hand == 331265
    assert sum(p.numel() for p in PolicyNetwork(NetworkConfig()).parameters()) == 331265


def test_with_head_weight_zero_each_slot_is_committed_with_probability_sigmoid_of_minus_two() -> None:
    network = made()
    with torch.no_grad():
        network.output.weight.zero_()
    share = torch.sigmoid(network(*inputs()))
    assert share.flatten().tolist() == pytest.approx([1 / (1 + math.e**2)] * 21, abs=1e-6)  # 0.1192


def test_fresh_network_is_a_plain_block_that_neither_mask_nor_time_reaches() -> None:
    network = PolicyNetwork(NetworkConfig())
    prob, masked, elapsed, valid = inputs()
    torch.testing.assert_close(network(prob, masked, elapsed, valid), network(prob, ~masked, 1 - elapsed, valid))


def test_trained_network_depends_on_mask_time_and_every_probability() -> None:
    network = made(num_probs=2)
    prob, masked, elapsed, valid = inputs(probs=2)
    base = network(prob, masked, elapsed, valid)
    for changed in (
        network(prob, ~masked, elapsed, valid),
        network(prob, masked, elapsed / 2, valid),
        network(prob * torch.tensor([1.0, 0.5]), masked, elapsed, valid),
    ):
        assert (changed - base).abs().max() > 1e-3


@pytest.mark.parametrize("left_out", ["sees_mask", "sees_time"])
def test_input_ablations_remove_the_dependence(left_out) -> None:
    network = made(**{left_out: False})
    prob, masked, elapsed, valid = inputs()
    other = (prob, ~masked, elapsed, valid) if left_out == "sees_mask" else (prob, masked, 1 - elapsed, valid)
    torch.testing.assert_close(network(prob, masked, elapsed, valid), network(*other))


def test_slots_behind_the_end_of_an_answer_change_nothing() -> None:
    network = made()
    prob, masked, elapsed, valid = inputs()
    wide = [torch.cat([tensor, tensor[:, :4]], dim=1) for tensor in (prob, masked)]
    wide_valid = torch.cat([valid, torch.zeros(3, 4, dtype=torch.bool)], dim=1)
    found = network(*wide, elapsed, wide_valid)[:, :7]
    torch.testing.assert_close(found, network(prob, masked, elapsed, valid), atol=1e-5, rtol=1e-5)


def test_permuting_rows_permutes_logits() -> None:
    network = made()
    order = torch.tensor([2, 0, 1])
    shuffled = network(*(tensor[order] for tensor in inputs()))
    torch.testing.assert_close(shuffled, network(*inputs())[order])


def test_rotary_products_depend_on_the_distance_only() -> None:
    torch.manual_seed(2)
    query, key = torch.randn(8).expand(6, 8), torch.randn(8).expand(6, 8)
    turn = rotation(6, 8, device=torch.device("cpu"))
    products = rotate(query, turn) @ rotate(key, turn).T
    for distance in range(-5, 6):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(products[0, 0], products[0, 3])


def test_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="width 20 with num_heads 4"):
        PolicyNetwork(NetworkConfig(width=20, num_heads=4))
