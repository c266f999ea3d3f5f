"""Samplers by name, their options, and what a slip of the pen is answered with."""

import pytest

import samplers
from samplers.registry import StepSampler

NAMES = ["ar", "attn", "confidence", "credit", "eb", "egi", "entropy", "factor", "imh", "imh_sequence"]
NAMES += ["lcr", "margin", "max_s", "policy", "random", "threshold"]


def test_names_are_those_of_the_public_surface() -> None:
    assert samplers.names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_says_what_it_needs(name: str) -> None:
    sampler: StepSampler = samplers.build(name)
    assert sampler.name == name
    assert isinstance(sampler.exact_likelihood, bool)
    assert isinstance(sampler.memory, tuple)


def test_unknown_names_get_the_nearest_match() -> None:
    with pytest.raises(
        ValueError, match=r"unknown sampler 'confidense'; did you mean 'confidence'\? Known samplers: ar"
    ):
        samplers.build("confidense")
    with pytest.raises(ValueError, match=r"unknown sampler 'xyz'\. Known samplers: ar"):
        samplers.build("xyz")


def test_options_are_each_samplers_own() -> None:
    assert dict(samplers.options("eb")) == {
        "gamma": 0.1,
        "order": "confidence",
        "score_on": "model",
        "eos_guard": None,
    }
    with pytest.raises(ValueError, match=r"'ar' has no option 'token_per_step'; did you mean 'tokens_per_step'\?"):
        samplers.build("ar", token_per_step=2)
    with pytest.raises(ValueError, match="'ar' has no option 'position_temperature'"):
        samplers.build("ar", position_temperature=1.0)
    with pytest.raises(ValueError, match=r"'threshold' has no option 'gamma'\. Its options: tau, score_on, eos_guard"):
        samplers.build("threshold", gamma=1.0)


def test_values_of_the_wrong_kind_are_named() -> None:
    with pytest.raises(ValueError, match=r"sampler 'threshold': option tau is 'high'\. Input should be a valid number"):
        samplers.build("threshold", tau="high")
    with pytest.raises(ValueError, match=r"option tokens_per_step is 1\.5"):
        samplers.build("ar", tokens_per_step=1.5)
    with pytest.raises(
        ValueError, match=r"option order is 'random'\. Input should be 'confidence', 'entropy' or 'margin'"
    ):
        samplers.build("eb", order="random")
    with pytest.raises(ValueError, match="option layers is 'first'"):
        samplers.build("attn", layers="first")


def test_values_out_of_range_are_refused() -> None:
    for name, options in (
        ("threshold", {"tau": 0}),
        ("threshold", {"tau": float("nan")}),
        ("eb", {"gamma": -1}),
        ("factor", {"f": 0}),
        ("max_s", {"min_prob": 1.5}),
        ("egi", {"first_temperature": 0}),
        ("attn", {"tau": 0}),
    ):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
            samplers.build(name, **options)


def test_two_how_many_rules_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens_per_step \(2\) and tau \(0.5\) are how-many rules; give one"):
        samplers.build("confidence", tokens_per_step=2, tau=0.5)


def test_a_sampler_without_exact_likelihood_says_why():
    made = {name: samplers.build(name) for name in samplers.names()}
    inexact = {name: one.inexact_because for name, one in made.items() if not one.exact_likelihood}
    assert sorted(inexact) == ["credit", "egi", "imh", "imh_sequence", "lcr"]
    assert all(because.split()[0] in ("draws", "keeps") for because in inexact.values())
    assert "first_temperature: null" in inexact["egi"]
    assert samplers.build("egi", first_temperature=None).exact_likelihood
    assert "boost_draw: false" in inexact["credit"]
    assert samplers.build("credit", boost_draw=False).exact_likelihood
