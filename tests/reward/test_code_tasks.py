"""Rows, prompts and programs of the code tasks; verdicts by example through a real jail."""

import json
from pathlib import Path

import pytest

import reward
from reward.code.config import CodeConfig
from reward.config import TaskConfig
from reward.humaneval import HumanEval
from reward.mbpp import Mbpp
from reward.programs import Programs, normal_row
from reward.sandbox.config import SandboxConfig
from reward.sandbox.records import NoSandbox
from reward.worker import GraderWorker
from rollout.records import Failed, Scored

SAMPLES = Path(__file__).parent / "samples"
NAMES = ("code", "code-tiny", "humaneval", "mbpp", "mbpp-sanitized")
UNSAFE = CodeConfig(sandbox=SandboxConfig(backend="unsafe", allow_unsafe=True))
ADD = "def add(a, b):\n    return a + b\n"


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def code_task(path, **code):
    """The task `code` on a file; its programs are our own, so no jail is needed."""
    return Programs(TaskConfig(name="code", test_file=path, code=UNSAFE.model_copy(update=code)))


@pytest.fixture
def task(tmp_path, request):
    made = []

    def make(*rows, **code):
        made.append(code_task(write(tmp_path / "rows.jsonl", *rows), **code))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_graded_as_they_say(name):
    worker = GraderWorker([TaskConfig(name=name)])
    try:
        problems = worker.self_test()
    finally:
        worker.close()
    if any("no sandbox" in problem for problem in problems):
        pytest.skip("this host has no sandbox")
    assert problems == []


def test_self_test_says_why_there_is_no_sandbox():
    worker = GraderWorker([TaskConfig(name="code-tiny", code=CodeConfig(sandbox=SandboxConfig(backend="unsafe")))])
    (problem,) = worker.self_test()
    assert problem.startswith("task code-tiny: sandbox backend `unsafe` isolates nothing; set allow_unsafe: true")


def test_hidden_tests_count_and_are_not_shown(task):
    row = {"id": "a", "prompt": "Add.", "tests": ["assert add(1, 2) == 3"], "hidden_tests": ["assert add(5, 5) == 10"]}
    made = task(row)
    (row,) = made.rows("test")
    shown = made.prompt(row).messages[0]["content"]
    assert "assert add(1, 2) == 3" in shown
    assert "add(5, 5)" not in shown
    scored = made.grade(row, "def add(a, b):\n    return 3\n")
    assert (scored.value, scored.parts["correct"], scored.parts["fraction"], scored.parts["wrong"]) == (
        0.0,
        0.0,
        0.5,
        1.0,
    )
    assert made.grade(row, ADD).value == 1.0


def test_fraction_can_be_the_value(task):
    row = {"prompt": "Add.", "tests": ["assert add(1, 2) == 3", "assert add(5, 5) == 10"]}
    made = task(row, value="fraction")
    assert made.grade(made.rows("test")[0], "def add(a, b):\n    return 3\n").value == 0.5


def test_shown_tests_can_be_held_back(task):
    row = {"prompt": "Add.", "tests": [f"assert add({i}, 1) == {i + 1}" for i in range(3)]}
    for num_hidden, num_shown in ((0, 3), (1, 2), (2, 1), (9, 1)):
        made = task(row, num_hidden_tests=num_hidden)
        assert made.prompt(made.rows("test")[0]).messages[0]["content"].count("assert add") == num_shown


@pytest.mark.parametrize(
    ("row", "right", "wrong"),
    [
        ({"prompt": "Square.", "stdio": [{"input": "3", "output": "9"}]}, "print(int(input()) ** 2)", "print(6)"),
        ({"id": "a", "question": "Add.", "test_cases": ["assert add(1, 2) == 3"]}, ADD, "add = max"),
        (
            {
                "question": "Add.",
                "test": "from solution import add\ndef test_add():\n    assert add(1, 2) == 3\n",
                "solution": ADD,
            },
            ADD,
            "add = max",
        ),
        ({"task_id": 5, "text": "Add.", "code": ADD, "test_list": ["assert add(1, 2) == 3"]}, ADD, "add = max"),
        (
            {"prompt": "Stack.", "hidden_tests": ["assert Stack().size() == 0"]},
            "class Stack:\n    def size(self):\n        return 0",
            "x = 1",
        ),
    ],
)
def test_rows_of_each_shape_are_graded_as_read_and_as_they_stand_in_the_file(task, row, right, wrong):
    made = task(row)
    for one in (made.rows("test")[0], row, normal_row(normal_row(row))):
        assert made.grade(one, right).value == 1.0
        assert made.grade(one, f"```python\n{right}\n```").value == 1.0
        assert made.grade(one, wrong).value == 0.0


def test_tests_of_acecode_and_kodcode_are_not_shown(task):
    rows = [
        {"question": "Add.", "test_cases": ["assert add(1, 2) == 3"]},
        {"question": "Add.", "test": "from solution import add\ndef test_add():\n    assert add(1, 2) == 3\n"},
    ]
    made = task(*rows)
    for row in made.rows("test"):
        assert "assert" not in made.prompt(row).messages[0]["content"]


@pytest.mark.parametrize("completion", ["", "  \n", "I cannot do this.", "```bash\nls\n```", "```python\n\n```"])
def test_completion_without_a_program_is_no_code(task, completion):
    made = task({"prompt": "Add.", "tests": ["assert add(1, 2) == 3"]})
    scored = made.grade(made.rows("test")[0], completion)
    assert scored.value == 0.0
    assert [name for name, value in scored.parts.items() if value] == ["no_code"]


def test_marked_program_that_does_not_compile_is_an_exception(task):
    made = task({"prompt": "Add.", "tests": ["assert add(1, 2) == 3"]})
    assert made.grade(made.rows("test")[0], "```python\ndef add(\n```").parts["exception"] == 1.0


def test_row_whose_tests_never_call_the_program_is_a_failure(task):
    made = task({"prompt": "Add.", "tests": ["assert len('x') == 1"]})
    outcome = made.grade(made.rows("test")[0], ADD)
    assert isinstance(outcome, Failed)
    assert (outcome.kind, outcome.why) == ("bad_tests", "no test asks the program for anything")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Add."}, "no tests among"),
        ({"tests": ["assert f() == 1"]}, "no field 'prompt'"),
        ({"prompt": "Add.", "tests": []}, "no tests among"),
        ({"prompt": "Add.", "tests": ["assert f() == 1", ""]}, "not a list of texts"),
        ({"prompt": "Add.", "tests": "assert f() == 1"}, "not a list of texts"),
        ({"prompt": "Add.", "tests": ["assert f() == 1"], "hidden_tests": [5]}, "not a list of texts"),
        ({"prompt": "Add.", "stdio": [{"input": "1"}]}, "a list of"),
        ({"prompt": "Add.", "tests": ["assert f() == 1"], "entry_point": 5}, "entry_point is 5"),
    ],
)
def test_bad_row_is_named_with_its_line(task, row, message):
    good = {"prompt": "Add.", "tests": ["assert f() == 1"]}
    with pytest.raises(ValueError, match=f"rows.jsonl, line 2: .*{message}"):
        task(good, row).rows("test")


def test_two_rows_with_one_id_are_refused(task):
    row = {"id": "a", "prompt": "Add.", "tests": ["assert f() == 1"]}
    with pytest.raises(ValueError, match="line 2: id 'a' stands in an earlier row too"):
        task(row, row).rows("test")


def test_code_without_a_file_says_what_to_give():
    with pytest.raises(ValueError, match="code has no train rows of its own; give it train_file"):
        reward.task("code").rows("train")


def test_humaneval_has_no_training_rows():
    with pytest.raises(ValueError, match="it is for evaluation"):
        reward.task("humaneval").rows("train")


def test_humaneval_takes_a_whole_function_or_what_follows_the_prompt():
    task = HumanEval(TaskConfig(name="humaneval", code=UNSAFE))
    row, right, _ = task.example()
    whole = "def total(xs: List[int]) -> int:\n    return sum(xs)"
    try:
        for completion in (
            right,
            f"```python\n{right}```",
            whole,
            f"Sure:\n```python\n{whole}\n```",
            row["prompt"] + right,
        ):
            assert task.grade(row, completion).value == 1.0
        assert task.grade(row, right + "\nprint(total([1]))\nimport nonsense\n").value == 1.0
        assert task.grade(row, "It sums.").parts["no_code"] == 1.0
    finally:
        task.close()


def test_one_mbpp_file_for_both_splits_is_divided_as_published(tmp_path):
    rows = [
        {"task_id": n, "text": "Add.", "code": ADD, "test_list": ["assert add(1, 2) == 3"]}
        for n in (1, 10, 11, 510, 511, 600, 601, 974)
    ]
    path = write(tmp_path / "mbpp.jsonl", *rows)
    both = Mbpp(TaskConfig(name="mbpp", train_file=path, test_file=path))
    assert [row["id"] for row in both.rows("test")] == ["mbpp/11", "mbpp/510"]
    assert [row["id"] for row in both.rows("train")] == ["mbpp/601", "mbpp/974"]
    assert len(Mbpp(TaskConfig(name="mbpp", test_file=path)).rows("test")) == 8


def test_mbpp_prompt_shows_the_asserts_but_those_held_back():
    row = reward.task("mbpp", test_file=str(SAMPLES / "mbpp.jsonl")).rows("test")[0]
    shown = Mbpp(TaskConfig(name="mbpp")).prompt(row).messages[0]["content"]
    assert all(test in shown for test in row["test_list"])
    held_back = Mbpp(TaskConfig(name="mbpp", code=CodeConfig(num_hidden_tests=2))).prompt(row).messages[0]["content"]
    assert [test in held_back for test in row["test_list"]] == [True, False, False]


@pytest.mark.parametrize("fields", [{"task_id": "x"}, {"task_id": True}, {"code": ""}, {"test_list": []}, {"text": 1}])
def test_bad_mbpp_row_is_named_with_its_line(tmp_path, fields):
    row = {"task_id": 11, "text": "Add.", "code": ADD, "test_list": ["assert add(1, 2) == 3"]}
    path = write(tmp_path / "mbpp.jsonl", row, row | fields)
    with pytest.raises(ValueError, match=r"mbpp\.jsonl, line 2: "):
        reward.task("mbpp", test_file=path).rows("test")


@pytest.mark.parametrize("text", ["{", "{}", "[]", "[1]"])
def test_json_file_that_holds_no_rows_is_refused(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"rows\.json (is no JSON|holds no list of objects)"):
        reward.task("mbpp-sanitized", test_file=str(path)).rows("test")


def test_tiny_rows_are_disjoint_and_their_solutions_right():
    task = reward.task("code-tiny", num_train_rows=500)
    train, test = ({row["input"] for row in task.rows(split)} for split in ("train", "test"))
    assert not train & test
    assert 200 < len(test) < 400
    row = {"id": "x", "input": "3a-2b+7"}
    assert task.prompt(row).text == "f(a,b)=3a-2b+7:"
    assert task.solution(row) == "return 3*a-2*b+7"
    # f(0,0) = 7, f(1,0) = 10, f(0,1) = 5, f(2,3) = 6-6+7 = 7, f(-4,5) = -12-10+7 = -15.
    expected = [((0, 0), 7), ((1, 0), 10), ((0, 1), 5), ((2, 3), 7), ((-4, 5), -15)]
    assert list(task.problem(row).tests) == [f"assert f({a}, {b}) == {value}" for (a, b), value in expected]
    with pytest.raises(ValueError, match="code-tiny input is '3a'"):
        task.problem({"input": "3a"})


def test_several_slots_keep_the_order_of_the_items():
    config = TaskConfig(name="code-tiny", code=UNSAFE.model_copy(update={"num_slots": 2}))
    worker = GraderWorker([config, TaskConfig(name="arithmetic")])
    tiny, other = reward.task("code-tiny"), reward.task("arithmetic").example()
    items = [("code-tiny", row, tiny.solution(row)) for row in tiny.rows("train")[:12]]
    items[2:2] = [("arithmetic", other.row, other.right)]
    items[5] = (*items[5][:2], "return 0")
    items[8] = (*items[8][:2], "return a.b")
    try:
        scores = worker.grade(items)
    finally:
        worker.close()
    assert [score.value for score in scores] == [1, 1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1]
    assert (scores[5].parts["wrong"], scores[8].parts["exception"]) == (1.0, 1.0)


@pytest.mark.parametrize("file", ["mbpp.jsonl", "humaneval.jsonl"])
def test_reference_solutions_of_the_sample_pass(file):
    task = reward.task(file.removesuffix(".jsonl"), test_file=str(SAMPLES / file))
    try:
        task.open()
        scores = [task.grade(row, task.solution(row)) for row in task.rows("test")]
    except NoSandbox:
        pytest.skip("this host has no sandbox")
    finally:
        task.close()
    assert all(isinstance(score, Scored) and score.value == 1.0 for score in scores)


DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "file", "num_rows", "num_right"),
    [
        ("humaneval", "humaneval/HumanEval.jsonl.gz", 164, 164),
        pytest.param("mbpp", "mbpp/mbpp.jsonl", 974, 970, marks=pytest.mark.slow),
        pytest.param("mbpp-sanitized", "mbpp/sanitized-mbpp.json", 427, 426, marks=pytest.mark.slow),
    ],
)
def test_reference_solutions_pass(name, file, num_rows, num_right):
    if not (DATA / file).exists():
        pytest.skip("no shared data")
    task = reward.task(name, test_file=str(DATA / file))
    try:
        task.open()
        scores = [task.grade(row, task.solution(row)) for row in task.rows("test")]
    except NoSandbox:
        pytest.skip("this host has no sandbox")
    finally:
        task.close()
    assert len(scores) == num_rows
    assert sum(isinstance(score, Scored) and score.value == 1.0 for score in scores) >= num_right


def test_the_task_of_the_documentation_works_and_is_short():
    page = (Path(__file__).parents[2] / "docs" / "graders.md").read_text()
    text = page.split('```python\n"""`sequence`')[1].split("```")[0]
    names = {}
    exec(compile('"""`sequence`' + text, "sequence.py", "exec"), names)
    task = names["Sequence"](TaskConfig(name="sequence", code=UNSAFE))
    row, right, wrong = task.example()
    try:
        assert [task.grade(row, answer).parts["correct"] for answer in (right, wrong)] == [1.0, 0.0]
        assert task.grade(row, wrong).parts["fraction"] == 0.5
    finally:
        task.close()
    pairs = {split: {(row["a"], row["b"]) for row in task.rows(split)} for split in ("train", "test")}
    assert len(pairs["train"]) == len(pairs["test"]) == 40
    assert not pairs["train"] & pairs["test"]
    assert len(text.splitlines()) < 40
