"""Policy training through RLlib: the same numbers as the plain loop, and shards that are the round."""

from functools import partial

import numpy as np
import pytest
import torch

from cluster.config import PolicyRecipe
from cluster.policy_environment import PolicyEnvironment, environment_maker, num_rows
from learner.unmasking_update import PlainTrainer, make_networks, step_log_probs
from rollout.records import Scored

pytestmark = pytest.mark.ray

POLICY = {
    "alphas": [1.0, 3.0],
    "updates": 3,
    "prompts_per_update": 2,
    "num_samples": 3,
    "max_new_tokens": 6,
    "empty_action": "commit",
    "network": {"width": 16, "ffn_width": 16},
    "lr": 1e-2,
    "warmup_updates": 0,
    "timeout_s": 120,
}


def recipe(model, **policy) -> PolicyRecipe:
    return PolicyRecipe.model_validate(
        {
            "name": "policy-test",
            "model": {"path": str(model)},
            "tasks": [{"name": "arithmetic"}],
            "policy": POLICY | policy,
            "eval": {"limit": 2},
            "checkpoint": {"every": 1, "keep": 5},
        }
    )


class AlwaysRight:
    """Every answer is right, so the reward is one of speed: a random model has something to learn from."""

    def grade(self, items):
        return [Scored(value=1.0, parts={"correct": 1.0}) for _ in items]

    def close(self) -> None:
        pass


def maker(made: PolicyRecipe):
    return partial(PolicyEnvironment, made, grader=AlwaysRight())


def algorithm(made: PolicyRecipe):
    from learner.unmasking_policy import options_of

    make = maker(made) if made.policy.num_env_runners == 0 else environment_maker(made)
    return options_of(made.policy, make, seed=made.seed, num_rows=num_rows(made)).build_algo()


def test_rllib_learns_the_weights_that_the_plain_loop_learns(small_model, local_ray) -> None:
    made = recipe(small_model)
    plain = PlainTrainer(maker(made)(), made.policy, made.seed)
    through = algorithm(made)
    try:
        for _ in range(made.policy.updates):
            one = plain.draw()
            plain.learn(one)
            through.train()
            for name in ("action_MT", "old_log_prob_M"):
                np.testing.assert_allclose(
                    getattr(through.round.steps, name), getattr(one.steps, name), atol=1e-6, err_msg=name
                )
        fresh = make_networks(made.policy, seed=made.seed)
        for alpha, network in enumerate(plain.networks):
            assert not torch.equal(network.output.weight, fresh[alpha].output.weight)
            for name, value in through.weights(alpha).items():
                torch.testing.assert_close(value, network.state_dict()[name], atol=1e-6, rtol=1e-5)
    finally:
        through.stop()


def test_distribution_of_rllib_gives_the_log_probability_of_the_bernoulli_law(small_model, local_ray) -> None:
    from ray.rllib.core.columns import Columns

    made = recipe(small_model, alphas=[1.0])
    through = algorithm(made)
    try:
        through.train()
        module, steps = through.env_runner.module, through.round.steps
        batch = {
            "prob": torch.from_numpy(steps.prob_MTn),
            "masked": torch.from_numpy(steps.masked_MT),
            "eligible": torch.from_numpy(steps.eligible_MT),
            "valid": torch.from_numpy(steps.valid_MT),
            "elapsed": torch.from_numpy(steps.elapsed_M),
            "action": torch.from_numpy(steps.action_MT),
        }
        with torch.no_grad():
            inputs = module.forward_inference({Columns.OBS: batch})[Columns.ACTION_DIST_INPUTS]
            found = module.action_dist_cls.from_logits(inputs).logp(batch["action"])
            ours = step_log_probs(module.network(0), batch, made.policy)
        torch.testing.assert_close(found, ours, atol=1e-6, rtol=1e-6)
    finally:
        through.stop()


def test_environment_keeps_gymnasiums_contract(small_model) -> None:
    from learner.unmasking_policy import UnmaskingVectorEnv

    made = recipe(small_model, alphas=[1.0])
    env = UnmaskingVectorEnv({"make_environment": environment_maker(made)})
    seen, _ = env.reset(options={"round_number": 0})
    ended = np.zeros(env.num_envs, bool)
    for _ in range(6):
        assert all(seen[name].shape == space.shape for name, space in env.observation_space.items())
        assert env.single_observation_space.contains(
            {name: value[0].astype(env.single_observation_space[name].dtype) for name, value in seen.items()}
        )
        seen, _, terminated, truncated, _ = env.step(seen["eligible"].astype(np.int64))
        assert not truncated.any()
        assert not (terminated & ended).any()
        ended |= terminated
        if env.over:
            break
    assert ended.all()
    assert all(not value.any() for value in seen.values())


def test_shards_of_two_runners_are_the_round_of_one(small_model, local_ray) -> None:
    found = []
    for runners in (1, 2):
        through = algorithm(recipe(small_model, num_env_runners=runners))
        try:
            one = through.draw_round(1)
        finally:
            through.stop()
        episodes = one.episodes
        order = np.lexsort((np.arange(len(episodes.alpha_E)), episodes.group_E, episodes.alpha_E))
        found.append((episodes.reward_E[order].tolist(), episodes.num_steps_E[order].tolist()))
    assert found[0] == found[1]
