import numpy as np
import pytest
import torch

from learner.config import OptimizerConfig
from learner.optimizer import learning_rate
from learner.sft import SftCanvas, make_example, mask_examples, micro_batches, random_mask, sft_loss, stratified_rates
from tests.learner.small_models import EOS, Toy, small_denoiser


def examples(num_examples, *, max_new_tokens=2):
    answer = [Toy.A, Toy.B][:max_new_tokens]
    return [make_example([Toy.A], answer, max_new_tokens=max_new_tokens, eos_token_id=EOS) for _ in range(num_examples)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_answer_is_filled_with_end_tokens():
    example = make_example([7, 8], [5], max_new_tokens=3, eos_token_id=EOS)
    assert example.answer_tokens.tolist() == [5, EOS, EOS]


def test_answer_longer_than_its_slots_is_refused():
    with pytest.raises(ValueError, match=r"4 tokens but sft\.max_new_tokens is 3"):
        make_example([7], [5, 5, 5, 5], max_new_tokens=3, eos_token_id=EOS)


def test_rates_are_one_from_each_part():
    rates = stratified_rates(10, t_min=0.5, generator=generator())
    # ten parts of (0.5, 1), each 0.05 wide
    assert sorted(((rates - 0.5) / 0.05).int().tolist()) == list(range(10))


def test_slots_are_masked_at_their_rate():
    rates = torch.tensor([0.0, 0.25, 1.0])
    masked = random_mask(rates, 10_000, generator=generator())
    # standard deviation of the share: sqrt(.25 * .75 / 10000) = .0043
    assert masked.float().mean(1).tolist() == pytest.approx([0.0, 0.25, 1.0], abs=0.02)


def test_expected_loss_is_the_enumerated_bound():
    """Toy's text (a, b): log p(a) + log p(b) with both masked is -1.4784, each given the other -1.8458 - 2.3026.

    Given t, a slot alone is masked with t (1 - t), both with t^2, each at weight 1 / (2 t). With t ~ U(t_min, 1) the
    mean of t is (1 + t_min) / 2, so the loss is (1.4784 (1 + t_min) + 4.1484 (1 - t_min)) / 4; for t_min = 0 it is
    2.8134 / 2, the exact -log P(a, b) per slot, because the conditionals agree with one joint.
    """
    num_examples, t_min = 20_000, 0.02
    canvases = mask_examples(examples(num_examples), t_min=t_min, seed=1, step=0)
    with torch.no_grad():
        loss = sum(float(sft_loss(Toy(), group)) for group in micro_batches(canvases, 30_000)) / num_examples
    assert loss == pytest.approx((1.4784 * (1 + t_min) + 4.1484 * (1 - t_min)) / 4, rel=0.02)


def test_weight_is_one_over_rate_and_slots():
    """One canvas with its second slot masked at t = .25: CE(b given a) = -log(.06 / .60), times 1 / (.25 * 2)."""
    canvas = SftCanvas(np.array([Toy.A]), np.array([Toy.A, Toy.B]), np.array([False, True]), 1 / (0.25 * 2))
    assert sft_loss(Toy(), [canvas]).item() == pytest.approx(2.302585 * 2, rel=1e-5)


def test_masks_follow_from_seed_and_step_alone():
    def masks(seed, step):
        return [canvas.masked.tolist() for canvas in mask_examples(examples(8), t_min=0.1, seed=seed, step=step)]

    assert masks(1, 2) == masks(1, 2)
    assert masks(1, 2) != masks(1, 3)
    assert masks(1, 2) != masks(2, 2)


def test_drawing_masks_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    mask_examples(examples(8), t_min=0.1, seed=0, step=0)
    assert torch.equal(before, torch.get_rng_state())


def test_micro_batches_keep_the_budget_and_lose_nothing_that_is_masked():
    batch = mask_examples(
        [make_example([3] * (1 + i % 7), [4], max_new_tokens=4, eos_token_id=EOS) for i in range(40)],
        t_min=0.01,
        seed=0,
        step=0,
    )
    groups = micro_batches(batch, 40)
    assert all(sum(canvas.num_tokens for canvas in group) <= 40 for group in groups)
    assert sum(len(group) for group in groups) == sum(canvas.masked.any() for canvas in batch)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_split_and_padding_do_not_change_the_loss(family):
    denoiser = small_denoiser(family)
    batch = mask_examples(
        [make_example([3] * (1 + i), [4, 5 + i % 3], max_new_tokens=4, eos_token_id=EOS) for i in range(6)],
        t_min=0.5,
        seed=0,
        step=0,
    )
    with torch.no_grad():
        together = float(sft_loss(denoiser, batch))
        alone = sum(float(sft_loss(denoiser, [canvas])) for canvas in batch if canvas.masked.any())
    assert together == pytest.approx(alone, rel=1e-5)


def test_block_causal_family_is_refused():
    with pytest.raises(ValueError, match="full attention, got 'sdar'"):
        sft_loss(small_denoiser("sdar"), mask_examples(examples(2), t_min=0.9, seed=0, step=0))


def test_rate_warms_up_and_then_follows_its_schedule():
    def rates(schedule):
        config = OptimizerConfig(lr=1.0, warmup_steps=2, schedule=schedule)
        return [learning_rate(config, step=step, total_steps=6) for step in range(6)]

    # warm-up 1/2, 2/2; then k/4 of the way, k = 0..3
    assert rates("constant") == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert rates("linear") == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rates("cosine") == pytest.approx([0.5, 1.0, 1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
