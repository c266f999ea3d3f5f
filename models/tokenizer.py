"""Text to tokens and back: the tokenizers of checkpoints, and the character-level one of the built-in model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Tokenizer

from models.family import ModelError
from models.source import read_json

if TYPE_CHECKING:
    from models.denoiser import Denoiser

EOS, MASK, UNKNOWN = "<eos>", "<mask>", "<unk>"
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127))


def character_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character: newline and printable ASCII, after the end (also padding), mask and unknown tokens."""
    vocabulary = {token: index for index, token in enumerate([EOS, MASK, UNKNOWN, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=EOS,
        mask_token=MASK,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Tokenizer kept beside the weights; None where the folder has none."""
    kind: type[PreTrainedTokenizerBase] | None = None
    if (folder / "tokenizer.json").exists():
        kind = PreTrainedTokenizerFast
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        kind = Qwen2Tokenizer
    if kind is None:
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: the tokenizer files cannot be read: {error}") from error
    _check_added_tokens(tokenizer, folder / "tokenizer_config.json")
    return tokenizer


def encode_prompt(
    denoiser: Denoiser, text: str | None = None, messages: Sequence[Mapping[str, str]] | None = None
) -> list[int]:
    """Prompt tokens of a plain text, or of chat turns rendered by the model's chat template."""
    tokenizer = _tokenizer(denoiser)
    if (text is None) == (messages is None):
        raise ValueError("give exactly one of text and messages")
    if messages is not None:
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("this model's tokenizer has no chat template; give the prompt as text instead of messages")
        turns = [dict(message) for message in messages]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    assert text is not None
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in tokens:
        unknown = sorted({character for character in text if _is_unknown(tokenizer, character)})
        raise ValueError(f"the prompt holds {unknown!r}, which this model's tokenizer does not know; leave it out")
    if denoiser.mask_token_id in tokens:
        raise ValueError("the prompt holds the mask token; the prompt may not, only the answer is denoised")
    return tokens


def decode_answer(denoiser: Denoiser, tokens: Iterable[int]) -> str:
    """Text of an answer up to its first end token, special tokens left out."""
    answer: list[int] = []
    for token in tokens:
        if int(token) in denoiser.stop_token_ids:
            break
        answer.append(int(token))
    text = _tokenizer(denoiser).decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _check_added_tokens(tokenizer: PreTrainedTokenizerBase, config_file: Path) -> None:
    """Special tokens must have the ids that tokenizer_config.json declares: the model was trained with those."""
    if not config_file.exists():
        return
    vocabulary = tokenizer.get_vocab()
    for declared, token in (read_json(config_file).get("added_tokens_decoder") or {}).items():
        found = vocabulary.get(token["content"])
        if found != int(declared):
            raise ModelError(f"{config_file}: {token['content']!r} is token {declared} there but {found} once loaded")


def _is_unknown(tokenizer: PreTrainedTokenizerBase, character: str) -> bool:
    return tokenizer.unk_token_id in tokenizer(character, add_special_tokens=False)["input_ids"]


def _tokenizer(denoiser: Denoiser) -> PreTrainedTokenizerBase:
    if denoiser.tokenizer is None:
        where = denoiser.source or "this model"
        raise ModelError(f"{where} has no tokenizer files; put tokenizer.json beside config.json")
    return denoiser.tokenizer
