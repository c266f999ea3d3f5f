"""Settings of supervised fine-tuning: how slots are masked, how many examples an update sees, what counts as best."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from learner.config import AgdoConfig


class RandomMasking(BaseModel):
    """Each slot is masked with one probability t ~ U(t_min, t_max) a canvas (a block, in block-causal families)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["random"] = "random"
    num_canvases: int = Field(default=1, ge=1)
    """Independently masked canvases of each example in an update."""
    t_min: float = Field(default=1e-3, gt=0, lt=1)
    """Lowest masking rate that is drawn."""
    t_max: float = Field(default=1.0, gt=0, le=1)
    """Highest masking rate that is drawn."""
    weight: Literal["elbo", "mean"] = "elbo"
    """`elbo`: 1 / (t T), the bound on the likelihood; `mean`: the mean over masked slots."""

    @model_validator(mode="after")
    def _ordered(self) -> RandomMasking:
        if self.t_min >= self.t_max:
            raise ValueError(f"t_min {self.t_min} must be below t_max {self.t_max}")
        return self


class BlockwiseMasking(BaseModel):
    """One canvas a block: blocks before it clean, a random part of it masked, blocks after it masked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["blockwise"] = "blockwise"
    block_length: int | None = Field(default=None, ge=1)
    """Slots of a block, counted from the first slot; 16 if not given. In block-causal families a part of an attention
    block, counted as these are, and the whole of it if not given."""
    post_num: int | None = Field(default=None, ge=0)
    """End tokens after the first one that are still targets; all if not given. The rest stays masked."""


class AgdoMasking(AgdoConfig):
    """Attention-guided order and weights (AGDO, 2606.12273): one canvas a step of the trace, weights 1 + gamma I."""

    kind: Literal["agdo"] = "agdo"
    gamma: float = Field(default=100.0, ge=0)
    """Factor of the influence I of a slot in its weight 1 + gamma I; 0: the order alone."""
    num_canvases: int | None = Field(default=39, ge=1)
    """Consecutive steps are merged into at most so many canvases an example; none: a canvas a step."""
    post_num: int | None = Field(default=None, ge=0)
    """End tokens after the first one that are ordered and scored, as the answer is; all if not given (published: 16 for
    mathematics, 0 for programs). The rest stays masked."""
    order: Literal["attention", "random"] = "attention"
    """`random` is a control: a random order in place of the trace, in the same blocks."""
    weights: Literal["influence", "shuffled"] = "influence"
    """`shuffled` is a control: the influences of an example in random order."""


def _kind_alone(given: object) -> object:
    return {"kind": given} if isinstance(given, str) else given


Masking = Annotated[
    Annotated[RandomMasking | BlockwiseMasking | AgdoMasking, Field(discriminator="kind")], BeforeValidator(_kind_alone)
]


def _number_or_word(given: object) -> object:
    if given not in ("fill", "batch") and not (type(given) is int and given >= 1):
        raise ValueError("must be fill, batch, or a whole number of at least 1")
    return given


class SftConfig(BaseModel):
    """Supervised fine-tuning: which examples an update sees, and how they are masked."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(default=64, ge=1)
    """Examples per optimizer update, over all ranks."""
    steps: int = Field(default=100, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    """Response slots; longer answers are refused or left out (`too_long`)."""
    min_new_tokens: int | None = Field(default=None, ge=1)
    """If given, each batch has its own number of slots, drawn evenly from here to `max_new_tokens`, so that the model
    meets canvases of every length."""
    end_tokens: Annotated[Literal["fill", "batch"] | int, BeforeValidator(_number_or_word)] = "fill"
    """End tokens after an answer, targets like any other: up to the last slot; up to the longest answer of the batch;
    or so many, and the canvas ends there."""
    masking: Masking = RandomMasking()
    """How slots are masked: `random`, `blockwise` or `agdo`, or one of them with its settings."""
    too_long: Literal["refuse", "drop"] = "refuse"
    """Rows of `data` whose prompt or answer does not fit: an error before the start, or left out and counted."""
    eval_every: int = Field(default=0, ge=0)
    """Steps between evaluations and checkpoint candidates; 0: only at the end."""
    held_out_canvases: int = Field(default=1, ge=1)
    """Random canvases of each held-out example in the held-out loss."""
    select_by: Literal["auto", "accuracy", "loss"] = "auto"
    """What makes an evaluation the best: right answers (of equal ones, the lower loss), or the lowest held-out loss.
    auto: right answers where there are tasks."""
