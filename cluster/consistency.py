"""Settings that contradict each other, or that work and are probably not what was meant."""

from __future__ import annotations

from typing import Any

from cluster.bundles import check_placement
from cluster.config import SftRecipe, TrainRecipe
from cluster.recipe import Loaded
from cluster.staleness import check_staleness, staleness_warnings
from learner.objective_config import LIKELIHOODS, ObjectiveConfig, likelihoods
from learner.sft_config import AgdoMasking
from rollout.config import DecodingConfig

PARALLEL = ("tau", "f", "gamma")
"""Sampler options that let a step commit as many slots as a rule allows."""


def check_settings(loaded: Loaded[Any]) -> list[str]:
    """Refuse combinations that cannot train; warn of those that work and are not what was meant."""
    recipe = loaded.recipe
    _check_sampler("eval", recipe.eval)
    warnings = _step_warnings("eval", recipe.eval)
    if isinstance(recipe, TrainRecipe):
        _check_rollout(recipe)
        _check_likelihood(recipe)
        check_staleness(recipe)
        warnings += _step_warnings("rollout", recipe.rollout) + _train_warnings(loaded, recipe)
    else:
        _check_selection(recipe)
        warnings += _sft_warnings(recipe)
    warnings += check_placement(recipe, is_given=loaded.origin("cluster.placement") != "default")
    num_steps = recipe.steps if isinstance(recipe, TrainRecipe) else recipe.sft.steps
    warmup = recipe.learner.optimizer.warmup_steps
    if warmup >= num_steps:
        warnings.append(
            f"learner.optimizer.warmup_steps {warmup} is not below the {num_steps} steps of the run: the learning rate "
            "never reaches lr"
        )
    return warnings


def _check_sampler(section: str, decoding: DecodingConfig) -> Any:
    import samplers

    try:
        return samplers.build(decoding.sampler.name, **decoding.sampler.options)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{section}.sampler: {error}") from error


def _check_rollout(recipe: TrainRecipe) -> None:
    rollout, objective = recipe.rollout, recipe.learner.objective
    if rollout.num_samples < objective.min_valid:
        raise ValueError(
            f"rollout.num_samples {rollout.num_samples} is below learner.objective.min_valid {objective.min_valid}: an "
            "answer is compared with the others of its group; draw at least as many"
        )
    if rollout.max_workers is not None:
        _check_growth(recipe, rollout.max_workers)
    if rollout.top_p < 1 and rollout.temperature > 0 and objective.facts.replays:
        raise ValueError(
            f"rollout.top_p {rollout.top_p}: answers to train on are drawn with temperature alone, because the cut-off "
            "law of other weights would be another one; set rollout.top_p to 1"
        )
    if rollout.top_k > 0 and rollout.temperature > 0 and objective.facts.replays:
        raise ValueError(
            f"rollout.top_k {rollout.top_k}: answers to train on are drawn with temperature alone, because the cut-off "
            "law of other weights would be another one; set rollout.top_k to 0"
        )
    if not rollout.cache.policy().exact and objective.importance == "none":
        weighted = "" if objective.facts.scores_drawn_law else " with learner.objective.likelihood trace_exact"
        raise ValueError(
            f"rollout.cache.kind {rollout.cache.kind!r} is approximate, so answers are drawn from another law than the "
            f"learner's forward gives; set learner.objective.importance to token, step or sequence{weighted}, or "
            "rollout.cache.kind to none"
        )


def _check_growth(recipe: TrainRecipe, max_workers: int) -> None:
    rollout = recipe.rollout
    if max_workers < rollout.num_workers:
        raise ValueError(
            f"rollout.max_workers {max_workers} is below rollout.num_workers {rollout.num_workers}, which the run "
            "begins with; raise it, or leave it out"
        )
    if rollout.cpus_per_worker == rollout.gpus_per_worker == 0:
        raise ValueError(
            f"rollout.max_workers {max_workers} with cpus_per_worker 0 and gpus_per_worker 0: a worker that reserves "
            "nothing fits anywhere, and there is no telling when a machine has room; give it a share of a CPU"
        )


def _check_likelihood(recipe: TrainRecipe) -> None:
    sampler = _check_sampler("rollout", recipe.rollout)
    rollout, likelihood = recipe.rollout, recipe.learner.objective.likelihood
    if not sampler.exact_likelihood and rollout.temperature > 0 and recipe.learner.objective.facts.replays:
        exact = [name for name in _sampler_names() if name != rollout.sampler.name]
        raise ValueError(
            f"rollout.sampler {rollout.sampler.name!r} {sampler.inexact_because}, so its answers have no exact "
            f"likelihood and learner.objective.likelihood {likelihood!r} is undefined.\nUse a position-first sampler: "
            f"{', '.join(exact)}; or a likelihood that draws its own masks: {likelihoods(replays=False)}"
        )
    options = rollout.sampler.options
    one_a_step = options.get("tokens_per_step", 1) in (None, 1) and not any(map(options.get, PARALLEL))
    slots_a_step = rollout.steps is None or rollout.steps >= rollout.max_new_tokens
    is_left_to_right = rollout.sampler.name == "ar" and one_a_step and slots_a_step
    if likelihood in ("ar_exact", "ar_fast") and not is_left_to_right:
        raise ValueError(
            f"learner.objective.likelihood {likelihood!r} scores answers left to right, one token a step, but "
            f"rollout.sampler is {rollout.sampler.name!r} with options {rollout.sampler.options} and steps "
            f"{rollout.steps}.\nUse sampler 'ar' with tokens_per_step 1 and no steps, or likelihood 'trace_exact'"
        )


def _sampler_names() -> list[str]:
    import samplers

    return [name for name in samplers.names() if samplers.build(name).exact_likelihood]


def _step_warnings(section: str, decoding: DecodingConfig) -> list[str]:
    if decoding.steps is not None and decoding.sampler.name.startswith("imh"):
        return [f"{section}.steps {decoding.steps} has no effect with {section}.sampler.name {decoding.sampler.name!r}"]
    options = [name for name in ("tokens_per_step", *PARALLEL) if name in decoding.sampler.options]
    if decoding.steps is None or not options:
        return []
    return [f"{section}.steps {decoding.steps} overrides {section}.sampler.options.{options[0]}: leave one out"]


def _check_selection(recipe: SftRecipe) -> None:
    if recipe.sft.select_by == "accuracy" and not recipe.tasks:
        raise ValueError(
            "sft.select_by 'accuracy' needs tasks, whose answers are graded, and the recipe has none; give tasks, or "
            "set sft.select_by to loss"
        )


def _sft_warnings(recipe: SftRecipe) -> list[str]:
    sft = recipe.sft
    warnings = []
    if sft.min_new_tokens is not None and sft.end_tokens != "fill":
        warnings.append(
            f"sft.min_new_tokens {sft.min_new_tokens} only bounds the slots with sft.end_tokens {sft.end_tokens!r}: "
            "leave it out"
        )
    if sft.too_long == "drop" and not recipe.data:
        warnings.append("sft.too_long has no effect without data: task rows that do not fit are always refused")
    if isinstance(sft.masking, AgdoMasking) and sft.masking.gamma == 0:
        warnings += [
            f"sft.masking.{name} has no effect with gamma 0"
            for name in ("weights", "influence_cap")
            if getattr(sft.masking, name) != AgdoMasking.model_fields[name].default
        ]
    return warnings


def _train_warnings(loaded: Loaded[Any], recipe: TrainRecipe) -> list[str]:
    objective, rollout = recipe.learner.objective, recipe.rollout
    warnings = staleness_warnings(recipe)
    if rollout.max_workers is not None and recipe.cluster.mode == "local":
        warnings.append(
            f"rollout.max_workers {rollout.max_workers} has no effect with cluster.mode 'local': nothing can join"
        )
    if rollout.temperature == 0:
        warnings.append("rollout.temperature 0: all answers of a group are the same and nothing is learnt; set it to 1")
    warnings += _objective_warnings(loaded, objective) + _group_warnings(loaded, recipe)
    if recipe.learner.engine.micro_batch_tokens < rollout.max_new_tokens:
        warnings.append(
            f"learner.engine.micro_batch_tokens {recipe.learner.engine.micro_batch_tokens} is below the "
            f"{rollout.max_new_tokens} slots of one answer: each canvas is a micro-batch of its own and takes more"
        )
    return warnings


def _group_warnings(loaded: Loaded[Any], recipe: TrainRecipe) -> list[str]:
    """Settings of groups and scores that nothing reads."""
    groups, shaping = recipe.learner.groups, recipe.reward.shaping
    found = []
    for name, idle, why in (
        ("learner.groups.pass_rate", groups.on_uninformative == "keep", "learner.groups.on_uninformative 'keep'"),
        ("learner.groups.max_refills", groups.on_uninformative != "refill", "on_uninformative other than 'refill'"),
        ("reward.shaping.overlong_penalty", shaping.overlong_slots == 0, "reward.shaping.overlong_slots 0"),
    ):
        if idle and loaded.origin(name) != "default":
            found.append(f"{name} has no effect with {why}")
    if shaping.overlong_slots > recipe.rollout.max_new_tokens:
        raise ValueError(
            f"reward.shaping.overlong_slots {shaping.overlong_slots} is above rollout.max_new_tokens "
            f"{recipe.rollout.max_new_tokens}: every answer would be overlong; lower it"
        )
    return found


def _objective_warnings(loaded: Loaded[Any], objective: ObjectiveConfig) -> list[str]:
    """Settings that the chosen likelihood, loss or number of epochs does not read."""
    given = {
        name
        for name in (
            *(f for f in type(objective).model_fields if f not in ("estimator", "agdo")),
            *(f"estimator.{f}" for f in type(objective.estimator).model_fields),
        )
        if loaded.origin(f"learner.objective.{name}") != "default"
    }
    idle: dict[str, str] = {}
    if objective.num_epochs == 1:
        # Every update starts at the weights that its own first pass sees, stale answers or not.
        clips = ("clip_low", "clip_high", "clip_dual")
        idle |= dict.fromkeys(clips, "num_epochs 1: the ratio is always 1")
        idle |= {"redraw_masks": "num_epochs 1: masks are new in every update anyway"} if objective.redraw_masks else {}
    if objective.loss != "clip":
        idle |= dict.fromkeys(("clip_low", "clip_high", "clip_dual"), f"loss {objective.loss!r}: it has no ratio")
    if objective.loss != "bounds":
        idle |= dict.fromkeys(("bound_weight", "bound_beta"), f"loss {objective.loss!r}: they belong to bounds")
    if objective.kl_coef == 0:
        idle |= dict.fromkeys(("kl", "kl_anchor"), "kl_coef 0")
    if objective.advantage != "softmax":
        idle["softmax_temperature"] = f"advantage {objective.advantage!r}: it belongs to softmax"
    if objective.importance == "none":
        idle["importance_cap"] = "importance 'none'"
    for name in type(objective.estimator).model_fields:
        if name not in objective.facts.options:
            readers = ", ".join(other for other, facts in LIKELIHOODS.items() if name in facts.options)
            idle[f"estimator.{name}"] = f"likelihood {objective.likelihood!r}: it belongs to {readers}"
    found = [f"learner.objective.{name} has no effect with {idle[name]}" for name in sorted(given & set(idle))]
    if not objective.needs_guide and loaded.origin("learner.objective.agdo") != "default":
        found.append("learner.objective.agdo has no effect without likelihood 'agdo' or influence above 0")
    return found
