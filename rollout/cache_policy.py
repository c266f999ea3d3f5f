"""Which positions a forward computes, and which it takes from kept keys and values.

    none     the whole canvas, every step: exact
    block    block-causal families: finished blocks never change, so they are kept: exact. A block's last tokens are
             committed after its last forward; their keys are computed along with the first step of the next block
    prefix   bidirectional families: positions left of the active block are frozen at its start (Fast-dLLM)
    dual     everything outside the active block is frozen at its start (Fast-dLLM)

`prefix` and `dual` are approximate. What they compute again when a sequence enters a block is the refresh rule:

    block       the whole canvas, as published
    generated   the response only; the prompt keeps the keys of the first step
    window      the block and `window` positions on either side
    drift       as `window`; if the last layer's keys there have turned by more than `drift` (1 - mean cosine), the
                whole canvas at the next step

and `period` repeats the refresh inside a block every so many steps. The first step of a sequence computes everything.
Fast-dLLM: arXiv 2505.22618.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, Protocol, get_args

CacheKind = Literal["none", "prefix", "dual", "block"]
Refresh = Literal["block", "generated", "window", "drift"]


class Place(Protocol):
    """Where a sequence stands."""

    block: tuple[int, int]
    visible: int

    @property
    def prompt_length(self) -> int:
        """P."""
        ...

    @property
    def length(self) -> int:
        """N."""
        ...


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """A cache and its refresh rule."""

    kind: CacheKind = "none"
    refresh: Refresh = "block"
    window: int = 32
    drift: float = 0.05
    period: int | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("cache", self.kind, get_args(CacheKind)),
            ("refresh", self.refresh, get_args(Refresh)),
        ):
            if value not in known:
                near = get_close_matches(str(value), known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{name} is {value!r}{hint} Allowed: {', '.join(known)}")
        if self.window < 0:
            raise ValueError(f"window is {self.window}; it must be 0 or more")
        if self.drift < 0:
            raise ValueError(f"drift is {self.drift}; it must be 0 (always refresh) or more")
        if self.period is not None and self.period < 1:
            raise ValueError(f"period is {self.period}; it must be at least 1, or None")

    @property
    def exact(self) -> bool:
        """Whether every forward gives what a forward of the whole canvas gives."""
        return self.kind in ("none", "block")

    def check(self, *, block_causal: bool) -> None:
        """Refuse a cache that does not fit the family's attention."""
        if block_causal and not self.exact:
            raise ValueError(
                f"cache {self.kind!r} is for bidirectional families; in a block-causal one finished blocks never "
                "change: use 'block' (exact) or 'none'"
            )
        if not block_causal and self.kind == "block":
            raise ValueError(
                "cache 'block' is for block-causal families; in a bidirectional one every token sees later ones: use "
                "'none' (exact), 'prefix' or 'dual' (approximate)"
            )

    def describe(self) -> str:
        """Name for the record of a trajectory, for instance `dual/window=32`."""
        if self.exact:
            return self.kind
        detail = {"window": f"window={self.window}", "drift": f"drift={self.drift:g},window={self.window}"}
        period = "" if self.period is None else f",period={self.period}"
        return f"{self.kind}/{detail.get(self.refresh, self.refresh)}{period}"

    def refreshed(self, row: Place) -> tuple[int, int]:
        """Positions that a refresh computes on entering a block (not the first step of a sequence)."""
        if self.refresh == "block":
            return 0, row.length
        if self.refresh == "generated":
            return row.prompt_length, row.length
        return max(0, row.block[0] - self.window), min(row.length, row.block[1] + self.window)

    def inside(self, row: Place) -> tuple[int, int]:
        """Positions that a step inside a block computes."""
        if self.kind == "none":
            return 0, row.visible
        return row.block if self.kind == "dual" else (row.block[0], row.length)
