"""The same updates on any number of ranks; `python -m tests.learner.ranks RANK WORLD_SIZE PORT MODEL FOLDER` is one."""

import os
import sys
from pathlib import Path

import numpy as np
import torch

import rollout
import samplers
from learner import BatchStats, Sample, balance, policy_update
from learner.agdo_sft import agdo_canvases, finished_texts
from learner.config import EngineConfig, LearnerConfig, ObjectiveConfig, OptimizerConfig
from learner.masking import random_canvases
from learner.sft import make_example
from learner.sft_config import AgdoMasking, RandomMasking
from learner.worker import LearnerRank
from models.config import LoraConfig, ModelConfig
from tests.learner.small_models import small_denoiser

LORA = LoraConfig(rank=2, alpha=4.0, target_modules=("q_proj", "down_proj"))
CASES = {
    "zero1": ({"zero_stage": 1}, None),
    "zero2": ({"zero_stage": 2}, None),
    "zero3": ({"zero_stage": 3}, None),
    "zero3 lora": ({"zero_stage": 3}, LORA),
    "zero3 recomputed": ({"zero_stage": 3, "activation_checkpointing": True}, None),
}
RESUMED = {
    **{name: CASES[name] for name in ("zero2", "zero3", "zero3 lora")},
    "zero0": ({"zero_stage": 0}, None),
    "zero1 bfloat16": ({"zero_stage": 1, "dtype": "bfloat16"}, None),
}
"""What is saved by one number of ranks and read by another."""
ADVANTAGES = (0.5, -1.0, 0.0, 1.5, -0.25, 1.0)


def config(*, weight_decay=0.0, **engine):
    """Few tokens a micro-batch, so that there are several; an eps that keeps Adam from amplifying rounding."""
    return LearnerConfig(
        objective=ObjectiveConfig(kl_coef=0.1),
        optimizer=OptimizerConfig(lr=1e-2, eps=1e-3, max_grad_norm=0.5, weight_decay=weight_decay),
        engine=EngineConfig(micro_batch_tokens=40, **engine),
    )


def canvases():
    """Five prompts of different lengths, answers of six slots."""
    examples = [
        make_example([5] * (i + 1), [4 + i, 6, 7][: i % 3 + 1], max_new_tokens=6, eos_token_id=0) for i in range(5)
    ]
    return random_canvases(examples, RandomMasking(t_min=0.3), seed=3, step=0)


def samples():
    """Six answers to two prompts by the untrained model."""
    engine = rollout.Engine(small_denoiser("llada"), samplers.build("random"))
    answers = engine.generate([[5], [6, 7, 8, 9]], num_samples=3, max_new_tokens=6, temperature=1.0, seed=0)
    return [Sample(answer, advantage) for answer, advantage in zip(answers, ADVANTAGES, strict=True)]


class Ranks:
    """One rank of a case, and what it does."""

    def __init__(self, rank, world_size, port, model, case, **optimizer):
        engine, lora = (CASES | RESUMED)[case]
        model = ModelConfig(path=str(model), lora=lora)
        self.rank, self.world_size = rank, world_size
        self.worker = LearnerRank(
            model, config(**engine, **optimizer), rank=rank, world_size=world_size, total_steps=10, seed=0
        )
        self.worker.start("127.0.0.1", port)

    def supervised(self):
        """An update of which the last rank of two has one example of five."""
        batch = canvases()
        share = batch if self.world_size == 1 else (batch[:4], batch[4:])[self.rank]
        return self.worker.sft_step(share, len(batch))

    def guided(self):
        """An attention-guided update of which the last rank has one example of five, and one pass where the first has
        two."""
        examples, masking = [one.example for one in canvases()], AgdoMasking(num_canvases=2, gamma=1.0)
        own = list(range(5)) if self.world_size == 1 else ([0, 1, 2, 3], [4])[self.rank]
        texts = finished_texts([examples[i] for i in own], masking)
        found = dict(zip(own, self.worker.sft_guides(texts, masking), strict=True))
        # Masks belong to places in the whole batch; those of examples without a guide here are not used.
        whole = [found.get(i, found[own[0]]) for i in range(5)]
        drawn = agdo_canvases(examples, whole, masking, seed=0, step=0)
        return self.worker.sft_step([drawn[i] for i in own], len(examples))

    def policy(self):
        """An update with a divergence term."""
        graded = samples()
        share = balance(graded, self.world_size, keep_zero_advantage=True)[self.rank]
        return self.worker.update(share, BatchStats.of(graded))

    def terms(self):
        """Attention of the answers first, ratios over several canvases, new masks in the second epoch."""
        graded = samples()
        share = balance(graded, self.world_size)[self.rank]
        found = {}
        for settings in (
            {"likelihood": "coupled", "num_epochs": 2, "redraw_masks": True},
            {"likelihood": "agdo", "influence": 1.0, "normaliser": "canvas", "agdo": {"num_canvases": 3}},
            {"likelihood": "elbo_pair", "ratio": "sequence", "num_epochs": 2},
        ):
            objective, stats = ObjectiveConfig.model_validate(settings), BatchStats.of(graded)
            found |= policy_update(self.worker._engine, share, stats, objective, micro_batch_tokens=40)
        return found

    def weights(self):
        return {name: np.array(array) for bucket in self.worker.weights() or () for name, array in bucket.items()}


def results(rank, world_size, port, model, case, folder):
    """Metrics of two updates, weights after them (on rank 0), and whether a restored rank takes the same third."""
    ranks = Ranks(rank, world_size, port, model, case)
    metrics = ranks.supervised(), ranks.policy(), ranks.guided(), ranks.terms()
    weights = ranks.weights()
    ranks.worker.save(str(Path(folder) / case))
    third = ranks.supervised()
    restored = Ranks(rank, world_size, port, model, case)
    restored.worker.load(str(Path(folder) / case))
    return {"metrics": metrics, "weights": weights, "restored": restored.supervised() == third}


def saved(rank, world_size, port, model, case, folder):
    """Weights after two updates, when they are saved; metrics and weights of a third. Only matrices decay."""
    ranks = Ranks(rank, world_size, port, model, case, weight_decay=0.1)
    ranks.supervised(), ranks.policy()
    weights = ranks.weights()
    ranks.worker.save(str(Path(folder) / f"{case} of {world_size}"))
    return {"weights": weights, "third": ranks.supervised(), "after": ranks.weights()}


def resumed(rank, world_size, port, model, case, folder, saved_by):
    """The same of what another number of ranks has saved, without the first two updates."""
    ranks = Ranks(rank, world_size, port, model, case, weight_decay=0.1)
    ranks.worker.load(str(Path(folder) / f"{case} of {saved_by}"))
    weights = ranks.weights()
    return {"weights": weights, "third": ranks.supervised(), "after": ranks.weights()}


def main(rank, world_size, port, model, folder):
    place = (rank, world_size, port, model)
    found = {case: results(*place, case, folder) for case in CASES}
    found["saved"] = {case: saved(*place, case, folder) for case in RESUMED}
    found["resumed"] = {case: resumed(*place, case, folder, saved_by=1) for case in RESUMED}
    torch.save(found, Path(folder) / f"{rank}.pt")
    # The ranks leave together and without the interpreter's own end: threads of gloo that are still there when the
    # library's objects are torn down abort a process whose work is done.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5])
