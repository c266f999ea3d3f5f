"""Text to tokens and back."""

import json
import shutil

import pytest

import models


@pytest.fixture(scope="module")
def tiny():
    return models.create_tiny(seed=0)


def test_every_character_is_one_token_and_comes_back(tiny):
    text = "".join(chr(code) for code in range(32, 127)) + "\n two  spaces \n"
    tokens = models.encode_prompt(tiny, text)
    assert len(tokens) == len(text)
    assert models.decode_answer(tiny, tokens) == text


def test_tiny_model_has_its_special_tokens_outside_the_characters(tiny):
    assert tiny.vocab_size == len(tiny.tokenizer) == 3 + 96
    assert (tiny.eos_token_id, tiny.mask_token_id, tiny.tokenizer.pad_token_id) == (0, 1, 0)
    assert min(models.encode_prompt(tiny, "\n !~az")) == 3


def test_tiny_model_has_about_a_million_parameters(tiny):
    assert 1_000_000 < sum(value.numel() for value in tiny.parameters()) < 1_500_000


def test_unknown_character_is_named(tiny):
    with pytest.raises(ValueError, match="the prompt holds \\['\u00e9'\\], which this model's tokenizer does not know"):
        models.encode_prompt(tiny, "caf\u00e9")


def test_mask_token_in_the_prompt_is_refused(tiny):
    with pytest.raises(ValueError, match="the prompt holds the mask token"):
        models.encode_prompt(tiny, "3 <mask> 4")


def test_answer_ends_before_the_first_end_token(tiny):
    tokens = models.encode_prompt(tiny, "42")
    assert models.decode_answer(tiny, [*tokens, tiny.eos_token_id, *tokens]) == "42"


def test_mask_left_in_an_answer_is_not_text(tiny):
    tokens = models.encode_prompt(tiny, "42")
    assert models.decode_answer(tiny, [tokens[0], tiny.mask_token_id, tokens[1]]) == "42"


def test_messages_are_rendered_by_the_chat_template(tiny):
    assert models.encode_prompt(tiny, messages=[{"role": "user", "content": "1+1="}]) == models.encode_prompt(
        tiny, "1+1="
    )


def test_exactly_one_of_text_and_messages(tiny):
    with pytest.raises(ValueError, match="exactly one of text and messages"):
        models.encode_prompt(tiny)
    with pytest.raises(ValueError, match="exactly one of text and messages"):
        models.encode_prompt(tiny, "a", [{"role": "user", "content": "a"}])


def test_messages_without_a_chat_template_say_what_to_give(load_family):
    denoiser = load_family("llada")
    denoiser.tokenizer = models.character_tokenizer()
    denoiser.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template; give the prompt as text"):
        models.encode_prompt(denoiser, messages=[{"role": "user", "content": "a"}])


def test_checkpoint_without_tokenizer_files_is_named(load_family):
    with pytest.raises(models.ModelError, match=r"has no tokenizer files; put tokenizer.json beside config.json"):
        models.encode_prompt(load_family("llada"), "a")


def test_tokenizer_survives_the_disk(tiny, tmp_path):
    models.save(tiny, tmp_path)
    again = models.load(tmp_path)
    text = "What is 3+4?\n7"
    assert models.encode_prompt(again, text) == models.encode_prompt(tiny, text)
    assert models.decode_answer(again, models.encode_prompt(again, text)) == text
    assert again.stop_token_ids == tiny.stop_token_ids


def dream_folder(folder_of, tmp_path, mask_id):
    """A checkpoint with a tokenizer as Dream ships it: vocabulary, merges, and special tokens after them."""
    folder = shutil.copytree(folder_of("dream"), tmp_path / "dream")
    (folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "\u0120": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    special = {"4": "<|endoftext|>", "5": "<|im_end|>", str(mask_id): "<|mask|>"}
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {number: {"content": token, "special": True} for number, token in special.items()},
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_vocabulary_and_merges_make_a_tokenizer_with_the_family_s_end_of_turn(folder_of, tmp_path):
    denoiser = models.load(dream_folder(folder_of, tmp_path, mask_id=6))
    assert models.encode_prompt(denoiser, "abb a") == [2, 1, 3, 0]
    assert denoiser.stop_token_ids == (30, 5, 4)  # config.json, <|im_end|>, the tokenizer's own
    assert denoiser.tokenizer.mask_token_id == 6


def test_special_token_under_another_id_than_declared_is_named(folder_of, tmp_path):
    with pytest.raises(models.ModelError, match=r"'<\|mask\|>' is token 9 there but 6 once loaded"):
        models.load(dream_folder(folder_of, tmp_path, mask_id=9))


def test_broken_tokenizer_file_is_named(folder_of, tmp_path):
    folder = shutil.copytree(folder_of("dream"), tmp_path / "dream")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(models.ModelError, match="the tokenizer files cannot be read"):
        models.load(folder)
