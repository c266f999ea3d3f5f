"""The denoiser: a stock backbone that predicts every position of a canvas at once.

B sequences, N (or T) positions, M wanted positions, D width, V vocabulary.
Canvases are padded on either side; `valid` marks real tokens. One forward gives hidden states; the vocabulary head runs
only where it is asked for (`models.head`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from models.attention import canvas_mask, positions
from models.cache import KeyValues
from models.family import Family, ModelError
from models.packing import Packing, Span
from models.probe import AttentionSums, Layers, Probe, layer_set
from models.stack import Observer, Pending, Stack
from models.vocabulary import VocabularyHead


class Denoiser(nn.Module):
    """A diffusion language model: the stock backbone, its family's facts, its special tokens and its tokenizer."""

    def __init__(
        self,
        backbone: PreTrainedModel,
        *,
        family: Family,
        config: dict[str, Any],
        generation_config: dict[str, Any] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        mask_token_id: int | None = None,
        source: str = "",
    ) -> None:
        super().__init__()
        if type(backbone.lm_head) is nn.Linear:
            backbone.lm_head = VocabularyHead.around(backbone.lm_head)
        self.backbone = backbone
        self.family = family
        self.config = config
        self.generation_config = generation_config
        self.tokenizer = tokenizer
        self.source = source
        """Folder or hub id that the weights came from; what a saved adapter names as its base."""
        self.stack = Stack(backbone)
        """The layers over packed tokens; what rollouts and likelihoods run on."""
        self.vocab_size = int(backbone.config.vocab_size)
        self.max_length = int(config[family.window_field])
        self.block_length = family.block_length(config)
        self.mask_token_id = _mask_token_id(self, mask_token_id)
        self.stop_token_ids = _stop_token_ids(self)
        self.eos_token_id = self.stop_token_ids[0]

    @property
    def num_layers(self) -> int:
        """Number of transformer layers."""
        return int(self.backbone.config.num_hidden_layers)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = self.backbone.lm_head.weight.device
        return device

    def forward(self, tokens_BN: torch.Tensor, **options: Any) -> torch.Tensor:
        """The same as `hidden`; lets wrappers that call the module (DeepSpeed) drive it."""
        return self.hidden(tokens_BN, **options)

    def hidden(
        self,
        tokens_BN: torch.Tensor,
        *,
        valid_BN: torch.Tensor | None = None,
        block_length: int | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        probe: Probe | None = None,
    ) -> torch.Tensor:
        """Hidden states (B, N, D) after the final norm, one a position, unshifted.

        `block_length` overrides a block-causal checkpoint's own and means nothing to the bidirectional families.
        `attention_mask` (bool, True = may attend; broadcastable to (B, 1, N, N)) and `position_ids` (B, N) replace what
        `valid_BN` and `block_length` would give, for layouts such as `attention.doubled_mask`.
        """
        if valid_BN is not None and bool(valid_BN.all()):
            valid_BN = None
        if position_ids is None and valid_BN is not None:
            position_ids = positions(valid_BN)
        if attention_mask is None:
            attention_mask = self._canvas_mask(tokens_BN, valid_BN, block_length, position_ids)
        extra = {} if probe is None else {"probe": probe}
        output = self.backbone.model(
            input_ids=tokens_BN,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=False,
            **extra,
        )
        hidden_BND: torch.Tensor = output.last_hidden_state
        return hidden_BND

    def packing(
        self, spans: Sequence[Span], *, block_length: int | None = None, max_length: int | None = None
    ) -> Packing:
        """Layout of a packed forward; `block_length` overrides a block-causal checkpoint's own."""
        length = (block_length or self.block_length) if self.family.block_causal else None
        return Packing(spans, device=self.device, block_length=length, max_length=max_length)

    def start(
        self,
        token_M: torch.Tensor,
        packing: Packing,
        *,
        cache: KeyValues | None = None,
        observer: Observer | None = None,
    ) -> Pending:
        """Begin a packed forward; `Pending.hidden` gives final hidden states where they are wanted, unshifted."""
        return self.stack.start(token_M, packing, cache=cache, observer=observer)

    def new_cache(self, num_rows: int, max_length: int) -> KeyValues:
        """Empty keys and values of every layer for `num_rows` sequences of up to `max_length` tokens."""
        attention: Any = self.backbone.model.layers[0].self_attn
        return KeyValues(
            num_layers=self.num_layers,
            num_rows=num_rows,
            max_length=max_length,
            num_heads=int(self.backbone.config.num_key_value_heads),
            head_dim=int(attention.head_dim),
            dtype=self.backbone.lm_head.weight.dtype,
            device=self.device,
        )

    def head(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        """Raw logits (M, V) in the model's dtype."""
        logits_MV: torch.Tensor = self.backbone.lm_head(hidden_MD)
        return logits_MV

    def aligned(self, hidden_BND: torch.Tensor, row_M: torch.Tensor, position_M: torch.Tensor) -> torch.Tensor:
        """Hidden states (M, D) that predict absolute positions: state k, or k - 1 where the family shifts."""
        if self.family.shift:
            position_M = (position_M - 1).clamp(min=0)
        return hidden_BND[row_M, position_M]

    def logits(
        self, tokens_BT: torch.Tensor, *, valid_BT: torch.Tensor | None = None, block_length: int | None = None
    ) -> torch.Tensor:
        """Raw logits (B, T, V) of the published model, unshifted, at every position; for parity and debugging."""
        return self.head(self.hidden(tokens_BT, valid_BN=valid_BT, block_length=block_length))

    @torch.no_grad()
    def attention_sums(
        self,
        tokens_BT: torch.Tensor,
        *,
        rows: torch.Tensor | None,
        cols: torch.Tensor | None = None,
        layers: Layers = "last",
        valid_BT: torch.Tensor | None = None,
        block_length: int | None = None,
    ) -> AttentionSums:
        """Row sums over the key set `cols` and column sums over the query set `rows` of the mean attention matrix.

        `rows` and `cols` are (B, T) bool; None means every real token. Padding belongs to neither set.
        """
        valid = torch.ones_like(tokens_BT, dtype=torch.bool) if valid_BT is None else valid_BT.bool()
        for name, chosen in (("rows", rows), ("cols", cols)):
            if chosen is not None and chosen.shape != tokens_BT.shape:
                raise ValueError(f"{name} {tuple(chosen.shape)} must have the shape {tuple(tokens_BT.shape)} of tokens")
        rows = valid if rows is None else rows.bool() & valid
        cols = valid if cols is None else cols.bool() & valid
        probe = Probe(rows, cols, layer_set(layers, self.num_layers))
        self.hidden(tokens_BT, valid_BN=valid_BT, block_length=block_length, probe=probe)
        return probe.sums()

    def _canvas_mask(
        self,
        tokens_BN: torch.Tensor,
        valid_BN: torch.Tensor | None,
        block_length: int | None,
        position_ids: torch.Tensor | None,
    ) -> torch.Tensor | None:
        if position_ids is None:
            position_ids = torch.arange(tokens_BN.shape[1], device=tokens_BN.device)[None]
        length = (block_length or self.block_length) if self.family.block_causal else None
        return canvas_mask(position_ids, valid_BN=valid_BN, block_length=length)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Denoiser:
        """Moves buffers with the weights but never casts them: rotary frequencies in bfloat16 lose whole positions."""
        before = dict(self._float_buffers())
        super()._apply(fn, recurse)
        for name, after in list(self._float_buffers()):
            kept = before[name]
            if after.dtype != kept.dtype and not kept.is_meta:
                owner, _, leaf = name.rpartition(".")
                self.get_submodule(owner)._buffers[leaf] = kept.to(after.device)
        return self

    def _float_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, buffer) for name, buffer in self.named_buffers() if buffer.is_floating_point())


def _mask_token_id(denoiser: Denoiser, override: int | None) -> int:
    """Mask id: the caller's, else config.json's, else the tokenizer's, else that of the released checkpoints."""
    tokenizer_id = getattr(denoiser.tokenizer, "mask_token_id", None)
    candidates = (override, denoiser.config.get("mask_token_id"), tokenizer_id, denoiser.family.mask_token_id)
    mask_token_id = next((int(value) for value in candidates if value is not None), None)
    if mask_token_id is None or not 0 <= mask_token_id < denoiser.vocab_size:
        seen = "is missing" if mask_token_id is None else f"= {mask_token_id} is outside the vocabulary"
        raise ModelError(
            f"config.json: mask_token_id {seen}, and the tokenizer names no mask token either;"
            f" add mask_token_id (0..{denoiser.vocab_size - 1}) to config.json or pass load(..., mask_token_id=...)"
        )
    return mask_token_id


def _stop_token_ids(denoiser: Denoiser) -> tuple[int, ...]:
    """End tokens, each once: those of the two config files (else padding), then the family's end of turn."""
    found: list[int] = []
    for config in (denoiser.config, denoiser.generation_config or {}):
        value = config.get("eos_token_id")
        found += value if isinstance(value, list) else [value] if value is not None else []
    if not found and denoiser.config.get("pad_token_id") is not None:
        found = [denoiser.config["pad_token_id"]]
    if denoiser.tokenizer is not None:
        vocabulary = denoiser.tokenizer.get_vocab()
        found += [vocabulary[token] for token in denoiser.family.chat_end if token in vocabulary]
        found += [denoiser.tokenizer.eos_token_id] if denoiser.tokenizer.eos_token_id is not None else []
    if not found:
        raise ModelError(
            "config.json: eos_token_id is missing, and neither generation_config.json nor tokenizer has one"
        )
    return tuple(dict.fromkeys(int(token) for token in found))
