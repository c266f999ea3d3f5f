"""Where one active sequence stands: what the host needs to know to lay out its next forward.

Positions are absolute; the response begins at `prompt_length`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from models.packing import Span
from rollout.cache_policy import CachePolicy
from rollout.layout import Layout
from rollout.request import Request
from samplers.records import Evaluate, StepSampler


@dataclass
class Row:
    """A sequence in a slot of the canvases (and of the cache)."""

    index: int
    """Of the request, in the order given."""
    request: Request
    slot: int
    first_version: int
    layout: Layout
    block: tuple[int, int]
    """Bounds of the slots that compete now."""
    visible: int
    """End of what a forward must hold."""
    block_masked: int
    """Masked slots of the block at its first step."""
    block_steps: int
    """Steps planned for a block; 0 without a budget."""
    step: int = 0
    block_step: int = 0
    kept: int = 0
    """Block-causal families: positions before this one are final in the cache."""
    refresh_all: bool = True
    """Whether the next forward computes the whole canvas."""
    refreshes: bool = True
    """Whether the forward laid out last refreshes."""
    since_refresh: int = 0
    evaluated: tuple[Evaluate, int] | None = None
    """A prediction of the canvas as it is now, made for a candidate of the last step: (evaluation, row in it)."""
    computed: list[tuple[int, int]] = field(default_factory=list)
    num_forwards: int = 0
    sampler: StepSampler | None = None
    """What decodes the row; None: whoever steps it knows."""
    one_block: bool = False
    """Whether the row is finished when its first block is; later slots stay masked."""
    listens: bool = False
    """Whether somebody wants to hear of each commit."""
    position_logprobs: list[float] = field(default_factory=list)

    @staticmethod
    def of(index: int, request: Request, slot: int, layout: Layout, *, version: int) -> Row:
        """A row before its first step."""
        prompt, length = len(request.prompt_tokens), request.length
        start, end = layout.block_of(prompt + request.first_free, prompt, length)
        steps = 0 if request.steps is None else -(-request.steps // layout.num_blocks(prompt, length))
        visible = layout.visible_until(prompt, length)
        masked = _num_masked(request, start, end)
        return Row(index, request, slot, version, layout, (start, end), visible, masked, steps)

    @property
    def prompt_length(self) -> int:
        """P."""
        return len(self.request.prompt_tokens)

    @property
    def length(self) -> int:
        """N = P + T."""
        return self.request.length

    def enter_block_of(self, position: int) -> None:
        """Move to the block of the first masked position."""
        self.block = self.layout.block_of(position, self.prompt_length, self.length)
        self.visible = self.layout.visible_until(position, self.length)
        self.block_step, self.block_masked = 0, _num_masked(self.request, *self.block)
        # The next block is predicted from other keys, or from a longer canvas.
        self.evaluated = None

    def forget_forwards(self) -> None:
        """Take nothing from earlier forwards: the weights have changed."""
        self.kept, self.refresh_all, self.evaluated = 0, True, None

    def span(self, policy: CachePolicy, *, shift: bool) -> Span:
        """What the next forward computes of this row."""
        overdue = policy.period is not None and self.since_refresh >= policy.period
        self.refreshes = self.refresh_all or self.block_step == 0 or overdue
        start, stop = self._range(policy)
        if policy.kind != "none":
            # A shifted family predicts the first slot of a block from the position before it.
            start = min(start, self.block[0] - shift)
        return Span(self.slot, start, stop, self.visible)

    def candidate_span(self, place: int, policy: CachePolicy, *, shift: bool) -> Span:
        """What the forward of a candidate canvas computes, in cache row `place`."""
        start, stop = (self.kept, self.visible) if policy.kind == "block" else policy.inside(self)
        if policy.kind != "none":
            start = min(start, self.block[0] - shift)
        return Span(place, start, stop, self.visible)

    def seen_until(self, policy: CachePolicy) -> int:
        """End of the positions from the block on that every forward of the block computes."""
        if policy.exact:
            return self.visible
        return min(policy.inside(self)[1], policy.refreshed(self)[1])

    @property
    def observes_response(self) -> bool:
        """Whether the sampler looks at masked slots beyond the block."""
        return getattr(self.sampler, "observes_response", False)

    def looks_until(self, policy: CachePolicy) -> int:
        """End of the slots that the sampler looks at."""
        return self.seen_until(policy) if self.observes_response else self.block[1]

    def _range(self, policy: CachePolicy) -> tuple[int, int]:
        if policy.kind == "block":
            return self.kept, self.visible
        if self.refresh_all or policy.kind == "none":
            return 0, self.visible
        return policy.refreshed(self) if self.refreshes else policy.inside(self)

    def count_forward(self, span: Span, policy: CachePolicy, layout: Layout) -> None:
        """Remember a forward that computed `span`."""
        self.num_forwards += 1
        if policy.kind != "none":
            self.computed.append((span.start, span.stop))
        if policy.kind == "block":
            assert layout.block_length is not None
            self.kept = self.block[0] // layout.block_length * layout.block_length
        self.since_refresh = 1 if self.refreshes else self.since_refresh + 1
        self.refresh_all = False


def _num_masked(request: Request, start: int, end: int) -> int:
    """Slots between two positions that are not given."""
    first = len(request.prompt_tokens)
    return end - start - sum(start <= first + slot < end for slot in request.fixed)
