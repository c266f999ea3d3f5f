"""Attention in bfloat16 on a CPU: the fused kernel's values, gradients as close to float32 as the fused kernel's."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from models.plain_backward import attention


def inputs(num_spans, num_queries, num_keys, *, scale=1.0):
    generator = torch.Generator().manual_seed(0)

    def draw(length):
        return scale * torch.randn(num_spans, length, 3, 16, generator=generator).transpose(1, 2)

    return draw(num_queries), draw(num_keys), draw(num_keys)


def gradients(function, parts, mask, dtype):
    leaves = [part.to(dtype).detach().requires_grad_() for part in parts]
    output = function(*leaves, mask)
    upper = torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(dtype)
    return output, torch.autograd.grad((output * upper).sum(), leaves)


def ours(query, key, value, mask):
    return attention(query, key, value, mask, 0.25)


def stock(query, key, value, mask):
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.25)


CAUSAL = torch.ones(40, 40, dtype=torch.bool).tril()[None, None]


@pytest.mark.parametrize(("shape", "mask"), [((5, 40, 40), None), ((2, 40, 40), CAUSAL), ((700, 1, 33), None)])
def test_bfloat16_values_are_the_fused_ones_and_gradients_as_close_to_float32(shape, mask):
    parts = [part.bfloat16() for part in inputs(*shape)]
    _, exact = gradients(stock, parts, mask, torch.float32)
    output, found = gradients(ours, parts, mask, torch.bfloat16)
    expected_output, fused = gradients(stock, parts, mask, torch.bfloat16)
    assert torch.equal(output, expected_output)
    for one, other, wanted in zip(found, fused, exact, strict=True):
        error, fused_error = ((x.float() - wanted).abs().mean() for x in (one, other))
        assert error < 2 * fused_error
        assert error < 0.02 * wanted.abs().mean()


@pytest.mark.parametrize("mask", [None, CAUSAL])
def test_other_precisions_take_the_fused_kernel_both_ways(mask):
    parts = inputs(3, 40, 40)
    output, found = gradients(ours, parts, mask, torch.float32)
    expected_output, expected = gradients(stock, parts, mask, torch.float32)
    assert torch.equal(output, expected_output)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
