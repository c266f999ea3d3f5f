"""Policy recipes: what is refused before anything starts, what is warned of, and what --dry-run shows."""

from pathlib import Path

import pytest

from cluster.cli import main
from cluster.config import PolicyRecipe
from cluster.policy_checks import check_settings, plan
from cluster.recipe import RecipeError, load

RECIPES = sorted(Path("recipes").glob("policy-*.yaml"))


def loaded(*overrides: str):
    return load("recipes/policy-tiny.yaml", PolicyRecipe, overrides=overrides)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_recipes_of_the_folder_are_sound(path) -> None:
    shown = plan(load(path, PolicyRecipe))
    assert shown.warnings == []
    assert shown.problems == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("policy.num_env_runners=3", "prompts_per_update 16 must be a multiple of policy.num_env_runners 3"),
        ("policy.alphas=[1, 1]", "must be different numbers of 0 or more"),
        ("policy.alphas=[-1]", "must be different numbers of 0 or more"),
        ("policy.network.width=20", r"must be a multiple of 2 \* num_heads"),
    ],
)
def test_settings_that_cannot_train_are_refused(override, message) -> None:
    overrides = [override] + (["policy.network.num_heads=3"] if "width" in override else [])
    with pytest.raises(ValueError, match=message):
        check_settings(loaded(*overrides))


def test_expert_steering_is_for_full_diffusion_and_bernoulli_only() -> None:
    expert = "policy.experts=[{tau: 0.9, block_length: 8}]"
    assert check_settings(loaded(expert)) == []
    with pytest.raises(ValueError, match=r"experts with policy\.block_length 8"):
        check_settings(loaded(expert, "policy.block_length=8"))
    with pytest.raises(ValueError, match=r"needs policy.law bernoulli"):
        check_settings(loaded(expert, "policy.law=dpls"))


def test_runners_in_local_mode_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_env_runners is 2 with cluster.mode local"):
        check_settings(loaded("policy.num_env_runners=2", "cluster.mode=local"))


@pytest.mark.parametrize(
    ("override", "warning"),
    [
        ("policy.law=dpls", "empty_action has no effect with policy.law dpls"),
        ("policy.warmup_updates=40", "warmup_updates 40 is not below the 40 updates"),
        ("eval.max_new_tokens=8", "eval.max_new_tokens has no effect"),
    ],
)
def test_settings_without_effect_are_warned_of(override, warning) -> None:
    (found,) = check_settings(loaded(override))
    assert warning in found


def test_wrong_key_is_an_error_that_names_the_line(tmp_path) -> None:
    recipe = tmp_path / "policy.yaml"
    recipe.write_text("tasks:\n  - {name: sudoku4}\npolicy:\n  alpha: 3\n")
    with pytest.raises(RecipeError, match=r"line 4.*policy.alpha"):
        load(recipe, PolicyRecipe)


def test_recipe_of_another_kind_is_sent_to_its_command() -> None:
    with pytest.raises(RecipeError, match="run it with `unmask train`"):
        load("recipes/quickstart.yaml", PolicyRecipe)


def test_dry_run_shows_settings_and_starts_nothing(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["policy", "recipes/policy-tiny.yaml", "--dry-run", "--set", "policy.num_env_runners=2"])
    assert ended.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "policy.alphas" in shown
    assert "environment runner" in shown
