"""Samplers by name. A new rule is one small class and one line here."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Protocol

from samplers.count import CountRule, Fixed, Threshold
from samplers.draw_first import DrawFirst
from samplers.position import Confidence, Entropy, LeftToRight, Margin, PositionRule, Random
from samplers.records import BlockState, Commit, Evaluate
from samplers.sampler import Sampler


class StepSampler(Protocol):
    """Anything the engine can decode with."""

    @property
    def name(self) -> str:
        """Name in the registry."""
        ...

    @property
    def exact_likelihood(self) -> bool:
        """Whether replaying the step map gives the exact likelihood at temperature above 0."""
        ...

    def step(self, state: BlockState, evaluate: Evaluate) -> Commit:
        """Choose and draw what this step commits."""
        ...


def _count(tokens_per_step: int | None, tau: float | None) -> CountRule:
    if tau is not None and tokens_per_step is not None:
        raise ValueError(f"give tokens_per_step ({tokens_per_step}) or tau ({tau}), not both")
    return Fixed(tokens_per_step or 1) if tau is None else Threshold(tau)


def _position_first(name: str, position: PositionRule, **defaults: Any) -> Callable[..., StepSampler]:
    def make(
        *, tokens_per_step: int | None = None, tau: float | None = defaults.get("tau"), eos_guard: bool | None = None
    ) -> StepSampler:
        return Sampler(name, position, _count(tokens_per_step, tau), eos_guard)

    return make


def _lcr(*, tokens_per_step: int | None = None, tau: float | None = None, eos_guard: bool | None = None) -> StepSampler:
    return DrawFirst("lcr", _count(tokens_per_step, tau), eos_guard)


_SAMPLERS: dict[str, Callable[..., StepSampler]] = {
    "ar": _position_first("ar", LeftToRight()),
    "confidence": _position_first("confidence", Confidence()),
    "entropy": _position_first("entropy", Entropy()),
    "lcr": _lcr,
    "margin": _position_first("margin", Margin()),
    "random": _position_first("random", Random()),
    "threshold": _position_first("threshold", Confidence(), tau=0.9),
}
_OPTIONS = ("tokens_per_step", "tau", "eos_guard")


def names() -> list[str]:
    """Names that `build` knows."""
    return sorted(_SAMPLERS)


def build(name: str, **options: Any) -> StepSampler:
    """Make a sampler by name.

    Options: `tokens_per_step` (default 1) or `tau` (commit every slot whose highest probability reaches it; 0.9 in
    `threshold`), and `eos_guard` (None: on in full diffusion only).
    """
    if name not in _SAMPLERS:
        near = get_close_matches(str(name), _SAMPLERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown sampler {name!r}{hint} Known samplers: {', '.join(names())}")
    for key in options:
        if key not in _OPTIONS:
            near = get_close_matches(key, _OPTIONS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"sampler {name!r} has no option {key!r}{hint} Known options: {', '.join(_OPTIONS)}")
    return _SAMPLERS[name](**options)
