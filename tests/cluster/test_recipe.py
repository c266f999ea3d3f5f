"""Recipes: what a wrong one says, what `--set` does, and where values come from."""

import pytest

from cluster.config import SftRecipe, TrainRecipe
from cluster.errors import RecipeError
from cluster.recipe import load, parse_override

MINIMAL = "tasks:\n  - {name: countdown}\n"


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def problems(tmp_path, text, *overrides, kind=TrainRecipe):
    with pytest.raises(RecipeError) as caught:
        load(write(tmp_path, text), kind, overrides=overrides)
    return str(caught.value)


def test_unknown_key_names_file_line_path_nearest_and_known_keys(tmp_path):
    text = problems(tmp_path, MINIMAL + "learner:\n  optimizer:\n    lrr: 1.0e-4\n")
    assert text.splitlines() == [
        f"{tmp_path}/recipe.yaml: 1 problem",
        "  line 5, learner.optimizer.lrr: unknown key (did you mean 'lr'?)",
        "      keys of learner.optimizer: betas, eps, lr, max_grad_norm, schedule, warmup_steps, weight_decay",
    ]


def test_key_of_another_section_is_told_where_it_belongs(tmp_path):
    assert "line 3, lr: unknown key (there is learner.optimizer.lr)" in problems(tmp_path, MINIMAL + "lr: 1e-4\n")


def test_unknown_key_inside_a_list_names_the_entry(tmp_path):
    text = problems(tmp_path, "tasks:\n  - name: countdown\n  - name: sudoku4\n    wait: 2\n")
    assert "line 4, tasks.1.wait: unknown key (did you mean 'weight'?)" in text


def test_wrong_choice_names_the_nearest_and_all_allowed(tmp_path):
    text = problems(tmp_path, MINIMAL + "learner: {objective: {advantage: meen}}\n")
    assert "learner.objective.advantage: is 'meen' (did you mean 'mean'?)" in text
    assert "allowed: mean, std, loo" in text


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("steps=0", "steps: is 0; it must be at least 1"),
        ("rollout.top_p=1.5", "rollout.top_p: is 1.5; it must be at most 1"),
        ("learner.optimizer.lr=0", "learner.optimizer.lr: is 0; it must be above 0"),
        ("rollout.num_samples=many", "rollout.num_samples: is 'many'; it must be a whole number"),
        ("model=tiny", "model: is 'tiny'; it must be a mapping of keys to values"),
        ("name=a b", "name: is 'a b'; it must be a text that matches"),
        ("learner.optimizer=3", "learner.optimizer: is 3; it must be a mapping"),
    ],
)
def test_bad_value_says_what_it_is_what_is_allowed_and_who_set_it(tmp_path, setting, expected):
    text = problems(tmp_path, MINIMAL, setting)
    assert expected in text
    assert f"--set {setting}" in text


def test_all_problems_are_listed_in_the_order_of_the_file(tmp_path):
    text = problems(tmp_path, "steps: 0\n" + MINIMAL + "rollout: {temprature: 1}\nseed: -1\n")
    assert "3 problems" in text
    places = [text.index(part) for part in ("line 1, steps", "line 4, rollout.temprature", "line 5, seed")]
    assert places == sorted(places)


def test_required_key_that_is_missing_is_named(tmp_path):
    assert "tasks: is required and was not given" in problems(tmp_path, "steps: 3\n")


def test_key_given_twice_is_refused_with_both_lines(tmp_path):
    text = problems(tmp_path, "steps: 3\n" + MINIMAL + "steps: 4\n")
    assert "line 4, steps: is given twice, on lines 1 and 4" in text


def test_broken_yaml_names_the_line(tmp_path):
    assert "line 2: is not YAML: mapping values" in problems(tmp_path, "steps: 3\n  seed: 4\n")


def test_missing_recipe_names_the_nearest_one(tmp_path):
    write(tmp_path, MINIMAL)
    with pytest.raises(RecipeError, match=r"recipes\.yaml: no such recipe \(did you mean .*recipe\.yaml\?\)"):
        load(tmp_path / "recipes.yaml", TrainRecipe)


def test_recipe_of_the_other_kind_is_sent_to_the_other_command(tmp_path):
    assert "run it with `unmask sft`" in problems(tmp_path, MINIMAL + "sft: {steps: 3}\n")
    assert "run it with `unmask train`" in problems(tmp_path, MINIMAL + "rollout: {}\n", kind=SftRecipe)


def test_override_values_are_yaml():
    assert parse_override("a.b=1e-5") == ("a.b", 1e-5)
    assert parse_override("a=[x, 2]") == ("a", ["x", 2])
    assert parse_override("a=null") == ("a", None)
    assert parse_override("a=x=y") == ("a", "x=y")
    assert parse_override("a={tau: 0.9}") == ("a", {"tau": 0.9})


@pytest.mark.parametrize("text", ["steps", "=3", "a..b=3", "a b=3"])
def test_override_without_key_or_value_is_refused(text):
    with pytest.raises(ValueError, match=r"write a key and a value"):
        parse_override(text)


def test_overrides_reach_lists_and_sections_that_the_file_leaves_out(tmp_path):
    path = write(tmp_path, MINIMAL + "model: {lora: null}\n")
    overrides = ["tasks.0.seed=7", "model.lora.rank=4", "rollout.sampler.options.tau=0.5", "learner.optimizer.lr=1e-5"]
    recipe = load(path, TrainRecipe, overrides=overrides).recipe
    assert recipe.tasks[0].seed == 7
    assert recipe.model.lora.rank == 4
    assert recipe.rollout.sampler.options == {"tau": 0.5}
    assert recipe.learner.optimizer.lr == 1e-5


def test_override_of_a_list_needs_the_entry(tmp_path):
    with pytest.raises(ValueError, match=r"--set tasks\.seed=1: tasks is a list; name one of its entries: tasks\.0"):
        load(write(tmp_path, MINIMAL), TrainRecipe, overrides=["tasks.seed=1"])


def test_later_override_wins(tmp_path):
    recipe = load(write(tmp_path, MINIMAL), TrainRecipe, overrides=["steps=3", "steps=4"]).recipe
    assert recipe.steps == 4


def test_origin_of_each_value_is_known(tmp_path):
    path = write(tmp_path, MINIMAL + "steps: 5\nseed: 3\nrollout: {sampler: {name: ar}}\n")
    loaded = load(path, TrainRecipe, overrides=["seed=4", "rollout.sampler.options.tau=0.5"])
    origins = {setting.key: (setting.value, setting.origin) for setting in loaded.settings()}
    assert origins["steps"] == (5, "recipe")
    assert origins["seed"] == (4, "command line")
    assert origins["prompts_per_step"] == (16, "default")
    assert origins["tasks.0.name"] == ("countdown", "recipe")
    assert origins["tasks.0.seed"] == (0, "default")
    assert origins["rollout.sampler.name"] == ("ar", "recipe")
    assert origins["rollout.sampler.options"] == ({"tau": 0.5}, "command line")
