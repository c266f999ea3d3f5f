"""Spans that continue others compute what whole sequences compute."""

from functools import cache

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.packing import Span
from models.shared_packing import SharedPacking

BLOCK = 4
CONFIG = {
    "model_type": "sdar", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48, "vocab_size": 40, "mask_token_id": 39,
    "eos_token_id": 38, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 128,
    "tie_word_embeddings": False, "block_size": BLOCK,
}  # fmt: skip


@cache
def sdar():
    denoiser = models.create(CONFIG, seed=3)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(5.0 if parameter.ndim >= 2 else 1.0)
    return denoiser.double()


def hidden_of(denoiser, spans, after, tokens, *, tile_tokens, counts=None, flat_W=None):
    packing = SharedPacking(spans, after, device=denoiser.device, block_length=BLOCK, tile_tokens=tile_tokens)
    flat_W = torch.arange(packing.num_tokens) if flat_W is None else flat_W
    counts = [len(span) for span in spans] if counts is None else counts
    return packing, denoiser.start(torch.cat(tokens), packing).hidden(flat_W, counts)


def tree(clean, copies):
    """Root: the first 4 tokens; an answer after it; a copy of each named block with other tokens."""
    stop = len(clean)
    spans, after, tokens = [Span(0, 0, 4, 4)], [-1], [clean[:4]]
    if stop > 4:
        spans.append(Span(0, 4, stop, stop))
        after.append(0)
        tokens.append(clean[4:])
    for block, own in sorted(copies, key=lambda copy: (copy[0] > 1, copy[0])):
        start = block * BLOCK
        spans.append(Span(0, start, start + len(own), start + len(own)))
        after.append(-1 if block == 0 else 0 if block == 1 else 1)
        tokens.append(own)
    return spans, after, tokens


@settings(max_examples=30, deadline=None)
@given(
    num_blocks=st.integers(1, 5),
    copies=st.lists(st.tuples(st.integers(0, 5), st.integers(1, BLOCK), st.integers(0, 99)), max_size=8),
    tile_tokens=st.sampled_from([1, 8, 12, 1000]),
)
def test_every_span_equals_its_whole_sequence(num_blocks, copies, tile_tokens):
    denoiser = sdar()
    clean = torch.randint(38, (num_blocks * BLOCK,), generator=torch.Generator().manual_seed(1))
    drawn = [
        (block, torch.randint(40, (length,), generator=torch.Generator().manual_seed(seed)))
        for block, length, seed in copies
        if block <= num_blocks
    ]
    spans, after, tokens = tree(clean, drawn)
    with torch.no_grad():
        packing, hidden_MD = hidden_of(denoiser, spans, after, tokens, tile_tokens=tile_tokens)
        for span, offset, own in zip(spans, packing.offsets, tokens, strict=True):
            whole = torch.cat([clean[: span.start], own])
            expected = denoiser.hidden(whole[None])[0, span.start :]
            torch.testing.assert_close(hidden_MD[offset : offset + len(span)], expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_shared_tokens_from_all_that_see_them():
    clean = torch.arange(12)
    copies = [(1, torch.tensor([39, 1, 39, 2])), (2, torch.tensor([39, 39])), (2, torch.tensor([9, 39, 39]))]
    spans, after, tokens = tree(clean, copies)
    parameters = list(sdar().parameters())[:-1]
    counts = [0, 0, 4, 2, 3]
    _, hidden_WD = hidden_of(sdar(), spans, after, tokens, tile_tokens=8, counts=counts, flat_W=torch.arange(12, 21))
    found = torch.autograd.grad(hidden_WD.square().sum(), parameters)
    alone = []
    for span, own in zip(spans[2:], tokens[2:], strict=True):
        whole = torch.cat([clean[: span.start], own])
        alone.append(sdar().hidden(whole[None])[0, span.start :].square().sum())
    for one, other in zip(found, torch.autograd.grad(sum(alone), parameters), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_tiles_share_keys_only_up_to_the_last_start():
    # Answer of 8 tokens after 4; copies of blocks 1 (twice) and 2 (once): block 1's parent is the root.
    spans, after, _ = tree(torch.arange(12), [(1, torch.arange(4)), (1, torch.arange(4)), (2, torch.arange(4))])
    packing = SharedPacking(spans, after, device=torch.device("cpu"), block_length=BLOCK, tile_tokens=8)
    assert packing.stretches == [4, 8, 8, 4]
    assert [run.reads for run in packing.runs] == [
        ((0, 4),),
        ((0, 4), (1, 8)),
        ((0, 4), (2, 8)),
        ((0, 4), (1, 4), (3, 4)),
    ]
    # Alone in its tile the copy of block 2 sees all keys; the two copies of block 1 must not see each other.
    assert [run.mask is None for run in packing.runs] == [True, False, False, True]
    assert (
        packing.runs[2].mask[0, 0].int().tolist()
        == [[1] * 4 + [1] * 4 + [0] * 4] * 4 + [[1] * 4 + [0] * 4 + [1] * 4] * 4
    )
