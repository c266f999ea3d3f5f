"""What can be known to be wrong with a policy recipe before anything starts."""

from __future__ import annotations

from cluster.config import PolicyRecipe
from cluster.policy_environment import num_rows
from cluster.preflight import Window, check_model
from cluster.recipe import Loaded

_UNUSED_EVAL = ("sampler", "max_new_tokens", "block_length", "steps")


def check_policy(loaded: Loaded[PolicyRecipe]) -> list[str]:
    """Refuse what cannot train; warn of what works and is not what was meant."""
    warnings = check_settings(loaded)
    recipe = loaded.recipe
    folder = check_model(recipe.model.path)
    if folder is not None:
        from reward.tasks import build

        window = Window.of(folder, recipe)  # type: ignore[arg-type]
        for config in recipe.tasks:
            task = build(config)
            rows = [*task.rows("train")[:256], *task.rows("test")[: recipe.eval.limit]]
            window.check([task.prompt(row) for row in rows], recipe.policy.max_new_tokens, "policy.max_new_tokens")
    return warnings


def check_settings(loaded: Loaded[PolicyRecipe]) -> list[str]:
    """Settings that contradict each other raise ValueError; those without effect are warned of."""
    recipe = loaded.recipe
    policy, warnings = recipe.policy, []
    num_rows(recipe)
    if len(set(policy.alphas)) < len(policy.alphas) or min(policy.alphas) < 0:
        raise ValueError(f"policy.alphas is {list(policy.alphas)}; they must be different numbers of 0 or more")
    if policy.network.width % (2 * policy.network.num_heads):
        raise ValueError(
            f"policy.network.width {policy.network.width} must be a multiple of 2 * num_heads "
            f"({policy.network.num_heads})"
        )
    if recipe.cluster.mode == "local" and policy.num_env_runners:
        raise ValueError(
            f"policy.num_env_runners is {policy.num_env_runners} with cluster.mode local, which is one process; set "
            "num_env_runners to 0, or cluster.mode to ray"
        )
    if policy.experts and policy.block_length is not None:
        raise ValueError(
            f"policy.experts with policy.block_length {policy.block_length}: expert steering shows a full-diffusion "
            "policy what blocks would do; leave out one of the two"
        )
    if policy.experts and policy.law != "bernoulli":
        raise ValueError("policy.experts needs policy.law bernoulli: an expert's step has no order of picks")
    if policy.law == "dpls" and policy.empty_action == "commit":
        warnings.append("policy.empty_action has no effect with policy.law dpls: its actions are never empty")
    if policy.warmup_updates >= policy.updates:
        warnings.append(
            f"policy.warmup_updates {policy.warmup_updates} is not below the {policy.updates} updates of the run: the "
            "learning rate never reaches lr"
        )
    given = [name for name in _UNUSED_EVAL if loaded.origin(f"eval.{name}") != "default"]
    if given:
        warnings.append(
            f"eval.{given[0]} has no effect: policies are evaluated as they are trained (policy.max_new_tokens, "
            "policy.block_length)"
        )
    return warnings
