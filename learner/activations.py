"""Memory of activations, from a model's sizes alone; torch is not loaded.

What autograd keeps of one token in one layer, in numbers of b bytes (D width, A queries, K keys, F feed-forward;
checked against what a real pass keeps):

    norms           twice 2 D, and D in float32        q, k, v, attention   2 A + 2 K (and A where heads share keys)
    feed-forward    4 F

With recomputation only the layer's input (D) is kept, and one layer at a time is computed again, for about a third more
time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models import Denoiser


@dataclass(frozen=True, slots=True)
class Widths:
    """Sizes of a backbone that its activations depend on."""

    layers: int
    width: int
    queries: int
    keys: int
    feed_forward: int
    """Over the experts that one token visits."""

    @staticmethod
    def of(denoiser: Denoiser) -> Widths:
        """Sizes of a model."""
        config: Any = denoiser.backbone.config
        head_dim = int(denoiser.backbone.model.layers[0].self_attn.head_dim)
        feed_forward = config.intermediate_size
        if hasattr(config, "num_experts_per_tok"):
            visited = config.num_experts_per_tok + (getattr(config, "n_shared_experts", 0) or 0)
            feed_forward = max(feed_forward, config.moe_intermediate_size * visited)
        return Widths(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            queries=config.num_attention_heads * head_dim,
            keys=config.num_key_value_heads * head_dim,
            feed_forward=feed_forward,
        )


def saved_bytes_per_token(widths: Widths, itemsize: int, *, recompute: bool) -> int:
    """Kept for the backward pass; with `recompute` its peak, while one layer is computed again."""
    norms = 2 * (2 * itemsize + 4) * widths.width
    grouped = widths.queries if widths.keys < widths.queries else 0
    attention = (2 * widths.queries + 2 * widths.keys + grouped) * itemsize
    layer = norms + attention + 4 * widths.feed_forward * itemsize
    return widths.layers * widths.width * itemsize + layer if recompute else widths.layers * layer
