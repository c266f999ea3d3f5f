"""The baselines decode by the rules that the engine decodes by, so a ratio compares equal work."""

import copy

import pytest
import torch

import samplers
from benchmarks import dual_decoder, dual_reference, plain_decoder, static_batch
from benchmarks.finding import prompts
from benchmarks.stock import Stock
from rollout import Engine


def test_stock_forward_is_the_models_own(small, stock):
    canvas_BN = prompts(2, 24)
    with torch.no_grad():
        assert torch.equal(stock.logits(canvas_BN), small.logits(canvas_BN))


def test_stock_keeps_its_weights_when_the_model_changes(small):
    denoiser = copy.deepcopy(small)
    stock = Stock(denoiser)
    canvas_BN = prompts(1, 8)
    with torch.no_grad():
        before_BNV = stock.logits(canvas_BN)
        for parameter in denoiser.parameters():
            parameter.zero_()
        assert torch.equal(stock.logits(canvas_BN), before_BNV)


def test_stock_refuses_a_family_that_the_baselines_cannot_decode(small_block_causal):
    with pytest.raises(ValueError, match="not 'sdar'"):
        Stock(small_block_causal)


@pytest.mark.parametrize("steps", [16, 8])
def test_plain_decoder_gives_the_engines_greedy_answers(small, stock, steps):
    prompt_BP = prompts(4, 12)
    plain_BT = plain_decoder.decode(stock, prompt_BP, max_new_tokens=16, steps=steps, block_length=8)
    engine = Engine(small, samplers.build("confidence"), block_length=8)
    answers = engine.generate(prompt_BP.tolist(), max_new_tokens=16, steps=steps)
    assert [answer.tokens.tolist() for answer in answers] == plain_BT.tolist()


@pytest.mark.parametrize("rule", [{"tokens_per_step": 1}, {"tokens_per_step": 3}, {"threshold": 0.9}])
def test_published_style_dual_loop_gives_the_slow_references_answers(stock, rule):
    prompt_BP = prompts(3, 12)
    loop_BT = dual_decoder.decode(stock, prompt_BP, max_new_tokens=20, block_length=8, **rule)
    slow = [dual_reference.decode(stock, row, max_new_tokens=20, block_length=8, **rule) for row in prompt_BP.tolist()]
    assert loop_BT.tolist() == slow


def test_slow_reference_in_one_step_a_block_is_a_greedy_forward_of_the_canvas(stock):
    # Everything is committed by the block's first forward, which computes all: the cache is never read.
    prompt = prompts(1, 12)[0].tolist()
    answer = dual_reference.decode(stock, prompt, max_new_tokens=8, block_length=8, tokens_per_step=8)
    with torch.no_grad():
        logits_1NV = stock.logits(torch.tensor([prompt + [stock.mask_token_id] * 8]))
    assert answer == logits_1NV[0, 12:].argmax(-1).tolist()


def test_dual_cache_changes_what_the_full_recompute_would_answer(stock):
    # Otherwise equality with the slow reference would say nothing about the cache.
    prompt_BP = prompts(8, 12)
    dual_BT = dual_decoder.decode(stock, prompt_BP, max_new_tokens=32, block_length=16, tokens_per_step=1)
    exact_BT = plain_decoder.decode(stock, prompt_BP, max_new_tokens=32, steps=32, block_length=16)
    assert dual_BT.tolist() != exact_BT.tolist()


def static(stock, ends, *, until_all_ended):
    return static_batch.decode(
        stock,
        prompts(len(ends), 6),
        torch.tensor(ends),
        max_new_tokens=8,
        block_length=4,
        tokens_per_step=2,
        until_all_ended=until_all_ended,
    )


def test_static_batch_to_the_cap_computes_every_canvas_at_every_step(stock):
    # 2 rows, 8 slots, 2 a step
    assert static(stock, [0, 1], until_all_ended=False).num_forwards == 2 * 4


def test_static_batch_stops_when_all_rows_have_ended(stock):
    # slot 3 is the last of the first block: whatever the order, that block takes 2 steps
    assert static(stock, [3, 3], until_all_ended=True).num_forwards == 2 * 2


def test_static_batch_with_a_row_that_never_ends_runs_to_the_cap(stock):
    assert static(stock, [0, 8], until_all_ended=True).num_forwards == 2 * 4


def test_static_batch_puts_end_tokens_where_planned(stock):
    token_BT = static(stock, [2, 8], until_all_ended=False).token_BT
    assert [row.index(stock.eos_token_id) if stock.eos_token_id in row else None for row in token_BT.tolist()] == [
        2,
        None,
    ]


def test_static_batch_refuses_steps_that_do_not_fill_a_block(stock):
    with pytest.raises(ValueError, match="tokens_per_step 3 must divide block_length 4"):
        static_batch.decode(
            stock,
            prompts(1, 6),
            torch.tensor([1]),
            max_new_tokens=8,
            block_length=4,
            tokens_per_step=3,
            until_all_ended=True,
        )
