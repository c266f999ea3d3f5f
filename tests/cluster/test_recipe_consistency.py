"""Settings that work and are probably not what was meant are warned of; sound ones are not."""

import pytest

from cluster.config import TrainRecipe
from cluster.consistency import check_settings
from cluster.recipe import load


def warnings(tmp_path, *overrides):
    path = tmp_path / "r.yaml"
    path.write_text("tasks: [{name: countdown}]\n")
    return check_settings(load(path, TrainRecipe, overrides=overrides))


def test_sound_settings_give_no_warning(tmp_path):
    assert warnings(tmp_path) == []
    ar = ["rollout.sampler.name=ar", "learner.objective.likelihood=ar_exact"]
    assert warnings(tmp_path, *ar) == []
    assert warnings(tmp_path, "learner.objective.clip_low=0.1", "learner.objective.num_epochs=2") == []


@pytest.mark.parametrize(
    ("overrides", "both"),
    [
        (["rollout.temperature=0"], ("rollout.temperature 0", "set it to 1")),
        (["learner.objective.clip_high=0.3"], ("learner.objective.clip_high", "num_epochs 1")),
        (["learner.optimizer.warmup_steps=100"], ("warmup_steps 100", "100 steps")),
        (["eval.steps=4", "eval.sampler.options.tau=0.5"], ("eval.steps 4", "eval.sampler.options.tau")),
        (["learner.engine.micro_batch_tokens=16"], ("micro_batch_tokens 16", "32 slots")),
    ],
)
def test_setting_without_the_effect_it_seems_to_have_is_warned_of_with_the_other_one(tmp_path, overrides, both):
    (warning,) = warnings(tmp_path, *overrides)
    assert all(part in warning for part in both)


@pytest.mark.parametrize("options", [["rollout.sampler.options.tokens_per_step=2"], ["rollout.steps=4"]])
def test_left_to_right_likelihood_needs_one_token_a_step(tmp_path, options):
    ar = ["rollout.sampler.name=ar", "learner.objective.likelihood=ar_exact"]
    with pytest.raises(ValueError, match="one token a step"):
        warnings(tmp_path, *ar, *options)


@pytest.mark.parametrize(
    ("override", "said"),
    [("rollout.cache=dual", "learner.objective.importance"), ("rollout.top_k=5", "set rollout.top_k to 0")],
)
def test_answers_from_another_law_than_the_learners_are_refused(tmp_path, override, said):
    with pytest.raises(ValueError, match=said):
        warnings(tmp_path, override)


def test_an_approximate_cache_may_train_with_importance_weights(tmp_path):
    assert warnings(tmp_path, "rollout.cache=dual", "learner.objective.importance=token") == []


def test_a_step_budget_that_a_chain_ignores_is_warned_of(tmp_path):
    (warning,) = warnings(tmp_path, "eval.steps=4", "eval.sampler.name=imh")
    assert "no effect" in warning
