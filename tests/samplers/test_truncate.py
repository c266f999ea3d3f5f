"""Top-k and nucleus keep the set of their definition, without a sort."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.truncate import nucleus, top_k


def likely_first(p: list[float]) -> list[int]:
    return sorted(range(len(p)), key=lambda token: (-p[token], token))


def smallest_set(p: list[float], top_p: float) -> set[int]:
    """By the definition: most likely tokens, ties by the lower id, until their mass reaches top_p of the whole."""
    kept, mass = set(), 0.0
    for token in likely_first(p):
        if kept and mass >= top_p * sum(p):
            break
        kept.add(token)
        mass += p[token]
    return kept


def kept_by(logits_KV: torch.Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in logits_KV]


def test_nucleus_keeps_the_smallest_set_that_reaches_the_mass() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25]])
    kept = [kept_by(nucleus(p.log(), torch.tensor([mass])))[0] for mass in (0.4, 0.49, 0.6, 0.76, 1.0)]
    assert kept == [{1}, {1}, {1, 3}, {1, 2, 3}, {0, 1, 2, 3}]


def test_nucleus_stops_where_the_mass_is_reached_exactly() -> None:
    # Softmax of these is exact: 1/2, 1/4, 1/8, 1/8.
    logits = torch.tensor([[1 / 8, 1 / 2, 1 / 8, 1 / 4]]).log2() * torch.tensor(2.0).log()
    assert kept_by(nucleus(logits, torch.tensor([0.75 - 1e-6]))) == [{1, 3}]
    assert kept_by(nucleus(logits, torch.tensor([0.75 + 1e-6]))) == [{0, 1, 3}]


def test_equal_tokens_are_kept_from_the_lowest_id() -> None:
    logits = torch.zeros(3, 8)
    # 8 tokens of 1/8 each: .3 needs three of them, .5 four.
    assert kept_by(nucleus(logits[:2], torch.tensor([0.3, 0.5]))) == [{0, 1, 2}, {0, 1, 2, 3}]
    assert kept_by(top_k(logits, torch.tensor([1, 3, 0]), largest=3)) == [{0}, {0, 1, 2}, set(range(8))]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**31), st.sampled_from([0.5, 3.0, 12.0]), st.sampled_from([3, 50, 2**23]))
def test_nucleus_equals_its_sorted_definition(size: int, seed: int, spread: float, levels: int) -> None:
    # Few levels make many ties.
    generator = torch.Generator().manual_seed(seed)
    logits_KV = (torch.rand(6, size, generator=generator) * levels).floor() / levels * spread
    logits_KV[:, size // 2] = -torch.inf if size > 1 else 0.0
    top_p_K = torch.tensor([1e-4, 0.25, 0.5, 0.9, 0.999, 1.0])
    kept = kept_by(nucleus(logits_KV, top_p_K))
    for logits_V, top_p, found in zip(logits_KV, top_p_K.tolist(), kept, strict=True):
        p = logits_V.softmax(0).to(torch.float64).tolist()
        expected = smallest_set(p, top_p) if top_p < 1 else set(logits_V.isfinite().nonzero()[:, 0].tolist())
        assert found == expected


def test_nucleus_at_the_edge_of_rounding_is_off_by_one_token_at_most() -> None:
    logits_KV = 3 * torch.randn(400, 700, generator=torch.Generator().manual_seed(0))
    mass_KV = logits_KV.softmax(-1).double().sort(dim=-1, descending=True).values.cumsum(-1)
    number_K = torch.randint(1, 600, (400,), generator=torch.Generator().manual_seed(1))
    top_p_K = mass_KV.gather(1, number_K[:, None] - 1)[:, 0] / mass_KV[:, -1]
    kept_K = nucleus(logits_KV, top_p_K).isfinite().sum(-1)
    assert set((kept_K - number_K).tolist()) <= {0, 1}


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**31), st.sampled_from([3, 50, 2**23]), st.integers(1, 320))
def test_top_k_equals_its_sorted_definition(size: int, seed: int, levels: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits_KV = (torch.rand(3, size, generator=generator) * levels).floor() / levels
    top_k_K = torch.tensor([k, 1, 0])
    kept = kept_by(top_k(logits_KV, top_k_K, largest=k))
    expected = [
        set(likely_first(row.tolist())[: number or size])
        for row, number in zip(logits_KV, top_k_K.tolist(), strict=True)
    ]
    assert kept == expected


def test_kept_logits_are_unchanged() -> None:
    logits_KV = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    for cut_KV in (nucleus(logits_KV, torch.tensor([0.7, 0.7])), top_k(logits_KV, torch.tensor([4, 9]), largest=9)):
        kept_KV = cut_KV.isfinite()
        assert torch.equal(cut_KV[kept_KV], logits_KV[kept_KV])
