"""The card of a trained unmasking policy: what it is, how it was made, how to use it."""

from __future__ import annotations

from samplers.policy.config import PolicySettings

_WORDS = {
    "model": "model it was trained with, frozen",
    "tasks": "tasks",
    "alpha": "alpha, the weight of speed in the reward",
    "reward": "reward",
    "max_new_tokens": "response slots",
    "block_length": "block length",
    "num_experts": "experts in each group",
    "warm_start_tau": "threshold imitated before",
    "updates": "updates",
    "prompts_per_update": "prompts per update",
    "num_samples": "answers per prompt",
    "seed": "seed",
}


def card(settings: PolicySettings) -> str:
    """Markdown."""
    network = settings.network
    facts = [f"| {_WORDS.get(name, name)} | {_shown(name, value)} |" for name, value in settings.trained.items()]
    lines = [
        "# Unmasking policy",
        "",
        "Decides at each denoising step of a masked diffusion language model which slots to commit, from the highest "
        f"{'probability' if network.num_probs == 1 else f'{network.num_probs} probabilities'} of each slot, the mask "
        "and the elapsed time (arXiv 2512.09106). It reads no token, so it works with any model and vocabulary.",
        "",
        f"One transformer block: width {network.width}, {network.num_heads} heads, feed-forward {network.ffn_width}. "
        f"Action law `{settings.law}`; where it commits nothing, the slot of highest {settings.fallback} is committed.",
        "",
        "| trained with | |",
        "|---|---|",
        *facts,
        "",
        "```",
        "unmask eval --model tiny --task sudoku4 --sampler policy --set sampler.path=THIS_FOLDER",
        "```",
        "",
        "`sampler.beta` above 1 commits more at a time, `sampler.temperature` below 1 makes it more decided. Licence: "
        "Apache-2.0.",
        "",
    ]
    return "\n".join(lines)


def _shown(name: str, value: object) -> str:
    if value is None:
        return {"block_length": "the whole answer (full diffusion)"}.get(name, "none")
    return f"{value:g}" if isinstance(value, float) else str(value)
