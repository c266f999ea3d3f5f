"""A whole run, small enough for a test: it learns, it is reproducible, and a resumed one is the same run.

The model is random and can say nothing but digits; every row's answer is 3, so one answer in ten is right at first.
"""

import json

import pytest
import torch

import models
from cluster.config import TrainRecipe
from cluster.tracking import read_metrics
from cluster.train_run import run_train

SAME = ("reward/mean", "train/loss", "train/grad_norm", "train/entropy", "rollout/logprob_mean")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_model):
    """A digit model, rows whose answer is 3, and the MLflow store of all runs."""
    folder = tmp_path_factory.mktemp("train")
    denoiser = models.load(small_model)
    say_digits(denoiser)
    models.save(denoiser, folder / "model")
    rows = [
        {"input": f"{a}{op}{b}", "output": "3"} for a, op, b in [(0, "+", 3), (1, "+", 2), (5, "-", 2), (3, "*", 1)]
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@torch.no_grad()
def say_digits(denoiser):
    """Gives each digit a logit of about 8 at a masked slot and every other token one of 0."""
    canvas = [*models.encode_prompt(denoiser, "1+2="), denoiser.mask_token_id]
    hidden_D = denoiser.hidden(torch.tensor([canvas]))[0, -1]
    noise_VD = 0.02 * torch.randn(10, len(hidden_D), generator=torch.Generator().manual_seed(0))
    head_VD = denoiser.backbone.lm_head.weight.zero_()
    head_VD[models.encode_prompt(denoiser, "0123456789")] = 8 * hidden_D / hidden_D.square().sum() + noise_VD


def recipe(folder, runs_dir, **changes):
    task = {"name": "arithmetic", "train_file": str(folder / "rows.jsonl"), "test_file": str(folder / "rows.jsonl")}
    settings = {
        "name": "digits",
        "runs_dir": str(runs_dir),
        "steps": 4,
        "prompts_per_step": 3,
        "model": {"path": str(folder / "model")},
        "tasks": [task],
        "eval": {"max_new_tokens": 1},
        "rollout": {"max_new_tokens": 1, "num_samples": 8, "cpus_per_worker": 0.5},
        "learner": {
            "optimizer": {"lr": 1e-2},
            "engine": {"micro_batch_tokens": 128, "cpus_per_rank": 0.5},
        },
        "checkpoint": {"every": 2},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "cluster": {"mode": "local"},
    }
    return TrainRecipe.model_validate(settings | changes)


def curve(summary):
    """What must be the same in runs that are the same, by step."""
    return {
        int(row["step"]): [row[name] for name in SAME] for row in read_metrics(summary.run_dir) if "reward/mean" in row
    }


@pytest.fixture(scope="module")
def straight(folder):
    """Four steps in one go."""
    return run_train(recipe(folder, folder / "straight"))


def test_a_run_learns_and_leaves_a_model_that_loads(straight):
    rows = {int(row["step"]): row for row in read_metrics(straight.run_dir)}
    assert straight.steps_done == 4
    assert rows[4]["reward/mean"] > rows[1]["reward/mean"] + 0.1
    assert straight.last["eval.arithmetic/accuracy"] > straight.first["eval.arithmetic/accuracy"]
    denoiser = models.load(straight.checkpoint / "model")
    assert denoiser.tokenizer is not None
    assert straight.checkpoint.name == "step_000004"
    assert straight.run_id


def test_every_prompt_and_every_version_is_accounted_for(straight):
    for step, row in {int(row["step"]): row for row in read_metrics(straight.run_dir)}.items():
        if step == 0:
            continue
        assert row["prompts/drawn"] == row["prompts/trained"] == 3 * step
        assert row["data/cursor"] == 3 * step
        assert row["weights/version"] == step
        assert row["staleness/max"] == 0
        assert row["train/logprob_gap_max"] < 1e-4
        assert {"time/generate_s", "time/reward_s", "time/update_s", "time/sync_s", "time/step_s"} <= row.keys()


def test_the_run_folder_has_logs_samples_and_settings(straight):
    run_dir = straight.run_dir
    assert (run_dir.parent / "latest").resolve() == run_dir
    assert "learner:" in (run_dir / "logs" / "latest" / "driver.log").read_text()
    samples = [json.loads(line) for line in (run_dir / "samples.jsonl").read_text().splitlines()]
    assert {"prompt", "answer", "reward", "step"} <= samples[0].keys()
    assert any((run_dir / "order").glob("step_000000*.json"))
    slices = [event for event in json.loads((run_dir / "trace.json").read_text())["traceEvents"] if event["ph"] == "X"]
    assert [event["name"] for event in slices].count("update") == straight.steps_done
    assert {"generate", "grade", "update", "publish", "sync", "checkpoint", "evaluate"} == {e["cat"] for e in slices}


def test_the_same_seed_gives_the_same_curve_to_the_last_bit(folder, straight):
    again = run_train(recipe(folder, folder / "again", steps=2))
    assert curve(again) == {step: values for step, values in curve(straight).items() if step <= 2}


def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(folder, straight):
    first = run_train(recipe(folder, folder / "resumed", steps=2))
    second = run_train(recipe(folder, folder / "resumed"), resume=True)
    assert second.run_dir == first.run_dir
    assert second.run_id == first.run_id
    assert second.first == first.first
    assert curve(second) == curve(straight)
    assert (second.run_dir / "logs" / "attempt_2" / "driver.log").is_file()


def test_resuming_a_finished_run_changes_nothing(folder, straight):
    again = run_train(recipe(folder, folder / "straight"), resume=True)
    assert again.steps_done == 4
    assert again.run_dir == straight.run_dir
    assert again.last == straight.last


def test_what_cannot_run_is_refused_before_anything_is_made(folder, tmp_path):
    wrong = {
        "window": ({"rollout": {"max_new_tokens": 600, "num_samples": 2}}, "the window of"),
        "top_p": ({"rollout": {"top_p": 0.9, "num_samples": 2}}, "rollout.top_p"),
        "lcr": ({"rollout": {"sampler": {"name": "lcr"}}}, "no exact likelihood"),
        "ar": ({"learner": {"objective": {"likelihood": "ar_exact"}}}, "ar_exact"),
        "model": ({"model": {"path": str(tmp_path / "absent")}}, "no such folder"),
        "ranks": ({"learner": {"engine": {"num_ranks": 2}}}, "one process"),
    }
    for changes, text in wrong.values():
        with pytest.raises(ValueError, match=text):
            run_train(recipe(folder, tmp_path / "runs", **changes))
    assert not (tmp_path / "runs").exists()


@pytest.mark.ray
def test_the_same_run_on_ray_gives_the_same_curve(folder, straight, local_ray):
    summary = run_train(recipe(folder, folder / "ray", steps=2, cluster={"mode": "ray"}))
    expected = {step: values for step, values in curve(straight).items() if step <= 2}
    assert curve(summary) == {step: pytest.approx(values, rel=1e-4) for step, values in expected.items()}
    logs = {path.name for path in (summary.run_dir / "logs" / "latest").iterdir()}
    processes = ("driver", "learner-0", "rollout-0", "grader-0")
    assert logs == {f"{process}{suffix}" for process in processes for suffix in (".log", ".spans.jsonl")}
    trace = json.loads((summary.run_dir / "trace.json").read_text())["traceEvents"]
    assert [event["args"]["name"] for event in trace if event["name"] == "process_name"] == sorted(processes)


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_learner_ranks(folder, straight, local_ray):
    def of(num_ranks, steps):
        engine = {"micro_batch_tokens": 128, "cpus_per_rank": 0.5, "num_ranks": num_ranks}
        learner = {"optimizer": {"lr": 1e-2}, "engine": engine}
        return recipe(folder, folder / "ranks", steps=steps, learner=learner, cluster={"mode": "ray"})

    run_train(of(1, 2))
    run_train(of(2, 3), resume=True)
    last = run_train(of(1, 4), resume=True)
    assert {step: values[0] for step, values in curve(last).items()} == {
        step: values[0] for step, values in curve(straight).items()
    }
    for step, values in curve(straight).items():
        assert curve(last)[step] == pytest.approx(values, rel=1e-2), step
