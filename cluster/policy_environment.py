"""The environment of an unmasking policy: a frozen dLLM denoises the prompts of a round, the tasks' graders judge.

Rows of an environment: alphas x prompts x (G answers of the policy + E of experts), in this order. All alphas see the
same prompts. Which prompts, and every random number, follow from (seed, round) alone.

R rows, T response slots, n probabilities a slot.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import numpy as np
import torch

import models
from cluster.config import PolicyRecipe
from cluster.cursor import Cursor, CursorState
from learner.unmasking_objective import shaped_reward
from learner.unmasking_rounds import Ended
from reward.tasks import build
from reward.worker import GraderWorker, Item
from rollout.engine import Engine
from rollout.records import Failed, Prompt, Scored, Trajectory
from rollout.request import Request, sequence_seed
from rollout.stepwise import StepwiseRun, is_finished
from samplers.policy.observation import Looked, Undecided


class Grader(Protocol):
    """What judges answers; `reward.worker.GraderWorker` if none is given."""

    def grade(self, items: Sequence[Item]) -> Sequence[Scored | Failed]:
        """One verdict per item, in order."""

    def close(self) -> None:
        """End its processes."""


def num_rows(recipe: PolicyRecipe) -> int:
    """Rows of each environment of a run; ValueError where the prompts cannot be shared out evenly."""
    policy = recipe.policy
    shards = max(1, policy.num_env_runners)
    if policy.prompts_per_update % shards:
        raise ValueError(
            f"policy.prompts_per_update {policy.prompts_per_update} must be a multiple of policy.num_env_runners "
            f"{shards}, so that every runner has the same number of prompts"
        )
    prompts = policy.prompts_per_update // shards
    return len(policy.alphas) * prompts * (policy.num_samples + len(policy.experts))


def environment_maker(recipe: PolicyRecipe) -> Callable[[], PolicyEnvironment]:
    """What every process that draws rollouts calls; it can be sent to another process."""
    return partial(PolicyEnvironment, recipe)


class PolicyEnvironment:
    """See `learner.unmasking_policy.Environment`."""

    def __init__(
        self, recipe: PolicyRecipe, *, denoiser: models.Denoiser | None = None, grader: Grader | None = None
    ) -> None:
        policy = self._policy = recipe.policy
        self._seed = recipe.seed
        self.num_rows, self.num_slots = num_rows(recipe), policy.max_new_tokens
        self.num_probs = policy.network.num_probs
        if denoiser is None:
            torch.set_num_threads(policy.threads)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            denoiser = models.load(recipe.model.path, dtype=getattr(torch, recipe.model.dtype), device=device)
        self._denoiser = denoiser.eval().requires_grad_(False)
        self._engine = Engine(
            self._denoiser,
            Undecided(),
            block_length=policy.block_length,
            max_batch_tokens=policy.max_batch_tokens,
            max_batch_rows=self.num_rows,
        )
        if grader is None:
            grader = GraderWorker(recipe.tasks)
            grader.prove()
        self._grader = grader
        self._cursor = Cursor(
            [build(config) for config in recipe.tasks], [config.weight for config in recipe.tasks], seed=recipe.seed
        )
        each = policy.num_samples + len(policy.experts)
        prompts = self.num_rows // (len(policy.alphas) * each)
        self.alpha_R = np.repeat(np.arange(len(policy.alphas)), prompts * each)
        self._prompt_R = np.tile(np.repeat(np.arange(prompts), each), len(policy.alphas))
        self._sample_R = np.tile(np.arange(each), len(policy.alphas) * prompts)
        self.expert_R = np.where(self._sample_R < policy.num_samples, -1, self._sample_R - policy.num_samples)
        self.group_R = self._prompt_R
        self.forward_s = self.grade_s = 0.0
        self._run: StepwiseRun | None = None

    def close(self) -> None:
        """End the graders."""
        self._grader.close()

    def begin(self, round_number: int, shard: int, num_shards: int) -> None:
        """Lay out the prompts of a shard of a round."""
        policy = self._policy
        first = round_number * policy.prompts_per_update
        self._cursor.load(CursorState(frontier=first))
        visits = self._cursor.draw(policy.prompts_per_update)
        size = policy.prompts_per_update // num_shards
        self._prompts = [visit.prompt for visit in visits[shard * size : (shard + 1) * size]]
        self.group_R = self._prompt_R + shard * size
        tokens = [models.encode_prompt(self._denoiser, prompt.text, prompt.messages) for prompt in self._prompts]
        requests = [
            self._request(self._prompts[prompt], tokens[prompt], policy.alphas[alpha], int(sample))
            for alpha, prompt, sample in zip(self.alpha_R, self._prompt_R, self._sample_R, strict=True)
        ]
        self._run = StepwiseRun(self._engine, requests, num_probs=self.num_probs, eos_guard=policy.eos_guard)
        self.forward_s = self.grade_s = 0.0

    def observe(self) -> dict[str, np.ndarray] | None:
        """One forward: the observation of all rows, zeros where an answer is finished; None when all are."""
        assert self._run is not None
        started = time.perf_counter()
        found = self._run.observe()
        self.forward_s += time.perf_counter() - started
        if found is None:
            return None
        rows, looked = found
        self._rows, self._looked = np.array(rows), looked
        self._eligible_rT = self._eligible(looked)
        seen, slots = looked.observation, self.num_slots
        blank = {
            "prob": np.zeros((self.num_rows, slots, self.num_probs), np.float32),
            **{name: np.zeros((self.num_rows, slots), bool) for name in ("masked", "eligible", "valid")},
            "elapsed": np.zeros((self.num_rows, 1), np.float32),
        }
        live = {
            "prob": seen.prob_RTn,
            "masked": seen.masked_RT,
            "eligible": self._eligible_rT,
            "valid": seen.valid_RT,
            "elapsed": seen.elapsed_R[:, None],
        }
        for name, value in live.items():
            blank[name][self._rows] = value.cpu().numpy()
        return blank

    def uniform(self, number: int) -> torch.Tensor:
        """Random numbers (R, T + 1) of the step, each answer's own."""
        uniform_RK = torch.zeros(self.num_rows, self.num_slots + 1, dtype=torch.float64)
        uniform_RK[self._rows] = self._looked.uniform(number).cpu()
        return uniform_RK

    def act(self, action_RT: np.ndarray) -> Sequence[Ended]:
        """Commit; the answers that are finished now, graded."""
        assert self._run is not None
        chosen_rT = torch.from_numpy(action_RT[self._rows] > 0).to(self._eligible_rT.device)
        if bool((chosen_rT & ~self._eligible_rT).any()):
            raise ValueError("an action commits a slot that is not eligible")
        if self._policy.empty_action == "commit":
            empty_r1 = ~chosen_rT.any(dim=1, keepdim=True)
            chosen_rT = torch.where(empty_r1, self._looked.most_confident(), chosen_rT)
        finished = self._run.act(chosen_rT)
        return self._grade(finished) if finished else []

    def _eligible(self, looked: Looked) -> torch.Tensor:
        """Slots that may be committed; experts may commit every masked slot, whatever the end guard says."""
        is_expert_r1 = torch.from_numpy(self.expert_R[self._rows] >= 0).to(looked.candidate_RT.device)[:, None]
        return torch.where(is_expert_r1, looked.candidate_RT, looked.observation.eligible_RT)

    def _grade(self, finished: Sequence[tuple[int, Trajectory]]) -> list[Ended]:
        started = time.perf_counter()
        texts = [
            models.decode_answer(self._denoiser, answer.tokens[: answer.answer_length].tolist())
            for _, answer in finished
        ]
        prompts = [self._prompts[self._prompt_R[row]] for row, _ in finished]
        scores = self._grader.grade(
            [(prompt.task, prompt.gold, text) for prompt, text in zip(prompts, texts, strict=True)]
        )
        self.grade_s += time.perf_counter() - started
        ended = []
        for (row, answer), score in zip(finished, scores, strict=True):
            whole = is_finished(answer)
            if isinstance(score, Failed):
                ended.append(Ended(row, math.nan, math.nan, answer.num_steps, whole, score.kind))
                continue
            correct = score.parts.get("correct", score.value) if whole else 0.0
            reward = shaped_reward(
                correct=correct,
                num_steps=answer.num_steps,
                num_slots=self.num_slots,
                alpha=self._policy.alphas[self.alpha_R[row]],
                form=self._policy.reward,
            )
            ended.append(Ended(row, reward, correct, answer.num_steps, whole))
        return ended

    def _request(self, prompt: Prompt, tokens: Sequence[int], alpha: float, sample: int) -> Request:
        return Request(
            prompt_tokens=tokens,
            max_new_tokens=self.num_slots,
            seed=sequence_seed(self._seed, prompt.id, f"alpha {alpha:g}", sample),
            prompt_id=prompt.id,
            sample_index=sample,
        )
