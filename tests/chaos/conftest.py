"""Recipes of runs that are going to be disturbed."""

import json

import pytest
import ray

from cluster.config import TrainRecipe


def sketch_recipe(model, runs_dir, *, address="local", **changes):
    """Two prompts of two answers a step, a checkpoint every second step."""
    settings = {
        "name": "chaos",
        "runs_dir": str(runs_dir),
        "steps": 6,
        "prompts_per_step": 2,
        "model": {"path": str(model)},
        "tasks": [{"name": "arithmetic"}],
        "eval": {"max_new_tokens": 2, "limit": 1},
        "rollout": {"max_new_tokens": 2, "num_samples": 3, "num_workers": 2, "cpus_per_worker": 0.1, "max_retries": 4},
        "reward": {"cpus_per_worker": 0.1, "max_retries": 4},
        "learner": {"engine": {"micro_batch_tokens": 64, "cpus_per_rank": 0.1}},
        "checkpoint": {"every": 2},
        "cluster": {"mode": "ray", "address": address, "stall_timeout_s": 600, "max_learner_restarts": 10},
    }
    return TrainRecipe.model_validate(settings | changes)


@pytest.fixture
def recipe(small_model, tmp_path, local_ray):
    """Makes recipes on the shared Ray; each name has a runs folder of its own."""
    address = ray.get_runtime_context().gcs_address

    def make(name, **changes):
        return sketch_recipe(small_model, tmp_path / name, address=address, **changes)

    return make


@pytest.fixture(scope="session")
def undisturbed(small_model, tmp_path_factory, local_ray):
    """Weights and ledger of the run that nothing happens to."""
    from tests.chaos.monkey import outcome, run_with

    run, _ = run_with(sketch_recipe(small_model, tmp_path_factory.mktemp("undisturbed")))
    return outcome(run.folder.path)


@pytest.fixture(scope="session")
def digit_model(small_model, tmp_path_factory):
    """A random model that says nothing but digits; the rows beside it have the answer 3, so that some are right."""
    import torch

    import models

    denoiser = models.load(small_model)
    canvas = [*models.encode_prompt(denoiser, "1+2="), denoiser.mask_token_id]
    with torch.no_grad():
        hidden_D = denoiser.hidden(torch.tensor([canvas]))[0, -1]
        noise_VD = 0.02 * torch.randn(10, len(hidden_D), generator=torch.Generator().manual_seed(0))
        head_VD = denoiser.backbone.lm_head.weight.zero_()
        head_VD[models.encode_prompt(denoiser, "0123456789")] = 8 * hidden_D / hidden_D.square().sum() + noise_VD
    folder = tmp_path_factory.mktemp("digits") / "model"
    models.save(denoiser, folder)
    rows = [{"input": "0+3", "output": "3"}, {"input": "1+2", "output": "3"}, {"input": "5-2", "output": "3"}]
    (folder.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
