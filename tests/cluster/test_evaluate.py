"""Evaluation: pass@k, intervals, effort, and what failed gradings do to them."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from cluster.evaluate import compare, evaluate, summarise
from cluster.statistics import NUM_RESAMPLES, bootstrap, majority, paired, pass_at_k, wilson
from reward.config import TaskConfig
from reward.tasks import build
from reward.worker import GraderWorker
from rollout.config import DecodingConfig, EvalConfig
from rollout.records import Failed, Group, Prompt, Scored, Trajectory

RIGHT, WRONG = Scored(1.0, {"correct": 1.0}), Scored(0.3, {"correct": 0.0})
LOST = Failed("timeout", "late")


def trajectory(text="", *, answer_length=1, num_slots=4, num_forwards=2, **fields):
    return Trajectory(
        tokens=np.zeros(num_slots, dtype=np.int64),
        step_map=np.zeros(num_slots, dtype=np.int32),
        logprobs=np.zeros(num_slots, dtype=np.float32),
        entropies=np.zeros(num_slots, dtype=np.float32),
        num_steps=num_forwards,
        num_forwards=num_forwards,
        finish_reason="eos" if answer_length < num_slots else "length",
        answer_length=answer_length,
        seed=0,
        sampler="ar",
        exact_likelihood=True,
        temperature=0.0,
        top_p=1.0,
        block_length=num_slots,
        text=text,
        **fields,
    )


def group(*scores, **fields):
    return Group(Prompt(id="p", task="t", text="x"), [trajectory(**fields) for _ in scores], scores)


def test_pass_at_k_is_the_unbiased_estimate():
    assert pass_at_k(4, 1, 2) == 0.5  # 1 - C(3,2)/C(4,2) = 1 - 3/6
    assert pass_at_k(10, 3, 5) == pytest.approx(0.9167, abs=1e-4)  # 1 - C(7,5)/C(10,5) = 1 - 21/252
    assert pass_at_k(4, 3, 2) == 1.0  # one wrong answer cannot fill two places
    assert pass_at_k(5, 0, 5) == 0.0
    assert pass_at_k(4, 1, 1) == 0.25


def test_k_beyond_the_samples_is_refused():
    with pytest.raises(ValueError, match=r"k must be in 1\.\.4"):
        pass_at_k(4, 1, 5)
    with pytest.raises(ValueError, match=r"pass@8 needs .* num_samples is 4; draw more"):
        evaluate(None, None, None, EvalConfig(num_samples=4), 0, k=[8])


def test_wilson_interval_of_half_of_four_trials():
    # z = 1.96: centre (0.5 + 3.8415/8) / (1 + 3.8415/4) = 0.5, half 1.96 sqrt(0.25/4 + 3.8415/64) / 1.9604 = 0.34996
    low, high = wilson(0.5, 4)
    assert (low, high) == pytest.approx((0.15, 0.85), abs=1e-4)


def test_wilson_interval_of_nothing_right_is_not_a_point():
    # 0 of 20: 0 to z^2 / (n + z^2) = 3.8415 / 23.8415
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_bootstrap_of_equal_rows_is_their_value():
    assert bootstrap(np.full(7, 3.0), np.full(7, 2.0), np.random.default_rng(0)) == (1.5, 1.5)


def test_bootstrap_interval_holds_the_mean_and_narrows_with_rows():
    generator = np.random.default_rng(0)
    few, many = np.array([0.0, 1.0] * 10), np.array([0.0, 1.0] * 250)
    low, high = bootstrap(few, np.ones(20), generator)
    narrow_low, narrow_high = bootstrap(many, np.ones(500), generator)
    assert low < narrow_low < 0.5 < narrow_high < high
    # standard error 0.5 / sqrt(500) = 0.0224, so 1.96 of them on each side
    assert (narrow_low, narrow_high) == pytest.approx((0.456, 0.544), abs=0.01)


def test_failed_gradings_leave_the_denominator_and_are_counted():
    # row 1: 1 of 2 graded; row 2: 0 of 3 graded; row 3: nothing graded, so it is no row
    result = summarise("t", [group(RIGHT, WRONG, LOST), group(WRONG, WRONG, WRONG), group(LOST, LOST, LOST)])
    assert result.accuracy == 0.25
    assert result.num_rows == 2
    assert result.num_failed == 4


def test_rows_with_fewer_graded_answers_than_k_leave_that_k():
    # k = 3: only the second row has three graded answers
    result = summarise("t", [group(RIGHT, WRONG, LOST), group(WRONG, WRONG, RIGHT)], k=[2, 3])
    assert result.pass_at[1] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert result.pass_at[2] == pytest.approx((1 + (1 - 1 / 3)) / 2)  # C(1,2) = 0; C(2,2)/C(3,2) = 1/3
    assert result.pass_at[3] == 1.0


def test_effort_counts_tokens_up_to_the_end_token():
    short = group(RIGHT, answer_length=1, num_forwards=2)  # one token and the end token
    capped = group(WRONG, answer_length=4, num_forwards=4)  # four tokens, no end token
    result = summarise("t", [short, capped])
    assert result.forwards_per_answer == 3.0
    assert result.tokens_per_forward == (2 + 4) / (2 + 4)
    assert result.answer_length == 2.5
    assert result.capped_rate == 0.5


def test_nothing_graded_is_nan_here_and_null_in_json():
    result = summarise("t", [group(LOST)], k=[1])
    assert math.isnan(result.accuracy)
    numbers = json.loads(json.dumps(result.numbers(), allow_nan=False))
    assert numbers["accuracy"] is None
    assert numbers["pass_at"] == {"1": None}
    assert "samples" not in numbers


def test_evaluation_grades_each_answer_against_its_own_row():
    task = build(TaskConfig(name="arithmetic"))
    seen = {}

    def generate(prompts, num_samples, seed, decoding):
        seen.update(prompts=len(prompts), num_samples=num_samples, seed=seed, decoding=decoding)
        return [[trajectory(prompt.gold["output"]), trajectory("none")] for prompt in prompts]

    config = EvalConfig(num_samples=2, limit=5, max_new_tokens=8)
    result = evaluate(generate, GraderWorker((TaskConfig(name="arithmetic"),)).grade, task, config, seed=3, k=[2])
    assert seen == {
        "prompts": 5,
        "num_samples": 2,
        "seed": 3,
        "decoding": DecodingConfig(max_new_tokens=8, temperature=0),
    }
    assert result.accuracy == 0.5
    assert result.pass_at == {1: 0.5, 2: 1.0}
    assert [row.prompt.id for row in result.samples] == [row["id"] for row in task.rows("test")[:5]]


def test_majority_takes_the_most_frequent_answer_and_of_equals_the_first_seen():
    a, b, c = ("a", True), ("b", False), ("c", False)
    assert majority([b, a, a])
    assert not majority([b, a, a, b])  # two votes each, b was seen first
    assert majority([a, b, b, a])
    assert majority([a, b, c])
    assert not majority([a, b, c, b])


def test_majority_vote_of_rows_counts_graded_answers_only():
    def row(*votes):
        prompt = Prompt(id="p", task="t", text="x")
        return Group(prompt, [trajectory(text) for text, _ in votes], [score for _, score in votes])

    rows = [
        row((" 2", RIGHT), ("2\n", RIGHT), ("3", WRONG)),
        row(("4", WRONG), ("4", WRONG), ("5", RIGHT)),
        row(("7", LOST), ("7", LOST), ("6", RIGHT)),
        row(("7", LOST)),
    ]
    result = summarise("t", rows)
    assert result.majority == pytest.approx(2 / 3)
    low, high = result.majority_interval
    assert 0 <= low < 2 / 3 < high <= 1


def test_bootstrap_in_parts_is_the_plain_one(monkeypatch):
    above, below = np.array([1.0, 0.0, 2.0, 5.0]), np.array([1.0, 3.0, 1.0, 2.0])
    picked = np.random.default_rng(4).integers(4, size=(NUM_RESAMPLES, 4))
    low, high = np.quantile(above[picked].sum(1) / below[picked].sum(1), [0.025, 0.975])
    assert NUM_RESAMPLES == 10_000
    for picks in (4 * NUM_RESAMPLES, 1000):
        monkeypatch.setattr("cluster.statistics._CHUNK_PICKS", picks)
        assert bootstrap(above, below, np.random.default_rng(4)) == pytest.approx((low, high))


def test_paired_difference_is_surer_than_the_difference_of_the_means():
    # Rows differ much, the samplers by 0.1 on each of 40 rows and 0 on 10: the mean is 0.08.
    base = np.linspace(0, 0.8, 50)
    better = base + 0.1 * (np.arange(50) < 40)
    mean, (low, high) = paired(better, base, np.random.default_rng(0))
    assert mean == pytest.approx(0.08)
    # standard error 0.1 sqrt(.8 * .2 / 50) = 0.00566
    assert (low, high) == pytest.approx((0.08 - 0.0111, 0.08 + 0.0111), abs=0.002)


def test_samplers_are_compared_on_the_rows_that_both_have_answered():
    def results(name, verdicts, num_forwards):
        groups = [
            Group(Prompt(id=key, task="t", text="x"), [trajectory(num_forwards=num_forwards)] * 2, scores)
            for key, scores in verdicts.items()
        ]
        return name, summarise("t", groups, k=[2])

    one = results("one", {"a": (RIGHT, WRONG), "b": (WRONG, WRONG), "c": (RIGHT, RIGHT)}, 4)
    two = results("two", {"b": (RIGHT, WRONG), "a": (RIGHT, RIGHT), "d": (WRONG, WRONG)}, 7)
    three = results("three", {"a": (LOST, WRONG), "b": (LOST, LOST)}, 1)
    found = compare([one, two, three, ("other task", summarise("u", []))])
    assert [(c.sampler, c.baseline, c.num_rows) for c in found] == [("two", "one", 2), ("three", "one", 1)]
    assert found[0].pass_at == {1: 0.5, 2: 0.5}  # a: 1 - .5 and 1 - 1; b: .5 - 0 and 1 - 0
    assert found[0].forwards_per_answer == 3.0
    assert found[0].forwards_interval == (3.0, 3.0)
    assert found[1].pass_at[1] == -0.5
    assert math.isnan(found[1].pass_at[2])  # one graded answer is no pair of answers
    numbers = json.loads(json.dumps([comparison.numbers() for comparison in found], allow_nan=False))
    assert numbers[0]["pass_at"] == {"1": 0.5, "2": 0.5}
    assert numbers[1]["pass_at"]["2"] is None


def test_empty_answers_and_the_entropy_of_what_counts_are_reported():
    entropies = np.array([1.0, 2.0, 30.0, 40.0], dtype=np.float32)
    answers = [trajectory(" ", answer_length=1), trajectory("x", answer_length=4)]
    answers = [replace(answer, entropies=entropies) for answer in answers]
    result = summarise("t", [Group(Prompt(id="p", task="t", text="x"), answers, [WRONG, RIGHT])])
    assert result.empty_rate == 0.5
    assert result.entropy == pytest.approx((1 + 2 + 1 + 2 + 30 + 40) / 6)  # one token and its end; all four


def test_acceptances_of_chains_are_counted_over_all_answers():
    def noted(proposed, accepted, distinct, extra, **more):
        notes = {"proposed": proposed, "accepted": accepted, "distinct": distinct, "extra_forwards": extra} | more
        return trajectory(notes={name: np.array(value) for name, value in notes.items()}, num_forwards=len(proposed))

    runs = {
        "chain_index": [2],
        "chain_accepted": [1],
        "chain_log_weight": np.zeros((1, 3)),
        "chain_effective_size": [2],
    }
    answers = [noted([2, 0], [1, 0], [3, 1], [3, 0]), noted([0, 2], [0, 0], [1, 2], [0, 2], **runs)]
    result = summarise("t", [Group(Prompt(id="p", task="t", text="x"), answers, [WRONG, RIGHT])])
    assert result.chain["acceptance"] == 1 / 4
    # Two steps: the first is at 0 %, the second at 50 % of the way.
    assert result.chain["acceptance_by_progress"][0] == 1 / 2
    assert result.chain["acceptance_by_progress"][5] == 0.0
    assert math.isnan(result.chain["acceptance_by_progress"][1])
    assert result.chain["distinct"] == 7 / 4
    assert result.chain["candidate_forwards"] == 5 / 4
    assert (result.chain["chain_runs"], result.chain["chain_acceptance"], result.chain["chain_effective_size"]) == (
        3,
        0.5,
        2,
    )
    assert json.loads(json.dumps(result.numbers(), allow_nan=False))["chain"]["acceptance_by_progress"][1] is None
    assert summarise("t", [group(RIGHT)]).numbers()["chain"] == {}
