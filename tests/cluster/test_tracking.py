"""The record of a run: files first, MLflow as a copy, and a store that may fail without stopping the run."""

import json
import math
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cluster.config import TrainRecipe
from cluster.errors import RunError
from cluster.mlflow_store import default_uri, make_sqlite_store, set_mlflow_environment, ui_command
from cluster.tracking import Tracker, flatten, read_metrics, saved_run_id
from rollout.records import Trajectory


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A SQLite store with tables and no runs: making one takes seconds, copying it does not."""
    set_mlflow_environment()
    folder = tmp_path_factory.mktemp("store")
    make_sqlite_store(default_uri(folder))
    assert [path.name for path in folder.iterdir()] == ["mlflow.db"]
    return folder / "mlflow.db"


@pytest.fixture
def runs_dir(tmp_path, empty_store):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return tmp_path


def make_recipe(runs_dir, **fields):
    return TrainRecipe(**{"name": "demo", "runs_dir": str(runs_dir), "steps": 3, "tasks": [{"name": "sum"}], **fields})


def start(runs_dir, resume_run_id=None, *, recipe=None, **options):
    options = {"pause_s": 0.05, **options}
    return Tracker.start(recipe or make_recipe(runs_dir), runs_dir / "demo", resume_run_id, **options)


def stored(tracker):
    """The run as MLflow has it."""
    from mlflow import MlflowClient

    return MlflowClient(tracker.uri).get_run(tracker.run_id)


def history(tracker, name):
    """(step, value) of a metric in MLflow."""
    from mlflow import MlflowClient

    points = MlflowClient(tracker.uri).get_metric_history(tracker.run_id, name)
    return sorted((point.step, point.value) for point in points)


def artifact(tracker, path):
    return Path(stored(tracker).info.artifact_uri.removeprefix("file://")) / path


def answer(text, *, prompt_id="sum/1"):
    num_slots = len(text) + 1
    return Trajectory(
        tokens=np.arange(num_slots),
        step_map=np.arange(num_slots, dtype=np.int32)[::-1],
        logprobs=np.zeros(num_slots, dtype=np.float32),
        entropies=np.zeros(num_slots, dtype=np.float32),
        num_steps=num_slots,
        num_forwards=num_slots,
        finish_reason="eos",
        answer_length=len(text),
        seed=0,
        sampler="random",
        exact_likelihood=True,
        temperature=1.0,
        top_p=1.0,
        block_length=num_slots,
        prompt_id=prompt_id,
        text=text,
    )


def test_a_finished_run_is_in_the_store_with_all_that_belongs_to_it(runs_dir):
    tracker = start(runs_dir)
    tracker.log(0, {"eval.sum/accuracy": 0.25})
    tracker.order_picture(0, "1+2=", answer("4"), ["4"], reward=0.0)
    tracker.log(1, {"reward/mean": 0.5, "train/loss": np.float32(0.125)})
    tracker.log(3, {"eval.sum/accuracy": 0.75})
    tracker.order_picture(3, "1+2=", answer("3"), ["3"], reward=1.0)
    checkpoint = tracker.run_dir / "checkpoints" / "step_000003" / "model"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    tracker.artifact(checkpoint, "checkpoint")
    tracker.finish("finished", checkpoint=checkpoint)

    run = stored(tracker)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "demo")
    assert run.data.metrics == {"eval.sum/accuracy": 0.75, "reward/mean": 0.5, "train/loss": 0.125}
    assert run.data.params["rollout.sampler.name"] == "confidence"
    assert run.data.params["tasks.0.name"] == "sum"
    assert {"version.code", "version.torch", "version.ray", "version.python"} <= run.data.tags.keys()
    note = run.data.tags["mlflow.note.content"]
    assert "sum 25.0% → 75.0% at step 3 (**+50.0 points**)" in note
    assert f"unmask eval --model {checkpoint} --task sum" in note
    assert f"run_uuid={tracker.run_id}" in note
    for path in ("checkpoint/config.json", "decode_order/sum_1.png", "summary.png", "recipe/attempt_1.yaml"):
        assert artifact(tracker, path).exists(), path
    assert saved_run_id(tracker.run_dir) == tracker.run_id
    assert (
        tracker.page == f"/#/experiments/{run.info.experiment_id}/runs/{tracker.run_id}?workflowType=machine_learning"
    )


def test_metrics_are_in_the_file_as_soon_as_log_returns(runs_dir):
    tracker = start(runs_dir)
    tracker.log(1, {"reward/mean": 0.5})
    (row,) = read_metrics(tracker.run_dir)
    assert (row["step"], row["reward/mean"]) == (1, 0.5)
    tracker.finish("killed")
    assert stored(tracker).info.status == "KILLED"


def test_values_that_are_not_finite_are_counted_and_not_logged(runs_dir):
    tracker = start(runs_dir)
    tracker.log(1, {"train/loss": math.nan, "train/grad_norm": math.inf, "reward/mean": 0.5})
    tracker.finish("finished")
    assert stored(tracker).data.metrics == {"reward/mean": 0.5, "failure/nonfinite": 2.0}
    row = json.loads((tracker.run_dir / "metrics.jsonl").read_text())
    assert row["nonfinite"] == ["train/loss", "train/grad_norm"]


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(runs_dir):
    first = start(runs_dir)
    first.log(1, {"reward/mean": 0.1})
    first.log(2, {"reward/mean": 0.2})
    first.finish("failed")
    changed = make_recipe(runs_dir, steps=9)
    second = start(runs_dir, saved_run_id(first.run_dir), recipe=changed)
    second.log(2, {"reward/mean": 0.25})
    second.finish("finished")

    assert second.run_id == first.run_id
    run = stored(second)
    assert (run.info.status, run.data.tags["attempt"]) == ("FINISHED", "2")
    assert run.data.params["steps"] == "3"
    assert "steps: 9" in artifact(second, "recipe/attempt_2.yaml").read_text()
    assert history(second, "reward/mean") == [(1, 0.1), (2, 0.2), (2, 0.25)]
    assert [row["reward/mean"] for row in read_metrics(second.run_dir)] == [0.1, 0.25]


def test_a_run_that_the_store_does_not_know_gets_a_new_one(runs_dir, caplog):
    tracker = start(runs_dir, "0" * 32)
    tracker.finish("finished")
    assert tracker.run_id != "0" * 32
    assert stored(tracker).info.status == "FINISHED"
    assert "is not in" in caplog.text


def test_a_line_torn_by_a_crash_costs_that_line_only(runs_dir):
    (runs_dir / "demo").mkdir()
    (runs_dir / "demo" / "metrics.jsonl").write_text('{"step": 1, "time": 0.0, "reward/mean": 0.1}\n{"step": 2, "rewa')
    tracker = start(runs_dir)
    tracker.log(2, {"reward/mean": 0.2})
    tracker.finish("finished")
    assert [(row["step"], row["reward/mean"]) for row in read_metrics(tracker.run_dir)] == [(1, 0.1), (2, 0.2)]


def test_a_store_that_fails_for_a_while_gets_what_it_has_missed(runs_dir, caplog):
    tracker = start(runs_dir)
    tracker.log(1, {"reward/mean": 0.1})
    wait_until(lambda: history(tracker, "reward/mean") == [(1, 0.1)])
    rename_table(runs_dir, "metrics", "hidden")
    tracker.log(2, {"reward/mean": 0.2})
    wait_until(lambda: tracker._uploads.num_failures)
    tracker.log(3, {"reward/mean": 0.3})
    rename_table(runs_dir, "hidden", "metrics")
    tracker.finish("finished")

    assert history(tracker, "reward/mean") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert read_metrics(tracker.run_dir)[2]["failure/tracking"] >= 1
    assert len([record for record in caplog.records if record.name.startswith("cluster")]) == 1
    assert "Training goes on" in caplog.text


def test_a_store_that_is_out_of_reach_costs_the_run_nothing(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    recipe = make_recipe(tmp_path, tracking={"uri": "http://127.0.0.1:9"})
    tracker = start(tmp_path, recipe=recipe, timeout_s=5)
    for step in range(100):
        tracker.log(step, {"reward/mean": 0.5})
    began = time.monotonic()
    tracker.finish("finished", timeout_s=5)
    assert time.monotonic() - began < 10
    assert tracker.run_id is None
    assert len(read_metrics(tracker.run_dir)) == 100
    assert "metrics.jsonl has every number" in caplog.text
    assert (tracker.run_dir / "summary.md").read_text().startswith("**GRPO** of `tiny`")


def test_steps_that_found_the_queue_full_are_sent_at_the_end(runs_dir):
    tracker = start(runs_dir, max_pending=0)
    tracker.log(1, {"reward/mean": 0.1})
    tracker.log(2, {"reward/mean": 0.2})
    tracker.finish("finished")
    assert history(tracker, "reward/mean") == [(1, 0.1), (2, 0.2)]


def test_the_sample_table_keeps_answers_as_they_are_and_shows_the_newest_first(runs_dir):
    tracker = start(runs_dir)
    tracker.samples(10, [{"task": "sum", "reward": np.float32(1), "answer": "007"}])
    tracker.samples(20, [{"task": "sum", "reward": math.nan, "answer": "2026-01-01", "finish": "eos"}])
    tracker.evaluation(20, [{"task": "sum", "correct": True}])
    tracker.finish("finished")
    table = json.loads(artifact(tracker, "samples.json").read_text())
    assert table["columns"] == ["step", "task", "reward", "answer", "finish"]
    assert table["data"] == [[20, "sum", "nan", "2026-01-01", "eos"], [10, "sum", 1.0, "007", None]]
    shown = json.loads(stored(tracker).data.tags["mlflow.loggedArtifacts"])
    assert {entry["path"] for entry in shown} == {"samples.json", "evaluation.json"}


@pytest.mark.slow
def test_runs_that_start_together_share_a_new_store(tmp_path):
    program = """
import sys
from pathlib import Path
from cluster.config import TrainRecipe
from cluster.tracking import Tracker
recipe = TrainRecipe(name="demo", runs_dir=sys.argv[1], tasks=[{"name": "sum"}])
tracker = Tracker.start(recipe, Path(sys.argv[1]) / sys.argv[2])
tracker.log(1, {"reward/mean": 0.5})
tracker.finish("finished")
"""
    arguments = [[sys.executable, "-c", program, str(tmp_path), name] for name in ("a", "b")]
    processes = [subprocess.Popen(line, cwd=Path(__file__).parents[2]) for line in arguments]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    assert all(saved_run_id(tmp_path / name) for name in ("a", "b"))


def test_flatten_names_each_leaf_by_its_path():
    assert dict(flatten({"a": {"b": [1, None]}, "c": True})) == {"a.b.0": "1", "a.b.1": "none", "c": "True"}


def test_the_page_is_served_from_the_same_store_on_this_machine_only(tmp_path):
    command = ui_command(default_uri(tmp_path), port=5005)
    assert command[1:4] == ["-m", "mlflow", "ui"]
    assert f"sqlite:///{tmp_path}/mlflow.db" in command
    assert command[command.index("--host") + 1] == "127.0.0.1"


def rename_table(runs_dir, old, new):
    connection = sqlite3.connect(runs_dir / "mlflow.db", timeout=10)
    connection.execute(f"ALTER TABLE {old} RENAME TO {new}")
    connection.commit()
    connection.close()


def wait_until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def test_numbers_that_a_killed_attempt_did_not_send_are_sent_by_the_next_one_once(tmp_path):
    first = start(tmp_path)
    first.log(1, {"train/loss": 0.5})
    first.finish("failed")
    # a kill between the file and the store leaves a line in the file alone, and a torn one behind it
    with (tmp_path / "demo" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "time": 1000.0, "train/loss": 0.25}\n{"step": 3, "ti')
    second = start(tmp_path, first.run_id)
    second.log(3, {"train/loss": 0.125})
    second.finish("finished")
    assert history(second, "train/loss") == [(1, 0.5), (2, 0.25), (3, 0.125)]


def test_a_full_disk_ends_the_run_with_the_reason(tmp_path):
    tracker = start(tmp_path)
    tracker.log(1, {"train/loss": 0.5})
    tracker._metrics_file._file.close()
    tracker._metrics_file._file = open("/dev/full", "a", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(RunError, match=r"metrics\.jsonl cannot be written .*No space left.*--resume"):
        tracker.log(2, {"train/loss": 0.25})
