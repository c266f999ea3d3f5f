r"""`gsm8k`: grade-school word problems with a whole-number answer.

A row, as in the published files (`.jsonl`, `.jsonl.gz`) and in `openai/gsm8k` on the hub:
`{"question": "..", "answer": "He sells 3*2=$<<3*2=6>>6 worth.\n#### 6"}`; the right answer stands after `####`.

Which number of a completion counts: of the last `<answer>` tag or `\boxed{}`; without these, of the last line that
starts with `####` and a number; without one, after the last "the answer is"; without that, the last number. Where a
place holds an equation, its right side counts; where it still holds several different numbers, there is no answer.
Numbers compare as exact rationals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

from reward.answer import MAX_COMPLETION_CHARS, marked_answer, read_number
from reward.files import NumberedRow, bad_row, read_jsonl, text_field
from reward.splits import SplitTask
from reward.tasks import Example, Row, Split
from rollout.records import Prompt, Scored

HUB_ID = "openai/gsm8k"
INSTRUCTION = "Reason step by step. End with the final number alone on a last line that starts with ####."
_ALLOWED = '{"question": "..", "answer": "..\\n#### 18"} with a number after the ####'
_CALCULATOR = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(
    r"""(?<![\w.,^/$\\])(?:[-+\N{MINUS SIGN}]\s?)?(?:\\?\$\s?)?
        (?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]+)?(?:/[0-9]+)?
        (?![\w^/]|[.,][0-9])""",
    re.VERBOSE,
)
_HASHES = re.compile(r"^[ \t]*####[ \t]*(?=[-+\N{MINUS SIGN}$\\]*[ \t]*[0-9])(.*)$", re.MULTILINE)
_PHRASE = re.compile(r"the (?:final )?answer is[:\s]*((?:(?!the (?:final )?answer is).)*)", re.IGNORECASE)


class Gsm8k(SplitTask):
    """GSM8K from local files, or from the hub where a split has none."""

    name = "gsm8k"

    def load(self, split: Split, path: str | None) -> Sequence[Row]:
        """Rows of the file; without one, of the hub's split."""
        source = f"{HUB_ID}:{split}" if path is None else path
        rows: list[Row] = []
        for line, fields in _from_hub(split) if path is None else read_jsonl(path, allowed=_ALLOWED):
            question = text_field(source, line, fields, "question", _ALLOWED)
            answer = text_field(source, line, fields, "answer", _ALLOWED)
            if _gold(answer) is None:
                raise bad_row(source, line, f"answer ends {answer[-40:]!r}", _ALLOWED)
            rows.append({"id": self.row_id(split, len(rows)), "question": question, "answer": answer})
        return tuple(rows)

    def prompt(self, row: Row) -> Prompt:
        """One user turn: the question and how to end the answer."""
        content = f"{row['question']}\n\n{INSTRUCTION}"
        return Prompt(id=row["id"], task=self.name, messages=({"role": "user", "content": content},), gold=row)

    def solution(self, row: Row) -> str:
        """The published solution without its `<<..>>` calculator marks."""
        return _CALCULATOR.sub("", row["answer"])

    def grade(self, row: Row, completion: str) -> Scored:
        """Right if the number that counts equals the published one.

        `format`: it stands in a tag, a box, after `####` or after "the answer is", not just somewhere last.
        """
        gold = _gold(row["answer"])
        if gold is None:
            raise ValueError(f"gsm8k answer ends {row['answer'][-40:]!r}; allowed: {_ALLOWED}")
        number, is_marked = _final_number(completion)
        correct = float(number == gold)
        return Scored(value=correct, parts={"correct": correct, "format": float(is_marked and number is not None)})

    def example(self) -> Example:
        """A made-up row."""
        row = {"id": "example", "question": "What are 3 pairs?", "answer": "3*2=<<3*2=6>>6\n#### 6"}
        return Example(row, right="Three pairs are 3*2=6.\n#### 6", wrong="6 is 3+3.\n#### 5")


def _from_hub(split: str) -> Iterable[NumberedRow]:
    from datasets import load_dataset

    try:
        loaded = load_dataset(HUB_ID, "main", split=split)
    except OSError as error:
        raise ValueError(
            f"gsm8k has no {split}_file and {HUB_ID} cannot be fetched ({error}); give the task {split}_file: a .jsonl "
            "or .jsonl.gz file in the published format"
        ) from error
    return enumerate((dict(row) for row in loaded), start=1)


def _gold(answer: str) -> Fraction | None:
    _, marker, number = answer.rpartition("####")
    return read_number(number) if marker else None


def _final_number(completion: str) -> tuple[Fraction | None, bool]:
    """The number that counts, and whether a mark says that it does."""
    text = completion[-MAX_COMPLETION_CHARS:]
    marked = marked_answer(text)
    if marked is not None:
        return _only_number(marked), True
    for mark in (_HASHES, _PHRASE):
        places = mark.findall(text)
        if places:
            return _only_number(re.split(r"[.!?;](?:\s|$)", places[-1])[0]), True
    numbers = _NUMBER.findall(text)
    return (read_number(numbers[-1]) if numbers else None), False


def _only_number(text: str) -> Fraction | None:
    """The number that a short text states, units and words around it aside; None if it states several or none."""
    stated = {read_number(number) for number in _NUMBER.findall(text.rpartition("=")[2])}
    return stated.pop() if len(stated) == 1 else None
