"""`unmask eval` with several samplers, and what it leaves: files, pictures, MLflow runs; the same on a pool."""

import json

import pytest

from cluster import eval_run
from cluster.cli import main
from cluster.config import ClusterConfig
from cluster.eval_run import EvalRun
from models.config import ModelConfig
from reward.config import TaskConfig
from rollout.config import DecodingConfig, RolloutConfig
from samplers.config import SamplerConfig


@pytest.fixture
def unmask(capsys):
    def run(*arguments):
        try:
            main([str(argument) for argument in arguments])
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def common(small_model):
    return [
        "eval", "--model", small_model, "--task", "arithmetic", "--limit", 3, "--num-samples", 2, "--k", "1,2",
        "--max-new-tokens", 4,
    ]  # fmt: skip


def test_evaluations_of_two_seeds_are_put_together(unmask, small_model, tmp_path):
    files = [tmp_path / f"{seed}.json" for seed in (0, 1)]
    for seed, file in enumerate(files):
        arguments = ["--sampler", "ar,threshold:tau=0.1", "--seed", seed, "--json", file, "--plots", tmp_path / "png"]
        status, out, error = unmask(*common(small_model), *arguments)
        assert status == 0, error
        assert "threshold tau=0.1 - ar" in out
        assert "rows 6/6" in error
        assert sorted(path.name for path in (tmp_path / "png").iterdir()) == ["pass_at_k.png", "quality.png"]
        assert not list(tmp_path.glob("*.answers.jsonl"))
    record = json.loads(files[0].read_text())
    assert [len(result["rows"]["ids"]) for result in record["results"]] == [3, 3]
    status, out, error = unmask("compare", *files, "--k", "1,4", "--baseline", "threshold tau=0.1")
    assert status == 0, error
    assert "ar - threshold tau=0.1" in out
    first = next(line for line in out.splitlines() if line.startswith("arithmetic"))
    assert first.split()[1:4] == ["ar", "3", "4"]  # rows, answers a row: two of each seed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--sampler", "threshold:0.8"], "write NAME or NAME:option=value"),
        (["--sampler", "threshold:tua=0.8"], "has no option 'tua'"),
        (["--sampler", "ar,ar"], "stands there twice"),
        (["--cpus-per-worker", "2"], "--cpus-per-worker is for a pool of workers; give --num-workers too"),
        (["--plots", "no/such/folder"], "--plots no/such/folder: there is no folder"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_model_is_read(unmask, arguments, text):
    status, _, error = unmask("eval", "--model", "nowhere", "--task", "arithmetic", *arguments)
    assert status == 2
    assert text in " ".join(error.split())


def test_an_evaluation_is_an_mlflow_run_with_one_below_it_for_each_sampler(unmask, small_model, tmp_path):
    from mlflow import MlflowClient

    status, _, error = unmask(
        *common(small_model), "--sampler", "ar,eb:gamma=0.5", "--track", "small", "--runs-dir", tmp_path
    )
    assert status == 0, error
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("evaluation")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"small", "arithmetic ar", "arithmetic eb gamma=0.5"}
    parent, child = runs["small"], runs["arithmetic eb gamma=0.5"]
    assert parent.info.run_id in error
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params["sampler.gamma"] == "0.5"
    assert {"pass_at_1", "pass_at_2_low", "forwards_per_answer", "tokens_per_forward", "majority"} <= set(
        child.data.metrics
    )
    artifacts = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"results.json", "table.txt", "quality.png", "pass_at_k.png", "samplers.json"} <= artifacts


def eval_on(cluster, small_model, answers_file=None, num_workers=2):
    run = EvalRun(
        model=ModelConfig(path=str(small_model)),
        tasks=[TaskConfig(name="arithmetic")],
        k=[1],
        num_samples=2,
        limit=5,
        seed=3,
        max_batch_tokens=4096,
        answers_file=answers_file,
        workers=RolloutConfig(num_workers=num_workers, cpus_per_worker=0.25),
        cluster=cluster,
    )
    decodings = [DecodingConfig(max_new_tokens=4, sampler=SamplerConfig(name=name)) for name in ("ar", "imh")]
    return run.record(run.results(decodings))


def test_a_pool_and_this_process_come_to_the_same(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(eval_run, "CHUNK_ANSWERS", 4)
    here = eval_on(None, small_model)
    assert eval_on(ClusterConfig(mode="local"), small_model) == here
    # Answers kept by one are those of the other.
    kept = tmp_path / "kept.jsonl"
    eval_on(ClusterConfig(mode="local"), small_model, kept)
    monkeypatch.setattr("rollout.worker.RolloutWorker.generate", None)
    assert eval_on(None, small_model, kept) == here


def test_a_worker_on_ray_comes_to_the_same(small_model, local_ray):
    assert eval_on(ClusterConfig(), small_model, num_workers=1) == eval_on(None, small_model)


def test_generate_shows_the_order_and_draws_it(unmask, small_model, tmp_path):
    picture = tmp_path / "order.png"
    given = ["generate", "--model", small_model, "--prompt", "1+1", "--max-new-tokens", 4, "--sampler", "ar"]
    status, out, error = unmask(*given, "--show-order", "--order-picture", picture)
    assert status == 0, error
    (steps,) = [line.split() for line in out.splitlines() if line.startswith("step ")]
    assert steps[1:] == [str(n) for n in range(len(steps) - 1)]
    assert picture.read_bytes().startswith(b"\x89PNG")
    for wrong, text in (
        (["--show-order", "--json"], "leave one out"),
        (["--order-picture", tmp_path / "no" / "x.png"], "there is no folder"),
        (["--order-picture", tmp_path / "x.jpg"], "ends in .png"),
        (["--show-order", "--out", tmp_path / "x.jsonl"], "leave out --out"),
    ):
        status, _, error = unmask(*given, *wrong)
        assert status == 2
        assert text in " ".join(error.split())
