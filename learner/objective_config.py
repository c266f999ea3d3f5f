"""Settings of the policy objective: advantage, likelihood, ratio, divergence, normaliser; which of them fit together.

Published methods are settings of these parts; docs/objectives.md has the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


@dataclass(frozen=True, slots=True)
class LikelihoodFacts:
    """What an estimator of the likelihood can be combined with."""

    scores_drawn_law: bool = False
    """Its terms are the log-probabilities of the law that drew the tokens, so importance weights are defined."""
    replays: bool = False
    """It rebuilds canvases from the step map, so it needs a position-first sampler and temperature alone."""
    is_whole: bool = True
    """The weighted sum of its terms estimates the log-likelihood of the whole answer."""
    is_weighted: bool = False
    """Its terms have weights other than 1."""
    is_random: bool = False
    """It draws masks or steps."""
    options: tuple[str, ...] = ()
    """The fields of `EstimatorConfig` that it reads."""


LIKELIHOODS: dict[str, LikelihoodFacts] = {
    "trace_exact": LikelihoodFacts(scores_drawn_law=True, replays=True),
    "ar_exact": LikelihoodFacts(scores_drawn_law=True, replays=True),
    "ar_fast": LikelihoodFacts(scores_drawn_law=True, replays=True, is_whole=False, options=("kept_share",)),
    "trace_merged": LikelihoodFacts(replays=True, options=("merged_steps", "num_canvases")),
    "trace_sampled": LikelihoodFacts(
        scores_drawn_law=True, replays=True, is_weighted=True, is_random=True, options=("num_draws", "step_law")
    ),
    "one_step": LikelihoodFacts(is_random=True, options=("prompt_mask_rate",)),
    "coupled": LikelihoodFacts(is_weighted=True, is_random=True, options=("rate_low", "rate_high")),
    "random_mask": LikelihoodFacts(
        is_weighted=True, is_random=True, options=("num_draws", "rate_low", "rate_high", "prompt_mask_rate")
    ),
    "elbo": LikelihoodFacts(is_weighted=True, is_random=True, options=("num_draws",)),
    "elbo_pair": LikelihoodFacts(is_weighted=True, is_random=True, options=("num_draws",)),
    "block_mask": LikelihoodFacts(is_weighted=True, is_random=True, options=("num_draws", "prompt_mask_rate")),
    "agdo": LikelihoodFacts(is_whole=False, is_random=True),
}
"""Every estimator; `learner.estimators` builds them."""

BOUNDS = ("elbo", "elbo_pair", "block_mask", "random_mask")
"""Estimators with draws of masks, of which upper and lower bounds can be made."""

LikelihoodName = Literal[
    "trace_exact",
    "ar_exact",
    "ar_fast",
    "trace_merged",
    "trace_sampled",
    "one_step",
    "coupled",
    "random_mask",
    "elbo",
    "elbo_pair",
    "block_mask",
    "agdo",
]


DEFAULT_RATES = {"coupled": (0.2, 0.8), "random_mask": (0.1, 0.9)}
"""Lowest and highest masking rate of the published methods."""


class EstimatorConfig(BaseModel):
    """Options of the likelihood estimators; each field names the ones that read it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kept_share: float = Field(default=0.25, gt=0, le=1)
    """`ar_fast`: share of an answer's slots that are scored, those of the highest entropy at rollout."""
    merged_steps: int = Field(default=8, ge=1)
    """`trace_merged`: consecutive denoising steps scored from one canvas."""
    num_canvases: int | None = Field(default=None, ge=1)
    """`trace_merged`: canvases an answer, whatever its number of steps; replaces `merged_steps`."""
    num_draws: int = Field(default=2, ge=1)
    """`trace_sampled`: steps drawn an answer. `random_mask`, `elbo`, `block_mask`: masks. `elbo_pair`: pairs."""
    step_law: Literal["uniform", "entropy"] = "uniform"
    """`trace_sampled`: draw steps evenly, or in proportion to the entropy of their slots (and a tenth evenly)."""
    prompt_mask_rate: float | None = Field(default=None, ge=0, lt=1)
    """Probability with which each prompt token is hidden; also of the clean slots of `block_mask`. If not given:
    `one_step` and `block_mask` 0.15, `random_mask` 0."""
    rate_low: float | None = Field(default=None, gt=0, lt=1)
    """Lowest masking rate; if not given: `coupled` 0.2, `random_mask` 0.1."""
    rate_high: float | None = Field(default=None, gt=0, lt=1)
    """Highest masking rate; if not given: `coupled` 0.8, `random_mask` 0.9."""

    def rates(self, likelihood: str) -> tuple[float, float]:
        """Lowest and highest masking rate of an estimator that draws one."""
        low, high = DEFAULT_RATES[likelihood]
        return (
            low if self.rate_low is None else self.rate_low,
            high if self.rate_high is None else self.rate_high,
        )


class AgdoConfig(BaseModel):
    """Attention-guided order and influence (AGDO), for reinforcement learning and for supervised fine-tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slots_per_rank: int = Field(default=1, ge=1)
    """Slots that the greedy order takes at once (n of Algorithm 1)."""
    block_length: int | None = Field(default=None, ge=1)
    """Blocks of the order (m), counted from the first response slot; none: the whole response is one block.
    Block-causal families use the blocks of their attention instead."""
    within_block: bool = False
    """Order each block knowing the prompt and earlier blocks only; off, as published, one order of all slots is made
    and then sorted by block, so a slot's place in it may rest on slots that are still masked."""
    num_canvases: int | None = Field(default=15, ge=1)
    """Consecutive steps are merged into at most this many canvases an answer (published: 15 for reinforcement
    learning, 39 for fine-tuning); none: a canvas a step."""
    rate_low: float = Field(default=0.1, ge=0, le=1)
    """Each slot of a step is masked and scored with its own probability, drawn evenly from here to `rate_high`."""
    rate_high: float = Field(default=0.9, gt=0, le=1)
    empty: Literal["redraw", "skip"] = "redraw"
    """Masks without a slot: drawn again, or the canvas left out (which loses half of the tokens at one slot a step)."""
    layers: Literal["last", "all"] | tuple[int, ...] = "last"
    """Layers whose attention is averaged."""
    influence_cap: float | None = Field(default=None, gt=0)
    """Largest influence of a slot; none: as it is, so that an attention sink may dominate."""
    normalise_influence: bool = False
    """Divide the influences of an answer by their mean."""

    @model_validator(mode="after")
    def _check_rates(self) -> AgdoConfig:
        if self.rate_low > self.rate_high:
            raise ValueError(f"rate_low {self.rate_low} is above rate_high {self.rate_high}: swap them")
        return self


class ObjectiveConfig(BaseModel):
    """What is maximised: GRPO, JustGRPO, Dr. GRPO, DAPO, GSPO, diffu-GRPO, TraceRL, ESPO, wd1, SPG, AGDO by settings.

    clip        min(ratio * A, clip(ratio) * A), the ratio of a token or of a whole answer
    likelihood  A * log-likelihood, without a ratio (wd1)
    bounds      A * lower bound where A > 0, A * (mixture of upper and lower bound) where A < 0 (SPG)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    advantage: Literal["mean", "std", "loo", "softmax"] = "mean"
    """Score minus the group mean; divided by the group's standard deviation; minus the mean of the others; or
    softmax(A) - softmax(-A) of the mean-free scores over the group (wd1)."""
    likelihood: LikelihoodName = "trace_exact"
    """How log-probabilities are computed. `trace_exact` replays the step map; `ar_exact` scores left to right
    (JustGRPO; rollouts must use `ar`); the others approximate or sample (docs/objectives.md)."""
    estimator: EstimatorConfig = EstimatorConfig()
    agdo: AgdoConfig = AgdoConfig()
    """Order of the `agdo` likelihood; its attention also gives the influence of `influence`."""
    influence: float = Field(default=0.0, ge=0)
    """AGDO's delta: each slot's advantage is A + sign(A) * influence * I, I how much the slot is attended to."""
    loss: Literal["clip", "likelihood", "bounds"] = "clip"
    ratio: Literal["token", "sequence"] = "token"
    """`sequence`: one ratio an answer, exp of its mean change of log-probability (GSPO, ESPO)."""
    clip_low: float = Field(default=0.2, ge=0)
    clip_high: float = Field(default=0.2, ge=0)
    clip_dual: float | None = Field(default=None, gt=1)
    """Lower bound c * A on the clipped term where A < 0 (dual clip); none if not given."""
    kl_coef: float = Field(default=0.0, ge=0)
    """Weight of the estimated divergence from the anchor; 0 computes none."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """With d = l - l_anchor: k1 = d, k2 = d^2 / 2, k3 = e^-d - 1 + d. `sequence` ratios: of the mean change, times the
    number of scored slots."""
    kl_anchor: Literal["reference", "phase_start"] = "reference"
    """`reference`: the frozen starting weights. `phase_start`: the weights before this update (TraceRL), which cost no
    further model and no further pass."""
    normaliser: Literal["token", "sequence", "fixed", "canvas"] = "sequence"
    """Mean over all scored tokens; mean over samples of the mean over tokens; the sum over tokens / T; or mean over
    samples, their canvases, and the slots of each."""
    importance: Literal["none", "token", "step", "sequence"] = "none"
    """Truncated importance weights for answers that other weights or an approximate cache drew: one a token, one a
    denoising step (product over its tokens), or one an answer (product over all; one more pass without gradients)."""
    importance_cap: float = Field(default=2.0, ge=1)
    """Largest importance weight."""
    num_epochs: int = Field(default=1, ge=1)
    """Optimizer updates per rollout batch (inner epochs)."""
    redraw_masks: bool = False
    """Draw new masks for each inner epoch (diffu-GRPO); off: all epochs see the masks of the first."""
    min_valid: int = Field(default=2, ge=2)
    """Groups with fewer graded answers are dropped and counted."""
    softmax_temperature: float = Field(default=1.0, gt=0)
    """psi of `advantage: softmax`."""
    bound_weight: float = Field(default=0.5, ge=0, le=1)
    """`bounds`: share of the upper bound in the mixture for answers of negative advantage."""
    bound_beta: float = Field(default=1.5, ge=1)
    """`bounds`: order of the upper bound; 1 is the tightest."""

    @property
    def facts(self) -> LikelihoodFacts:
        """What the chosen likelihood can be combined with."""
        return LIKELIHOODS[self.likelihood]

    @property
    def needs_guide(self) -> bool:
        """Whether an update begins with one forward of every finished answer for its attention."""
        return self.likelihood == "agdo" or self.influence > 0

    @property
    def needs_reference(self) -> bool:
        """Whether a frozen model has to be kept."""
        return self.kl_coef > 0 and self.kl_anchor == "reference"

    @property
    def is_separable(self) -> bool:
        """Whether the loss is a sum over slots, each of one canvas; if not, values of a whole sample are needed."""
        if self.loss == "likelihood" and self.kl_coef == 0:
            return True
        return self.loss != "bounds" and self.ratio == "token" and self.likelihood != "coupled"

    @model_validator(mode="after")
    def _check(self) -> ObjectiveConfig:
        problem = illegal_pair(self)
        if problem:
            raise ValueError(problem)
        return self


def illegal_pair(objective: ObjectiveConfig) -> str:
    """What in an objective cannot be combined, with the alternatives; empty if all of it can."""
    checks = (_importance_problem, _whole_problem, _bounds_problem, _answer_problem, _canvas_problem)
    return next((problem for check in checks if (problem := check(objective))), "")


def likelihoods(**facts: bool) -> str:
    """Names of the estimators of which some facts hold, for error texts."""
    return ", ".join(n for n, its in LIKELIHOODS.items() if all(getattr(its, k) == v for k, v in facts.items()))


def _importance_problem(objective: ObjectiveConfig) -> str:
    if objective.importance == "none":
        return ""
    if not objective.facts.scores_drawn_law:
        return (
            f"importance {objective.importance!r} needs the log-probabilities of the law that drew the answers, and "
            f"likelihood {objective.likelihood!r} estimates another quantity; use importance none, or likelihood "
            f"{likelihoods(scores_drawn_law=True)}"
        )
    if objective.ratio == "sequence" and objective.importance != "sequence":
        return (
            f"importance {objective.importance!r} weighs tokens, and ratio 'sequence' has one term an answer; use "
            "importance sequence or none, or ratio token"
        )
    return ""


def _whole_problem(objective: ObjectiveConfig) -> str:
    if objective.ratio == "sequence" and not objective.facts.is_whole:
        return (
            f"ratio 'sequence' needs the likelihood of whole answers, and likelihood {objective.likelihood!r} scores "
            f"only a part of the slots; use ratio token, or likelihood {likelihoods(is_whole=True)}"
        )
    return ""


def _bounds_problem(objective: ObjectiveConfig) -> str:
    if objective.loss == "bounds" and objective.likelihood not in BOUNDS:
        return (
            f"loss 'bounds' needs draws of masks whose mean bounds the likelihood, and likelihood "
            f"{objective.likelihood!r} has none; use likelihood {', '.join(BOUNDS)}, or loss clip or likelihood"
        )
    if objective.loss == "bounds" and (objective.kl_coef > 0 or objective.importance != "none"):
        return "loss 'bounds' (SPG) has neither a divergence nor importance weights: set kl_coef 0 and importance none"
    return ""


def _answer_problem(objective: ObjectiveConfig) -> str:
    """Settings of tokens where the loss has one term an answer."""
    if objective.loss != "clip" and objective.ratio == "sequence":
        return f"ratio 'sequence' belongs to loss clip, and loss {objective.loss!r} has no ratio: set ratio to token"
    one_term = "ratio 'sequence'" if objective.ratio == "sequence" else "loss 'bounds'"
    if objective.influence > 0 and (objective.ratio == "sequence" or objective.loss == "bounds"):
        return f"influence {objective.influence} weighs tokens, and {one_term} has one term an answer; set it to 0"
    if objective.normaliser == "canvas" and (objective.ratio == "sequence" or objective.loss == "bounds"):
        return f"normaliser 'canvas' averages tokens, and {one_term} has one term an answer; use normaliser sequence"
    return ""


def _canvas_problem(objective: ObjectiveConfig) -> str:
    if objective.normaliser == "canvas" and objective.facts.is_weighted:
        return (
            f"normaliser 'canvas' averages over the slots of a canvas, and likelihood {objective.likelihood!r} already "
            f"weighs its canvases; use normaliser sequence, token or fixed, or likelihood "
            f"{likelihoods(is_weighted=False)}"
        )
    if objective.likelihood in DEFAULT_RATES:
        low, high = objective.estimator.rates(objective.likelihood)
        if low > high:
            return f"estimator.rate_low {low} is above rate_high {high} of {objective.likelihood!r}: swap them"
    if objective.redraw_masks and not objective.facts.is_random:
        return (
            f"redraw_masks true has nothing to draw with likelihood {objective.likelihood!r}; set it to false, or use "
            f"likelihood {likelihoods(is_random=True)}"
        )
    return ""
