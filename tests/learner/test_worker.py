import numpy as np
import pytest
import torch

import models
from learner import BatchStats, Sample, checkpoint
from learner.config import EngineConfig, LearnerConfig, ObjectiveConfig, OptimizerConfig
from learner.masking import random_canvases
from learner.sft import make_example
from learner.sft_config import RandomMasking
from learner.worker import LearnerRank
from models.config import LoraConfig, ModelConfig
from tests.learner.small_models import trajectory

LEARNER = LearnerConfig(
    objective=ObjectiveConfig(kl_coef=0.1, num_epochs=2),
    optimizer=OptimizerConfig(lr=1e-2, warmup_steps=2),
    engine=EngineConfig(micro_batch_tokens=64),
)


def rank(path, *, learner=LEARNER, lora=None):
    worker = LearnerRank(ModelConfig(path=str(path), lora=lora), learner, rank=0, world_size=1, total_steps=10, seed=0)
    worker.start("127.0.0.1", worker.free_port())
    return worker


def canvases():
    examples = [make_example([20 + i] * (i + 2), [30, 31], max_new_tokens=4, eos_token_id=0) for i in range(6)]
    return random_canvases(examples, RandomMasking(t_min=0.5), seed=0, step=0)


def samples():
    answers = [trajectory([30, 31 + i, 0, 0], [0, 1, 2, 3], num_steps=3) for i in range(2)]
    return [Sample(answer, advantage) for answer, advantage in zip(answers, (1.0, -1.0), strict=True)]


def arrays(worker):
    return {name: np.array(array) for bucket in worker.weights() for name, array in bucket.items()}


def test_supervised_steps_lower_the_loss_and_tell_norm_and_rate(small_model):
    worker = rank(small_model)
    before = worker.sft_evaluate(canvases(), 6)["loss"]
    steps = [worker.sft_step(canvases(), 6) for _ in range(6)]
    assert steps[0]["loss"] == pytest.approx(before, rel=1e-5)
    assert worker.sft_evaluate(canvases(), 6)["loss"] < 0.8 * before
    assert [step["lr"] for step in steps[:3]] == [0.005, 0.01, 0.01]
    assert all(step["grad_norm"] > 0 for step in steps)


def test_policy_update_takes_its_epochs_as_optimizer_steps(small_model):
    worker = rank(small_model)
    before = arrays(worker)
    metrics = worker.update(samples(), BatchStats.of(samples()))
    assert {"loss", "kl", "grad_norm", "lr"} <= metrics.keys()
    assert metrics["lr"] == 0.01  # warm-up of two steps: the second epoch is at the full rate
    after = arrays(worker)
    assert any(not np.array_equal(before[name], after[name]) for name in before)


def test_weights_fit_a_model_of_the_same_shape(small_model):
    worker = rank(small_model)
    worker.sft_step(canvases(), 6)
    other = models.load(small_model)
    weights = arrays(worker)
    models.load_named(other, {name: torch.from_numpy(array) for name, array in weights.items()})
    assert all(np.array_equal(value.detach(), weights[name]) for name, value in other.backbone.named_parameters())


def test_resumed_rank_takes_the_same_next_step_bit_for_bit(small_model, tmp_path):
    worker = rank(small_model)
    worker.sft_step(canvases(), 6)
    worker.update(samples(), BatchStats.of(samples()))
    path = tmp_path / "step_000002"
    worker.save(str(path), {"run": {"step": 2}})
    expected = worker.sft_step(canvases(), 6)
    resumed = rank(small_model)
    assert resumed.load(str(path))["run"] == {"step": 2}
    assert resumed.sft_step(canvases(), 6) == expected
    assert all(np.array_equal(array, arrays(resumed)[name]) for name, array in arrays(worker).items())


def test_checkpoint_holds_a_model_that_loads_with_its_tokenizer(small_model, tmp_path):
    worker = rank(small_model)
    worker.sft_step(canvases(), 6)
    worker.save(str(tmp_path / "step_000001"))
    saved = models.load(tmp_path / "step_000001" / "model")
    assert models.encode_prompt(saved, "1+2=") == models.encode_prompt(models.load(small_model), "1+2=")
    weights = arrays(worker)
    assert all(np.array_equal(value.detach(), weights[name]) for name, value in saved.backbone.named_parameters())


def test_lora_checkpoint_is_the_adapter_on_its_base(small_model, tmp_path):
    worker = rank(small_model, lora=LoraConfig(rank=2, target_modules=("q_proj",)))
    worker.sft_step(canvases(), 6)
    worker.save(str(tmp_path / "step_000001"))
    assert (tmp_path / "step_000001" / "model" / "adapter_model.safetensors").exists()
    saved, weights = models.load(tmp_path / "step_000001" / "model"), arrays(worker)
    assert weights.keys() == models.lora_state(saved).keys()
    assert all(np.array_equal(value.detach(), weights[name]) for name, value in models.lora_state(saved).items())


def test_checkpoint_of_another_stage_is_refused_with_the_way_out(small_model, tmp_path):
    worker = rank(small_model)
    worker.save(str(tmp_path / "step_000000"))
    other = rank(small_model, learner=LEARNER.model_copy(update={"engine": EngineConfig(zero_stage=2)}))
    with pytest.raises(checkpoint.CheckpointError, match="zero_stage = 1, this run has 2: resume with the same"):
        other.load(str(tmp_path / "step_000000"))


def test_a_rank_that_was_not_started_says_so():
    worker = LearnerRank(ModelConfig(), LEARNER, rank=0, world_size=1, total_steps=1, seed=0)
    with pytest.raises(RuntimeError, match=r"start\(\)"):
        worker.weights()
