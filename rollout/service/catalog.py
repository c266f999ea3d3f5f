"""Samplers as the interface shows them, and which of their options a client may set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import samplers

MAX_OPTION = 1024
"""Largest whole number in an option: candidates and tokens a step cost memory."""
_MAX_CANDIDATES = 32

_WORDS = {
    "ar": "Left to right, one token a step.",
    "attn": "The slots that the other masked slots look at most.",
    "confidence": "The slot whose most likely token is the most probable.",
    "credit": "Slots whose favourite stays the same from step to step, and is probable.",
    "eb": "As many of the surest slots as an entropy bound allows.",
    "egi": "The least certain slot first, then the most confident ones.",
    "entropy": "The slot that the model is least uncertain about.",
    "factor": "As many of the most confident slots as their confidence allows.",
    "imh": "A Metropolis chain weighs candidates by what they leave possible.",
    "imh_sequence": "A Metropolis chain over several whole answers.",
    "lcr": "Draws at every slot and keeps the most confident draws.",
    "margin": "The slot with the widest gap between its two likeliest tokens.",
    "max_s": "The sure slot that looks most at what is known.",
    "policy": "A learned unmasking policy.",
    "random": "Any masked slot, all equally likely.",
    "threshold": "Every slot that is surer than a threshold.",
}


def describe_all() -> list[dict[str, Any]]:
    """Name, description, options with their defaults, and whether the likelihood is exact, of every sampler."""
    return [_describe(name) for name in samplers.names()]


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for options that only the owner of the process may set, or that cost too much."""
    for key, value in options.items():
        default = dict(samplers.options(name)).get(key)
        if isinstance(value, str) and not isinstance(default, str):
            raise ValueError(f"sampler {name!r}: option {key} is a text; texts that name files cannot be set here")
        bound = _MAX_CANDIDATES if key == "candidates" else MAX_OPTION
        if isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) <= bound:
            raise ValueError(f"sampler {name!r}: option {key} is {value}; here it may be at most {bound}")


def _describe(name: str) -> dict[str, Any]:
    try:
        exact: bool | None = samplers.build(name).exact_likelihood
    except (ValueError, TypeError):
        exact = None  # it has an option that must be given
    return {
        "name": name,
        "description": _WORDS.get(name, ""),
        "options": {key: _plain(value) for key, value in samplers.options(name).items()},
        "exact_likelihood": exact,
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else None
