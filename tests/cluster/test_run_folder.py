"""A run never writes into another run's folder, and a resumed one goes on in its own."""

import yaml

from cluster.config import TrainRecipe
from cluster.run_folder import open_run_folder


def recipe(tmp_path, name="quick"):
    return TrainRecipe.model_validate({"name": name, "runs_dir": str(tmp_path), "tasks": [{"name": "arithmetic"}]})


def used(folder):
    (folder.path / "metrics.jsonl").write_text('{"step": 0}\n')
    return folder


def test_first_run_gets_its_name_and_the_next_ones_a_number(tmp_path):
    names = [used(open_run_folder(recipe(tmp_path), resume=False)).path.name for _ in range(3)]
    assert names == ["quick", "quick-2", "quick-3"]
    assert (tmp_path / "latest").resolve() == tmp_path / "quick-3"


def test_a_run_that_left_nothing_is_tried_again_in_its_folder(tmp_path):
    first = open_run_folder(recipe(tmp_path), resume=False)
    again = open_run_folder(recipe(tmp_path), resume=False)
    assert (first.path, first.attempt, again.attempt) == (again.path, 1, 2)
    assert (again.path / "logs" / "latest").resolve() == again.log_dir


def test_resume_goes_on_in_the_newest_folder_as_a_further_attempt(tmp_path):
    for _ in range(11):
        used(open_run_folder(recipe(tmp_path), resume=False))
    folder = open_run_folder(recipe(tmp_path), resume=True)
    assert folder.path.name == "quick-11"
    assert folder.attempt == 2
    assert folder.log_dir == folder.path / "logs" / "attempt_2"


def test_resume_of_a_run_that_does_not_exist_starts_it(tmp_path):
    assert open_run_folder(recipe(tmp_path), resume=True).path == tmp_path / "quick"


def test_runs_whose_names_begin_alike_are_kept_apart(tmp_path):
    used(open_run_folder(recipe(tmp_path, "quick-long"), resume=False))
    assert open_run_folder(recipe(tmp_path, "quick"), resume=True).path.name == "quick"


def test_the_resolved_settings_are_saved(tmp_path):
    folder = open_run_folder(recipe(tmp_path), resume=False)
    assert TrainRecipe.model_validate(yaml.safe_load((folder.path / "config.yaml").read_text())) == recipe(tmp_path)
