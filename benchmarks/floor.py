"""The least time that decoding can take: floating-point operations over the speed of this machine's matrix products.

Every forward is counted as a `Forward`: positions computed, positions that each of them sees, slots whose prediction is
used. The needed work leaves out what no exact decoder of that kind has to compute: the head anywhere but at the masked
slots of the active block, and the last layer's queries, output and feed-forward anywhere but there (its keys and values
are needed everywhere). Norms, rotary embedding, softmax and draws count as nothing. A multiplication with an addition
is two operations.

P prompt tokens, T response slots, L block length; P + T is the canvas.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

import models
from models.fused import gains_inputs_first


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a dense backbone that its arithmetic depends on."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocabulary: int

    @staticmethod
    def of(denoiser: models.Denoiser) -> Shape:
        """Sizes of a model."""
        config = denoiser.backbone.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return Shape(
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim,
            ffn=config.intermediate_size,
            vocabulary=config.vocab_size,
        )

    @property
    def key_value(self) -> int:
        """Operations of one layer's keys and values, a position."""
        return 4 * self.width * self.kv_heads * self.head_dim

    @property
    def other_linear(self) -> int:
        """Operations of one layer's queries, output and feed-forward, a position."""
        return 4 * self.width * self.heads * self.head_dim + 6 * self.width * self.ffn

    @property
    def attended(self) -> int:
        """Operations of one layer's attention, for each pair of a position and a key."""
        return 4 * self.heads * self.head_dim

    @property
    def head(self) -> int:
        """Operations of the vocabulary head, a position."""
        return 2 * self.width * self.vocabulary

    def matrices(self) -> list[tuple[int, int]]:
        """Inputs and outputs of one layer's matrices."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return [
            (self.width, queries),
            (self.width, keys),
            (self.width, keys),
            (queries, self.width),
            (self.width, self.ffn),
            (self.width, self.ffn),
            (self.ffn, self.width),
        ]


@dataclass(frozen=True, slots=True)
class Forward:
    """What one forward computes for one sequence."""

    tokens: int
    """Positions computed."""
    keys: int
    """Positions that each of them sees."""
    needed: int
    """Slots whose prediction is used."""


def whole_flops(shape: Shape, forwards: Iterable[Forward]) -> int:
    """Operations when every layer and the head run at every computed position."""
    return sum(
        f.tokens * (shape.layers * (shape.key_value + shape.other_linear + shape.attended * f.keys) + shape.head)
        for f in forwards
    )


def needed_flops(shape: Shape, forwards: Iterable[Forward]) -> int:
    """Operations that the result depends on."""
    return sum(_needed_parts(shape, forwards))


def training_flops(shape: Shape, forwards: Iterable[Forward], *, adapters: bool) -> int:
    """Operations of a forward and a backward pass, nothing computed twice.

    Backward, a matrix product costs one for its inputs and one for its weights; with `adapters` the weights are frozen,
    and the adapters' own products count as nothing. Attention costs twice its forward.
    """
    linear, attention = _needed_parts(shape, forwards)
    return (2 if adapters else 3) * linear + 3 * attention


def _needed_parts(shape: Shape, forwards: Iterable[Forward]) -> tuple[int, int]:
    """Needed operations of matrix products with weights, and of attention."""
    linear = attention = 0
    for forward in forwards:
        linear += forward.tokens * (shape.layers * shape.key_value + (shape.layers - 1) * shape.other_linear)
        linear += forward.needed * (shape.other_linear + shape.head)
        attention += (forward.tokens * (shape.layers - 1) + forward.needed) * shape.attended * forward.keys
    return linear, attention


# ---- forwards of the cache modes, from what was committed when


def exact_forwards(prompt_length: int, step_map_T: np.ndarray, num_steps: int, block_length: int) -> list[Forward]:
    """Cache `none` in a bidirectional family: the whole canvas each step."""
    canvas = prompt_length + len(step_map_T)
    return [Forward(canvas, canvas, masked) for _, _, masked in _steps(step_map_T, num_steps, block_length, 0)]


def dual_forwards(prompt_length: int, step_map_T: np.ndarray, num_steps: int, block_length: int) -> list[Forward]:
    """Cache `dual`: the whole canvas at a block's first step, then the block alone."""
    canvas = prompt_length + len(step_map_T)
    forwards, last = [], None
    for start, end, masked in _steps(step_map_T, num_steps, block_length, 0):
        forwards.append(Forward(canvas if start != last else end - start, canvas, masked))
        last = start
    return forwards


def block_forwards(prompt_length: int, step_map_T: np.ndarray, num_steps: int, block_length: int) -> list[Forward]:
    """Cache `block` of a block-causal family, prompt aside: each step the block alone, a finished one once more.

    The last block is not computed again: nobody sees it. Blocks are counted from the start of the prompt, so the first
    one may hold some of it.
    """
    forwards: list[Forward] = []
    before: tuple[int, int] | None = None
    for start, end, masked in _steps(step_map_T, num_steps, block_length, prompt_length):
        if before is not None and before != (start, end):
            forwards.append(Forward(before[1] - before[0], before[1], 0))
        before = (start, end)
        forwards.append(Forward(end - start, end, masked))
    return forwards


def prompt_forwards(prompt_length: int, block_length: int) -> list[Forward]:
    """The prompt's whole blocks, into a block-causal cache; no prediction of it is used."""
    return [
        Forward(block_length, start + block_length, 0)
        for start in range(0, prompt_length - block_length + 1, block_length)
    ]


def _steps(step_map_T: np.ndarray, num_steps: int, block_length: int, origin: int) -> Iterable[tuple[int, int, int]]:
    """Bounds of the active block and masked slots in it, step by step.

    Positions count from `-origin` before slot 0: with a block-causal family's prompt length they are those of the
    canvas, with 0 those of the response.
    """
    for step in range(num_steps):
        masked_T = step_map_T >= step
        first = int(masked_T.argmax()) + origin
        start = first // block_length * block_length
        end = min(start + block_length, origin + len(step_map_T))
        yield start, end, int(masked_T[max(0, start - origin) : end - origin].sum())


# ---- the machine


@dataclass(frozen=True)
class Products:
    """A fixed amount of matrix products at a model's shapes, to be timed beside what is measured.

    The matrices of a layer in the proportions of the model, at as many rows as a forward computes. The head is left
    out: its products are slower, so with it the floor would be higher and easier to reach.
    """

    shape: Shape
    rows: int
    flops: int
    run: Callable[[], None]

    @staticmethod
    def of(denoiser: models.Denoiser, rows: int, *, seconds: float = 0.3) -> Products:
        """Products that take about `seconds` on this machine as it is now."""
        shape, weight = Shape.of(denoiser), denoiser.backbone.lm_head.weight
        options = {"dtype": weight.dtype, "device": weight.device}
        # In the order of storage that is the faster one here.
        inputs_first = gains_inputs_first(denoiser.backbone.lm_head)
        pairs = [
            (
                torch.randn(rows, i, **options),
                torch.randn(i, o, **options) if inputs_first else torch.randn(o, i, **options).t(),
                torch.empty(rows, o, **options),
            )
            for i, o in shape.matrices()
        ]
        once = sum(2 * rows * i * o for i, o in shape.matrices())

        def multiply(times: int) -> None:
            with torch.inference_mode():
                for _ in range(times):
                    for left, right, out in pairs:
                        torch.matmul(left, right, out=out)
            if weight.is_cuda:
                torch.cuda.synchronize()

        multiply(2)
        start = time.perf_counter()
        multiply(2)
        times = max(1, round(seconds / ((time.perf_counter() - start) / 2)))
        return Products(shape, rows, times * once, lambda: multiply(times))


def floor_ratios(
    flops: int, products: Products, product_s: Sequence[float], measured_s: Sequence[float]
) -> list[float]:
    """How many times the floor a measurement took, round by round."""
    return [
        measured / (flops * product / products.flops) for product, measured in zip(product_s, measured_s, strict=True)
    ]
