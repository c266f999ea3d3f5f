"""Policy recipes: what is refused before anything starts, what is warned of, and what --dry-run shows."""

from pathlib import Path

import pytest

from cluster.cli import main
from cluster.config import PolicyRecipe
from cluster.policy_checks import check_settings
from cluster.policy_plan import num_parameters, plan, slot_bytes
from cluster.recipe import RecipeError, load
from samplers.policy.config import NetworkConfig

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
    # 3 alphas x 16 prompts x 8 answers of 20 slots, 40 rounds
    assert "= 384 answers" in shown
    assert "7680 a round, 307200 in all" in shown


def test_dry_run_counts_experts_and_bounds_the_time_by_the_rounds() -> None:
    first, second, time = plan(loaded("policy.experts=[{block_length: 8}]", "policy.updates=2")).work
    assert "= 432 answers" in first
    assert "17280 in all" in second
    assert "0:00 a round" not in time
    assert "TFLOP a round" in time


def test_model_that_is_not_here_has_no_estimate() -> None:
    shown = plan(loaded("model.path=someone/other-model"))
    assert shown.memory == []
    assert len(shown.work) == 2
    assert "no estimate of memory and time" in shown.warnings[-1]


def test_memory_of_the_policies_is_what_a_real_one_has() -> None:
    import torch

    from samplers.policy.network import PolicyNetwork

    for settings in ({}, {"width": 16, "ffn_width": 48, "num_probs": 3}):
        network = PolicyNetwork(NetworkConfig(**settings))
        assert num_parameters(network.config) == sum(p.numel() for p in network.parameters())
    kept: dict[int, int] = {}

    def keep(saved: torch.Tensor) -> torch.Tensor:
        storage = saved.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(saved)  # so that no storage is given away and counted twice
        return saved

    rows, slots, alive = 64, 20, []
    masked_RT = torch.ones(rows, slots, dtype=torch.bool)
    network = PolicyNetwork(NetworkConfig())
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        network(torch.rand(rows, slots, 1), masked_RT, torch.zeros(rows), masked_RT)
    assert sum(kept.values()) == pytest.approx(rows * slots * slot_bytes(network.config), rel=0.2)


def test_summary_names_task_and_policy_whatever_the_alpha(tmp_path, capsys) -> None:
    from cluster.policy_command import show_summary
    from cluster.policy_run import PolicySummary
    from cluster.terminal import console

    last = {"eval.sudoku4.alpha_0.3/accuracy": 0.5, "eval.sudoku4.alpha_0.3/forwards_per_answer": 4.25}
    show_summary(console(), PolicySummary(tmp_path, 3, {}, last, {"alpha_0.3": tmp_path}))
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split() == ["sudoku4", "alpha_0.3", "50.0%", "4.25"]
