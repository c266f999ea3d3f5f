"""Samplers by name. A new rule is one small class and one line here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, get_type_hints

from pydantic import TypeAdapter, ValidationError

from samplers.count import AttentionPrefix, CountRule, EntropyBound, Factor, Fixed, Threshold
from samplers.credit import CreditSampler
from samplers.draw_first import DrawFirst
from samplers.metropolis import Lookahead, Metropolis
from samplers.policy.files import load_policy
from samplers.policy.laws import law
from samplers.policy.sampler import PolicySampler
from samplers.position import (
    AttentionColumn,
    Confidence,
    Entropy,
    EntropyThenConfidence,
    Layers,
    LeftToRight,
    Margin,
    MaxS,
    PositionRule,
    Random,
)
from samplers.records import StepSampler
from samplers.sampler import Sampler, ScoreOn
from samplers.sequence_chain import Level, Pick, SequenceChain

Maker = Callable[..., StepSampler]


def _count(**rules: float | None) -> CountRule:
    """The how-many rule that one of these options asks for; one token a step if none does."""
    given = {name: value for name, value in rules.items() if value is not None}
    if len(given) > 1:
        values = " and ".join(f"{name} ({value})" for name, value in given.items())
        raise ValueError(f"{values} are how-many rules; give one of them, not both")
    makers: dict[str, Callable[[Any], CountRule]] = {
        "tokens_per_step": Fixed,
        "tau": Threshold,
        "f": Factor,
        "gamma": EntropyBound,
    }
    for name, value in given.items():
        return makers[name](value)
    return Fixed()


def _blind(name: str, position: PositionRule) -> Maker:
    """A rule that ignores the prediction."""

    def make(
        *,
        tokens_per_step: int | None = None,
        tau: float | None = None,
        f: float | None = None,
        gamma: float | None = None,
        eos_guard: bool | None = None,
    ) -> StepSampler:
        return Sampler(name, position, _count(tokens_per_step=tokens_per_step, tau=tau, f=f, gamma=gamma), eos_guard)

    return make


def _judging(name: str, position: PositionRule) -> Maker:
    """A rule that ranks by the prediction."""

    def make(
        *,
        tokens_per_step: int | None = None,
        tau: float | None = None,
        f: float | None = None,
        gamma: float | None = None,
        position_temperature: float | None = None,
        score_on: ScoreOn = "model",
        eos_guard: bool | None = None,
    ) -> StepSampler:
        count = _count(tokens_per_step=tokens_per_step, tau=tau, f=f, gamma=gamma)
        return Sampler(name, position, count, eos_guard, position_temperature, score_on)

    return make


def _threshold(*, tau: float = 0.9, score_on: ScoreOn = "model", eos_guard: bool | None = None) -> StepSampler:
    return Sampler("threshold", Confidence(), Threshold(tau), eos_guard, score_on=score_on)


def _factor(*, f: float = 1.0, score_on: ScoreOn = "model", eos_guard: bool | None = None) -> StepSampler:
    return Sampler("factor", Confidence(), Factor(f), eos_guard, score_on=score_on)


def _eb(
    *,
    gamma: float = 0.1,
    order: Literal["confidence", "entropy", "margin"] = "confidence",
    score_on: ScoreOn = "model",
    eos_guard: bool | None = None,
) -> StepSampler:
    positions: dict[str, PositionRule] = {"confidence": Confidence(), "entropy": Entropy(), "margin": Margin()}
    return Sampler("eb", positions[order], EntropyBound(gamma), eos_guard, score_on=score_on)


def _egi(
    *, first_temperature: float | None = 0.9, tokens_per_step: int = 1, eos_guard: bool | None = None
) -> StepSampler:
    return Sampler("egi", EntropyThenConfidence(first_temperature), Fixed(tokens_per_step), eos_guard)


def _attn(
    *,
    tau: float = 0.9,
    tokens_per_step: int | None = None,
    layers: Layers = "all",
    local: bool = False,
    eos_guard: bool | None = None,
) -> StepSampler:
    count = AttentionPrefix(tau) if tokens_per_step is None else Fixed(tokens_per_step)
    return Sampler("attn", AttentionColumn(layers, local), count, eos_guard)


def _max_s(
    *, min_prob: float = 0.9, tokens_per_step: int = 1, layers: Layers = "last", eos_guard: bool | None = None
) -> StepSampler:
    return Sampler("max_s", MaxS(min_prob, layers), Fixed(tokens_per_step), eos_guard)


def _lcr(
    *,
    tokens_per_step: int | None = None,
    tau: float | None = None,
    f: float | None = None,
    gamma: float | None = None,
    score_on: ScoreOn = "model",
    eos_guard: bool | None = None,
) -> StepSampler:
    return DrawFirst("lcr", _count(tokens_per_step=tokens_per_step, tau=tau, f=f, gamma=gamma), eos_guard, score_on)


def _credit(
    *,
    tau: float = 0.9,
    decay: float = 0.8,
    power: float = 0.2,
    strength: float = 0.7,
    boost_draw: bool = True,
    eos_guard: bool | None = None,
) -> StepSampler:
    return CreditSampler("credit", Threshold(tau), decay, power, strength, boost_draw, eos_guard)


def _imh(
    *,
    alpha: float = 1.67,
    candidates: int = 2,
    damp: float = 1.0,
    position: Literal["confidence", "random"] = "confidence",
    lookahead: Lookahead = "block",
    skip_ends: bool = True,
    eos_guard: bool | None = None,
) -> StepSampler:
    positions: dict[str, PositionRule] = {"confidence": Confidence(), "random": Random()}
    return Metropolis("imh", positions[position], alpha, candidates, damp, lookahead, skip_ends, eos_guard)


def _imh_sequence(
    *,
    alpha: float = 1.67,
    candidates: int = 2,
    level: Level = "response",
    pick: Pick = "chain",
    position: Literal["confidence", "random"] = "confidence",
    eos_guard: bool | None = None,
) -> StepSampler:
    positions: dict[str, PositionRule] = {"confidence": Confidence(), "random": Random()}
    run = Metropolis("imh_sequence", positions[position], alpha, candidates=0, eos_guard=eos_guard)
    return SequenceChain("imh_sequence", run, candidates, level, pick)


def _policy(
    *,
    path: str | None = None,
    beta: float = 1.0,
    temperature: float | None = None,
    eos_guard: bool | None = None,
) -> StepSampler:
    network, settings = load_policy(path)
    chosen = law(settings.law, temperature=settings.temperature if temperature is None else temperature, beta=beta)
    return PolicySampler("policy", network, chosen, settings.fallback, eos_guard)


_SAMPLERS: dict[str, Maker] = {
    "ar": _blind("ar", LeftToRight()),
    "attn": _attn,
    "confidence": _judging("confidence", Confidence()),
    "credit": _credit,
    "eb": _eb,
    "egi": _egi,
    "entropy": _judging("entropy", Entropy()),
    "factor": _factor,
    "imh": _imh,
    "imh_sequence": _imh_sequence,
    "lcr": _lcr,
    "margin": _judging("margin", Margin()),
    "max_s": _max_s,
    "policy": _policy,
    "random": _blind("random", Random()),
    "threshold": _threshold,
}


def names() -> list[str]:
    """Names that `build` knows."""
    return sorted(_SAMPLERS)


def options(name: str) -> Mapping[str, Any]:
    """Options of a sampler and their defaults."""
    return {key: item.default for key, item in inspect.signature(_maker(name)).parameters.items()}


def build(name: str, **chosen: Any) -> StepSampler:
    """Make a sampler by name; each has its own options (`options(name)` lists them, docs/samplers.md explains them).

    Raises ValueError for an unknown name or option, with the nearest match, and for a value of the wrong type or range.
    """
    make, known = _maker(name), options(name)
    hints = get_type_hints(make)
    for key, value in chosen.items():
        if key not in known:
            raise ValueError(
                f"sampler {name!r} has no option {key!r}{_nearest(key, known)} Its options: {', '.join(known)}"
            )
        try:
            chosen[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            why = "; ".join(dict.fromkeys(item["msg"] for item in error.errors()))
            raise ValueError(f"sampler {name!r}: option {key} is {value!r}. {why}") from None
    return make(**chosen)


def _maker(name: str) -> Maker:
    if name not in _SAMPLERS:
        raise ValueError(
            f"unknown sampler {name!r}{_nearest(str(name), _SAMPLERS)} Known samplers: {', '.join(names())}"
        )
    return _SAMPLERS[name]


def _nearest(word: str, known: Mapping[str, Any]) -> str:
    near = get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else "."
