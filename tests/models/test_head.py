"""Log-probabilities in chunks against the plain log-softmax."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import models

ONE_ROW = 4 * 32  # bytes of the float32 logits of one position of the 32-token fixtures


@pytest.fixture
def wanted(denoiser):
    """Denoiser, hidden states of seven positions that ask for a gradient, and a token for each."""
    generator = torch.Generator().manual_seed(0)
    hidden_MD = torch.randn(7, 32, generator=generator, requires_grad=True)
    return denoiser, hidden_MD, torch.randint(0, 29, (7,), generator=generator)


def plain(denoiser, hidden_MD, token_M, temperature=1.0):
    logits_MV = denoiser.head(hidden_MD).float().index_fill(1, torch.tensor([denoiser.mask_token_id]), -math.inf)
    logprob_M = (logits_MV / temperature).log_softmax(1).gather(1, token_M[:, None])[:, 0]
    return logprob_M, torch.distributions.Categorical(logits=logits_MV).entropy()


@pytest.mark.parametrize("chunk_bytes", [1, 3 * ONE_ROW, 10**9])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_values_and_gradients_equal_the_plain_log_softmax(wanted, chunk_bytes, temperature):
    denoiser, hidden_MD, token_M = wanted
    head = denoiser.backbone.lm_head.weight
    want_M, _ = plain(denoiser, hidden_MD, token_M, temperature)
    want_grads = torch.autograd.grad((want_M * torch.arange(7)).sum(), [hidden_MD, head])
    logprob_M, _ = models.token_logprobs(denoiser, hidden_MD, token_M, temperature=temperature, chunk_bytes=chunk_bytes)
    grads = torch.autograd.grad((logprob_M * torch.arange(7)).sum(), [hidden_MD, head])
    assert torch.allclose(logprob_M, want_M, atol=1e-5)
    for got, want in zip(grads, want_grads, strict=True):
        assert torch.allclose(got, want, atol=1e-5)


def test_entropy_is_that_of_the_untempered_law_and_detached(wanted):
    denoiser, hidden_MD, token_M = wanted
    _, entropy_M = models.token_logprobs(denoiser, hidden_MD, token_M, temperature=0.3)
    logits_MV = denoiser.head(hidden_MD).detach().float()
    logits_MV[:, denoiser.mask_token_id] = -1e30
    prob_MV = logits_MV.softmax(1)
    want_M = -(prob_MV * prob_MV.clamp(min=1e-30).log()).sum(1)
    assert torch.allclose(entropy_M, want_M, atol=1e-5)
    assert not entropy_M.requires_grad


def test_uniform_law_over_all_tokens_but_the_mask(load_family):
    denoiser = load_family("llada")
    logprob_M, entropy_M = models.token_logprobs(denoiser, torch.zeros(2, 32), torch.tensor([0, 30]))
    # 32 tokens, the mask is none of them: 31 equal chances
    assert logprob_M.tolist() == pytest.approx([-math.log(31)] * 2)
    assert entropy_M.tolist() == pytest.approx([math.log(31)] * 2)


def test_temperature_zero_means_one(wanted):
    denoiser, hidden_MD, token_M = wanted
    assert torch.equal(
        models.token_logprobs(denoiser, hidden_MD, token_M, temperature=0.0)[0],
        models.token_logprobs(denoiser, hidden_MD, token_M)[0],
    )


def test_results_are_float32_for_a_bfloat16_model(load_family):
    denoiser = load_family("llada", dtype=torch.bfloat16)
    logprob_M, entropy_M = models.token_logprobs(
        denoiser, torch.randn(3, 32, dtype=torch.bfloat16), torch.tensor([1, 2, 3])
    )
    assert logprob_M.dtype == entropy_M.dtype == torch.float32


def test_no_positions_give_no_values_and_a_zero_gradient(load_family):
    hidden_MD = torch.zeros(0, 32, requires_grad=True)
    logprob_M, entropy_M = models.token_logprobs(load_family("llada"), hidden_MD, torch.zeros(0, dtype=torch.long))
    logprob_M.sum().backward()
    assert logprob_M.shape == entropy_M.shape == (0,)
    assert hidden_MD.grad.shape == (0, 32)


class LargestTensor(TorchDispatchMode):
    """Notes the largest number of elements that any operation gave."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.largest = max(self.largest, out.numel())
        return out


def test_whole_logits_never_exist_forward_or_backward(load_family):
    denoiser = load_family("llada")
    wide = models.create(denoiser.config | {"vocab_size": 4096, "embedding_size": 4096}, seed=0)
    hidden_MD = torch.randn(500, 32, requires_grad=True)
    with LargestTensor() as seen:
        logprob_M, _ = models.token_logprobs(
            wide, hidden_MD, torch.zeros(500, dtype=torch.long), chunk_bytes=10 * 4 * 4096
        )
        logprob_M.sum().backward()
    # the weight of the head is (4096, 32), ten rows of logits are (10, 4096), all of them would be (500, 4096)
    assert seen.largest == 4096 * 32


@torch.no_grad()
def test_chunks_of_logits_cover_every_position_once_and_never_offer_the_mask(wanted):
    denoiser, hidden_MD, _ = wanted
    pieces = list(models.logit_chunks(denoiser, hidden_MD, chunk_bytes=3 * ONE_ROW))
    assert [(part.start, part.stop) for part, _ in pieces] == [(0, 3), (3, 6), (6, 7)]
    logits_MV = torch.cat([logits for _, logits in pieces])
    assert (logits_MV[:, denoiser.mask_token_id] == -math.inf).all()
    others = torch.arange(32) != denoiser.mask_token_id
    assert torch.allclose(logits_MV[:, others], denoiser.head(hidden_MD)[:, others], atol=1e-5)


def test_disagreeing_lengths_are_named(load_family):
    with pytest.raises(ValueError, match=r"hidden \(2, 32\) and token \(3,\) must agree"):
        models.token_logprobs(load_family("llada"), torch.zeros(2, 32), torch.zeros(3, dtype=torch.long))
