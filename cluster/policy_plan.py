"""What `unmask policy --dry-run` shows beside the settings: the work of a run, its memory, and how long it may take.

Counts are upper bounds: an answer takes at most as many steps as it has slots, and a trained policy takes fewer.
"""

from __future__ import annotations

import time

from cluster.bundles import Need
from cluster.config import PolicyRecipe
from cluster.dry_run import Plan, model_config
from cluster.memory import PROCESS_BYTES, Footprint, Shape, serving_parts, shape_of
from cluster.policy_checks import check_settings
from cluster.policy_environment import num_rows
from cluster.preflight import Window, check_model, is_hub_id, num_gpus
from cluster.progress import clock
from cluster.recipe import Loaded
from models.source import TINY
from rollout.config import RolloutConfig
from samplers.policy.config import NetworkConfig

PROMPTS_LOOKED_AT = 64
"""Rows of each task whose length is counted."""


def plan(loaded: Loaded[PolicyRecipe]) -> Plan:
    """Work out a run without starting it."""
    recipe = loaded.recipe
    warnings, problems = check_settings(loaded), []
    if recipe.model.path != TINY and not is_hub_id(recipe.model.path):
        try:
            check_model(recipe.model.path)
        except ValueError as error:
            problems.append(str(error))
    config = model_config(recipe.model.path)
    shape = None if config is None else shape_of(config, recipe.model)
    if shape is None:
        warnings.append(
            f"the sizes of {recipe.model.path} are not known here, so there is no estimate of memory and time; give a "
            "local folder"
        )
    runners = recipe.policy.num_env_runners
    needs = [Need("environment runner", runners, 1.0, 0.0, "SPREAD", "policy.num_env_runners")] if runners else []
    return Plan(
        settings=loaded.settings(),
        needs=needs,
        groups=[],
        memory=[] if shape is None else footprints(recipe, shape),
        warnings=warnings,
        problems=problems,
        work=[*rounds(recipe), *([] if shape is None or problems else [forwards_time(recipe, shape)])],
    )


def rounds(recipe: PolicyRecipe) -> list[str]:
    """The rounds of a run and their answers, in words."""
    policy = recipe.policy
    each = len(policy.alphas) * policy.prompts_per_update * (policy.num_samples + len(policy.experts))
    experts = f" + {len(policy.experts)} of experts" if policy.experts else ""
    return [
        f"{policy.updates} rounds of {policy.prompts_per_update} prompts x {policy.num_samples} answers{experts} x "
        f"{len(policy.alphas)} alphas = {each} answers, {policy.inner_updates} gradient steps on each round",
        f"at most {policy.max_new_tokens} forwards an answer, {each * policy.max_new_tokens} a round, "
        f"{each * policy.max_new_tokens * policy.updates} in all; {num_rows(recipe)} answers are one batch",
    ]


def forwards_time(recipe: PolicyRecipe, shape: Shape) -> str:
    """An upper bound of the time inside the model, at the speed of a matrix product of its width on this machine."""
    policy = recipe.policy
    prompt = _prompt_tokens(recipe)
    tokens = (prompt or 0) + policy.max_new_tokens
    answers = len(policy.alphas) * policy.prompts_per_update * (policy.num_samples + len(policy.experts))
    # Two operations a weight and token; embeddings are looked up, and the head runs on masked slots only.
    flop = 2 * (shape.base - 2 * shape.vocabulary * shape.width) * tokens * answers * policy.max_new_tokens
    rate = matrix_rate(shape.width, recipe.model.dtype, policy.threads) * max(1, policy.num_env_runners)
    measured = f"{rate / 1e9:.0f} GFLOP/s, a matrix product of width {shape.width} just timed here"
    canvas = f"canvases of {tokens} tokens" + ("" if prompt else ", prompts not counted")
    return (
        f"at most {flop / 1e12:.3g} TFLOP a round in the model ({canvas}): {clock(flop / rate)} a round and "
        f"{clock(flop * policy.updates / rate)} in all at {measured}; evaluations come on top"
    )


def _prompt_tokens(recipe: PolicyRecipe) -> int | None:
    """Mean tokens of the first prompts of the tasks; None where model or rows are not here."""
    from reward.tasks import build

    try:
        folder = check_model(recipe.model.path)
        if folder is None:
            return None
        prompts = []
        for config in recipe.tasks:
            task = build(config)
            prompts += [task.prompt(row) for row in task.rows("train")[:PROMPTS_LOOKED_AT]]
        lengths = Window.of(folder, recipe).count_tokens(prompts)  # type: ignore[arg-type]
    except (ValueError, OSError):
        return None
    return round(sum(lengths) / len(lengths))


def matrix_rate(width: int, dtype: str, threads: int) -> float:
    """Floating-point operations a second of (2048, D) x (D, 4 D); a tenth of a second is spent on finding out."""
    import torch

    device = "cuda" if num_gpus() else "cpu"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        a = torch.ones(2048, width, dtype=getattr(torch, dtype), device=device)
        b = torch.ones(width, 4 * width, dtype=getattr(torch, dtype), device=device)
        (a @ b).sum().item()
        count, start = 0, time.perf_counter()
        while time.perf_counter() - start < 0.1:
            (a @ b)[0, 0].item()
            count += 1
        return count * 2 * 2048 * width * 4 * width / (time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)


def footprints(recipe: PolicyRecipe, shape: Shape) -> list[Footprint]:
    """Memory of the driver, which learns, and of the runners, which draw; one process where there are no runners."""
    policy = recipe.policy
    drawing = serving_parts(shape, recipe.model, RolloutConfig(max_batch_tokens=policy.max_batch_tokens))
    learning = _learning(recipe)
    process = ("process", PROCESS_BYTES)
    device = "GPU" if num_gpus() else "CPU"
    if not policy.num_env_runners:
        return [Footprint("driver", 1, device, (*drawing, *learning, process))]
    return [
        Footprint("driver", 1, "CPU", (*learning, process)),
        Footprint("environment runner", policy.num_env_runners, device, (*drawing, process)),
    ]


def _learning(recipe: PolicyRecipe) -> list[tuple[str, int]]:
    """Policies with gradients and two moments; steps of a round; what a backward pass keeps."""
    policy, network = recipe.policy, recipe.policy.network
    steps = len(policy.alphas) * policy.prompts_per_update * (policy.num_samples + len(policy.experts))
    steps *= policy.max_new_tokens
    rows = min(policy.micro_batch_rows, steps)
    # Probabilities, three masks and the action of every slot, kept by the round and once more by the batch.
    recorded = 2 * steps * policy.max_new_tokens * (4 * network.num_probs + 3 + 8)
    return [
        ("policies", 16 * num_parameters(network) * len(policy.alphas)),
        ("recorded steps", recorded),
        ("policy activations", rows * policy.max_new_tokens * slot_bytes(network)),
    ]


def num_parameters(network: NetworkConfig) -> int:
    """Parameters of one policy (`samplers.policy.network`)."""
    d, f = network.width, network.ffn_width
    norms, attention, ffn = 6 * d, 4 * d * d + 4 * d, 2 * d * f + d + f
    about = 2 * d + 2 * (d * d + d) + 6 * (d * d + d)
    return (network.num_probs + 1) * d + about + norms + attention + ffn + d + 1


def slot_bytes(network: NetworkConfig) -> int:
    """Bytes a slot that one backward pass keeps, float32: about 20 tensors of the width and two of the feed-forward."""
    return 4 * (20 * network.width + 2 * network.ffn_width)
