"""Own question-and-answer rows."""

import json

import pytest

import reward


def build(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return reward.task("jsonl", test_file=str(path))


def test_text_rows_and_chat_rows_become_prompts(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    task = build(tmp_path, {"prompt": "Capital?", "answer": "Paris"}, {"id": "sum", "messages": turns, "answer": 4})
    first, second = (task.prompt(row) for row in task.rows("test"))
    assert (first.id, first.text, first.messages) == ("jsonl/test/0", "Capital?", None)
    assert (second.id, second.text, list(second.messages)) == ("sum", None, turns)
    assert [task.solution(row) for row in task.rows("test")] == ["Paris", "4"]


@pytest.mark.parametrize(
    ("answer", "completion", "correct"),
    [
        ("Paris", "paris.", 1),
        ("New  York", " new\nyork", 1),
        ("é", "e\N{COMBINING ACUTE ACCENT}", 1),
        ("Paris", "It is <answer>Paris</answer>, not Rome", 1),
        ("Paris", "It is Paris", 0),
        ("Paris", "", 0),
        (".", "", 0),
        (4, "4.0", 1),
        (4, "four", 0),
        (0.1, "1/10", 1),
        (1e-7, "0.0000001", 1),
        (1e-7, "0.0000002", 0),
        ("1,000", "1000", 1),
        ("007", "7", 1),
        ("x2", "x\N{SUPERSCRIPT TWO}", 0),
        ("4", "٤", 0),
        (4, "4" * 1_000_000, 0),
    ],
)
def test_answers_compare_as_texts_or_as_numbers(tmp_path, answer, completion, correct):
    task = build(tmp_path, {"prompt": "Q", "answer": answer})
    row = task.rows("test")[0]
    assert task.grade(row, completion).value == correct
    assert task.grade(row, task.solution(row)).value == float(task.solution(row) != "")


def test_a_number_of_the_file_reads_as_its_digits(tmp_path):
    rows = build(tmp_path, {"prompt": "Q", "answer": 1e21}, {"prompt": "Q", "answer": -2.50}).rows("test")
    assert [row["answer"] for row in rows] == ["1000000000000000000000", "-2.5"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"answer": "a"}, "neither prompt nor messages"),
        ({"prompt": "p", "messages": [{"role": "user", "content": "c"}], "answer": "a"}, "both prompt and messages"),
        ({"prompt": 5, "answer": "a"}, "prompt is 5"),
        ({"prompt": "p"}, "no field 'answer'"),
        ({"prompt": "p", "answer": None}, "answer is None"),
        ({"prompt": "p", "answer": True}, "answer is True"),
        ({"prompt": "p", "answer": [1]}, "answer is [1]"),
        ('{"prompt": "p", "answer": NaN}', "answer is nan"),
        ('{"prompt": "p", "answer": ' + "1" * 5000 + "}", "not JSON"),
        ({"messages": [], "answer": "a"}, "messages is []"),
        ({"messages": [{"role": "robot", "content": "c"}], "answer": "a"}, "roles: system, user, assistant"),
        ({"messages": [{"role": "user"}], "answer": "a"}, "messages is"),
        ({"id": 3, "prompt": "p", "answer": "a"}, "id is 3"),
        ({"id": "ok", "prompt": "p", "answer": "a"}, "id 'ok' stands in an earlier row"),
        ("not json", "not JSON"),
        ('"text"', "a JSON str, not an object"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_broken_row_names_file_line_and_reason(tmp_path, row, why):
    with pytest.raises(ValueError, match="allowed") as caught:
        build(tmp_path, {"id": "ok", "prompt": "p", "answer": "a"}, row).rows("test")
    assert f"{tmp_path / 'rows.jsonl'}, line 2: " in str(caught.value)
    assert why in str(caught.value)


def test_a_task_without_files_or_without_this_split_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match="give it train_file, test_file or both"):
        reward.task("jsonl")
    with pytest.raises(ValueError, match="no train rows; give it train_file"):
        build(tmp_path, {"prompt": "p", "answer": "a"}).rows("train")
