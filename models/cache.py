"""Keys and values kept from forward to forward, preallocated.

R rows (sequences), N positions a row, H key heads, E channels of a head. Keys are kept after the rotary embedding, so
nothing is rotated twice. A row holds one sequence; its entries mean nothing until a forward has written them.
"""

from __future__ import annotations

import torch

from models.packing import Packing


class KeyValues:
    """One tensor of keys and one of values a layer, (R * N, H, E) each."""

    def __init__(
        self,
        *,
        num_layers: int,
        num_rows: int,
        max_length: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_rows * max_length, num_heads, head_dim)
        self.max_length = max_length
        self.num_rows = num_rows
        self._keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self._values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        by_row = (num_rows, max_length, num_heads, head_dim)
        self._key_rows = [kept.view(by_row) for kept in self._keys]
        self._value_rows = [kept.view(by_row) for kept in self._values]

    def write(self, layer: int, packing: Packing, key_MHE: torch.Tensor, value_MHE: torch.Tensor) -> None:
        """Keep what a forward has computed for its tokens."""
        if packing.cache_range is not None:
            start, stop = packing.cache_range
            self._keys[layer][start:stop].copy_(key_MHE)
            self._values[layer][start:stop].copy_(value_MHE)
            return
        self._keys[layer].index_copy_(0, packing.cache_place, key_MHE)
        self._values[layer].index_copy_(0, packing.cache_place, value_MHE)

    def read(self, layer: int, row: int, num_rows: int, num_keys: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Views (rows, keys, H, E) of the first keys of consecutive rows."""
        if num_rows == self.num_rows and num_keys == self.max_length:
            return self._key_rows[layer], self._value_rows[layer]
        part = (slice(row, row + num_rows), slice(num_keys))
        return self._key_rows[layer][part], self._value_rows[layer][part]

    def copy(self, source: int, targets: list[int], start: int, stop: int) -> None:
        """Copy positions of one row to other rows."""
        for kept in (*self._keys, *self._values):
            rows = kept.view(self.num_rows, self.max_length, *kept.shape[1:])
            rows[targets, start:stop] = rows[source, start:stop].clone()

    def take(self, row: int, stop: int) -> list[torch.Tensor]:
        """Copies of the first positions of a row, layer by layer, keys then values; `put` writes them to another."""
        return [kept[row * self.max_length : row * self.max_length + stop].clone() for kept in self._all()]

    def put(self, row: int, taken: list[torch.Tensor]) -> None:
        """Write what `take` returned."""
        for kept, part in zip(self._all(), taken, strict=True):
            kept[row * self.max_length : row * self.max_length + len(part)] = part

    def rows(self, rows: list[int]) -> KeyValues:
        """A copy that holds these rows, one may stand several times, and nothing else."""
        num_layers, (_, num_heads, head_dim) = len(self._keys), self._keys[0].shape
        copy = KeyValues(
            num_layers=num_layers,
            num_rows=len(rows),
            max_length=self.max_length,
            num_heads=num_heads,
            head_dim=head_dim,
            dtype=self._keys[0].dtype,
            device=self._keys[0].device,
        )
        for mine, theirs in zip(copy._all(), self._all(), strict=True):
            shape = (-1, self.max_length, num_heads, head_dim)
            mine.view(shape).copy_(theirs.view(shape)[rows])
        return copy

    @property
    def num_bytes(self) -> int:
        """Memory of all layers."""
        return sum(kept.nbytes for kept in self._all())

    def _all(self) -> list[torch.Tensor]:
        return [*self._keys, *self._values]
