"""Settings of bounded asynchrony that cannot work, and those that work and are probably not what was meant."""

from __future__ import annotations

from cluster.config import TrainRecipe
from learner.objective_config import LIKELIHOODS

MAX_STALENESS_WITHOUT_WEIGHTS = 1


def check_staleness(recipe: TrainRecipe) -> None:
    """Refuse a staleness that the objective cannot make up for, and capacities with which no step is ever full."""
    objective, staleness = recipe.learner.objective, recipe.staleness
    if staleness == 0:
        return
    likelihood, has_weights = objective.likelihood, objective.facts.scores_drawn_law
    if has_weights and objective.importance == "none":
        raise ValueError(
            f"staleness {staleness} trains on answers that older weights drew, and learner.objective.importance is "
            "'none'; set it to token, step or sequence, or staleness to 0"
        )
    if not has_weights and staleness > MAX_STALENESS_WITHOUT_WEIGHTS:
        weighted = ", ".join(name for name, facts in LIKELIHOODS.items() if facts.scores_drawn_law)
        raise ValueError(
            f"staleness {staleness} with learner.objective.likelihood {likelihood!r}: it does not score the law that "
            f"drew the answers, so no importance weight makes up for older weights; set staleness to at most "
            f"{MAX_STALENESS_WITHOUT_WEIGHTS}, or likelihood to one of {weighted}"
        )
    if recipe.cluster.mode == "local":
        raise ValueError(
            f"staleness {staleness} with cluster.mode local, where every call runs at once and nothing overlaps; set "
            "staleness to 0, or cluster.mode to ray"
        )


def staleness_warnings(recipe: TrainRecipe) -> list[str]:
    """Settings of asynchrony without effect."""
    warnings = []
    most = (recipe.staleness + 1) * recipe.prompts_per_step
    if recipe.max_in_flight is not None and recipe.max_in_flight > most:
        warnings.append(
            f"max_in_flight {recipe.max_in_flight} has no effect above the {most} prompts that staleness "
            f"{recipe.staleness} allows with prompts_per_step {recipe.prompts_per_step}"
        )
    if recipe.staleness == 0 and recipe.rollout.on_update == "keep":
        warnings.append(
            "rollout.on_update 'keep' has no effect with staleness 0: nothing is under way when new weights come"
        )
    longest_s = max(recipe.learner.engine.timeout_s, recipe.rollout.timeout_s, recipe.cluster.start_timeout_s)
    if recipe.cluster.stall_timeout_s <= longest_s:
        warnings.append(
            f"cluster.stall_timeout_s {recipe.cluster.stall_timeout_s:g} is not above the longest deadline of one "
            f"call, {longest_s:g} s: a slow call ends the run before its own deadline does"
        )
    return warnings
