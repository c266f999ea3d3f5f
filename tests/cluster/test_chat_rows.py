"""Conversations as supervised examples: forms of rows, what is learned, what is refused, and runs on them."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

import models
from cluster.chat_rows import ChatData, chat_rows, read_split
from cluster.config import SftRecipe
from cluster.sft_data import Examples, encode_row
from cluster.sft_run import run_sft

PLACE = ("rows.jsonl", 3)
TURNS = [
    {"role": "user", "content": "1+1="},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2="},
    {"role": "assistant", "content": "4"},
]
TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] | trim }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(number):
    return [{"prompt": f"{i:02}+01=", "completion": f"{i + 1:02}"} for i in range(number)]


def recipe(folder, source, **settings):
    values = {
        "name": "chat",
        "runs_dir": str(folder),
        "model": {"path": "new-tiny"},
        "data": [{"source": source, "held_out": 4}],
        "sft": {"batch_size": 4, "steps": 4, "max_new_tokens": 6, "eval_every": 2, "end_tokens": "batch"},
        "learner": {"optimizer": {"lr": 2e-3}, "engine": {"micro_batch_tokens": 512}},
        "cluster": {"mode": "local"},
    }
    return SftRecipe.model_validate(values | settings)


def texts(denoiser, pair):
    return tuple(denoiser.tokenizer.decode(tokens) for tokens in pair)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": TURNS[:2]},
        {"conversations": [{"from": "human", "value": "1+1="}, {"from": "gpt", "value": "2"}]},
        {"prompt": TURNS[:1], "completion": TURNS[1:2]},
        {"prompt": TURNS[:1], "answer": "2"},
        {"instruction": "1+1=", "input": "", "output": "2"},
    ],
)
def test_every_form_of_a_row_gives_the_same_example(fields):
    (row,) = chat_rows(PLACE, fields, "last")
    assert row.prompt == ({"role": "user", "content": "1+1="},)
    assert row.answer == "2"


def test_texts_are_taken_without_a_template():
    (row,) = chat_rows(PLACE, {"prompt": "1+1=", "response": "2"}, "last")
    assert (row.prompt, row.answer) == ("1+1=", "2")


def test_every_answer_of_a_conversation_can_be_an_example():
    assert [row.answer for row in chat_rows(PLACE, {"messages": TURNS}, "last")] == ["4"]
    first, second = chat_rows(PLACE, {"messages": TURNS}, "all")
    assert (first.prompt, first.answer) == (tuple(TURNS[:1]), "2")
    assert (second.prompt, second.answer) == (tuple(TURNS[:3]), "4")


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"text": "1+1=2"}, r"no known fields among \['text'\]"),
        ({"messages": TURNS[:1]}, "not turns that end with an answer of the assistant after another turn"),
        ({"messages": TURNS[1:2]}, "not turns that end with"),
        ({"messages": [{"role": "robot", "content": "x"}, TURNS[1]]}, "roles: human, gpt, user"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": ""}]}, "not turns that end with"),
    ],
)
def test_broken_row_is_refused_with_its_line(fields, seen):
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line 3: .*{seen}"):
        chat_rows(PLACE, fields, "last")


def test_what_is_learned_is_the_answer_and_the_end_of_its_turn():
    denoiser = models.create_tiny(0)
    denoiser.tokenizer.chat_template = TEMPLATE
    (row,) = chat_rows(PLACE, {"messages": [*TURNS[:3], {"role": "assistant", "content": " 4 "}]}, "last")
    prompt, answer = encode_row(denoiser, row)
    assert texts(denoiser, (prompt,)) == ("[user]1+1=<eos>\n[assistant]2<eos>\n[user]2+2=<eos>\n[assistant]",)
    assert answer == [*denoiser.tokenizer("4")["input_ids"], denoiser.eos_token_id]


def test_template_without_an_end_of_turn_adds_nothing_to_the_answer():
    denoiser = models.create_tiny(0)
    # A template that always opens another turn: what follows the answer is no end token.
    denoiser.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    )
    (row,) = chat_rows(PLACE, {"messages": TURNS[:2]}, "last")
    assert texts(denoiser, encode_row(denoiser, row)) == ("user: 1+1=\nassistant: ", "2")


def test_template_that_rewrites_the_turns_is_refused():
    denoiser = models.create_tiny(0)
    denoiser.tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (row,) = chat_rows(PLACE, {"messages": TURNS[:2]}, "last")
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 3: the chat template writes the turns in another form"):
        encode_row(denoiser, row)


def test_held_out_rows_are_never_trained_on(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", pairs(20))
    train, held_out = read_split(ChatData(source=source, held_out=5), seed=1)
    assert len(train) == 15
    assert not {row.prompt for row in train} & {row.prompt for row in held_out}
    assert read_split(ChatData(source=source, held_out=5), seed=1)[1] == held_out
    assert read_split(ChatData(source=source, held_out=5), seed=2)[1] != held_out
    other = write_rows(tmp_path / "other.jsonl", pairs(3))
    train, held_out = read_split(ChatData(source=source, held_out=other), seed=1)
    assert (len(train), len(held_out)) == (20, 3)
    with pytest.raises(ValueError, match="has 20 rows and held_out is 20: nothing is left to train on"):
        read_split(ChatData(source=source, held_out=20), seed=1)


def test_saved_dataset_and_parquet_give_the_rows_of_the_jsonl_file(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", pairs(8))
    table = datasets.Dataset.from_list(pairs(8))
    datasets.DatasetDict({"train": table, "test": table.select(range(2))}).save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "rows.parquet")
    expected = [(row.prompt, row.answer) for row in read_split(ChatData(source=source, held_out=2), seed=0)[0]]
    for other in ("saved", "rows.parquet"):
        rows = read_split(ChatData(source=str(tmp_path / other), held_out=2), seed=0)[0]
        assert [(row.prompt, row.answer) for row in rows] == expected
    train, held_out = read_split(ChatData(source=str(tmp_path / "saved"), held_out="test"), seed=0)
    assert (len(train), len(held_out)) == (8, 2)
    with pytest.raises(ValueError, match="split 'train': cannot be read"):
        read_split(ChatData(source=str(tmp_path / "none.parquet")), seed=0)


def test_end_tokens_fill_all_slots_or_those_of_the_longest_answer_or_a_number(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", [{"prompt": "1", "completion": "2" * (1 + i % 3)} for i in range(12)])

    def lengths(end_tokens):
        sft = {"batch_size": 8, "steps": 1, "max_new_tokens": 6, "end_tokens": end_tokens}
        batch = Examples(recipe(tmp_path, source, sft=sft), models.create_tiny(0)).batch(0)
        assert {example.answer_length for example in batch} == {1, 2, 3}
        return [len(example.tokens) - example.answer_length for example in batch], {len(e.tokens) for e in batch}

    assert lengths("fill")[1] == {6}
    assert lengths("batch")[1] == {4}
    assert set(lengths(2)[0]) == {2}
    assert lengths(4)[1] == {5, 6}  # an answer of three tokens has room for three end tokens only


def test_rows_that_do_not_fit_are_refused_or_dropped(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", [*pairs(12), {"prompt": "1", "completion": "2222222"}])
    data = [{"source": source, "held_out": 1}]
    sft = {"batch_size": 4, "steps": 1, "max_new_tokens": 6}
    # the long row stands alone in neither part for every seed, so look at both
    with pytest.raises(
        ValueError, match=r"line 13: the prompt has 1 tokens and the answer 7, but sft.max_new_tokens is 6"
    ):
        Examples(recipe(tmp_path, source, sft=sft, data=data), models.create_tiny(0))
    kept = Examples(recipe(tmp_path, source, sft=sft | {"too_long": "drop"}, data=data), models.create_tiny(0))
    assert all(example.answer_length == 2 for step in range(6) for example in kept.batch(step))


def test_recipe_without_rows_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing to learn from: give tasks, data, or both"):
        recipe(tmp_path, "rows.jsonl", data=[])


def test_run_on_conversations_learns_and_keeps_the_checkpoint_with_the_lowest_loss(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", pairs(40))
    summary = run_sft(recipe(tmp_path, source))
    assert summary.steps == 4
    assert summary.last["eval/loss"] < summary.first["eval/loss"]
    rows = [json.loads(line) for line in (Path(summary.run_dir) / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row and row["step"] > 0}
    assert summary.best_step == min(losses, key=losses.get)
    assert models.load(summary.checkpoint).tokenizer is not None
    assert np.isfinite(summary.best["eval/loss"])
