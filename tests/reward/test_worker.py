"""The plain grader worker: verdicts in order, failures that stay with their item, the self-test."""

import pickle
from contextlib import closing

import pytest

import reward
from reward.config import TaskConfig
from reward.worker import GraderWorker
from rollout.records import Failed, Scored

COUNTDOWN = {"id": "c", "input": "30,100,93", "output": "23"}
SUDOKU = {"id": "s", "Puzzle": "0310200404001043", "Solution": "4312213434211243"}


def worker(*names):
    return GraderWorker(tuple(reward.TaskConfig(name=name) for name in names))


def test_verdicts_come_in_the_order_of_the_items():
    scores = worker("countdown", "sudoku4").grade(
        [
            ("sudoku4", SUDOKU, "4312213434211243"),
            ("countdown", COUNTDOWN, "30+100-93"),
            ("countdown", COUNTDOWN, "30+93-100"),
        ]
    )
    assert [score.value for score in scores] == [1.0, 0.0, 1.0]


def test_a_grader_that_breaks_fails_its_own_item_only():
    scores = worker("countdown").grade(
        [
            ("countdown", COUNTDOWN, "30+93-100"),
            ("countdown", {"id": "broken", "input": "30;100", "output": "23"}, "30+93-100"),
            ("countdown", {"id": "empty"}, "30+93-100"),
            ("sudoku4", SUDOKU, "4312213434211243"),
            ("countdown", COUNTDOWN, None),
            ("countdown", COUNTDOWN, "30+93-100"),
        ]
    )
    assert [type(score) for score in scores] == [Scored, Failed, Failed, Failed, Failed, Scored]
    assert {score.kind for score in scores[1:5]} == {"grader_error"}
    assert "30;100" in scores[1].why
    assert "sudoku4" in scores[3].why


def test_a_long_reason_is_cut():
    row = {"id": "x", "input": "9" * 100_000, "output": "1"}
    assert len(worker("countdown").grade([("countdown", row, "1")])[0].why) <= 500


def test_verdicts_and_rows_can_cross_processes():
    task = reward.task("countdown")
    item = pickle.loads(pickle.dumps(("countdown", task.prompt(task.rows("train")[0]).gold, "1+1")))
    scores = worker("countdown").grade([item])
    assert pickle.loads(pickle.dumps(scores)) == scores


def test_self_test_of_all_tasks_finds_no_problem(tmp_path):
    configs = [
        reward.TaskConfig(name=name, test_file=str(tmp_path / "unread.jsonl") if name == "jsonl" else None)
        for name in reward.names()
    ]
    assert GraderWorker(configs).self_test() == []


def test_self_test_names_a_task_whose_grader_says_yes_to_everything():
    class Generous:
        name = "generous"

        def grade(self, row, completion):
            return Scored(1.0, {"correct": 1.0})

        def example(self):
            return COUNTDOWN, "right", "wrong"

    grader = worker("countdown")
    grader._tasks["generous"] = Generous()
    (problem,) = grader.self_test()
    assert "task generous: 'wrong'" in problem
    assert "must be 0" in problem


def test_a_task_named_twice_is_refused():
    with pytest.raises(ValueError, match="a name stands twice"):
        worker("countdown", "countdown")


def test_an_unknown_task_is_refused_when_the_worker_is_built():
    with pytest.raises(ValueError, match="did you mean 'sudoku4'"):
        worker("sudoku")


def test_a_run_remembers_the_sandbox_that_its_programs_run_in():
    with closing(GraderWorker((TaskConfig(name="code-tiny"),))) as worker:
        problems = worker.self_test()
        if any("no sandbox" in problem for problem in problems):
            pytest.skip("this host has no sandbox")
        assert problems == []
        assert worker.metadata()["sandbox/backend"] in ("namespace", "landlock", "gvisor")
        assert worker.metadata()["sandbox/works"] == "true"


def test_tasks_without_programs_leave_nothing_to_remember():
    worker = GraderWorker((TaskConfig(name="countdown"),))
    assert worker.self_test() == []
    assert worker.metadata() == {}
