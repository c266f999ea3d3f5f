"""GSM8K: reading files, and which number of a completion counts."""

import gzip
import json
import time
from pathlib import Path

import pytest

import reward

ROWS = [
    {"question": "How many eggs?", "answer": "16 - 7 = <<16-7=9>>9\n9 * 2 = $<<9*2=18>>18\n#### 18"},
    {"question": "How much?", "answer": "It costs a lot.\n#### 1,080,000"},
    {"question": "How cold?", "answer": "Below zero.\n#### -5"},
]


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gsm8k")
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "test.jsonl").write_text(text)
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return reward.task(
        "gsm8k", train_file=str(folder / "train.jsonl.gz"), test_file=str(folder / "test.jsonl"), num_train_rows=1
    )


def graded(task, completion, row=0):
    score = task.grade({"id": "r", **ROWS[row]}, completion)
    assert score.value == score.parts["correct"]
    return score.parts["correct"], score.parts["format"]


def test_plain_and_packed_files_give_the_same_rows(task):
    train, test = task.rows("train"), task.rows("test")
    assert [{k: row[k] for k in ("question", "answer")} for row in train] == ROWS
    assert [row["id"] for row in train] == [f"gsm8k/train/{i}" for i in range(3)]
    assert [row["id"] for row in test] == [f"gsm8k/test/{i}" for i in range(3)]


def test_prompt_is_one_user_turn_with_the_question_and_no_answer(task):
    prompt = task.prompt(task.rows("test")[0])
    assert prompt.text is None
    assert [turn["role"] for turn in prompt.messages] == ["user"]
    assert prompt.messages[0]["content"].startswith("How many eggs?")
    assert "18" not in prompt.messages[0]["content"]


def test_solution_is_the_published_one_without_calculator_marks(task):
    assert task.solution(task.rows("test")[0]) == "16 - 7 = 9\n9 * 2 = $18\n#### 18"
    assert [graded(task, task.solution(row), i) for i, row in enumerate(task.rows("test"))] == [(1, 1)] * 3


@pytest.mark.parametrize(
    "completion",
    [
        "#### 18",
        "blah 9\n#### 18",
        "####18",
        "#### $18.00",
        "#### 18 dollars",
        "\\boxed{18}",
        "\\boxed{7} no, \\boxed{18} and 19 people",
        "\\boxed{\\$18}",
        "$\\boxed{18\\text{ dollars}}$",
        "\\boxed{9 * 2 = 18}",
        "<answer>18</answer>",
        "<answer>\\boxed{18}</answer>\n#### 20",
        "The answer is 18.",
        "The final answer is: $18. She has 9 eggs.",
        "the answer is **18**",
        "The answer is:\n18",
        "The answer is 9 * 2 = 18.",
        "#### Final part\nThe answer is 18",
        "#### 36/2",
        "#### 17\nNo:\n#### 18",
    ],
)
def test_marked_right_answers(task, completion):
    assert graded(task, completion) == (1, 1)


@pytest.mark.parametrize(
    "completion", ["18", "16 - 7 = 9, 9 * 2 = 18", "She earns $18.00 a day.", "9 eggs, so **18**!"]
)
def test_an_unmarked_last_number_is_right_without_format(task, completion):
    assert graded(task, completion) == (1, 0)


@pytest.mark.parametrize(
    ("completion", "is_marked"),
    [
        ("", 0),
        ("eighteen", 0),
        ("18 or 19", 0),
        ("18x", 0),
        ("1e18", 0),
        ("18e999", 0),
        ("1.8.1.18", 0),
        ("१८", 0),
        ("#### 19", 1),
        ("18\n#### 19", 1),
        ("#### 17 or 18", 0),
        ("\\boxed{17, 18}", 0),
        ("\\boxed{18} or \\boxed{17}", 1),
        ("\\boxed{18", 0),
        ("\\boxed{}\n18", 0),
        ("\\boxed{\\frac{18}{1}}", 0),
        ("The answer is 17 or 18", 0),
        ("The answer is 18. Or the answer is 17.", 1),
        ("#### 18000", 1),
        ("#### 1,8", 0),
        ("#### -18", 1),
        ("#### 18.01", 1),
        ("#### " + "0" * 100 + "18", 0),
        ("#### 18" + "0" * 1_000_000, 0),
    ],
)
def test_wrong_answers(task, completion, is_marked):
    assert graded(task, completion) == (0, is_marked)


def test_commas_and_signs_compare_as_numbers(task):
    assert graded(task, "#### 1080000", 1) == graded(task, "#### $1,080,000.00", 1) == (1, 1)
    assert graded(task, "#### 1,080,00", 1) == (0, 0)
    assert graded(task, "#### -5", 2) == graded(task, "The answer is \N{MINUS SIGN}5.", 2) == (1, 1)
    assert graded(task, "#### 5", 2) == (0, 1)
    assert graded(task, "10-5", 2) == (0, 0)  # a difference, not minus five


def test_only_the_completion_is_graded_never_the_question():
    row = {"id": "r", "question": "Is it 18? #### 18", "answer": "#### 18"}
    assert reward.task("gsm8k").grade(row, "I do not know").value == 0


@pytest.mark.parametrize("piece", ["9", "1,", "1.", "$-", "#### ", "####\n", "the answer is ", "- ", "1/", "\\boxed{"])
def test_hostile_repetition_is_graded_at_once(task, piece):
    start = time.perf_counter()
    task.grade({"id": "r", **ROWS[0]}, piece * 100_000)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"question": "Q"}', "no field 'answer'"),
        ('{"question": "", "answer": "#### 1"}', "question is ''"),
        ('{"question": "Q", "answer": "one"}', "answer ends 'one'"),
        ('{"question": "Q", "answer": "#### one"}', "answer ends '#### one'"),
    ],
)
def test_a_broken_row_names_what_is_wrong(tmp_path, line, why):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line)
    with pytest.raises(ValueError, match="allowed") as caught:
        reward.task("gsm8k", test_file=str(path)).rows("test")
    assert f"{path}, line 2: " in str(caught.value)
    assert why in str(caught.value)


def test_without_file_and_network_the_error_says_what_to_give(monkeypatch):
    import datasets.config

    monkeypatch.setattr("reward.gsm8k.HUB_ID", "unmask-tests/no-such-data-set")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="gsm8k has no test_file and unmask-tests/no-such-data-set cannot be fetched"):
        reward.task("gsm8k").rows("test")


def test_all_published_rows_are_read_and_their_solutions_graded_right():
    shared = Path(__file__).parents[3] / "shared" / "data" / "gsm8k"
    if not shared.exists():
        pytest.skip("no shared data")
    task = reward.task("gsm8k", train_file=str(shared / "train.jsonl.gz"), test_file=str(shared / "test.jsonl"))
    for split, num_rows in (("train", 7473), ("test", 1319)):
        rows = task.rows(split)
        assert len(rows) == num_rows
        assert all(task.grade(row, task.solution(row)).parts == {"correct": 1, "format": 1} for row in rows)
