"""`unmask grade`: verdicts on given texts."""

import json

import pytest

from cluster.cli import main
from cluster.grade import grade_file, verdict
from reward.config import TaskConfig
from reward.sandbox.records import NoSandbox
from rollout.records import Failed, Scored

ROWS = [{"input": "1+1", "output": "2"}, {"input": "3*3", "output": "9"}]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def task(tmp_path):
    file = str(write_lines(tmp_path / "rows.jsonl", ROWS))
    return TaskConfig(name="arithmetic", train_file=file, test_file=file)


def graded(task, tmp_path, *completions):
    return list(grade_file(task, write_lines(tmp_path / "completions.jsonl", completions)))


def test_completions_are_graded_by_row_id_row_number_and_given_row(task, tmp_path):
    first = next(iter(graded(task, tmp_path, {"row": 0, "completion": "2"})))["id"]
    verdicts = graded(
        task,
        tmp_path,
        {"id": first, "completion": "2"},
        {"id": first, "completion": "3"},
        {"row": 1, "completion": "9"},
        {"row": {"id": "mine", "input": "4+4", "output": "8"}, "completion": "8"},
        {"id": first, "completion": " "},
    )
    assert [(v["id"], v["verdict"], v["value"]) for v in verdicts] == [
        (first, "pass", 1.0),
        (first, "fail", 0.0),
        (verdicts[2]["id"], "pass", 1.0),
        ("mine", "pass", 1.0),
        (first, "no_answer", 0.0),
    ]
    assert all(v["seconds"] >= 0 and v["why"] is None for v in verdicts)


def test_file_of_published_rows_is_taken_whole_and_its_own_ids_are_ids(tmp_path):
    # 600 is a validation row of MBPP, 3 one of its few-shot rows: in neither published split.
    mbpp = [
        {
            "task_id": number,
            "text": "Add.",
            "code": "def add(a, b):\n    return a + b",
            "test_list": ["assert add(1, 2) == 3"],
        }
        for number in (3, 600, 11)
    ]
    task = TaskConfig(name="mbpp", test_file=str(write_lines(tmp_path / "rows.jsonl", mbpp)))
    right, wrong = "def add(a, b):\n    return a + b", "def add(a, b):\n    return 3.5"
    try:
        verdicts = graded(
            task,
            tmp_path,
            {"id": 600, "completion": right},
            {"id": "3", "completion": wrong},
            {"row": 2, "completion": right},
        )
    except NoSandbox:
        pytest.skip("this host has no sandbox")
    assert [(v["id"], v["verdict"]) for v in verdicts] == [("600", "pass"), ("3", "fail"), ("mbpp/11", "pass")]


def test_grader_that_breaks_is_no_score(task, tmp_path):
    (broken,) = graded(task, tmp_path, {"row": {"input": "what?"}, "completion": "2"})
    assert (broken["verdict"], broken["value"]) == ("infra_error", None)
    assert "grader_error" in broken["why"]


def test_failures_keep_their_kind_where_it_is_a_verdict():
    assert verdict(Failed("timeout", "late"), "x") == "timeout"
    assert verdict(Failed("worker_lost", "gone"), "x") == "infra_error"
    assert verdict(Scored(0.5, {"correct": 0.0}), "x") == "fail"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "arithmetic/tst/0", "completion": "2"}, "has no row 'arithmetic/tst/0' (did you mean"),
        ({"row": 7, "completion": "2"}, "a number in 0..1"),
        ({"completion": "2"}, "neither id nor row"),
        ({"row": 0}, "completion is None; it must be a text"),
    ],
)
def test_broken_completion_is_named_by_file_and_line(task, tmp_path, row, expected):
    with pytest.raises(ValueError, match=r"completions\.jsonl, line 2") as caught:
        graded(task, tmp_path, {"row": 0, "completion": "2"}, row)
    assert expected in str(caught.value)


def test_verdicts_go_to_standard_output_and_the_summary_beside_it(task, tmp_path, capsys):
    completions = write_lines(tmp_path / "c.jsonl", [{"row": 0, "completion": "2"}, {"row": 1, "completion": "2"}])
    with pytest.raises(SystemExit) as caught:
        main(["grade", "--task", "arithmetic", "--completions", str(completions), "--rows", task.test_file])
    printed = capsys.readouterr()
    assert caught.value.code == 0
    assert [json.loads(line)["verdict"] for line in printed.out.splitlines()] == ["pass", "fail"]
    assert "2 completions: pass 1, fail 1" in printed.err
