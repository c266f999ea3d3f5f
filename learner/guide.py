"""The one forward without gradients that AGDO needs of each finished text: its attention, made into a guide.

The text is the prompt and every slot of the answer; slots after its end hold the end token, as the model was trained to
see them. `learner.agdo` says what the guide means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from learner.agdo import Guide, guides
from learner.config import AgdoConfig
from models import Denoiser
from models.attention_matrix import AttentionMatrix
from models.packing import Span
from models.probe import layer_set


@dataclass(frozen=True, slots=True)
class FinishedText:
    """A prompt, its answer, and which slots of that are to be ordered."""

    prompt_tokens: np.ndarray
    """(P,) int64, P >= 1."""
    answer_tokens: np.ndarray
    """(T,) int64."""
    ranked_T: np.ndarray
    """(T,) bool."""
    block_length: int = 0
    """Attention block of a block-causal family; means nothing to the others."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return len(self.prompt_tokens) + len(self.answer_tokens)


def guide_batches(texts: Sequence[FinishedText], *, micro_batch_tokens: int) -> list[list[int]]:
    """Indices of texts for one forward each: of one attention block length, longest first, within the budget."""
    order = sorted(range(len(texts)), key=lambda i: (texts[i].block_length, -texts[i].num_tokens, i))
    batches: list[list[int]] = []
    load = 0
    for index in order:
        text = texts[index]
        is_alike = bool(batches) and texts[batches[-1][0]].block_length == text.block_length
        if not is_alike or load + text.num_tokens > micro_batch_tokens:
            batches.append([])
            load = 0
        batches[-1].append(index)
        load += text.num_tokens
    return batches


@torch.no_grad()
def guide_texts(denoiser: Denoiser, texts: Sequence[FinishedText], *, config: AgdoConfig) -> list[Guide]:
    """Guides of the texts of one batch, from one packed forward up to the last of the layers that are looked at."""
    if not texts:
        return []
    block_length = texts[0].block_length if denoiser.family.block_causal else None
    spans = [Span(0, 0, text.num_tokens, text.num_tokens) for text in texts]
    packing = denoiser.packing(spans, block_length=block_length)
    tokens = [part for text in texts for part in (text.prompt_tokens, text.answer_tokens)]
    token_M = torch.from_numpy(np.concatenate(tokens)).to(packing.device)
    layers = config.layers if isinstance(config.layers, str) else list(config.layers)
    observer = AttentionMatrix(layer_set(layers, denoiser.num_layers))
    denoiser.start(token_M, packing, observer=observer)
    return guides(
        observer.of_spans(),
        [text.ranked_T for text in texts],
        config=config,
        attention_block_length=block_length,
    )
