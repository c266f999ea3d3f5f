"""A round of rollouts as data: what one environment has recorded, and the flat batch that the policies learn from.

M steps, T response slots, n probabilities a slot, E episodes; episodes of one prompt and alpha (policy and expert ones)
are a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from learner.advantage import group_advantages
from learner.unmasking_objective import step_weights


@dataclass(frozen=True, slots=True)
class Ended:
    """How one answer ended."""

    row: int
    """Row of the environment."""
    reward: float
    """nan where grading failed."""
    correct: float
    """0 or 1; nan where grading failed."""
    num_steps: int
    finished: bool
    """Nothing was masked before the end."""
    failure: str = ""
    """Kind of a failed grading."""


@dataclass(frozen=True, slots=True)
class Steps:
    """Every step of some episodes, a row each."""

    prob_MTn: np.ndarray
    """float32. What the policy saw (`samplers.policy.observation.Observation`)."""
    masked_MT: np.ndarray
    eligible_MT: np.ndarray
    valid_MT: np.ndarray
    elapsed_M: np.ndarray
    action_MT: np.ndarray
    """int64. What was done (`samplers.policy.laws`)."""
    old_log_prob_M: np.ndarray
    """float32. ln pi of the action when it was drawn; for an expert's step that of the policy, not of the mixture."""
    episode_M: np.ndarray
    """int64. Index of the episode."""

    @staticmethod
    def joined(parts: Sequence[Steps], offsets: Sequence[int]) -> Steps:
        """Steps of several environments; `offsets` are added to their episode numbers."""
        columns = {item.name: np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(Steps)}
        columns["episode_M"] = np.concatenate(
            [part.episode_M + offset for part, offset in zip(parts, offsets, strict=True)]
        )
        return Steps(**columns)


@dataclass(frozen=True, slots=True)
class Episodes:
    """How E episodes ended."""

    alpha_E: np.ndarray
    """int64. Index of the policy."""
    group_E: np.ndarray
    """int64. Number of the prompt in its round, the same for all alphas."""
    is_expert_E: np.ndarray
    """bool."""
    reward_E: np.ndarray
    """float32. nan where grading failed."""
    correct_E: np.ndarray
    """float32. 0 or 1; nan where grading failed."""
    num_steps_E: np.ndarray
    """int64."""
    finished_E: np.ndarray
    """bool. Nothing was masked before the end."""

    @staticmethod
    def joined(parts: Sequence[Episodes]) -> Episodes:
        """Episodes of several environments."""
        return Episodes(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(Episodes)))


@dataclass(frozen=True, slots=True)
class Round:
    """What the environments have drawn for one update."""

    steps: Steps
    episodes: Episodes
    failures: dict[str, int]
    """Failed gradings by kind."""
    env_s: float
    """Seconds inside the environment (denoising, draws, grading), over all environments."""
    forward_s: float
    """Seconds of it inside the model's forward and head."""
    policy_s: float
    """Seconds inside the policy network."""

    @staticmethod
    def joined(rounds: Sequence[Round]) -> Round:
        """The shards of one round."""
        sizes = np.cumsum([0, *(len(one.episodes.alpha_E) for one in rounds)])
        failures: dict[str, int] = {}
        for one in rounds:
            for kind, count in one.failures.items():
                failures[kind] = failures.get(kind, 0) + count
        return Round(
            Steps.joined([one.steps for one in rounds], sizes[:-1].tolist()),
            Episodes.joined([one.episodes for one in rounds]),
            failures,
            env_s=sum(one.env_s for one in rounds),
            forward_s=sum(one.forward_s for one in rounds),
            policy_s=sum(one.policy_s for one in rounds),
        )


def advantages(episodes: Episodes) -> torch.Tensor:
    """Reward minus the mean of its group (E,), float32; 0 for failed gradings and groups of equal rewards."""
    key_E = episodes.alpha_E * (int(episodes.group_E.max(initial=0)) + 1) + episodes.group_E
    advantage_E = torch.zeros(len(key_E))
    for key in np.unique(key_E):
        (member_G,) = np.nonzero(key_E == key)
        score_1G = torch.from_numpy(episodes.reward_E[member_G].astype(np.float32))[None]
        advantage_E[member_G] = group_advantages(score_1G, ~score_1G.isnan(), kind="mean")[0]
    return advantage_E


def batch_of(one: Round, alpha: int) -> dict[str, torch.Tensor] | None:
    """The steps of one policy that teach something, as tensors; None where no group of it does.

    Steps of zero advantage are left out: they have no gradient. Weights still count all graded episodes of the policy.
    """
    steps, episodes = one.steps, one.episodes
    advantage_E = advantages(episodes)
    mine_E = torch.from_numpy((episodes.alpha_E == alpha) & ~np.isnan(episodes.reward_E))
    episode_M = torch.from_numpy(steps.episode_M)
    counts_M = torch.from_numpy(steps.eligible_MT.any(axis=1)) & mine_E[episode_M]
    weight_M = step_weights(episode_M, counts_M, num_episodes=len(mine_E)) * len(mine_E) / max(1, int(mine_E.sum()))
    wanted_M = (counts_M & (advantage_E[episode_M] != 0)).numpy()
    if not wanted_M.any():
        return None
    return {
        "prob": torch.from_numpy(steps.prob_MTn[wanted_M]),
        "masked": torch.from_numpy(steps.masked_MT[wanted_M]),
        "eligible": torch.from_numpy(steps.eligible_MT[wanted_M]),
        "valid": torch.from_numpy(steps.valid_MT[wanted_M]),
        "elapsed": torch.from_numpy(steps.elapsed_M[wanted_M]),
        "action": torch.from_numpy(steps.action_MT[wanted_M]),
        "old_log_prob": torch.from_numpy(steps.old_log_prob_M[wanted_M]),
        "is_expert": torch.from_numpy(episodes.is_expert_E[steps.episode_M[wanted_M]]),
        "advantage": advantage_E[episode_M[wanted_M]],
        "weight": weight_M[wanted_M],
    }
