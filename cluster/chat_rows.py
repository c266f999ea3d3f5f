"""Conversations and question-answer rows for supervised runs, from JSONL files or through the `datasets` library.

A row has one of these forms; further fields are ignored:

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}, ...]}
    {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}, ...]}
    {"prompt": text or turns, "completion" (or "answer", "response"): text or turns}
    {"instruction": text, "input"?: text, "output": text}

Turns are rendered by the model's own chat template; what is learned is the assistant's text and the end of its turn,
never the prompt or the roles. A prompt and a completion that are texts are taken as they stand, without a template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from reward.files import bad_row, read_jsonl

ALLOWED = (
    '{"messages": [{"role", "content"}, ..., {"role": "assistant", "content"}]}, {"prompt", "completion"} or '
    '{"instruction", "output"}'
)
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
COMPLETIONS = ("completion", "answer", "response")
Turn = dict[str, str]


def _rows_or_source(given: object) -> object:
    if not (isinstance(given, str) and given) and not (type(given) is int and given >= 1):
        raise ValueError("must be a whole number of at least 1, or the name of a split or file")
    return given


class ChatData(BaseModel):
    """One source of rows for supervised fine-tuning."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    """A JSONL file (`.jsonl`, `.jsonl.gz`), a parquet file, a folder that `datasets` saved, or a dataset of the hub."""
    name: str | None = None
    """Configuration of a dataset of the hub that has several."""
    split: str = "train"
    """Split of a dataset; files have none."""
    held_out: Annotated[int | str, BeforeValidator(_rows_or_source)] = 64
    """Rows for the held-out loss: so many of these rows, drawn by the seed and never trained on; or another split, or
    for a file another file."""
    turns: Literal["last", "all"] = "last"
    """Whether only the last answer of a conversation is an example, or each one, after the turns before it."""
    limit: int | None = Field(default=None, ge=1)
    """Rows to use, from the first on; all if not given."""
    weight: float = Field(default=1.0, gt=0)
    """Share of a batch, relative to the other sources and tasks."""

    def files(self) -> list[str]:
        """The files among its sources."""
        named = [self.source, *([self.held_out] if isinstance(self.held_out, str) else [])]
        return [name for name in named if _is_file(name)]


@dataclass(frozen=True)
class ChatRow:
    """A prompt and its right answer, not yet rendered."""

    place: str
    """Where it stands, for error texts."""
    prompt: str | tuple[Turn, ...]
    answer: str


def read_split(data: ChatData, *, seed: int) -> tuple[list[ChatRow], list[ChatRow]]:
    """Rows to train on and rows to hold out."""
    rows = _rows(data, data.source, data.split)
    if isinstance(data.held_out, str):
        is_file = _is_file(data.source)
        held_out = _rows(data, data.held_out if is_file else data.source, data.split if is_file else data.held_out)
        return rows, held_out
    if data.held_out >= len(rows):
        raise ValueError(
            f"data {data.source} has {len(rows)} rows and held_out is {data.held_out}: nothing is left to train on; "
            "give more rows or a smaller held_out"
        )
    chosen = set(np.random.default_rng(seed).permutation(len(rows))[: data.held_out].tolist())
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]


def _rows(data: ChatData, source: str, split: str) -> list[ChatRow]:
    found = [row for place, fields in _records(data, source, split) for row in chat_rows(place, fields, data.turns)]
    if not found:
        raise ValueError(f"data {source} has no rows; allowed: {ALLOWED}")
    return found


def _records(data: ChatData, source: str, split: str) -> Iterator[tuple[tuple[str, int], Mapping[str, Any]]]:
    if source.endswith((".jsonl", ".jsonl.gz")):
        for line, fields in read_jsonl(source, allowed=ALLOWED)[: data.limit]:
            yield (source, line), fields
        return
    for index, fields in enumerate(_dataset(data, source, split)):
        if index == data.limit:
            return
        yield (f"{source} ({split})", index + 1), fields


def _dataset(data: ChatData, source: str, split: str) -> Any:
    """Rows by the `datasets` library; whatever it raises becomes an error that names the source."""
    import datasets

    try:
        if source.endswith(".parquet"):
            return datasets.load_dataset("parquet", data_files=source, split="train")
        if Path(source).is_dir():
            saved = datasets.load_from_disk(source)
            return saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        return datasets.load_dataset(source, data.name, split=split)
    except (ValueError, KeyError, OSError, ConnectionError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(
            f"data {source}, split {split!r}: cannot be read ({error}); give a .jsonl or .parquet file, a folder that "
            "`datasets` saved, or a dataset that can be fetched from the hub"
        ) from error


def _is_file(source: str) -> bool:
    return source.endswith((".jsonl", ".jsonl.gz", ".parquet"))


def chat_rows(place: tuple[str, int], fields: Mapping[str, Any], turns: Literal["last", "all"]) -> list[ChatRow]:
    """The examples of one row."""
    file, line = place
    given = _plain_pair(fields)
    if given is not None:
        return [ChatRow(f"{file}, line {line}", *given)]
    conversation = _conversation(fields)
    if not conversation or conversation[-1]["role"] != "assistant" or len(conversation) == 1:
        seen = "no known fields among " + str(sorted(fields)) if conversation is None else "not turns that end with"
        why = seen if conversation is None else f"{seen} an answer of the assistant after another turn"
        raise bad_row(file, line, why, f"{ALLOWED}; roles: {', '.join(ROLES)}")
    ends = [i for i, turn in enumerate(conversation) if turn["role"] == "assistant" and i > 0]
    return [
        ChatRow(f"{file}, line {line}", tuple(conversation[:end]), conversation[end]["content"])
        for end in (ends if turns == "all" else ends[-1:])
    ]


def _plain_pair(fields: Mapping[str, Any]) -> tuple[str, str] | None:
    """Prompt and completion that are texts."""
    completion = next((fields[key] for key in COMPLETIONS if fields.get(key) is not None), None)
    prompt = fields.get("prompt")
    is_plain = isinstance(prompt, str) and isinstance(completion, str) and bool(prompt) and bool(completion)
    return (str(prompt), str(completion)) if is_plain else None


def _conversation(fields: Mapping[str, Any]) -> list[Turn] | None:
    """Turns of a row in one form; None where it has none, empty where they are broken."""
    if fields.get("instruction") is not None and "output" in fields:
        asked = "\n\n".join(str(fields[key]) for key in ("instruction", "input") if fields.get(key))
        return _turns([{"role": "user", "content": asked}, {"role": "assistant", "content": fields["output"]}])
    for key in ("messages", "conversations"):
        if fields.get(key) is not None:
            return _turns(fields[key])
    prompt, completion = fields.get("prompt"), next((fields[key] for key in COMPLETIONS if key in fields), None)
    if isinstance(prompt, Sequence) and not isinstance(prompt, str) and completion is not None:
        answer = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
        return _turns([*prompt, *answer])
    return None


def _turns(given: Any) -> list[Turn]:
    if not isinstance(given, Sequence) or isinstance(given, str):
        return []
    found = []
    for turn in given:
        if not isinstance(turn, Mapping):
            return []
        role = ROLES.get(str(turn.get("role", turn.get("from"))))
        content = turn.get("content", turn.get("value"))
        if role is None or not isinstance(content, str) or not content:
            return []
        found.append({"role": role, "content": content})
    return found
