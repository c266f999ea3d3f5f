"""`unmask bench policy`: what training an unmasking policy costs beside the diffusion model, and what RLlib adds.

Environment: LLaDA's architecture, width 256, 6 layers, vocabulary 4096, float32, random weights; 32 answers (4 prompts
of 96 tokens x 8) of 32 slots in full diffusion, an untrained policy of the released size.

    steps/s    policy steps (an answer, a step) a second
    forward    share of the time inside backbone and head; policy network; everything else

Loop: the built-in tiny model on sudoku4, 16 prompts x 8 answers of 20 slots, two gradient steps a round: the plain loop
against RLlib's algorithm as `unmask policy` runs it, on the same rounds, in turn.

RLlib's stock pieces: the same rounds as `SingleAgentEpisode` objects and through its default learner connectors, which
`unmask policy` leaves out; their cost alone.

RLlib's stock runner: a round drawn by `SingleAgentEnvRunner.sample`, with its connectors before and after the network
at every step, and by ours, each on an environment of its own; time outside the environment, the network's included. The
stock runner gives answers that have ended to the network until the last one ends; steps of ended answers do not count.

Times are processor time of this process; medians over the rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

import models
from benchmarks.finding import prompts
from benchmarks.model_watch import ModelWatch
from benchmarks.models import llada_config, on_device
from benchmarks.timing import machine
from cluster.config import PolicyRecipe
from cluster.policy_environment import environment_maker, num_rows
from cluster.ray_start import ray_session
from learner.unmasking_config import PolicyConfig
from learner.unmasking_rounds import Round
from learner.unmasking_update import PlainTrainer, make_networks
from rollout.engine import Engine
from rollout.request import Request, sequence_seed
from rollout.stepwise import StepwiseRun
from samplers.policy.laws import Bernoulli
from samplers.policy.network import PolicyNetwork
from samplers.policy.observation import Undecided

VOCABULARY = 4096


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds of one run of the environment."""

    num_steps: int
    forward_s: float
    policy_s: float
    total_s: float

    def line(self) -> str:
        """For the table."""
        other = self.total_s - self.forward_s - self.policy_s
        shares = " | ".join(f"{part / self.total_s:.1%}" for part in (self.forward_s, self.policy_s, other))
        return f"| {self.num_steps / self.total_s:.0f} | {shares} |"


def environment(denoiser: models.Denoiser, network: PolicyNetwork, requests: Sequence[Request]) -> Spent:
    """Denoise the requests step by step, the policy deciding outside the engine."""
    watch, num_steps, policy_s = ModelWatch(), 0, 0.0
    start = time.process_time()
    with watch.watching():
        run = StepwiseRun(Engine(denoiser, Undecided(), max_batch_tokens=2**20), requests)
        while (found := run.observe()) is not None:
            rows, looked = found
            seen, before = looked.observation, time.process_time()
            with torch.no_grad():
                logit_RT = network(seen.prob_RTn, seen.masked_RT, seen.elapsed_R, seen.valid_RT)
                action_RT = Bernoulli().draw(logit_RT, seen.eligible_RT, looked.uniform)
            policy_s += time.process_time() - before
            num_steps += len(rows)
            run.act(action_RT > 0)
    return Spent(num_steps, watch.inside_s, policy_s, time.process_time() - start)


def loops(recipe: PolicyRecipe, rounds: int) -> tuple[list[float], list[float], Round]:
    """Seconds of each update of the plain loop and of RLlib's, and a round."""
    from learner.unmasking_policy import options_of

    plain = PlainTrainer(environment_maker(recipe)(), recipe.policy, recipe.seed)
    options = options_of(recipe.policy, environment_maker(recipe), seed=recipe.seed, num_rows=num_rows(recipe))
    through: Any = options.build_algo()
    plain_s, rllib_s = [], []
    try:
        for number in range(rounds + 1):
            start = time.process_time()
            plain.learn(plain.draw())
            middle = time.process_time()
            through.train()
            end = time.process_time()
            if number:  # the first update warms up
                plain_s.append(middle - start)
                rllib_s.append(end - middle)
        return plain_s, rllib_s, through.round
    finally:
        through.stop()


def stock_pieces(recipe: PolicyRecipe, one: Round) -> float:
    """Seconds that RLlib's episode objects and default learner connectors take for the steps of a round."""
    from ray.rllib.core.columns import Columns
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode

    from learner.unmasking_policy import UnmaskingVectorEnv, options_of

    make = environment_maker(recipe)
    env = UnmaskingVectorEnv({"make_environment": make})
    options = options_of(recipe.policy, make, seed=recipe.seed, num_rows=num_rows(recipe))
    module = options.get_default_rl_module_spec()
    module.observation_space, module.action_space = env.single_observation_space, env.single_action_space
    pipeline = options.build_learner_connector(env.single_observation_space, env.single_action_space)
    steps, start = one.steps, time.process_time()
    episodes = []
    for number in range(len(one.episodes.alpha_E)):
        rows = (steps.episode_M == number).nonzero()[0]
        seen = [
            {
                "prob": steps.prob_MTn[row],
                "masked": steps.masked_MT[row],
                "eligible": steps.eligible_MT[row],
                "valid": steps.valid_MT[row],
                "elapsed": steps.elapsed_M[row : row + 1],
            }
            for row in rows
        ]
        episode = SingleAgentEpisode(
            observation_space=env.single_observation_space, action_space=env.single_action_space
        )
        episode.add_env_reset(observation=seen[0])
        for index, row in enumerate(rows):
            episode.add_env_step(
                observation=seen[min(index + 1, len(seen) - 1)],
                action=steps.action_MT[row],
                reward=0.0,
                terminated=index == len(rows) - 1,
                extra_model_outputs={Columns.ACTION_LOGP: steps.old_log_prob_M[row]},
            )
        episodes.append(episode.to_numpy())
    pipeline(rl_module=module.build(), episodes=episodes, batch={}, shared_data={}, explore=None, metrics=None)
    return time.process_time() - start


@dataclass(frozen=True, slots=True)
class Drawn:
    """A round drawn by one runner."""

    num_steps: int
    """Of answers that had not ended."""
    environment_s: float
    total_s: float

    def line(self, name: str) -> str:
        """For the table."""
        outside_s = self.total_s - self.environment_s
        return (
            f"| {name} | {self.num_steps} | {self.total_s:.2f} | {outside_s:.2f} | "
            f"{1e6 * outside_s / self.num_steps:.0f} |"
        )


def runners(recipe: PolicyRecipe, rounds: int) -> tuple[Drawn, Drawn]:
    """Median rounds (by time outside the environment) of RLlib's stock runner and of ours."""
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner

    from learner.unmasking_policy import UnmaskingEnvRunner, options_of

    found: dict[type, list[Drawn]] = {}
    for kind in (SingleAgentEnvRunner, UnmaskingEnvRunner):
        options = options_of(recipe.policy, environment_maker(recipe), seed=recipe.seed, num_rows=num_rows(recipe))
        runner: Any = kind(config=options.env_runners(env_runner_cls=kind), worker_index=0)
        try:
            found[kind] = [_draw(runner, number) for number in range(rounds + 1)][1:]  # the first one warms up
        finally:
            runner.stop()
    stock, ours = (sorted(drawn, key=lambda one: one.total_s - one.environment_s) for drawn in found.values())
    return stock[len(stock) // 2], ours[len(ours) // 2]


def _draw(runner: Any, number: int) -> Drawn:
    """One round; the environment's reset and steps are timed from outside."""
    env, spent = runner.env.unwrapped, 0.0
    whole = {"reset": env.reset, "step": env.step}

    def timed(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            start = time.process_time()
            try:
                return whole[name](*args, **kwargs)
            finally:
                spent += time.process_time() - start

        return call

    env.reset, env.step = timed("reset"), timed("step")
    start = time.process_time()
    try:
        if hasattr(runner, "draw_round"):
            steps = len(runner.draw_round(round_number=number).steps.episode_M)
        else:
            steps = sum(len(episode) for episode in runner.sample(num_episodes=env.num_envs))
    finally:
        del env.reset, env.step
    return Drawn(steps, spent, time.process_time() - start)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="unmask bench policy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32, help="answers of the environment")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", choices=["environment", "loop", "runner"], help="one of the three parts")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(machine(), flush=True)
    if options.only in (None, "environment"):
        _environment(options.batch, options.slots, options.repetitions)
    if options.only in (None, "loop"):
        _loop(options.repetitions)
    if options.only in (None, "runner"):
        _runner(options.repetitions)
    return 0


def _environment(batch: int, slots: int, repetitions: int) -> None:
    denoiser = on_device(llada_config(width=256, layers=6, heads=8, ffn=768, vocabulary=VOCABULARY))
    (network,) = make_networks(PolicyConfig(), seed=0)
    prompt_BP = prompts(max(1, batch // 8), 96, vocabulary=VOCABULARY - 2).tolist()
    requests = [Request(prompt, slots, sequence_seed(0, i, g)) for i, prompt in enumerate(prompt_BP) for g in range(8)]
    environment(denoiser, network, requests[:8])
    found = [environment(denoiser, network, requests[:batch]) for _ in range(repetitions)]
    print(
        f"\nenvironment, batch {batch}, {slots} slots\n| steps/s | forward | policy network | rest |\n|---|---|---|---|"
    )
    print(sorted(found, key=lambda spent: spent.forward_s / spent.total_s)[len(found) // 2].line(), flush=True)


def _loop(repetitions: int) -> None:
    recipe = _recipe()
    with ray_session(recipe.cluster):
        plain_s, rllib_s, one = loops(recipe, repetitions)
        stock_s = median(stock_pieces(recipe, one) for _ in range(repetitions))
    overhead = median(b / a for a, b in zip(plain_s, rllib_s, strict=True)) - 1
    print("\n| an update | seconds | over the plain loop |\n|---|---|---|")
    print(f"| plain loop | {median(plain_s):.2f} | |")
    print(f"| `unmask policy` (RLModule, Learner, EnvRunner) | {median(rllib_s):.2f} | {overhead:+.1%} |")
    print(f"| RLlib's episodes and learner connectors, {len(one.steps.episode_M)} steps | +{stock_s:.2f} | "
          f"{stock_s / median(plain_s):+.1%} |")  # fmt: skip


def _runner(repetitions: int) -> None:
    recipe = _recipe()
    with ray_session(recipe.cluster):
        stock, ours = runners(recipe, repetitions)
    print("\n| a round drawn by | steps | seconds | outside the environment | a step, microseconds |")
    print("|---|---|---|---|---|")
    print(stock.line("RLlib's `SingleAgentEnvRunner.sample`"))
    print(ours.line("`UnmaskingEnvRunner`"), flush=True)


def _recipe() -> PolicyRecipe:
    policy = {"max_new_tokens": 20, "empty_action": "commit", "warmup_updates": 0}
    return PolicyRecipe.model_validate({"tasks": [{"name": "sudoku4"}], "policy": policy, "cluster": {"num_cpus": 1}})


if __name__ == "__main__":
    raise SystemExit(main())
