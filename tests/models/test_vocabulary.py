"""The head's own gradient equals autograd's through whole logits, whatever is kept and whatever computed again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.config import LoraConfig
from models.vocabulary import VocabularyHead

V, D, MASK = 50, 12, 7
ROW = 4 * V  # bytes of one position's logits


class Alone:
    """The least of a denoiser that `token_logprobs` needs: a head."""

    def __init__(self, *, dtype=torch.float64, bias=False):
        generator = torch.Generator().manual_seed(0)
        stock = torch.nn.Linear(D, V, bias=bias, dtype=dtype)
        with torch.no_grad():
            for parameter in stock.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        self.backbone = torch.nn.Module()
        self.backbone.lm_head = VocabularyHead.around(stock)
        self.mask_token_id, self.vocab_size = MASK, V

    def head(self, hidden_MD):
        return self.backbone.lm_head(hidden_MD)


def wanted(num_positions, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    hidden_MD = torch.randn(num_positions, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    token_M = torch.randint(MASK + 1, V, (num_positions,), generator=generator)
    return hidden_MD, token_M, torch.randn(num_positions, generator=generator, dtype=torch.float64).to(dtype)


def plain(alone, hidden_MD, token_M, temperature):
    logits_MV = alone.head(hidden_MD).index_fill(1, torch.tensor([MASK]), -torch.inf)
    return (logits_MV / temperature).log_softmax(1).gather(1, token_M[:, None])[:, 0]


@settings(max_examples=40, deadline=None)
@given(
    num_positions=st.integers(1, 40),
    chunk_bytes=st.sampled_from([1, 2 * ROW, 7 * ROW, 10**9]),
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    bias=st.booleans(),
)
def test_gradients_equal_those_of_autograd_through_whole_logits(num_positions, chunk_bytes, temperature, bias):
    alone = Alone(bias=bias)
    hidden_MD, token_M, upper_M = wanted(num_positions)
    leaves = [hidden_MD, *alone.backbone.parameters()]
    logprob_M, _ = models.token_logprobs(alone, hidden_MD, token_M, temperature=temperature, chunk_bytes=chunk_bytes)
    expected_M = plain(alone, hidden_MD, token_M, temperature)
    torch.testing.assert_close(logprob_M, expected_M, atol=1e-12, rtol=0)
    found = torch.autograd.grad((logprob_M * upper_M).sum(), leaves)
    expected = torch.autograd.grad((expected_M * upper_M).sum(), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_frozen_head_costs_no_weight_gradient_and_a_lone_weight_gets_its_own():
    alone = Alone()
    hidden_MD, token_M, _ = wanted(5)
    alone.backbone.requires_grad_(False)
    models.token_logprobs(alone, hidden_MD, token_M)[0].sum().backward()
    assert alone.backbone.lm_head.weight.grad is None
    assert hidden_MD.grad.abs().max() > 0
    alone.backbone.requires_grad_(True)
    models.token_logprobs(alone, hidden_MD.detach(), token_M)[0].sum().backward()
    expected = torch.autograd.grad(plain(alone, hidden_MD.detach(), token_M, 1.0).sum(), alone.backbone.lm_head.weight)
    torch.testing.assert_close(alone.backbone.lm_head.weight.grad, expected[0])


def counted_products(alone, hidden_MD, token_M, **options):
    """Matrix products of one forward and backward pass."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        products = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
            return func(*args, **(kwargs or {}))

    with Count() as count:
        models.token_logprobs(alone, hidden_MD, token_M, **options)[0].sum().backward()
    return count.products


def test_frozen_head_takes_two_products_and_a_trained_one_three_a_chunk():
    alone = Alone()
    hidden_MD, token_M, _ = wanted(8)
    assert counted_products(alone, hidden_MD, token_M, chunk_bytes=4 * ROW) == 2 * 3
    alone.backbone.requires_grad_(False)
    assert counted_products(alone, hidden_MD, token_M, chunk_bytes=4 * ROW) == 2 * 2


def test_slopes_beyond_a_few_chunks_are_computed_again():
    # 4 chunks of one float32 row keep 2 float64 rows: of 6 chunks 2 take three products, 4 take one more.
    hidden_MD, token_M, _ = wanted(6)
    assert counted_products(Alone(), hidden_MD, token_M, chunk_bytes=ROW) == 2 * 3 + 4 * 4


def test_bfloat16_head_rounds_no_more_than_the_stock_one():
    alone, precise = Alone(dtype=torch.bfloat16), Alone(dtype=torch.bfloat16)
    precise.backbone.double()
    hidden_MD, token_M, upper_M = wanted(30, torch.bfloat16)
    exact = torch.autograd.grad(
        (plain(precise, hidden_MD.double(), token_M, 1.0) * upper_M.double()).sum(), precise.backbone.lm_head.weight
    )[0]

    def error(logprob_M):
        (found,) = torch.autograd.grad((logprob_M * upper_M).sum(), alone.backbone.lm_head.weight)
        return float((found.double() - exact).abs().mean())

    chunked = error(models.token_logprobs(alone, hidden_MD, token_M, chunk_bytes=3 * ROW)[0])
    assert chunked < 1.5 * error(plain(alone, hidden_MD.float().bfloat16(), token_M, 1.0))


def test_adapted_head_gives_the_same_gradients_as_whole_logits(load_family):
    denoiser = load_family("llada")
    models.apply_lora(denoiser, LoraConfig(rank=2, target_modules=("lm_head", "q_proj")))
    adapters = {name: value for name, value in models.lora_state(denoiser).items() if "lm_head" in name}
    with torch.no_grad():
        for value in adapters.values():
            value.normal_(std=0.1)
    hidden_MD = torch.randn(7, 32, requires_grad=True)
    token_M = torch.arange(7)
    logits_MV = denoiser.head(hidden_MD).index_fill(1, torch.tensor([denoiser.mask_token_id]), -torch.inf)
    expected_M = logits_MV.log_softmax(1).gather(1, token_M[:, None])[:, 0]
    found_M, _ = models.token_logprobs(denoiser, hidden_MD, token_M, chunk_bytes=3 * 4 * 32)
    leaves = [hidden_MD, *adapters.values()]
    assert len(leaves) == 3
    expected = torch.autograd.grad(expected_M.sum(), leaves)
    for one, other in zip(torch.autograd.grad(found_M.sum(), leaves), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_stock_head_keeps_its_parameters_and_stays_tied():
    alone = models.create(models.TINY_CONFIG | {"weight_tying": True}, seed=0)
    assert isinstance(alone.backbone.lm_head, VocabularyHead)
    assert alone.backbone.lm_head.weight is alone.backbone.model.embed_tokens.weight


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_probability_and_entropy_of_a_known_law(temperature):
    # Logits ln 1, ln 2, ln 3 and the mask: laws (1, 2, 3) / 6, and at temperature 1/2 (1, 4, 9) / 14.
    alone = Alone()
    alone.mask_token_id = 3
    hidden_1D = torch.zeros(1, D, dtype=torch.float64)
    hidden_1D[0, 0] = 1.0
    with torch.no_grad():
        alone.backbone.lm_head.weight[:, 0] = -1e4
        alone.backbone.lm_head.weight[:4, 0] = torch.tensor([1.0, 2.0, 3.0, 1e9]).log()
        logprob, entropy = models.token_logprobs(alone, hidden_1D, torch.tensor([1]), temperature=temperature)
    assert float(logprob.exp()) == pytest.approx(2 / 6 if temperature == 1.0 else 4 / 14)
    law = torch.tensor([1.0, 2.0, 3.0]) / 6
    assert float(entropy) == pytest.approx(float(-(law * law.log()).sum()))
