"""Reward, advantage, mixture, clipping and weights of policy training: numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.unmasking_objective import clipped_loss, learning_rate, mixture_log_prob, shaped_reward, step_weights
from learner.unmasking_rounds import Episodes, Round, Steps, advantages, batch_of
from learner.unmasking_update import expert_action


def reward(correct: float, n: int, alpha: float, form: str = "multiplicative") -> float:
    return shaped_reward(correct=correct, num_steps=n, num_slots=256, alpha=alpha, form=form)


def test_multiplicative_reward_by_hand() -> None:
    # T = 256, n = 64: (256 - 64 + 1) / 256 = 193 / 256 = .7539; cubed .4285
    assert reward(1, 64, 1) == pytest.approx(0.7539, abs=1e-4)
    assert reward(1, 64, 3) == pytest.approx(0.4285, abs=1e-4)
    assert reward(1, 1, 10) == 1.0
    assert reward(1, 256, 1) == pytest.approx(1 / 256)


@given(st.integers(1, 256), st.floats(0, 20))
def test_alpha_zero_ignores_speed_and_a_wrong_answer_never_earns_it(n, alpha) -> None:
    assert reward(1, n, 0) == 1.0
    assert reward(0, n, alpha) == 0.0


def test_additive_reward_pays_for_speed_without_a_right_answer() -> None:
    # 0 - 1 * 2 / 256 against 1 - 1 * 256 / 256: with alpha 1 the slowest right answer is worth hardly more than nothing
    assert reward(0, 2, 1, "additive") == pytest.approx(-2 / 256)
    assert reward(1, 256, 1, "additive") == 0.0
    assert reward(0, 2, 3, "additive") > reward(0, 200, 3, "additive")


def test_additive_reward_prefers_fast_and_wrong_to_slow_and_right_where_the_multiplicative_one_does_not() -> None:
    # alpha 3, T 256: wrong after 1 step -3/256 = -.0117; right after 100 steps 1 - 300/256 = -.1719
    assert reward(0, 1, 3, "additive") > reward(1, 100, 3, "additive")
    assert reward(0, 1, 3) < reward(1, 100, 3)


def test_expert_mixture_by_hand() -> None:
    # G = 8, E = 1: 8/9 * 1e-3 + 1/9 = .112; 8/9 * 2e-3 + 1/9 = .11289; ratio 1.0079
    old, new = (mixture_log_prob(torch.tensor([math.log(p)]), num_samples=8, num_experts=1) for p in (1e-3, 2e-3))
    assert float((new - old).exp()) == pytest.approx(1.0079, abs=1e-4)
    assert float(old.exp()) == pytest.approx(0.112, abs=1e-4)


def test_clipped_loss_and_its_gradient_by_hand() -> None:
    # ratios 1, 2, 0.25 with eps .5: A = 1 -> 1, clipped 1.5; A = -1 at ratio .25 -> min(-.25, -.5) = -.5; weights 1/3
    log_prob = torch.tensor([0.0, math.log(2), math.log(0.25)], requires_grad=True)
    advantage, weight = torch.tensor([1.0, 1.0, -1.0]), torch.full((3,), 1 / 3)
    loss = clipped_loss(log_prob, torch.zeros(3), advantage, weight, clip=0.5)
    assert float(loss.detach()) == pytest.approx(-(1 + 1.5 - 0.5) / 3)
    loss.backward()
    # only the first is inside the range: d/dlogp = -w * ratio * A
    assert log_prob.grad.tolist() == pytest.approx([-1 / 3, 0, 0])


def test_step_weights_average_steps_within_episodes_and_episodes_within_the_round() -> None:
    episode = torch.tensor([0, 0, 1, 0, 1])
    counts = torch.tensor([True, True, True, False, True])  # the fourth step had no choice
    assert step_weights(episode, counts, num_episodes=2).tolist() == [0.25, 0.25, 0.25, 0.0, 0.25]


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    rates = [learning_rate(u, peak=1.0, warmup=2, total=6, schedule="cosine") for u in range(7)]
    # 1/2, 1; then half cosine over 4 updates: 1, .8536, .5, .1464, 0
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.8536, 0.5, 0.1464, 0.0], abs=1e-4)


def test_expert_commits_sure_slots_of_its_first_open_block_and_one_where_none_is_sure() -> None:
    confidence = torch.tensor([[1.0, 0.95, 0.2, 0.99], [0.5, 0.6, 0.99, 0.99]])
    masked = torch.tensor([[False, True, True, True], [True, True, True, True]])
    found = expert_action(confidence, masked, tau=0.9, block_length=2)
    assert found.tolist() == [[0, 1, 0, 0], [0, 1, 0, 0]]


# ---- rounds


def random_round(seed: int, *, episodes: int = 12, slots: int = 5) -> Round:
    """Two policies, three prompts, two answers each, steps in random order."""
    source = np.random.default_rng(seed)
    lengths = source.integers(1, 4, episodes)
    episode = source.permutation(np.repeat(np.arange(episodes), lengths))
    size = len(episode)
    eligible = source.random((size, slots)) < 0.7
    steps = Steps(
        prob_MTn=source.random((size, slots, 1), dtype=np.float32),
        masked_MT=eligible,
        eligible_MT=eligible,
        valid_MT=np.ones((size, slots), bool),
        elapsed_M=source.random(size, dtype=np.float32),
        action_MT=(eligible & (source.random((size, slots)) < 0.5)).astype(np.int64),
        old_log_prob_M=-source.random(size, dtype=np.float32),
        episode_M=episode,
    )
    correct = source.integers(0, 2, episodes).astype(np.float32)
    ended = Episodes(
        alpha_E=np.repeat([0, 1], 6),
        group_E=np.tile(np.repeat([0, 1, 2], 2), 2),
        is_expert_E=np.zeros(episodes, bool),
        reward_E=correct * source.random(episodes, dtype=np.float32),
        correct_E=correct,
        num_steps_E=lengths,
        finished_E=np.ones(episodes, bool),
    )
    return Round(steps, ended, {}, 0.0, 0.0, 0.0)


def with_rewards(one: Round, rewards) -> Round:
    from dataclasses import replace

    return replace(one, episodes=replace(one.episodes, reward_E=np.array(rewards, dtype=np.float32)))


def test_advantage_is_reward_minus_the_mean_of_its_own_group() -> None:
    one = with_rewards(random_round(0), [1, 0, 0.5, 0.5, np.nan, 1, 0, 0, 0.25, 0.75, 1, 1])
    # the failed answer leaves its group, and the one that is left has nothing to be compared with
    assert advantages(one.episodes).tolist() == [0.5, -0.5, 0, 0, 0, 0, 0, 0, -0.25, 0.25, 0, 0]


def test_groups_of_equal_rewards_give_no_batch_and_so_no_gradient() -> None:
    one = with_rewards(random_round(1), [1, 1, 0, 0, 0.5, 0.5] + [1, 0] + [0] * 4)
    assert batch_of(one, 0) is None
    batch = batch_of(one, 1)
    assert set(batch["advantage"].tolist()) == {0.5, -0.5}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_permuting_steps_changes_neither_loss_nor_gradient(seed) -> None:
    from dataclasses import fields, replace

    one = random_round(seed)
    order = np.random.default_rng(seed).permutation(len(one.steps.episode_M))
    shuffled = replace(one, steps=Steps(*(getattr(one.steps, item.name)[order] for item in fields(Steps))))
    found = []
    for each in (one, shuffled):
        batch = batch_of(each, 0)
        if batch is None:
            return
        shift = torch.zeros((), requires_grad=True)
        log_prob = batch["old_log_prob"] + shift * batch["action"].sum(dim=1)
        clipped_loss(log_prob, batch["old_log_prob"], batch["advantage"], batch["weight"], clip=0.5).backward()
        found.append(float(shift.grad))
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_shards_joined_are_the_round() -> None:
    one = random_round(3)
    joined = Round.joined([one, random_round(4)])
    assert joined.steps.episode_M.max() == 23
    assert len(joined.episodes.alpha_E) == 24
    np.testing.assert_array_equal(joined.steps.action_MT[: len(one.steps.action_MT)], one.steps.action_MT)
