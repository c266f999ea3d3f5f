"""Settings that work and are probably not what was meant are warned of; sound ones are not."""

import pytest

from cluster.config import SftRecipe, TrainRecipe
from cluster.consistency import check_settings
from cluster.errors import RecipeError
from cluster.recipe import load
from learner.objective_config import LIKELIHOODS


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


SFT_ROWS = "data:\n  - {source: rows.jsonl}\n"


def sft_loaded(tmp_path, *overrides):
    path = tmp_path / "sft.yaml"
    path.write_text(SFT_ROWS)
    return load(path, SftRecipe, overrides=overrides)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("sft.masking=randm", r"kind is 'randm' \(did you mean 'random'\?\)\n.*allowed: random, blockwise, agdo"),
        ("sft.masking={kind: agdo, gama: 3}", r"sft\.masking\.gama: unknown key \(did you mean 'gamma'\?\)"),
        ("sft.masking={kind: random, t_min: 2}", r"sft\.masking\.t_min: is 2; it must be below 1"),
        ("sft.end_tokens=0", "must be fill, batch, or a whole number of at least 1"),
        ("data.0.held_out=0", "must be a whole number of at least 1, or the name of a split or file"),
    ],
)
def test_masking_names_its_own_settings(tmp_path, override, problem):
    with pytest.raises(RecipeError, match=problem):
        sft_loaded(tmp_path, override)


def test_selection_by_right_answers_needs_tasks(tmp_path):
    with pytest.raises(ValueError, match=r"sft\.select_by 'accuracy' needs tasks"):
        check_settings(sft_loaded(tmp_path, "sft.select_by=accuracy"))


def test_supervised_settings_without_effect_are_named(tmp_path):
    assert check_settings(sft_loaded(tmp_path)) == []
    overrides = ["sft.masking={kind: agdo, gamma: 0, weights: shuffled}", "sft.min_new_tokens=4", "sft.end_tokens=2"]
    warnings = check_settings(sft_loaded(tmp_path, *overrides))
    assert [warning.split(" ")[0] for warning in warnings] == ["sft.min_new_tokens", "sft.masking.weights"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["staleness=1"], "set it to token, step or sequence"),
        (["staleness=1", "learner.objective.importance=token", "cluster.mode=local"], "nothing overlaps"),
    ],
)
def test_asynchrony_that_cannot_work_is_refused(tmp_path, overrides, said):
    with pytest.raises(ValueError, match=said):
        warnings(tmp_path, *overrides)


@pytest.mark.parametrize(
    ("overrides", "both"),
    [
        (["max_in_flight=100"], ("max_in_flight 100", "the 16 prompts")),
        (["rollout.on_update=keep"], ("rollout.on_update", "staleness 0")),
        (["cluster.stall_timeout_s=60"], ("stall_timeout_s 60", "1800 s")),
    ],
)
def test_asynchrony_without_effect_is_warned_of(tmp_path, overrides, both):
    (warning,) = warnings(tmp_path, *overrides)
    assert all(part in warning for part in both)


def test_staleness_with_importance_weights_is_sound(tmp_path):
    assert warnings(tmp_path, "staleness=1", "learner.objective.importance=token") == []


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_two_versions_of_staleness_need_weights_or_a_likelihood_that_has_them(tmp_path, likelihood):
    overrides = [f"learner.objective.likelihood={likelihood}", "staleness=2"]
    if likelihood.startswith("ar_"):
        overrides.append("rollout.sampler.name=ar")
    # An importance weight is the ratio of the learner's probability to the one recorded at rollout.
    has_weights = LIKELIHOODS[likelihood].scores_drawn_law
    with pytest.raises(
        ValueError, match="importance is 'none'" if has_weights else "at most 1, or likelihood to one of"
    ):
        warnings(tmp_path, *overrides)
    if has_weights:
        warnings(tmp_path, *overrides, "learner.objective.importance=token")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["rollout.num_workers=3", "rollout.max_workers=2"], "max_workers 2 is below rollout.num_workers 3"),
        (["rollout.max_workers=2", "rollout.cpus_per_worker=0"], "give it a share of a CPU"),
    ],
)
def test_a_pool_that_cannot_grow_as_asked_is_refused(tmp_path, overrides, said):
    with pytest.raises(ValueError, match=said):
        warnings(tmp_path, *overrides)


def test_growth_without_a_cluster_is_warned_of(tmp_path):
    (warning,) = warnings(tmp_path, "rollout.max_workers=2", "cluster.mode=local")
    assert "rollout.max_workers 2 has no effect" in warning
