"""The comparison of objectives: its settings are sound, its numbers are means with Student's intervals."""

import math

import numpy as np
import pytest

from benchmarks.learner_estimators import ESTIMATORS, SLOTS, log_normal_lengths, print_estimators, samples_of
from benchmarks.objective_arms import ARMS
from benchmarks.objective_report import interval, table
from benchmarks.objectives import Run, Settings, best_rates, read, run_all
from learner.config import ObjectiveConfig


def test_settings_of_every_method_are_allowed_and_fit_its_sampler():
    for arm in ARMS.values():
        assert (arm.sampler == "ar") == (arm.config.likelihood in ("ar_exact", "ar_fast"))
        assert arm.config.importance == "none"
    for settings in ESTIMATORS.values():
        ObjectiveConfig.model_validate(settings)


def test_interval_is_students():
    # Mean 2, standard deviation 1, three values: 4.303 / sqrt(3).
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.4843), abs=1e-3)
    assert math.isnan(interval([1.0])[1])


def test_table_has_a_row_for_each_method_with_its_gain():
    def row(arm, seed, end):
        curve = [
            {"forwards": 0.0, "confidence": 0.5, "ar": 0.4},
            {"forwards": 6.0, "confidence": 0.55},
            {"forwards": 12.0, "confidence": end, "ar": 0.45},
        ]
        shared = {"budget": 12, "prompts": 4, "samples": 8, "lr": 1e-4, "eval_rows": 128, "eval_points": 2}
        return {"arm": arm, "seed": seed, "settings": shared, "curve": curve, "updates": 3, "answers": 96}

    text = table([row("a", 0, 0.6), row("a", 1, 0.7), row("b", 0, 0.4), row("b", 1, 0.4)])
    # Mean .65, standard deviation .0707, two values: 12.706 * .0707 / sqrt(2) = .635.
    assert "| a | 0.0001 | 2 | 3 | 96 | 65.0 ± 63.5 | 45.0 ± 0.0 | +15.0 ± 63.5 |" in text
    assert "| b | 0.0001 | 2 | 3 | 96 | 40.0 ± 0.0 | 45.0 ± 0.0 | -10.0 ± 0.0 |" in text


def test_a_run_counts_the_forwards_of_rollouts_and_of_the_learner():
    settings = Settings(budget=1, prompts=2, samples=4, lr=1e-4, warmup=1, eval_rows=4, eval_points=1)
    run = Run(ARMS["JustGRPO-Fast"], 0, settings)
    metrics = run.update()
    assert run.forwards > metrics["forward_equivalents"] > 0
    assert metrics["forward_equivalents"] == 3 * metrics["num_canvases"]
    assert run.answers == 8


def test_best_rate_is_the_one_of_highest_accuracy_then_the_lowest():
    def row(arm, lr, end):
        return {"arm": arm, "settings": {"lr": lr}, "curve": [{"confidence": 0.5}, {"confidence": end}]}

    rows = [row("a", 1e-4, 0.6), row("a", 3e-4, 0.7), row("a", 1e-3, 0.7), row("b", 3e-4, 0.4), row("b", 1e-4, 0.5)]
    assert best_rates(rows) == {"a": 3e-4, "b": 1e-4}


def test_validation_is_neither_trained_on_nor_the_test_rows(monkeypatch):
    settings = Settings(64, prompts=2, samples=2, lr=1e-4, warmup=1, eval_rows=4, eval_points=1, eval_on="validation")
    run = Run(ARMS["JustGRPO-Fast"], 0, settings)
    seen, answer, rows = [], run.answer, list(run.task.rows("train")[:6])
    monkeypatch.setattr(run, "answer", lambda rows, *rest: (seen.append(list(rows)), answer(rows, *rest))[1])
    monkeypatch.setattr(type(run.task), "rows", lambda task, split: {"train": rows}[split])
    run.update()
    run.accuracies(["confidence"])
    trained, validated = seen
    assert all(row in rows[:2] for row in trained)
    assert validated == rows[2:]


def test_what_is_in_the_file_is_not_run_again(tmp_path, monkeypatch):
    settings = Settings(budget=1, prompts=2, samples=2, lr=1e-4, warmup=1, eval_rows=2, eval_points=1)
    plan = [("JustGRPO-Fast", 0, settings)]
    first = run_all(plan, tmp_path / "runs" / "results.jsonl")
    monkeypatch.setattr(Run, "train", lambda self: pytest.fail("ran again"))
    assert run_all(plan, tmp_path / "runs" / "results.jsonl") == first == read(tmp_path / "runs" / "results.jsonl")


def test_lengths_average_half_the_canvas():
    lengths = log_normal_lengths(8)
    assert np.mean(lengths) == pytest.approx(SLOTS / 2, abs=1)
    assert len(set(lengths)) > 5
    short = samples_of([3])[0].trajectory
    assert int(short.scored.sum()) == 4


@pytest.mark.slow
def test_estimators_print_their_speeds_and_gradients_agree(capsys):
    assert print_estimators(answers=1, budget=2048, repetitions=1) < 1e-5
    assert "ar_fast" in capsys.readouterr().out
