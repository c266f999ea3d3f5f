"""How a response is cut into blocks, and how far a forward has to look.

Positions are absolute: slot t of a response is position P + t.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """How a response is cut into blocks.

    In bidirectional families blocks are counted from the response start and the whole canvas is visible. In
    block-causal families they are counted from position 0, prompt included, and later blocks are absent.
    """

    block_length: int | None
    """None: the whole response is one block."""
    block_causal: bool
    sub_block_length: int | None = None
    """Slots decoded together inside a block; None: the block."""
    first_slot_alone: bool = False
    """Whether a block's first slot is committed by itself (its prediction comes from the block before)."""

    def decode_length(self) -> int | None:
        """Slots that compete with each other."""
        return self.sub_block_length or self.block_length

    def block_of(self, position: int, prompt_length: int, length: int) -> tuple[int, int]:
        """Bounds of the decoding block that holds an absolute position, clipped to the response."""
        size = self.decode_length()
        if size is None:
            return prompt_length, length
        origin = 0 if self.block_causal else prompt_length
        start = origin + (position - origin) // size * size
        return max(start, prompt_length), min(start + size, length)

    def visible_until(self, position: int, length: int) -> int:
        """End of what a forward must hold to predict the block of an absolute position."""
        if not self.block_causal or self.block_length is None:
            return length
        return min((position // self.block_length + 1) * self.block_length, length)

    def num_blocks(self, prompt_length: int, length: int) -> int:
        """Decoding blocks that the response touches."""
        size = self.decode_length()
        if size is None:
            return 1
        origin = 0 if self.block_causal else prompt_length
        return (length - 1 - origin) // size - (prompt_length - origin) // size + 1
