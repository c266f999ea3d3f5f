"""One recipe of two stages: what each stage gets, what is refused, and a run of both that can be interrupted."""

from pathlib import Path

import pytest
import yaml

import models
from cluster.config import TrainRecipe
from cluster.dry_run import plan, show
from cluster.errors import RecipeError
from cluster.pipeline import load_pipeline, run_pipeline, whole_model
from cluster.recipe import load
from cluster.terminal import console
from models.config import LoraConfig

RECIPES = Path(__file__).parents[2] / "recipes"
PIPELINES = sorted(path for path in RECIPES.glob("*.yaml") if "\ntrain:" in path.read_text())
STAGES = {
    "name": "both",
    "shared": {
        "model": {"path": "tiny"},
        "tasks": [{"name": "arithmetic", "num_train_rows": 64}],
        "eval": {"limit": 2, "max_new_tokens": 8, "steps": 2},
        "cluster": {"mode": "local"},
        "learner": {"engine": {"micro_batch_tokens": 1024}, "optimizer": {"lr": 1e-3}},
    },
    "sft": {"sft": {"batch_size": 4, "steps": 2, "max_new_tokens": 8, "masking": {"kind": "agdo", "num_canvases": 2}}},
    "train": {
        "steps": 1,
        "prompts_per_step": 2,
        "rollout": {"num_samples": 2, "max_new_tokens": 8, "steps": 4},
        "learner": {"optimizer": {"lr": 1e-4}},
    },
}


def write(folder, **changes):
    path = folder / "both.yaml"
    path.write_text(yaml.safe_dump(STAGES | changes, sort_keys=False))
    return path


def test_stages_get_the_shared_settings_under_their_own(tmp_path):
    pipeline = load_pipeline(write(tmp_path), overrides=["train.steps=3", "shared.seed=5", "sft.eval.limit=1"])
    sft, train = pipeline.sft, pipeline.train
    assert (sft.recipe.name, train.recipe.name) == ("both-sft", "both-train")
    assert sft.recipe.seed == train.recipe.seed == 5
    assert (sft.recipe.learner.optimizer.lr, train.recipe.learner.optimizer.lr) == (1e-3, 1e-4)
    assert train.recipe.learner.engine.micro_batch_tokens == 1024  # beside the stage's own optimizer
    assert (sft.recipe.eval.limit, train.recipe.eval.limit) == (1, 2)
    assert (train.recipe.steps, train.origin("steps"), train.origin("seed")) == (3, "command line", "command line")
    assert (sft.origin("tasks.0.name"), sft.origin("learner.optimizer.lr")) == ("recipe", "recipe")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"trian": {}}, r"trian: unknown key \(did you mean 'train'\?\)"),
        ({"train": None}, "train: must be a mapping of settings; a pipeline has the stages sft and train"),
        (
            {"train": STAGES["train"] | {"model": {"path": "tiny"}}},
            "train.model.path: cannot be given",
        ),
        ({"train": STAGES["train"] | {"stepz": 3}}, r"line \d+, stepz: unknown key \(did you mean 'steps'\?\)"),
        ({"sft": {"sft": {"masking": "agod"}}}, r"line \d+, sft.masking: kind is 'agod' \(did you mean 'agdo'\?\)"),
    ],
)
def test_broken_pipeline_is_refused_with_its_line(tmp_path, changes, problem):
    with pytest.raises(RecipeError, match=problem):
        load_pipeline(write(tmp_path, **changes))


def test_pipeline_given_to_another_command_names_the_right_one(tmp_path):
    with pytest.raises(RecipeError, match="a recipe of two stages, sft and train; run it with `unmask pipeline`"):
        load(write(tmp_path), TrainRecipe)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_every_pipeline_plans(path, capsys):
    pipeline = load_pipeline(path)
    for stage in (pipeline.sft, pipeline.train):
        planned = plan(stage)
        show(planned, console(), source=path)
        assert planned.warnings == []
        assert planned.memory
    assert "nothing is started" in capsys.readouterr().out


def test_second_stage_starts_from_the_best_checkpoint_of_the_first_and_resumes(tmp_path):
    pipeline = load_pipeline(write(tmp_path), overrides=[f"shared.runs_dir={tmp_path}"])
    heard = []
    tuned, trained = run_pipeline(pipeline, resume=False, told=heard.append)
    assert heard == [tuned]
    assert (tuned.steps, trained.steps_done) == (2, 1)
    config = yaml.safe_load((trained.run_dir / "config.yaml").read_text())
    assert config["model"]["path"] == tuned.checkpoint
    longer = load_pipeline(write(tmp_path), overrides=[f"shared.runs_dir={tmp_path}", "train.steps=2"])
    again, resumed = run_pipeline(longer, resume=True, told=heard.append)
    assert again.run_dir == tuned.run_dir
    assert (resumed.run_dir, resumed.steps_done) == (trained.run_dir, 2)


def test_adapter_of_the_first_stage_becomes_part_of_the_weights(tmp_path):
    denoiser = models.load("tiny")
    models.apply_lora(denoiser, LoraConfig(rank=2, target_modules=("q_proj",)), seed=0)
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(0.0, 0.1)
    models.save(denoiser, tmp_path / "model")
    merged = whole_model(tmp_path / "model")
    assert merged == whole_model(tmp_path / "model")
    import torch

    tokens = torch.arange(3, 23)[None]
    assert torch.allclose(models.load(merged).logits(tokens), denoiser.logits(tokens), atol=1e-4)
    assert whole_model(merged) == merged
