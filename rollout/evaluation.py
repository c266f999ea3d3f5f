"""The prediction of one forward, asked for slot by slot.

A active sequences, S spans, M slots asked for, W different places among them, L columns of the widest active block, D
width, V vocabulary. Several sequences may share a span of the forward: before their first draw the samples of a prompt
are one canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch

from models import Denoiser
from models.stack import Pending
from samplers.records import Evaluate

Fork = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Evaluate]
"""(row_K, column_K, token_K) -> the forward of candidate canvases."""


class Evaluation:
    """What a sampler sees of a forward.

    `block_S`: bounds of the active block of each span. `whole_block`: run the last layer at every slot of the blocks
    rather than at the slots asked for: how many these are is known on the device only, and a GPU would wait for the
    answer longer than it computes a few slots more.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        pending: Pending,
        *,
        span_of_row: Sequence[int],
        block_S: Sequence[tuple[int, int]],
        attention_SL: torch.Tensor | None = None,
        fork: Fork | None = None,
        whole_block: bool | None = None,
    ) -> None:
        device = pending.packing.device
        self._denoiser, self._pending, self._span_of_row = denoiser, pending, span_of_row
        self._attention_SL, self._fork = attention_SL, fork
        self._block_S = block_S
        self._is_shared = len(span_of_row) > len(pending.packing.spans)
        self._whole_block = device.type != "cpu" if whole_block is None else whole_block
        self._block_hidden_WD: torch.Tensor | None = None
        self.vocab_size = denoiser.vocab_size

    @cached_property
    def _start_S(self) -> torch.Tensor:
        return torch.tensor([start for start, _ in self._block_S], device=self._pending.packing.device)

    @cached_property
    def _span_A(self) -> torch.Tensor:
        return torch.tensor(self._span_of_row, device=self._pending.packing.device)

    def hidden(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """Final hidden states (M, D) that predict these slots; the last layer runs here, and only for them."""
        packing = self._pending.packing
        if len(packing.spans) == 1 and not self._is_shared and not self._whole_block:
            position_M = self._source(column_M + self._block_S[0][0])
            return self._pending.hidden(position_M - packing.spans[0].start, [len(column_M)])
        span_M = self._span_A[row_M]
        if self._whole_block:
            return self._from_blocks(span_M, column_M)
        flat_M = packing.flat(span_M, self._source(self._start_S[span_M] + column_M))
        flat_W, place_M = flat_M, None
        if self._is_shared:
            flat_W, place_M = flat_M.unique(return_inverse=True)
        counts = torch.bincount(packing.span_of(flat_W), minlength=len(packing.spans)).tolist()
        hidden_WD = self._pending.hidden(flat_W, counts)
        return hidden_WD if place_M is None else hidden_WD[place_M]

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Logits (M, V), float32, the mask token at -inf."""
        logits_MV = self._denoiser.head(hidden_MD).float()
        logits_MV[:, self._denoiser.mask_token_id] = -torch.inf
        return logits_MV

    def attention(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """The sums that the sampler's `probe` asked for, (M,) float32."""
        if self._attention_SL is None:
            raise ValueError("this forward was run without an attention probe; name it in the sampler's `probe`")
        return self._attention_SL[self._span_A[row_M], column_M]

    def with_tokens(self, row_K: torch.Tensor, column_K: torch.Tensor, token_K: torch.Tensor) -> Evaluate:
        """Forward of K candidate canvases, each one of the rows with one slot filled."""
        if self._fork is None:
            raise ValueError("candidates of a candidate canvas are not supported")
        return self._fork(row_K, column_K, token_K)

    def _source(self, position_M: torch.Tensor) -> torch.Tensor:
        """Positions whose hidden states predict these positions."""
        return (position_M - 1).clamp(min=0) if self._denoiser.family.shift else position_M

    def _from_blocks(self, span_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        packing, width = self._pending.packing, max(stop - start for start, stop in self._block_S)
        if self._block_hidden_WD is None:
            # A short block is filled up with its last slot: every span has as many places, and the host knows it.
            last_S = torch.tensor([stop - 1 for _, stop in self._block_S], device=packing.device)
            column_L = torch.arange(width, device=packing.device)
            position_SL = (self._start_S[:, None] + column_L).minimum(last_S[:, None])
            span_SL = torch.arange(len(last_S), device=packing.device)[:, None].expand_as(position_SL)
            flat_SL = packing.flat(span_SL, self._source(position_SL))
            self._block_hidden_WD = self._pending.hidden(flat_SL.flatten(), [width] * len(last_S))
        return self._block_hidden_WD[span_M * width + column_M]


class Selected:
    """A prediction as seen by the owner of some of its rows, which count from 0 for him."""

    def __init__(self, whole: Evaluate, rows: Sequence[int], device: torch.device) -> None:
        self._whole, self._row_A = whole, torch.tensor(rows, device=device)
        self.vocab_size = whole.vocab_size

    def hidden(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """Final hidden states (M, D)."""
        return self._whole.hidden(self._row_A[row_M], column_M)

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Logits (M, V)."""
        return self._whole.logits(hidden_MD)

    def attention(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """Attention sums (M,)."""
        return self._whole.attention(self._row_A[row_M], column_M)

    def with_tokens(self, row_K: torch.Tensor, column_K: torch.Tensor, token_K: torch.Tensor) -> Evaluate:
        """Forward of K candidate canvases."""
        return self._whole.with_tokens(self._row_A[row_K], column_K, token_K)


class Barred:
    """A prediction in which some tokens cannot come, as the mask token never can. Forwards of candidates have them."""

    def __init__(self, whole: Evaluate, tokens: Sequence[int]) -> None:
        self._whole, self._tokens = whole, list(tokens)
        self.vocab_size = whole.vocab_size

    def hidden(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """Final hidden states (M, D)."""
        return self._whole.hidden(row_M, column_M)

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Logits (M, V), the barred tokens at -inf."""
        logits_MV = self._whole.logits(hidden_MD)
        logits_MV[:, self._tokens] = -torch.inf
        return logits_MV

    def attention(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """Attention sums (M,)."""
        return self._whole.attention(row_M, column_M)

    def with_tokens(self, row_K: torch.Tensor, column_K: torch.Tensor, token_K: torch.Tensor) -> Evaluate:
        """Forward of K candidate canvases."""
        return self._whole.with_tokens(row_K, column_K, token_K)


class Joined:
    """Predictions that come from several forwards, one (forward, row in it) for each row."""

    def __init__(self, parts: Sequence[tuple[Evaluate, int]], *, fork: Fork) -> None:
        self._sources = list({id(source): source for source, _ in parts}.values())
        number = {id(source): index for index, source in enumerate(self._sources)}
        self._source_of = [number[id(source)] for source, _ in parts]
        self._row_of = [row for _, row in parts]
        self._fork = fork
        self.vocab_size = self._sources[0].vocab_size

    def hidden(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """Final hidden states (M, D), each from its own forward."""
        return self._gather("hidden", row_M, column_M)

    def logits(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Logits (M, V): one head for all."""
        return self._sources[0].logits(hidden_MD)

    def attention(self, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        """Attention sums (M,), each from its own forward."""
        return self._gather("attention", row_M, column_M)

    def with_tokens(self, row_K: torch.Tensor, column_K: torch.Tensor, token_K: torch.Tensor) -> Evaluate:
        """Forward of K candidate canvases."""
        return self._fork(row_K, column_K, token_K)

    def _gather(self, what: str, row_M: torch.Tensor, column_M: torch.Tensor) -> torch.Tensor:
        source_A = torch.tensor(self._source_of, device=row_M.device)
        row_A = torch.tensor(self._row_of, device=row_M.device)
        places, parts = [], []
        for number, source in enumerate(self._sources):
            (place_m,) = (source_A[row_M] == number).nonzero(as_tuple=True)
            if not len(place_m):
                continue
            # A forward wants its own rows in ascending order.
            place_m = place_m[row_A[row_M[place_m]].argsort(stable=True)]
            places.append(place_m)
            parts.append(getattr(source, what)(row_A[row_M[place_m]], column_M[place_m]))
        found = torch.cat(parts)
        return torch.empty_like(found).index_copy_(0, torch.cat(places), found)
