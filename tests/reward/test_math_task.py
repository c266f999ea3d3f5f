"""Tasks with boxed answers: rows of every format, scores, and the published data where it is at hand."""

import gzip
import json
import random
import time
from pathlib import Path

import pytest

import reward
from reward.math import Verifier
from reward.math.process import MathProcess
from reward.math_task import Math
from reward.worker import GraderWorker
from rollout.records import Failed, Scored

SHARED = Path(__file__).parents[3] / "shared" / "data"
NEEDS_DATA = pytest.mark.skipif(not SHARED.exists(), reason="no shared data")


def write(path, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    (gzip.open if path.suffix == ".gz" else open)(path, "wb").write(text.encode())
    return str(path)


@pytest.fixture(scope="module")
def task():
    made = reward.task("math")
    yield made
    made.close()


def score(task, gold, completion, **fields):
    return task.grade({"id": "r", "gold": gold, **fields}, completion)


def test_published_rows_of_each_format_are_read(tmp_path):
    path = write(
        tmp_path / "rows.jsonl.gz",
        {"problem": "P1", "answer": "\\frac12", "unique_id": "test/x/1.json"},
        {"problem": "P2", "solution": "First \\boxed{1}, then \\boxed{-2}."},
        {"problem": "P3", "answer": 70, "id": "0"},
        {"problem": "P4", "answer": "025", "id": 61},
        {"problem": "P5", "answer": ""},
    )
    rows = reward.task("aime24", test_file=path).rows("test")
    assert [row["gold"] for row in rows] == ["\\frac12", "-2", "70", "025"]
    assert [row["id"] for row in rows] == [f"aime24/test/{n}" for n in range(4)]


def test_own_rows_keep_their_id_and_prompt(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"id": "a", "prompt": "1/2?", "gold": 0.5}, {"gold": "x"})
    task = reward.task("math", test_file=path)
    first, second = task.rows("test")
    assert (first["id"], first["gold"], second["id"]) == ("a", "0.5", "math/test/1")
    assert task.prompt(first).text == "1/2?"
    assert task.solution(first) == "\\boxed{0.5}"
    with pytest.raises(ValueError, match="has no prompt; it can only be graded"):
        task.prompt(second)


def test_prompt_is_the_problem_and_how_to_answer_without_the_answer(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"problem": "How many?", "answer": "1234"})
    task = reward.task("math500", test_file=path)
    (turn,) = task.prompt(task.rows("test")[0]).messages
    assert turn["role"] == "user"
    assert turn["content"].startswith("How many?")
    assert "\\boxed{}" in turn["content"]
    assert "1234" not in turn["content"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"problem": "P"}, "no answer among ['problem']"),
        ({"problem": "P", "solution": "no box"}, "no answer"),
        ({"problem": "P", "answer": True}, "no answer"),
        ({"problem": "P", "answer": [1]}, "no answer"),
        ({"problem": "", "answer": "1"}, "problem is ''"),
        ({"prompt": 5, "gold": "1"}, "prompt is 5"),
        ({"gold": " "}, "gold is ' '"),
        ({"id": "ok", "gold": "1"}, "id 'ok' stands in an earlier row"),
        ("[]", "a JSON list"),
    ],
)
def test_a_broken_row_names_file_line_and_reason(tmp_path, row, why):
    path = write(tmp_path / "rows.jsonl", {"id": "ok", "gold": "1"}, row)
    with pytest.raises(ValueError, match="allowed") as caught:
        reward.task("math", test_file=path).rows("test")
    assert f"{path}, line 2: " in str(caught.value)
    assert why in str(caught.value)


@pytest.mark.parametrize("name", ["math500", "aime24", "aime25"])
def test_evaluation_tasks_have_no_training_rows(name):
    with pytest.raises(ValueError, match=f"task {name} is for evaluation and has no train rows; give it train_file"):
        reward.task(name).rows("train")


def test_without_file_and_network_the_error_says_what_to_give(monkeypatch):
    import datasets.config

    monkeypatch.setattr(Math, "hub", Math.hub._replace(id="unmask-tests/no-such-data-set"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="math has no test_file and unmask-tests/no-such-data-set cannot be fetched"):
        reward.task("math").rows("test")


@pytest.mark.parametrize(
    ("gold", "completion", "parts"),
    [
        ("42", "\\boxed{42}", {"correct": 1, "format": 1}),
        ("025", "\\boxed{25}", {"correct": 1, "format": 1}),
        ("42", "\\boxed{43}", {"format": 1}),
        ("2\\sqrt3", "\\boxed{\\sqrt{12}}", {"correct": 1, "format": 1}),
        ("12", "<answer>12</answer>", {"correct": 1, "format": 1}),
        ("42", "\\boxed{7} .. final \\boxed{42}", {"correct": 1, "format": 1}),
        ("42", "It is 42.", {"no_answer": 1}),
        ("42", "\\boxed{42} or \\boxed{43}", {"no_answer": 1}),
        ("12", "\\boxed{\\int_0^{12} 1 dx}", {}),
        ("5050", "\\boxed{\\sum_{k=1}^{100} k}", {}),
        ("1,2,\\ldots,n", "\\boxed{1,3,5,\\ldots,2n-1}", {}),
        ("1,2,\\ldots,n", "\\boxed{1,2,\\dots,n}", {}),
        ("\\frac{x}{2}", "\\boxed{1/2x}", {"format": 1, "undecided": 1}),
        ("50", "\\boxed{50\\%}", {"format": 1}),
    ],
)
def test_scores_and_their_parts(task, gold, completion, parts):
    given = score(task, gold, completion)
    assert given.parts == {"correct": 0, "format": 0, "no_answer": 0, "undecided": 0} | parts
    assert given.value == given.parts["correct"]


def test_repeating_a_part_of_the_task_is_no_answer_to_it(task):
    problem = "Compute $2^{10}-24$."
    assert score(task, "1000", "\\boxed{2^{10} - 24}", problem=problem).value == 0
    assert score(task, "1000", "\\boxed{2^{10} - 24}", problem="What is the number?").value == 1
    assert score(task, "1000", "\\boxed{1000}", problem=problem).value == 1
    # The answer itself may stand in the task, also when it is written a little differently.
    assert score(task, "\\frac{\\pi}{3}", "\\boxed{\\pi/3}", problem="Is it $\\pi/3$ or $\\pi/4$?").value == 1
    assert score(task, "(x+1)^2", "\\boxed{x^2+2x+1}", problem="Factor $x^2+2x+1$.").value == 0


def test_only_the_completion_is_read_for_the_answer(task):
    assert score(task, "42", "I do not know.", problem="Is it \\boxed{42}?").value == 0


def test_raw_published_rows_can_be_graded_too(task):
    assert task.grade({"problem": "P", "answer": "7"}, "\\boxed{7}").value == 1
    assert task.grade({"problem": "P", "solution": "\\boxed{7}"}, "\\boxed{8}").value == 0
    assert task.grade({"gold": "$\\boxed{7}$"}, "\\boxed{7}").value == 1
    with pytest.raises(ValueError, match="no answer in a row"):
        task.grade({"problem": "P"}, "\\boxed{7}")


def test_a_timeout_is_a_failure_and_never_a_score():
    late = Math(reward.TaskConfig(name="math"), verifier=Verifier(MathProcess(timeout_s=1e-9)))
    failed = score(late, "2\\sqrt3", "\\boxed{\\sqrt{12}}")
    assert isinstance(failed, Failed)
    assert failed.kind == "math_timeout"
    assert "\\sqrt{12}" in failed.why
    assert score(late, "42", "\\boxed{42}").value == 1  # plain numbers need no worker


def test_a_broken_worker_is_a_failure_and_fails_the_self_test(monkeypatch):
    monkeypatch.setattr("reward.math.process._BOOT", "raise SystemExit(3)")
    assert score(reward.task("math"), "2\\sqrt3", "\\boxed{\\sqrt{12}}").kind == "math_error"
    (problem,) = GraderWorker([reward.TaskConfig(name="math")]).self_test()
    assert "task math: the math worker did not start" in problem


def test_text_of_a_model_is_never_run(task, tmp_path):
    target = tmp_path / "touched"
    code = f"open('{target}', 'w').close()"
    for text in (
        f"__import__('os').system('touch {target}')",
        code,
        f"exec({code!r})",
        f"x + {code}",
        f"\\text{{{code}}}",
    ):
        for gold in ("42", "x+1", "\\text{yes}", "\\frac{1}{7}\\triangle"):
            assert score(task, gold, f"\\boxed{{{text}}}").value == 0
    assert not target.exists()


HOSTILE = [
    *("((9!)!)!", "9^{9^{9^{9}}}", "999999^{999999}", "2^{999999}", "9999!", "\\binom{99999}{50000}", "e^{e^{e^{9}}}"),
    *("\\sin(10^{99999})", "(x+y+z)^{9999}", "(" * 140 + "1" + ")" * 140, "{" * 150, "\\sqrt{" * 40 + "2" + "}" * 40),
    *("1+" * 149 + "1", "x^" * 149 + "x", "\\frac" * 60, "|" * 300, "9" * 300, "-" * 299 + "1", "!" * 300, "1,2" * 99),
    *(
        "\\text{" * 50 + "}" * 50,
        "\\mathbf{" * 30 + "1" + "}" * 30,
        "\\pm" * 90 + "1",
        "\\tan(\\tan(\\tan(\\tan(99999))))",
    ),
    *("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}^{999999}", "\\begin{pmatrix}" * 11, "i^{i^{i^{i}}}", "1e999", "1e-999"),
    *(
        "\\cos\\frac{2\\pi}{17}" * 12,
        "\\sqrt[64]{2}+\\sqrt[63]{3}+" * 8 + "1",
        "(1,2)\\cup" * 25 + "(1,2)",
        "\\det" * 60,
    ),
    *("\x00", "\ud800", "\u202e42", "42\u200b", "\\sum_{k=1}^{10^9} k", "\\zeta(3)", "f(f(f(f(f(x)))))", "A_{1}" * 60),
]


def test_hostile_answers_end_within_ten_seconds_and_a_gigabyte_and_are_not_right():
    verifier = Verifier()
    task = Math(reward.TaskConfig(name="math"), verifier=verifier)
    most_kb = 0
    for text in HOSTILE:
        for gold in ("12", "x^2+1", "\\frac{1}{7}\\triangle ABC"):
            started = time.perf_counter()
            given = score(task, gold, f"\\boxed{{{text}}}")
            assert time.perf_counter() - started < 10
            assert isinstance(given, Scored | Failed)
            assert getattr(given, "value", 0) == 0
            most_kb = max(most_kb, peak_memory_kb(verifier.process.pid))
    task.close()
    assert most_kb < 1_000_000


def peak_memory_kb(pid):
    """Most memory that a process has held; 0 without one."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines() if pid is not None else []
    return max((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), default=0)


@pytest.mark.ray
def test_an_actor_thread_gives_the_scores_of_the_main_thread(local_ray, task):
    import ray

    cases = [("2\\sqrt3", "\\boxed{\\sqrt{12}}"), ("x^2-1", "\\boxed{(x-1)(x+1)}"), ("(1,2)", "\\boxed{(2,1)}")]
    items = [("math", {"id": str(n), "gold": gold}, completion) for n, (gold, completion) in enumerate(cases * 4)]
    actor = ray.remote(num_cpus=0)(GraderWorker).options(max_concurrency=2).remote([reward.TaskConfig(name="math")])
    found = ray.get([actor.grade.remote(items) for _ in range(4)], timeout=120)
    ray.kill(actor)
    assert found == [[score(task, row["gold"], completion) for _, row, completion in items]] * 4


@NEEDS_DATA
@pytest.mark.parametrize(
    ("name", "file", "num_rows"),
    [
        ("math500", "math/math500.jsonl", 500),
        ("aime24", "aime/aime24.jsonl", 30),
        ("aime25", "aime/aime25.jsonl", 30),
        ("math", "math/math_test5000.jsonl.gz", 5000),
        ("math", "math/math_train7500.jsonl.gz", 7498),
    ],
)
def test_every_published_gold_answer_is_right(name, file, num_rows):
    task = reward.task(name, test_file=str(SHARED / file))
    rows = task.rows("test")
    assert len(rows) == num_rows
    assert [row["gold"] for row in rows if task.grade(row, f"\\boxed{{{row['gold']}}}").value != 1] == []
    task.close()


@NEEDS_DATA
def test_every_published_solution_of_math500_is_right():
    task = reward.task("math500", test_file=str(SHARED / "math/math500.jsonl"))
    assert [row["gold"] for row in task.rows("test") if task.grade(row, task.solution(row)).value != 1] == []
    task.close()


@NEEDS_DATA
def test_1500_random_pairs_of_different_published_answers_do_not_match(task):
    rows = reward.task("math500", test_file=str(SHARED / "math/math500.jsonl")).rows("test")
    golds = sorted({row["gold"] for row in rows})
    source = random.Random(0)
    pairs = [source.sample(golds, 2) for _ in range(1500)]
    assert [pair for pair in pairs if score(task, pair[0], f"\\boxed{{{pair[1]}}}").value] == []
