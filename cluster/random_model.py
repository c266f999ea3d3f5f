"""A small untrained model with a tokenizer of its own, in the published layout: proves a path with real rows.

The tokenizer is byte-level BPE trained on the texts of a JSONL file, so it can write whatever stands there; or one
token a character, as in the built-in model, so that it can be trained on the same tasks in another size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from models import Denoiser

EOS, MASK = "<|endoftext|>", "<|mask|>"
MIN_VOCABULARY = 258
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "


@dataclass(frozen=True)
class Sizes:
    """How large the model is."""

    vocabulary: int = 2048
    width: int = 128
    layers: int = 4
    heads: int = 4
    window: int = 512

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} must be a multiple of twice the {self.heads} heads")


def make(texts_from: Path | None, *, family: str = "llada", sizes: Sizes | None = None, seed: int = 0) -> Denoiser:
    """An untrained model of a family, with a tokenizer trained on every text of a JSONL file, or that of characters."""
    from models import create
    from models.tokenizer import character_tokenizer

    sizes = sizes or Sizes()
    if family not in _CONFIGS:
        raise ValueError(f"family {family!r} has no small configuration here; allowed: {', '.join(sorted(_CONFIGS))}")
    tokenizer = train_tokenizer(texts_of(texts_from), sizes.vocabulary) if texts_from else character_tokenizer()
    sizes = replace(sizes, vocabulary=len(tokenizer))  # few texts make fewer tokens than were asked for
    ids = {"eos_token_id": tokenizer.eos_token_id, "mask_token_id": tokenizer.mask_token_id}
    config = _CONFIGS[family](sizes) | ids | {"pad_token_id": ids["eos_token_id"], "torch_dtype": "float32"}
    return create(config, tokenizer=tokenizer, seed=seed)


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE; ids 0 and 1 are the end and the mask token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocabulary < MIN_VOCABULARY:
        raise ValueError(f"vocabulary {vocabulary} must be at least {MIN_VOCABULARY}: every byte, end and mask")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[EOS, MASK], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=EOS,
        mask_token=MASK,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def texts_of(path: Path) -> Iterator[str]:
    """Every text in the rows of a JSONL file."""
    from reward.files import read_jsonl

    for _, fields in read_jsonl(path, allowed="rows with texts"):
        yield from (value for value in fields.values() if isinstance(value, str))


def _llada(sizes: Sizes) -> dict[str, Any]:
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "activation_type": "silu",
        "block_type": "llama",
        "layer_norm_type": "rms",
        "d_model": sizes.width,
        "mlp_hidden_size": 3 * sizes.width,
        "n_heads": sizes.heads,
        "n_kv_heads": sizes.heads,
        "n_layers": sizes.layers,
        "embedding_size": sizes.vocabulary,
        "vocab_size": sizes.vocabulary,
        "max_sequence_length": sizes.window,
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_theta": 10000.0,
        "weight_tying": False,
    }


def _qwen(sizes: Sizes) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "hidden_size": sizes.width,
        "intermediate_size": 3 * sizes.width,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads // 2 or 1,
        "num_hidden_layers": sizes.layers,
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": sizes.window,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }


def _dream(sizes: Sizes) -> dict[str, Any]:
    return _qwen(sizes) | {"architectures": ["DreamModel"], "model_type": "Dream"}


def _sdar(sizes: Sizes) -> dict[str, Any]:
    own = {"head_dim": sizes.width // sizes.heads, "block_size": 4}
    return _qwen(sizes) | own | {"architectures": ["SDARForCausalLM"], "model_type": "sdar"}


_CONFIGS = {"llada": _llada, "dream": _dream, "sdar": _sdar}
