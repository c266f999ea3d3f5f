"""Training of unmasking policies in RLlib's new API stack. The only file of this room that knows Ray.

    UnmaskingVectorEnv   gymnasium: one frozen dLLM denoises all answers of a round, one forward a step for all of them
    PolicyFamily         RLModule: one network for each alpha
    UnmaskingEnvRunner   draws a round: step map, actions, log-probabilities; an actor, replaced when it dies
    UnmaskingLearner     group-relative advantages without a critic, per-step joint ratio, clipped
    UnmaskingAlgorithm   a round of rollouts, `inner_updates` gradient steps, weights back to the runners

A round crosses processes as flat arrays: RLlib's episode objects and connector pipelines, which handle every step of
every answer by itself in Python, are left out. `unmask bench policy` measures both ways against a plain loop.

R rows (answers) of an environment, T response slots, n probabilities a slot, M steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, MultiBinary, MultiDiscrete
from gymnasium.spaces import Dict as DictSpace
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch

from learner.unmasking_config import PolicyConfig
from learner.unmasking_objective import learning_rate
from learner.unmasking_rounds import Ended, Round, batch_of
from learner.unmasking_update import Recorder, accumulate, make_networks, observe_of, optimizer_of
from samplers.policy.laws import law
from samplers.policy.network import PolicyNetwork

INELIGIBLE_LOGIT = -30.0
"""Logit of committing a slot that may not be committed: 1e-13 of probability, and a finite gradient."""
Arrays = Mapping[str, np.ndarray]


class Environment(Protocol):
    """Denoises and grades the answers of a round; `cluster.policy_environment` makes one."""

    num_rows: int
    num_slots: int
    num_probs: int
    alpha_R: np.ndarray
    """int64. Policy of each row."""
    group_R: np.ndarray
    """int64. Number of the prompt of each row within the environment."""
    expert_R: np.ndarray
    """int64. Number of the expert that decides in this row; -1: the policy."""

    def begin(self, round_number: int, shard: int, num_shards: int) -> None:
        """Lay out the prompts of a shard of a round."""

    def observe(self) -> Arrays | None:
        """One forward: the observation of all rows, zeros where an answer is finished; None when all are."""

    def uniform(self, number: int) -> torch.Tensor:
        """Random numbers (R, T + 1) of the step; see `samplers.policy.laws.Uniform`."""

    def act(self, action_RT: np.ndarray) -> Sequence[Ended]:
        """Commit; the answers that are finished now."""


class UnmaskingVectorEnv(gym.vector.VectorEnv):
    """All answers of a round as one gymnasium environment; a sub-environment that has ended waits for the others."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}  # noqa: RUF012 - gymnasium's own form

    def __init__(self, context: Mapping[str, Any]) -> None:
        environment: Environment = context["make_environment"]()
        slots, probs = environment.num_slots, environment.num_probs
        self.environment = environment
        self.num_envs = environment.num_rows
        self.single_observation_space = DictSpace(
            {
                "prob": Box(0.0, 1.0, (slots, probs), np.float32),
                "masked": MultiBinary(slots),
                "eligible": MultiBinary(slots),
                "valid": MultiBinary(slots),
                "elapsed": Box(0.0, 1.0, (1,), np.float32),
            }
        )
        self.single_action_space = MultiDiscrete([2] * slots)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, self.num_envs)
        self._over = True
        self._last: Arrays = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Arrays, dict[str, Any]]:
        """Begin the round `options["round_number"]`, or its shard `options["shard"]` of `options["num_shards"]`."""
        chosen = {"round_number": seed or 0, "shard": 0, "num_shards": 1, **(options or {})}
        self.environment.begin(**chosen)
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Commit the chosen slots and denoise on; the reward comes at the end of an answer."""
        reward_R = np.zeros(self.num_envs, dtype=np.float32)
        terminated_R = np.zeros(self.num_envs, dtype=bool)
        ended_R = np.full(self.num_envs, None, dtype=object)
        for answer in self.environment.act(actions):
            reward_R[answer.row], terminated_R[answer.row], ended_R[answer.row] = answer.reward, True, answer
        # gymnasium's form: a column, and under its name with an underscore the rows that have a value
        infos = {"ended": ended_R, "_ended": terminated_R.copy()}
        return self._observe(), reward_R, terminated_R, np.zeros_like(terminated_R), infos

    @property
    def over(self) -> bool:
        """Whether every answer has ended."""
        return self._over

    def _observe(self) -> Arrays:
        seen = self.environment.observe()
        self._over = seen is None
        if seen is not None:
            self._last = seen
            return seen
        return {name: np.zeros_like(value) for name, value in self._last.items()}


class PolicyFamily(TorchRLModule):
    """The networks of all alphas; for RLlib's own samplers the first of them, as independent binary choices."""

    networks: torch.nn.ModuleList

    def setup(self) -> None:
        """Make the networks, all alike at the start."""
        given: Any = self.model_config
        space: Any = self.action_space
        self.networks = torch.nn.ModuleList(make_networks(given["policy"], seed=given["seed"], start=given["start"]))
        # MultiBinary has no distribution in RLlib; two-way categoricals are the same law.
        distribution: Any = TorchMultiCategorical
        self.action_dist_cls = distribution.get_partial_dist_cls(space=space, input_lens=[2] * len(space.nvec))

    def network(self, alpha: int) -> PolicyNetwork:
        """The network of an alpha by its index."""
        return self.networks[alpha]  # type: ignore[return-value]

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, torch.Tensor]:
        seen = batch[Columns.OBS]
        prob_RTn, masked_RT, elapsed_R, valid_RT = observe_of(seen)
        logit_RT = self.network(0)(prob_RTn, masked_RT, elapsed_R, valid_RT)
        logit_RT = torch.where(torch.as_tensor(seen["eligible"]).bool(), logit_RT, INELIGIBLE_LOGIT)
        pair_RT2 = torch.stack([torch.zeros_like(logit_RT), logit_RT], dim=-1)
        return {Columns.ACTION_DIST_INPUTS: pair_RT2.flatten(1)}


class UnmaskingEnvRunner(SingleAgentEnvRunner):
    """Draws rounds; state, weights and restart are RLlib's, the loop is not."""

    config: Any
    env: Any
    module: Any

    def draw_round(self, *, round_number: int, shard: int = 0, num_shards: int = 1) -> Round:
        """All answers of a shard of a round, with every step's observation, action and log-probability."""
        policy: PolicyConfig = self.config.policy
        torch.set_num_threads(policy.threads)
        env: UnmaskingVectorEnv = self.env.unwrapped
        recorder = Recorder(env.environment, policy, law(policy.law))
        started = time.perf_counter()
        seen, _ = env.reset(options={"round_number": round_number, "shard": shard, "num_shards": num_shards})
        recorder.env_s += time.perf_counter() - started
        networks = [self.module.network(alpha) for alpha in range(len(policy.alphas))]
        while not env.over:
            action_RT = recorder.decide(seen, networks)
            started = time.perf_counter()
            seen, _, _, _, infos = env.step(action_RT)
            recorder.env_s += time.perf_counter() - started
            recorder.end(infos["ended"][infos["_ended"]])
        return recorder.round()

    def get_metrics(self) -> Any:
        """Metrics that RLlib collects from its runners; the round carries ours."""
        return self.metrics.reduce()


class UnmaskingLearner(TorchLearner):
    """Clipped policy gradient on whole rounds, in micro-batches of bounded size."""

    config: Any
    module: Any
    numbers: dict[str, float]

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """AdamW over the networks; a network without a gradient is left alone, decay included."""
        module = self.module[module_id]
        params: Any = self.get_parameters(module)
        optimizer = optimizer_of(params, self.config.policy)
        self.register_optimizer(
            module_id=module_id, optimizer=optimizer, params=params, lr_or_lr_schedule=self.config.policy.lr
        )

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Set the learning rate of this update."""
        policy = self.config.policy
        rate = learning_rate(
            int(timesteps["update"]),
            peak=policy.lr,
            warmup=policy.warmup_updates,
            total=policy.updates,
            schedule=policy.schedule,
        )
        for optimizer in self._named_optimizers.values():
            self._set_optimizer_lr(optimizer, rate)

    def compute_loss_for_module(self, *, module_id: str, config: Any, batch: Any, fwd_out: Any) -> torch.Tensor:
        """Not used: losses are taken micro-batch by micro-batch in `_uncompiled_update`."""
        raise NotImplementedError

    def _uncompiled_update(self, batch: dict[str, Any], **kwargs: Any) -> tuple[Any, dict[str, torch.Tensor], Any]:
        """One gradient step: gradients of all micro-batches, clipped for each network by itself, then applied."""
        rows = batch[DEFAULT_MODULE_ID]
        module: PolicyFamily = self.module[DEFAULT_MODULE_ID].unwrapped()
        self.numbers, loss = {}, torch.zeros(())
        for parameter in self._params.values():
            parameter.grad = None
        for alpha in range(len(self.config.policy.alphas)):
            mine = {name: value[rows["alpha"] == alpha] for name, value in rows.items() if name != "alpha"}
            if len(mine["action"]):
                numbers = accumulate(module.network(alpha), mine, self.config.policy)
                self.numbers |= {f"{name}/{alpha}": value for name, value in numbers.items()}
                loss = loss + numbers["loss"]
        gradients = {ref: p.grad for ref, p in self._params.items() if p.grad is not None}
        self.apply_gradients(self.postprocess_gradients(gradients))
        return {}, {DEFAULT_MODULE_ID: loss}, {}


class PolicyOptions(AlgorithmConfig):
    """RLlib's configuration of a run; `options_of` makes one."""

    def __init__(self, algo_class: type | None = None) -> None:
        self.policy = PolicyConfig()
        self.policy_seed = 0
        self.policy_start: Mapping[str, torch.Tensor] | None = None
        super().__init__(algo_class=algo_class or UnmaskingAlgorithm)

    def get_default_learner_class(self) -> type:
        """Ours."""
        return UnmaskingLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """A family of networks."""
        return RLModuleSpec(
            module_class=PolicyFamily,
            model_config={"policy": self.policy, "seed": self.policy_seed, "start": self.policy_start},
        )


class UnmaskingAlgorithm(Algorithm):
    """One update an iteration."""

    config: Any
    env_runner_group: Any
    learner_group: Any
    numbers: dict[str, float]
    round: Round
    update = 0
    """Updates done."""

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        """Settings before any change."""
        return PolicyOptions()

    def training_step(self) -> None:
        """Draw a round, learn from it, hand the weights to the runners."""
        policy: PolicyConfig = self.config.policy
        times = {"start": time.perf_counter()}
        self.round = self.draw_round(self.update)
        times["draw"] = time.perf_counter()
        self.numbers = {}
        parts = {i: batch_of(self.round, i) for i in range(len(policy.alphas))}
        found = [{**part, "alpha": torch.full_like(part["is_expert"], i, dtype=torch.int64)}
                 for i, part in parts.items() if part is not None]  # fmt: skip
        if found:
            rows = SampleBatch({name: torch.cat([part[name] for part in found]) for name in found[0]})
            for _ in range(policy.inner_updates):
                self.learner_group.update(
                    batch=MultiAgentBatch({DEFAULT_MODULE_ID: rows}, env_steps=len(rows)),
                    timesteps={"update": self.update},
                )
            for numbers in self.learner_group.foreach_learner(lambda learner: learner.numbers):
                self.numbers |= numbers.get()
        times["learn"] = time.perf_counter()
        self.update += 1
        self.send_weights()
        times["sync"] = time.perf_counter()
        self.numbers |= {f"{name}_s": times[name] - times[before] for before, name in pairwise(times)}

    def draw_round(self, number: int) -> Round:
        """The rollouts of a round: in this process, or shards of it by the runners that are alive.

        The shard of a runner that dies or is late is drawn again; RuntimeError after more than `max_retries` losses.
        """
        group, policy = self.env_runner_group, self.config.policy
        if not group.num_remote_env_runners():
            return self.env_runner.draw_round(round_number=number)  # type: ignore[no-any-return]
        num_shards = group.num_remote_env_runners()
        found: dict[int, Round] = {}
        num_lost = 0
        while len(found) < num_shards:
            missing = [shard for shard in range(num_shards) if shard not in found]
            alive = group.healthy_env_runner_ids()[: len(missing)]
            calls = [_Shard(number, shard, num_shards) for shard, _ in zip(missing, alive, strict=False)]
            answers = []
            if calls:
                answers = group.foreach_env_runner(
                    list(calls), local_env_runner=False, remote_worker_ids=alive, timeout_seconds=policy.timeout_s
                )
                found |= dict(answers)
            num_lost += max(1, len(calls)) - len(answers)
            if num_lost > policy.max_retries:
                raise RuntimeError(
                    f"{num_shards - len(found)} of {num_shards} shards of round {number} are missing after {num_lost} "
                    f"draws of at most {policy.timeout_s:g} s were lost: environment runners die or are too slow. "
                    "Their log files say why; raise policy.timeout_s if they are slow"
                )
            if len(found) < num_shards:
                self._revive()
        return Round.joined([found[shard] for shard in range(num_shards)])

    def _revive(self) -> None:
        """Wait until some runner answers again, and give all that do the weights."""
        deadline = time.monotonic() + self.config.policy.timeout_s
        while time.monotonic() < deadline:
            self.restore_env_runners(self.env_runner_group)
            if self.env_runner_group.healthy_env_runner_ids():
                break
            time.sleep(0.2)
        self.send_weights()

    def send_weights(self) -> None:
        """Put the learner's weights into every runner, and wait for it."""
        self.env_runner_group.sync_weights(
            from_worker_or_learner_group=self.learner_group,
            timeout_seconds=self.config.policy.timeout_s,
            inference_only=False,
        )

    def weights(self, alpha: int) -> dict[str, torch.Tensor]:
        """Weights of one policy by its index."""
        (state,) = self.learner_group.foreach_learner(
            lambda learner: learner.module[DEFAULT_MODULE_ID].unwrapped().network(alpha).state_dict()
        )
        return state.get()  # type: ignore[no-any-return]


class _Shard:
    """What a runner is asked for; a class, because it crosses processes."""

    def __init__(self, number: int, shard: int, num_shards: int) -> None:
        self._order = {"round_number": number, "shard": shard, "num_shards": num_shards}

    def __call__(self, runner: UnmaskingEnvRunner) -> tuple[int, Round]:
        return self._order["shard"], runner.draw_round(**self._order)


def options_of(
    policy: PolicyConfig,
    make_environment: Callable[[], Environment],
    *,
    seed: int,
    num_rows: int,
    start: Mapping[str, torch.Tensor] | None = None,
) -> PolicyOptions:
    """RLlib's configuration. `make_environment` is called in every process that draws rollouts.

    `num_rows`: rows of each environment. `start`: weights to begin with; those that the seed gives if None.
    """
    options = (
        PolicyOptions()
        .environment(UnmaskingVectorEnv, env_config={"make_environment": make_environment})
        .env_runners(
            env_runner_cls=UnmaskingEnvRunner,
            num_env_runners=policy.num_env_runners,
            num_envs_per_env_runner=num_rows,
            gym_env_vectorize_mode=gym.VectorizeMode.VECTOR_ENTRY_POINT,
            create_local_env_runner=policy.num_env_runners == 0,
            sample_timeout_s=policy.timeout_s,
        )
        .api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        .learners(num_learners=0)
        .training(lr=policy.lr)
        .fault_tolerance(restart_failed_env_runners=True, ignore_env_runner_failures=False)
        .debugging(seed=seed, log_level="ERROR")
        .reporting(min_time_s_per_iteration=0)
    )
    options.policy, options.policy_seed, options.policy_start = policy, seed, start
    return options
