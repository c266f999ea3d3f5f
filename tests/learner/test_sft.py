import numpy as np
import pytest
import torch

from learner.config import OptimizerConfig
from learner.masking import blockwise_canvases, random_canvases
from learner.optimizer import learning_rate
from learner.plan import Canvas, micro_batches
from learner.sft import MaskedExample, make_example, plan_masked, sft_loss
from learner.sft_config import BlockwiseMasking, RandomMasking
from tests.learner.small_models import EOS, MASK, Toy, small_denoiser


def examples(num_examples, *, max_new_tokens=2):
    answer = [Toy.A, Toy.B][:max_new_tokens]
    return [make_example([Toy.A], answer, max_new_tokens=max_new_tokens, eos_token_id=EOS) for _ in range(num_examples)]


def mixed(denoiser):
    """Six examples with prompts of 1 to 6 tokens and 9 slots."""
    length = denoiser.block_length if denoiser.family.block_causal else 0
    return [
        make_example([3] * (1 + i), [4, 5 + i % 3, 6, 7], max_new_tokens=9, eos_token_id=EOS, block_length=length)
        for i in range(6)
    ]


def loss_of(denoiser, masked, micro_batch_tokens=16384):
    plan = plan_masked(masked, family=denoiser.family)
    return sum(sft_loss(denoiser, plan, group) for group in micro_batches(plan, micro_batch_tokens))


def slow_loss(denoiser, masked):
    """One canvas at a time, every position's logits; later blocks of a block-causal family are absent."""
    total = torch.zeros(())
    for one in masked:
        prompt, tokens, length = one.example.prompt_tokens, one.example.tokens, one.example.block_length
        for canvas in one.canvases:
            shown = [*prompt.tolist(), *np.where(canvas.masked_T, MASK, tokens).tolist()]
            for slot, weight in zip(canvas.slot_K.tolist(), canvas.weight_K.tolist(), strict=True):
                place = len(prompt) + slot
                end = min((place // length + 1) * length, len(shown)) if length else len(shown)
                logits_NV = denoiser.logits(torch.tensor([shown[:end]]))[0].clone()
                row_V = logits_NV[place - int(denoiser.family.shift)]
                row_V[MASK] = -torch.inf
                total = total - weight * row_V.log_softmax(0)[tokens[slot]]
    return total


def test_answer_is_filled_with_end_tokens():
    example = make_example([7, 8], [5], max_new_tokens=3, eos_token_id=EOS)
    assert example.tokens.tolist() == [5, EOS, EOS]
    assert example.answer_length == 1


def test_answer_longer_than_its_slots_is_refused():
    with pytest.raises(ValueError, match=r"4 tokens but sft\.max_new_tokens is 3"):
        make_example([7], [5, 5, 5, 5], max_new_tokens=3, eos_token_id=EOS)


def test_expected_loss_is_the_enumerated_bound():
    """Toy's text (a, b): log p(a) + log p(b) with both masked is -1.4784, each given the other -1.8458 - 2.3026.

    Given t, a slot alone is masked with t (1 - t), both with t^2, each at weight 1 / (2 t). With t ~ U(t_min, 1) the
    mean of t is (1 + t_min) / 2, so the loss is (1.4784 (1 + t_min) + 4.1484 (1 - t_min)) / 4; for t_min = 0 it is
    2.8134 / 2, the exact -log P(a, b) per slot, because the conditionals agree with one joint.
    """
    num_examples, t_min = 20_000, 0.02
    masked = random_canvases(examples(num_examples), RandomMasking(t_min=t_min), seed=1, step=0)
    with torch.no_grad():
        loss = float(loss_of(Toy(), masked, 30_000)) / num_examples
    assert loss == pytest.approx((1.4784 * (1 + t_min) + 4.1484 * (1 - t_min)) / 4, rel=0.02)


def test_weight_multiplies_the_cross_entropy():
    """One canvas with its second slot masked: CE(b given a) = -log(.06 / .60), times 2."""
    canvas = Canvas(np.array([False, True]), np.array([1]), np.array([2.0], dtype=np.float32))
    assert loss_of(Toy(), [MaskedExample(examples(1)[0], (canvas,))]).item() == pytest.approx(2.302585 * 2, rel=1e-5)


@pytest.mark.parametrize("family", ["llada", "dream", "sdar", "fast_dllm_v2"])
@pytest.mark.parametrize("masking", [RandomMasking(t_min=0.3, num_canvases=2), BlockwiseMasking(block_length=4)])
def test_loss_and_gradient_equal_one_slot_at_a_time(family, masking):
    denoiser = small_denoiser(family).double()
    draw = random_canvases if isinstance(masking, RandomMasking) else blockwise_canvases
    masked = draw(mixed(denoiser), masking, seed=0, step=0)
    assert sum(one.num_scored for one in masked) > 20
    found, expected = loss_of(denoiser, masked, micro_batch_tokens=64), slow_loss(denoiser, masked)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    weight = denoiser.backbone.model.layers[0].mlp.up_proj.weight
    ours, theirs = (torch.autograd.grad(loss, weight)[0] for loss in (found, expected))
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7 * float(theirs.abs().max()))


@pytest.mark.parametrize("family", ["llada", "dream", "sdar"])
def test_split_and_padding_do_not_change_the_loss(family):
    denoiser = small_denoiser(family)
    masked = random_canvases(mixed(denoiser), RandomMasking(t_min=0.5), seed=0, step=0)
    with torch.no_grad():
        together = float(loss_of(denoiser, masked))
        alone = sum(float(loss_of(denoiser, [one])) for one in masked if one.canvases)
    assert together == pytest.approx(alone, rel=1e-5)


def test_clean_tokens_of_a_block_causal_example_are_computed_once():
    """Prompt 5, 9 slots, blocks of 4: 14 positions. Three blocks hold slots (positions 4-7, 8-11, 12-13)."""
    denoiser = small_denoiser("sdar")
    example = mixed(denoiser)[4]
    masked = blockwise_canvases([example], BlockwiseMasking(), seed=0, step=0)
    plan = plan_masked(masked, family=denoiser.family)
    assert [share.blocks for share in plan.share_C] == [((4, 8),), ((8, 12),), ((12, 14),)]
    assert max(share.clean_stop for share in plan.share_C) == 12  # 12 clean tokens once, and 10 of the copies


def test_rate_warms_up_and_then_follows_its_schedule():
    def rates(schedule):
        config = OptimizerConfig(lr=1.0, warmup_steps=2, schedule=schedule)
        return [learning_rate(config, step=step, total_steps=6) for step in range(6)]

    # warm-up 1/2, 2/2; then k/4 of the way, k = 0..3
    assert rates("constant") == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates("linear") == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates("cosine") == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
