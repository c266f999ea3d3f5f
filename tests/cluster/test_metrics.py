"""Groups, times and learner results become named numbers; the expected values are worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from cluster import metrics
from rollout.records import Failed, Group, Prompt, Scored, Trajectory


def trajectory(step_map, *, answer_length, entropies=None, forwards=None, versions=(0, 0), tokens=None):
    """Slots after the end token were never committed: their step is the number of steps."""
    num_slots = len(step_map)
    num_steps = max(step_map[: answer_length + 1]) + 1
    return Trajectory(
        tokens=np.array(tokens if tokens is not None else range(num_slots)),
        step_map=np.array(step_map, dtype=np.int32),
        logprobs=np.full(num_slots, -0.5, dtype=np.float32),
        entropies=np.array(entropies if entropies is not None else [0.0] * num_slots, dtype=np.float32),
        num_steps=num_steps,
        num_forwards=forwards if forwards is not None else num_steps,
        finish_reason="eos" if answer_length < num_slots else "length",
        answer_length=answer_length,
        seed=0,
        sampler="confidence",
        exact_likelihood=True,
        temperature=1.0,
        top_p=1.0,
        block_length=num_slots,
        weights_version=versions,
    )


def group(task, scores, trajectories=None):
    plain = trajectory([0, 1, 2, 3], answer_length=2)
    return Group(
        Prompt(id=f"{task}/1", task=task, text="?"), trajectories if trajectories else [plain] * len(scores), scores
    )


def right():
    return Scored(1.0, {"correct": 1.0, "format": 1.0})


def wrong(value=0.0):
    return Scored(value, {"correct": 0.0, "format": 0.0})


def test_rewards_leave_failed_answers_out():
    groups = [group("a", [right(), wrong(), Failed("timeout", "late")]), group("a", [right(), right()])]
    result = metrics.reward_metrics(groups)
    # values 1, 0, 1, 1: mean 3/4, standard deviation sqrt(3/4 - 9/16) = sqrt(3)/4
    assert result["reward/mean"] == 0.75
    assert result["reward/std"] == pytest.approx(math.sqrt(3) / 4)
    assert result["reward/pass_rate"] == 0.75
    assert result["reward/format_mean"] == 0.75
    assert "reward/correct_mean" not in result
    # the first group has values 1 and 0, the second 1 and 1
    assert result["reward/zero_variance_rate"] == 0.5
    assert result["reward/all_correct_rate"] == 0.5
    assert result["reward/all_wrong_rate"] == 0.0


def test_a_group_with_one_graded_answer_takes_no_part_in_the_zero_variance_rate():
    groups = [group("a", [right(), Failed("timeout", "late")]), group("a", [wrong(), wrong()])]
    result = metrics.reward_metrics(groups)
    assert result["reward/zero_variance_rate"] == 1.0
    assert result["reward/all_wrong_rate"] == 1.0


def test_without_a_graded_answer_there_is_no_reward_at_all():
    assert metrics.reward_metrics([group("a", [Failed("timeout", "late")] * 2)]) == {}


def test_rollout_metrics_count_committed_tokens_up_to_the_end_token():
    # 3 scored tokens (two and the end token) in 3 forwards; 4 scored tokens in 2 forwards
    first = trajectory([1, 0, 2, 3], answer_length=2, entropies=[1.0, 2.0, 3.0, 99.0])
    second = trajectory([0, 0, 1, 1], answer_length=4, entropies=[0.0, 0.0, 0.0, 1.0])
    result = metrics.rollout_metrics([first, second], generate_s=2.0)
    assert result["rollout/forwards_per_answer"] == 2.5
    assert result["rollout/tokens_per_forward"] == 7 / 5
    assert result["rollout/answer_tokens_mean"] == 3.0
    assert result["rollout/answer_tokens_max"] == 4.0
    assert result["rollout/truncated_rate"] == 0.5
    assert result["rollout/empty_rate"] == 0.0
    assert result["rollout/entropy_mean"] == pytest.approx((1 + 2 + 3 + 1) / 7)
    assert result["rollout/logprob_mean"] == pytest.approx(-0.5)
    assert result["rollout/tokens_per_s"] == 3.5
    assert result["rollout/answers_per_s"] == 1.0
    # neighbours of the first: 1>0 no, 0<2 yes -> 1/2; of the second: equal, yes, equal -> (0.5 + 1 + 0.5) / 3 = 2/3
    assert result["rollout/left_to_right_rate"] == pytest.approx((1 / 2 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("step_map", "rate"), [([0, 1, 2, 3], 1.0), ([3, 2, 1, 0], 0.0), ([0, 0, 0, 0], 0.5), ([0], None)]
)
def test_left_to_right_rate(step_map, rate):
    assert metrics.left_to_right_rate(trajectory(step_map, answer_length=len(step_map))) == rate


def test_distinct_rate_compares_answers_without_what_follows_them():
    same = [trajectory([0, 1, 2], answer_length=1, tokens=[7, 0, tail]) for tail in (1, 2)]
    other = trajectory([0, 1, 2], answer_length=1, tokens=[8, 0, 0])
    result = metrics.diversity_metrics([group("a", [right()] * 3, [*same, other])])
    assert result == {"rollout/distinct_rate": 2 / 3}


def test_each_task_has_its_own_section():
    result = metrics.task_metrics([group("b", [right(), wrong()]), group("a", [wrong(), wrong()])])
    assert result["task.a/pass_rate"] == 0.0
    assert result["task.b/pass_rate"] == 0.5
    assert result["task.b/zero_variance_rate"] == 0.0
    assert result["task.b/answer_tokens_mean"] == 2.0


def test_accuracy_is_the_mean_over_prompts_and_carries_its_standard_error():
    failed = Failed("timeout", "late")
    groups = [group("a", [right(), wrong()]), group("a", [right(), failed]), group("a", [failed, failed])]
    result = metrics.eval_metrics(groups)
    # shares 1/2 and 1; the third prompt has no graded answer. Deviation sqrt(1/8), over sqrt(2) prompts: 1/4
    assert result["eval.a/accuracy"] == 0.75
    assert result["eval.a/accuracy_stderr"] == pytest.approx(0.25)
    assert result["eval.a/failed"] == 3.0
    assert result["eval.a/forwards_per_answer"] == 3.0


def test_failures_are_counted_by_kind_and_in_total():
    groups = [group("a", [Failed("timeout", ""), Failed("timeout", ""), right()])]
    assert metrics.failure_metrics(groups, {"worker lost/2": 1, "none": 0}) == {
        "failure/total": 3.0,
        "failure/timeout": 2.0,
        "failure/worker lost_2": 1.0,
    }


def test_staleness_counts_versions_from_the_first_forward():
    drawn = [trajectory([0, 1], answer_length=1, versions=versions) for versions in ((3, 3), (4, 5))]
    result = metrics.staleness_metrics([group("a", [right()] * 2, drawn)], 5)
    assert result == {"staleness/mean": 1.5, "staleness/max": 2.0, "staleness/mixed_version_rate": 0.5}


def test_no_metric_of_a_step_is_a_path_prefix_of_another():
    groups = [group("a/b", [right(), wrong(), Failed("x/y", "")]), group("a", [right(), wrong(), Failed("x", "")])]
    names = metrics.step_metrics(
        groups,
        times={"generate": 1.0, "update_s": 2.0},
        learner={"loss": 0.1, "train/kl": 0.2},
        weights_version=3,
        failures={"actor_lost": 1},
    )
    names |= metrics.eval_metrics(groups)
    assert {"time/generate_s", "time/update_s", "train/loss", "train/kl", "task.a_b/pass_rate"} <= names.keys()
    assert metrics.prefix_clashes(names) == []
    assert all(metrics.clean_name(name) == name for name in names)


def test_every_metric_of_a_step_is_explained_in_the_documentation():
    explained = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    groups = [group("a", [right(), wrong()])]
    names = metrics.step_metrics(groups, times={"update": 1.0}, learner={}, weights_version=0)
    names |= metrics.eval_metrics(groups * 2)
    general = [name.replace("task.a/", "task.<name>/").replace("format_mean", "<part>_mean") for name in names]
    assert [n for n in general if f"`{n}`" not in explained and f"`{n.split('/')[1]}`" not in explained] == []


def test_prefix_clashes_are_found():
    assert metrics.prefix_clashes(["a/b", "a/b/c", "a/bc", "d"]) == [("a/b", "a/b/c")]


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("reward/mean", "reward/mean"),
        ("reward/acc (%)[0]", "reward/acc ____0_"),
        ("/reward//../mean/", "reward/mean"),
        ("loss", "other/loss"),
        ("größe/μ", "gr__e/_"),
        ("", "other"),
    ],
)
def test_names_are_cleaned_to_what_every_store_takes(name, clean):
    assert metrics.clean_name(name) == clean


def test_accuracies_are_collected_by_task_in_order():
    rows = [{"step": 0, "eval.a/accuracy": 0.25}, {"step": 1, "reward/mean": 0.5}, {"step": 2, "eval.a/accuracy": 0.5}]
    assert metrics.accuracies(rows) == {"a": [(0, 0.25), (2, 0.5)]}
