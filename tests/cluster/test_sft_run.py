import json
from collections import Counter
from pathlib import Path

import pytest

import models
from cluster.config import SftRecipe
from cluster.sft_data import Examples, apportion
from cluster.sft_run import run_sft

TASKS = [{"name": name, "num_train_rows": 64} for name in ("arithmetic", "countdown", "sudoku4")]
SFT = {"batch_size": 8, "steps": 4, "max_new_tokens": 18, "masking": {"kind": "random", "t_min": 0.1}, "eval_every": 2}


def recipe(folder, **settings):
    values = {
        "name": "sft",
        "runs_dir": str(folder),
        "model": {"path": "new-tiny"},
        "tasks": TASKS,
        "sft": SFT,
        "learner": {"optimizer": {"lr": 2e-3}, "engine": {"micro_batch_tokens": 512}},
        "eval": {"limit": 2, "max_new_tokens": 16, "steps": 2},
        "cluster": {"mode": "local"},
        "checkpoint": {"every": 1},
    }
    return SftRecipe.model_validate(values | settings)


def losses(run_dir):
    rows = [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["sft/loss"] for row in rows if "sft/loss" in row}


def test_shares_are_whole_and_add_up():
    assert apportion([1, 1, 1], 8) == [3, 3, 2]
    assert apportion([8, 10, 1], 64) == [27, 34, 3]  # 26.95, 33.68, 3.37
    assert apportion([1, 100], 8) == [0, 8]


def test_an_epoch_visits_every_row_once(tmp_path):
    examples = Examples(recipe(tmp_path), models.create_tiny(0))
    # 8 examples a step: 3 + 3 + 2; after 32 steps the third task has drawn 64, all its rows once
    seen = Counter(tuple(example.prompt_tokens) for step in range(32) for example in examples.batch(step)[6:])
    task, denoiser = examples.tasks[2], models.create_tiny(0)
    prompts = [task.prompt(row) for row in task.rows("train")]
    assert seen == Counter(tuple(models.encode_prompt(denoiser, prompt.text)) for prompt in prompts)


def test_batches_follow_from_the_seed(tmp_path):
    def prompts(seed, step):
        examples = Examples(recipe(tmp_path, seed=seed), models.create_tiny(0))
        return [example.prompt_tokens.tolist() for example in examples.batch(step)]

    assert prompts(0, 5) == prompts(0, 5)
    assert prompts(0, 5) != prompts(0, 6)
    assert prompts(0, 5) != prompts(1, 5)


def test_task_without_a_share_is_refused(tmp_path):
    tasks = [TASKS[0] | {"weight": 100}, TASKS[1]]
    with pytest.raises(ValueError, match=r"'countdown' with weight 1\.0 gets no example in a batch of 8"):
        Examples(recipe(tmp_path, tasks=tasks), models.create_tiny(0))


def test_resumed_run_has_the_losses_of_one_that_never_stopped(tmp_path):
    straight = run_sft(recipe(tmp_path, name="straight"))
    assert straight.steps == 4
    assert straight.best["eval/loss"] < straight.first["eval/loss"]
    assert models.load(straight.checkpoint).tokenizer is not None
    settings = SFT | {"steps": 3}
    run_sft(recipe(tmp_path, name="stopped", sft=settings))
    resumed = run_sft(recipe(tmp_path, name="stopped"), resume=True)
    assert losses(resumed.run_dir) == losses(straight.run_dir)
    assert resumed.last == straight.last
    assert resumed.first == straight.first


def test_resumed_attention_guided_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    """Masks follow from the weights too, and the weights are those of the checkpoint."""
    settings = SFT | {"steps": 2, "masking": {"kind": "agdo", "num_canvases": 3, "gamma": 10}}
    straight = run_sft(recipe(tmp_path, name="straight", sft=settings))
    run_sft(recipe(tmp_path, name="stopped", sft=settings | {"steps": 1}))
    resumed = run_sft(recipe(tmp_path, name="stopped", sft=settings), resume=True)
    assert losses(resumed.run_dir) == losses(straight.run_dir)
    (row, *_) = (json.loads(line) for line in (Path(straight.run_dir) / "metrics.jsonl").read_text().splitlines()[1:2])
    assert row["sft/num_canvases"] == 3
    assert 0 < row["sft/influence_mean"] <= row["sft/influence_max"]


def test_several_ranks_need_ray(tmp_path):
    with pytest.raises(ValueError, match=r"num_ranks is 2 with cluster\.mode local"):
        run_sft(recipe(tmp_path, learner={"engine": {"num_ranks": 2}}))
