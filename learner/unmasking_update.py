"""Drawing and learning without RLlib: what the environment runner and the learner do, as plain functions.

`PlainTrainer` is the reference loop that the RLlib path is measured against and must agree with.

R rows of an environment, T response slots, M steps.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from learner.unmasking_config import PolicyConfig
from learner.unmasking_objective import clipped_loss, learning_rate, mixture_log_prob
from learner.unmasking_rounds import Ended, Episodes, Round, Steps, batch_of
from samplers.policy.laws import Law, law
from samplers.policy.network import PolicyNetwork

Batch = Mapping[str, torch.Tensor]


def make_networks(config: PolicyConfig, *, seed: int, start: Batch | None = None) -> list[PolicyNetwork]:
    """A network for each alpha, all with the weights `start`, or those that the seed gives.

    The global random state stays as it is.
    """
    with torch.random.fork_rng(devices=[]):
        networks = []
        for _ in config.alphas:
            torch.manual_seed(seed)
            networks.append(PolicyNetwork(config.network))
            if start is not None:
                networks[-1].load_state_dict(dict(start))
    return networks


def optimizer_of(parameters: Iterable[torch.nn.Parameter], config: PolicyConfig) -> torch.optim.AdamW:
    """AdamW with the settings of the run."""
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def observe_of(seen: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inputs of a policy network: probabilities, mask, elapsed, valid."""
    prob_RTn, masked_RT, elapsed_R, valid_RT = (
        torch.as_tensor(seen[name]) for name in ("prob", "masked", "elapsed", "valid")
    )
    return prob_RTn, masked_RT.bool(), elapsed_R.reshape(-1), valid_RT.bool()


def step_log_probs(network: PolicyNetwork, batch: Batch, config: PolicyConfig) -> torch.Tensor:
    """ln pi of the recorded actions (M,), without the mixture of expert steering."""
    logit_MT = network(batch["prob"], batch["masked"], batch["elapsed"], batch["valid"])
    return law(config.law).log_prob(logit_MT, batch["eligible"], batch["action"])


def accumulate(network: PolicyNetwork, batch: Batch, config: PolicyConfig) -> dict[str, float]:
    """Add the gradient of one policy's loss to its parameters, in micro-batches; clip it; numbers of the update."""
    loss_sum = ratio_sum = clipped_sum = largest = 0.0
    size = len(batch["action"])
    for start in range(0, size, config.micro_batch_rows):
        part = {name: value[start : start + config.micro_batch_rows] for name, value in batch.items()}
        log_prob_M, old_M = step_log_probs(network, part, config), part["old_log_prob"]
        if config.experts:
            group = {"num_samples": config.num_samples, "num_experts": len(config.experts)}
            log_prob_M, old_M = (
                torch.where(part["is_expert"], mixture_log_prob(value_M, **group), value_M)
                for value_M in (log_prob_M, old_M)
            )
        loss = clipped_loss(log_prob_M, old_M, part["advantage"], part["weight"], clip=config.clip)
        loss.backward()
        log_ratio_M = (log_prob_M - old_M).detach()
        outside_M = (log_ratio_M.exp() - 1).abs() > config.clip
        loss_sum += float(loss.detach())
        ratio_sum += float(log_ratio_M.exp().sum())
        clipped_sum += float(outside_M.sum())
        largest = max(largest, float(log_ratio_M.abs().max()))
    norm = float(torch.nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip))
    return {
        "loss": loss_sum,
        "ratio_mean": ratio_sum / size,
        "clip_rate": clipped_sum / size,
        "log_ratio_max": largest,
        "grad_norm": norm,
    }


class Recorder:
    """Decides the steps of a round and keeps them."""

    def __init__(self, environment: Any, config: PolicyConfig, chosen: Law) -> None:
        self._environment, self._config, self._law = environment, config, chosen
        self._parts: list[Steps] = []
        self._ended: dict[int, Ended] = {}
        self.env_s = self.policy_s = 0.0

    def decide(self, seen: Mapping[str, np.ndarray], networks: Sequence[PolicyNetwork]) -> np.ndarray:
        """Actions of all rows (R, T), drawn by the networks or prescribed by experts; the step is recorded."""
        started = time.perf_counter()
        environment = self._environment
        action_RT = np.zeros(seen["masked"].shape, dtype=np.int64)
        live_R = seen["valid"].any(axis=1)
        uniform = {
            number: environment.uniform(number) for number in ((0,) if self._config.law == "bernoulli" else (0, 1))
        }
        for alpha, network in enumerate(networks):
            (row_r,) = np.nonzero(live_R & (environment.alpha_R == alpha))
            if len(row_r):
                action_RT[row_r] = self._decide(row_r, {k: v[row_r] for k, v in seen.items()}, network, uniform)
        self.policy_s += time.perf_counter() - started
        return action_RT

    def _decide(
        self,
        row_r: np.ndarray,
        seen: Mapping[str, np.ndarray],
        network: PolicyNetwork,
        uniform: Mapping[int, torch.Tensor],
    ) -> np.ndarray:
        prob_rTn, masked_rT, elapsed_r, valid_rT = observe_of(seen)
        eligible_rT = torch.as_tensor(seen["eligible"])
        with torch.no_grad():
            logit_rT = network(prob_rTn, masked_rT, elapsed_r, valid_rT)
            action_rT = self._law.draw(logit_rT, eligible_rT, lambda number: uniform[number][row_r])
            expert_r = self._environment.expert_R[row_r]
            for number, expert in enumerate(self._config.experts):
                wanted_rT = expert_action(
                    prob_rTn[:, :, 0], masked_rT, tau=expert.tau, block_length=expert.block_length
                )
                action_rT = torch.where(torch.as_tensor(expert_r == number)[:, None], wanted_rT, action_rT)
            log_prob_r = self._law.log_prob(logit_rT, eligible_rT, action_rT)
        action = action_rT.numpy()
        self._parts.append(
            Steps(
                prob_MTn=seen["prob"],
                masked_MT=seen["masked"],
                eligible_MT=seen["eligible"],
                valid_MT=seen["valid"],
                elapsed_M=seen["elapsed"].reshape(-1),
                action_MT=action,
                old_log_prob_M=log_prob_r.numpy(),
                episode_M=row_r.astype(np.int64),
            )
        )
        return action

    def end(self, ended: Iterable[Ended]) -> None:
        """Take in the answers that are finished."""
        self._ended |= {answer.row: answer for answer in ended}

    def round(self) -> Round:
        """What was recorded, when every answer has ended."""
        environment = self._environment
        answers = [self._ended[row] for row in range(environment.num_rows)]
        episodes = Episodes(
            alpha_E=environment.alpha_R,
            group_E=environment.group_R,
            is_expert_E=environment.expert_R >= 0,
            reward_E=np.array([answer.reward for answer in answers], dtype=np.float32),
            correct_E=np.array([answer.correct for answer in answers], dtype=np.float32),
            num_steps_E=np.array([answer.num_steps for answer in answers], dtype=np.int64),
            finished_E=np.array([answer.finished for answer in answers], dtype=bool),
        )
        failures = Counter(answer.failure for answer in answers if answer.failure)
        return Round(
            Steps.joined(self._parts, [0] * len(self._parts)),
            episodes,
            dict(failures),
            env_s=self.env_s,
            forward_s=environment.forward_s,
            policy_s=self.policy_s,
        )


def expert_action(
    confidence_RT: torch.Tensor, masked_RT: torch.Tensor, *, tau: float, block_length: int
) -> torch.Tensor:
    """Action (R, T) of a confidence threshold in semi-autoregressive blocks: the slots at or above tau of the first
    block that has a masked slot, its most confident one where none is."""
    first_R1 = masked_RT.long().argmax(dim=1, keepdim=True)
    slot_T = torch.arange(masked_RT.shape[1], device=masked_RT.device)
    open_RT = masked_RT & (slot_T // block_length == first_R1 // block_length)
    chosen_RT = open_RT & (confidence_RT >= tau)
    best_R1 = confidence_RT.masked_fill(~open_RT, -torch.inf).argmax(dim=1, keepdim=True)
    best_RT = torch.zeros_like(open_RT).scatter(1, best_R1, True) & open_RT
    return torch.where(chosen_RT.any(dim=1, keepdim=True), chosen_RT, best_RT).long()


@dataclass
class PlainTrainer:
    """The same training as one loop in one process: the reference."""

    environment: Any
    config: PolicyConfig
    seed: int
    start: Batch | None = None
    """Weights to begin with; those that the seed gives if None."""

    def __post_init__(self) -> None:
        self.networks = make_networks(self.config, seed=self.seed, start=self.start)
        self.optimizer = optimizer_of([p for network in self.networks for p in network.parameters()], self.config)
        self.update = 0

    def draw(self) -> Round:
        """The rollouts of the present round."""
        recorder = Recorder(self.environment, self.config, law(self.config.law))
        started = time.perf_counter()
        self.environment.begin(self.update, 0, 1)
        seen = self.environment.observe()
        recorder.env_s += time.perf_counter() - started
        while seen is not None:
            action_RT = recorder.decide(seen, self.networks)
            started = time.perf_counter()
            ended = self.environment.act(action_RT)
            seen = self.environment.observe()
            recorder.env_s += time.perf_counter() - started
            recorder.end(ended)
        return recorder.round()

    def learn(self, one: Round) -> None:
        """`inner_updates` gradient steps on a round."""
        config = self.config
        rate = learning_rate(
            self.update, peak=config.lr, warmup=config.warmup_updates, total=config.updates, schedule=config.schedule
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batches = [batch_of(one, alpha) for alpha in range(len(config.alphas))]
        for _ in range(config.inner_updates if any(batch is not None for batch in batches) else 0):
            self.optimizer.zero_grad(set_to_none=True)
            for network, batch in zip(self.networks, batches, strict=True):
                if batch is not None:
                    accumulate(network, batch, config)
            self.optimizer.step()
        self.update += 1
