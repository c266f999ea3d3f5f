"""The slots of one step, and what a position rule may look at.

R sequences, L slots of the widest active block, M slots looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from samplers.prediction import Prediction
from samplers.randomness import uniform
from samplers.records import BlockState


@dataclass(frozen=True, slots=True)
class Slots:
    """M slots of a batch, row by row: the candidates, or the whole grid where nothing is asked of the model.

    Listing the candidates waits for the device once; the grid does not.
    """

    state: BlockState
    row_M: torch.Tensor
    column_M: torch.Tensor
    is_grid: bool

    @staticmethod
    def candidates(state: BlockState) -> Slots:
        """The slots that may be committed."""
        row_M, column_M = state.candidate_RL.nonzero(as_tuple=True)
        return Slots(state, row_M, column_M, is_grid=False)

    @staticmethod
    def grid(state: BlockState) -> Slots:
        """Every slot, candidate or not."""
        rows, columns = state.candidate_RL.shape
        device = state.candidate_RL.device
        row_M = torch.arange(rows, device=device).repeat_interleave(columns, output_size=rows * columns)
        return Slots(state, row_M, torch.arange(columns, device=device).repeat(rows), is_grid=True)

    def uniform(self, index_K: torch.Tensor | None = None, *, stream: int) -> torch.Tensor:
        """One float64 in [0, 1) for each slot (or for those at `index_K`), the sequence's own."""
        row, column = self.row_M, self.column_M
        if index_K is not None:
            row, column = row[index_K], column[index_K]
        state = self.state
        return uniform(state.seed_R[row], state.step_R[row], state.slot_RL[row, column], stream=stream)

    def spread(self, value_M: torch.Tensor, fill: float) -> torch.Tensor:
        """Values of the slots as (R, L), `fill` elsewhere."""
        shape = self.state.candidate_RL.shape
        if self.is_grid:
            return value_M.view(shape)
        value_RL = torch.full(shape, fill, dtype=value_M.dtype, device=value_M.device)
        value_RL[self.row_M, self.column_M] = value_M
        return value_RL

    def index_at(self, column_R: torch.Tensor) -> torch.Tensor:
        """Index of one slot a row, given by its column."""
        rows, columns = self.state.candidate_RL.shape
        flat_R = torch.arange(rows, device=column_R.device) * columns + column_R
        if self.is_grid:
            return flat_R
        return (self.state.candidate_RL.flatten().cumsum(dim=0) - 1)[flat_R]


@dataclass(frozen=True, slots=True)
class View:
    """What a position rule may look at; a field that it did not ask for is None."""

    slots: Slots
    allowed_RL: torch.Tensor
    """bool. Candidates that the end guard leaves; at least one a row."""
    prediction: Prediction | None = None
    attention_M: torch.Tensor | None = None

    @property
    def state(self) -> BlockState:
        """The active blocks."""
        return self.slots.state

    @property
    def predicted(self) -> Prediction:
        """The prediction, for a rule whose `needs` are not empty."""
        assert self.prediction is not None
        return self.prediction
