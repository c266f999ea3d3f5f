"""A run that trains unmasking policies, from recipe to summary: rounds, evaluations, checkpoints, record.

Prompts and random numbers of a round follow from (seed, round) alone, and a checkpoint holds RLlib's whole learner
(weights and optimizer), so a resumed run goes on as if it had never stopped.

    checkpoints/step_000100/learner/                     RLlib's own checkpoint
    checkpoints/step_000100/alpha_3/policy.safetensors   the policy of alpha 3 with its card: `--set sampler.path=...`
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.config import PolicyRecipe
from cluster.evaluate import evaluate
from cluster.logs import log_file
from cluster.metrics import eval_metrics
from cluster.policy_card import card
from cluster.policy_environment import environment_maker, num_rows
from cluster.progress import Progress
from cluster.ray_start import ray_session
from cluster.run_folder import RunFolder, open_run_folder
from cluster.tracked import tracked
from cluster.tracking import Tracker, saved_run_id
from learner import checkpoint
from learner.unmasking_policy import UnmaskingAlgorithm, options_of
from learner.unmasking_rounds import Round
from learner.unmasking_warm_start import warm_start
from reward.tasks import build
from reward.worker import GraderWorker
from rollout.config import EvalConfig, RolloutConfig
from rollout.request import sequence_seed
from rollout.worker import RolloutWorker
from samplers.config import SamplerConfig
from samplers.policy.config import PolicySettings
from samplers.policy.files import save_policy

logger = logging.getLogger(__name__)

BASELINE = "threshold"
"""Sampler that is evaluated before the first update, for comparison."""


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """What a run has done."""

    run_dir: Path
    updates: int
    baseline: Mapping[str, float]
    """Evaluation of the threshold sampler."""
    last: Mapping[str, float]
    """Newest evaluation of every policy."""
    policies: Mapping[str, Path]
    """Folder of each policy by its name."""


def policy_name(alpha: float) -> str:
    """`alpha_3`: folder and metric section of a policy."""
    return f"alpha_{alpha:g}"


def run_policy(recipe: PolicyRecipe, *, resume: bool = False) -> PolicySummary:
    """Trains as the recipe says; with `resume` from the newest checkpoint of the newest run of this name."""
    rows = num_rows(recipe)
    folder = open_run_folder(recipe, resume=resume)
    start = checkpoint.latest(folder.checkpoints) if resume else None
    with log_file(folder.log_dir, "driver"), ExitStack() as stack:
        progress = stack.enter_context(Progress(recipe.policy.updates, title=folder.path.name))
        progress.note(f"starting; run folder {folder.path}")
        # RLlib needs Ray for its object store even where everything runs in the driver.
        stack.enter_context(ray_session(recipe.cluster.model_copy(update={"mode": "ray"})))
        options = options_of(
            recipe.policy,
            environment_maker(recipe),
            seed=recipe.seed,
            num_rows=rows,
            start=None if start is not None else _warm_weights(recipe, progress),
        )
        # It warns on every start that the new API stack is in use.
        logging.getLogger("ray.rllib").setLevel(logging.ERROR)
        algorithm: Any = options.build_algo()
        stack.callback(algorithm.stop)
        if start is not None:
            restore(algorithm, start)
            progress.note(f"resumed from {start}")
        run_id = saved_run_id(folder.path)
        tracker = stack.enter_context(
            tracked(recipe, folder.path, run_id, at_end=lambda _: checkpoint.latest(folder.checkpoints))
        )
        return PolicyRun(recipe, folder, algorithm, tracker, progress).train()


def _warm_weights(recipe: PolicyRecipe, progress: Progress) -> dict[str, torch.Tensor] | None:
    """Weights after the imitation that the recipe asks for."""
    warm = recipe.policy.warm_start
    if warm is None:
        return None
    # A threshold's answers to one prompt are all alike: one of each is enough. Prompts are those of another seed.
    alone = {
        "alphas": (0.0,),
        "num_samples": 1,
        "prompts_per_update": warm.prompts,
        "experts": (),
        "num_env_runners": 0,
    }
    seed = sequence_seed(recipe.seed, "warm start") % 2**31
    changed = recipe.model_copy(update={"seed": seed, "policy": recipe.policy.model_copy(update=alone)})
    environment = environment_maker(changed)()
    try:
        weights = warm_start(environment, recipe.policy, seed=recipe.seed)
    finally:
        environment.close()
    progress.note(f"began as a threshold of {warm.tau:g}, from {warm.prompts} prompts")
    return weights


def restore(algorithm: UnmaskingAlgorithm, path: Path) -> None:
    """Bring a fresh algorithm to where a checkpoint was written."""
    state = checkpoint.read_state(path)
    algorithm.learner_group.restore_from_path(str(path / "learner"))
    algorithm.update = int(state["run"]["update"])
    algorithm.send_weights()


@dataclass
class PolicyRun:
    """The parts of one run."""

    recipe: PolicyRecipe
    folder: RunFolder
    algorithm: UnmaskingAlgorithm
    tracker: Tracker
    progress: Progress

    def train(self) -> PolicySummary:
        """The updates that are left, with evaluations and checkpoints on the way."""
        policy = self.recipe.policy
        baseline: dict[str, float] = {}
        last: dict[str, float] = {}
        if self.algorithm.update == 0:
            baseline = self._evaluate({BASELINE: SamplerConfig(name=BASELINE)})
        path = checkpoint.latest(self.folder.checkpoints)
        while self.algorithm.update < policy.updates:
            metrics = self._update()
            self.tracker.log(self.algorithm.update, metrics)
            self.progress.step(self.algorithm.update, metrics)
            evaluates = self._is_due(self.recipe.eval.every)
            if evaluates or self._is_due(self.recipe.checkpoint.every):
                path = self.save()
            if evaluates:
                last = self._evaluate(_samplers(self._policies(path)))
        return PolicySummary(self.folder.path, self.algorithm.update, baseline, last, self._policies(path))

    def save(self) -> Path:
        """Write a checkpoint of the present update; the newest ones stay."""
        update = self.algorithm.update
        path = checkpoint.step_folder(self.folder.checkpoints, update)
        partial_path = checkpoint.start(path)
        self.algorithm.learner_group.save_to_path(str(partial_path / "learner"))
        for index, alpha in enumerate(self.recipe.policy.alphas):
            settings = settings_of(self.recipe, alpha, update)
            weights = self.algorithm.weights(index)
            save_policy(partial_path / policy_name(alpha), weights, settings, card=card(settings))
        checkpoint.finish(path, {"run": {"update": update}})
        checkpoint.link(self.folder.checkpoints / "latest", path)
        checkpoint.prune(self.folder.checkpoints, keep=self.recipe.checkpoint.keep)
        return path

    def _update(self) -> dict[str, float]:
        started = time.perf_counter()
        self.algorithm.train()
        step_s = time.perf_counter() - started
        return {**round_metrics(self.recipe, self.algorithm.round, self.algorithm.numbers), "time/step_s": step_s}

    def _policies(self, path: Path | None) -> dict[str, Path]:
        if path is None:
            return {}
        return {policy_name(alpha): path / policy_name(alpha) for alpha in self.recipe.policy.alphas}

    def _evaluate(self, samplers: Mapping[str, SamplerConfig]) -> dict[str, float]:
        """`eval.<task>.<name>/...` of each sampler on the held-out rows."""
        recipe = self.recipe
        found: dict[str, float] = {}
        worker = RolloutWorker(recipe.model, RolloutConfig(max_batch_tokens=recipe.policy.max_batch_tokens))
        worker.load()
        with closing(GraderWorker(recipe.tasks)) as grader:
            grader.prove()
            for task in [build(config) for config in recipe.tasks]:
                for name, sampler in samplers.items():
                    config = _eval_config(recipe, sampler)
                    result = evaluate(
                        lambda prompts, num_samples, seed, decoding: worker.generate(
                            prompts, num_samples=num_samples, seed=seed, decoding=decoding
                        ),
                        grader.grade,
                        task,
                        config,
                        recipe.seed,
                    )
                    section = f"eval.{task.name}"
                    metrics = eval_metrics(result.samples)
                    found |= {f"{section}.{name}{key.removeprefix(section)}": value for key, value in metrics.items()}
                    self.progress.note(
                        f"update {self.algorithm.update}: {task.name} {name} {result.accuracy:.1%} "
                        f"with {result.forwards_per_answer:.2f} forwards"
                    )
        self.tracker.log(self.algorithm.update, found)
        return found

    def _is_due(self, every: int) -> bool:
        update = self.algorithm.update
        return update == self.recipe.policy.updates or (every > 0 and update % every == 0)


def settings_of(recipe: PolicyRecipe, alpha: float, update: int) -> PolicySettings:
    """What is saved beside the weights of one policy."""
    policy = recipe.policy
    return PolicySettings(
        network=policy.network,
        law=policy.law,
        fallback="confidence" if policy.empty_action == "commit" else "logit",
        trained={
            "model": recipe.model.path,
            "tasks": ",".join(task.name for task in recipe.tasks),
            "alpha": alpha,
            "reward": policy.reward,
            "max_new_tokens": policy.max_new_tokens,
            "block_length": policy.block_length,
            "num_experts": len(policy.experts),
            "warm_start_tau": None if policy.warm_start is None else policy.warm_start.tau,
            "updates": update,
            "prompts_per_update": policy.prompts_per_update,
            "num_samples": policy.num_samples,
            "seed": recipe.seed,
        },
    )


def round_metrics(recipe: PolicyRecipe, one: Round, numbers: Mapping[str, float]) -> dict[str, float]:
    """One round in numbers: the policies' under `policy.alpha_3/`, the environment's under `env/`."""
    episodes, graded_E = one.episodes, ~np.isnan(one.episodes.reward_E)
    own_E = graded_E & ~episodes.is_expert_E
    metrics = {"reward/mean": float(episodes.reward_E[own_E].mean())} if own_E.any() else {}
    for index, alpha in enumerate(recipe.policy.alphas):
        mine_E = own_E & (episodes.alpha_E == index)
        section = f"policy.{policy_name(alpha)}"
        if mine_E.any():
            metrics |= {
                f"{section}/reward_mean": float(episodes.reward_E[mine_E].mean()),
                f"{section}/accuracy": float(episodes.correct_E[mine_E].mean()),
                f"{section}/steps_mean": float(episodes.num_steps_E[mine_E].mean()),
                f"{section}/finished_rate": float(episodes.finished_E[mine_E].mean()),
                f"{section}/zero_variance_rate": _zero_variance(one, mine_E),
            }
        learned = {name: value for name, value in numbers.items() if name.endswith(f"/{index}")}
        metrics |= {f"{section}/{name.rpartition('/')[0]}": value for name, value in learned.items()}
    steps = len(one.steps.episode_M)
    metrics |= {
        "env/steps_per_s": steps / one.env_s,
        "env/answers_per_s": len(graded_E) / one.env_s,
        "env/forward_share": one.forward_s / (one.env_s + one.policy_s),
        "env/policy_share": one.policy_s / (one.env_s + one.policy_s),
        "failure/total": float(sum(one.failures.values())),
        **{f"failure/{kind}": float(count) for kind, count in one.failures.items()},
        **{f"time/{name}": value for name, value in numbers.items() if name.endswith("_s")},
    }
    return metrics


def _zero_variance(one: Round, mine_E: np.ndarray) -> float:
    """Share of the prompts whose answers all got the same reward."""
    episodes = one.episodes
    groups = [episodes.reward_E[mine_E & (episodes.group_E == g)] for g in np.unique(episodes.group_E[mine_E])]
    return float(np.mean([rewards.max() == rewards.min() for rewards in groups]))


def _samplers(policies: Mapping[str, Path]) -> dict[str, SamplerConfig]:
    return {name: SamplerConfig(name="policy", options={"path": str(path)}) for name, path in policies.items()}


def _eval_config(recipe: PolicyRecipe, sampler: SamplerConfig) -> EvalConfig:
    """The recipe's evaluation on the canvas that is trained on."""
    changes = {
        "sampler": sampler,
        "max_new_tokens": recipe.policy.max_new_tokens,
        "block_length": recipe.policy.block_length,
    }
    return recipe.eval.model_copy(update=changes)
