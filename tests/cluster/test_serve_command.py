"""`unmask serve`: names of models, and what it refuses before anything starts."""

import pytest

from cluster.cli import main
from cluster.serve_command import models_of
from cluster.serve_grading import grader


def run(*arguments, capsys) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    output = capsys.readouterr()
    return ended.value.code, " ".join((output.out + output.err).split())


def test_models_have_the_last_part_of_their_path_or_a_name_of_their_own(tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    found = models_of(["tiny", f"{tmp_path}/mine", "big=org/model-8b"], None)
    assert found == {"tiny": "tiny", "mine": f"{tmp_path}/mine", "big": "org/model-8b"}
    assert models_of(None, None) == {"tiny": "tiny"}
    with pytest.raises(ValueError, match="the name 'a' is taken"):
        models_of(["a=x", "a=y"], None)


def test_a_run_without_a_checkpoint_needs_a_model_to_begin_with(tmp_path) -> None:
    with pytest.raises(ValueError, match="no complete checkpoint yet"):
        models_of(None, tmp_path)
    assert models_of(["tiny"], tmp_path) == {"tiny": "tiny"}


def test_other_machines_are_let_in_with_a_key_only(capsys, monkeypatch) -> None:
    code, words = run("--host", "0.0.0.0", capsys=capsys)
    assert code == 2
    assert "--api-key-env" in words
    monkeypatch.setenv("SERVE_KEY", "short")
    code, words = run("--host", "0.0.0.0", "--api-key-env", "SERVE_KEY", capsys=capsys)
    assert code == 2
    assert "at least 16" in words
    assert "short" not in words


def test_a_bad_setting_is_named(capsys) -> None:
    code, words = run("--dtype", "float8", capsys=capsys)
    assert code == 2
    assert "engine.dtype" in words
    assert "float8" in words


def test_the_grader_takes_known_tasks_with_a_row() -> None:
    grader.check({"name": "arithmetic", "row": {}})
    for bad, words in (
        ({"name": "code"}, "are graded here"),
        ({"name": "gsm8k"}, "must be the row"),
        ({"x": 1}, "'x'"),
    ):
        with pytest.raises(ValueError, match=words):
            grader.check(bad)
    assert set(grader({"name": "arithmetic", "row": {}}, "5")) == {"failed", "why"}
