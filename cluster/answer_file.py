"""The output of a bulk generation: a JSONL file that appears under its name only when every prompt has its answers.

Until then a journal stands beside it (`answers.jsonl.partial`): a line with the settings, then a line a prompt, all its
answers together, written as they come. A prompt is known by a hash of what its answers follow from, so a resumed
command may have more prompts, fewer, or another order, and what is kept serves nothing but the same question. The whole
file is then written in the order of the prompts and put in place in one move: each answer stands there exactly once,
whatever was killed when.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

Answer = Mapping[str, Any]


def journal_of(path: Path) -> Path:
    """Where the answers are until the file is whole."""
    return path.with_name(f"{path.name}.partial")


class AnswerFile:
    """Answers by key, kept on disk from the moment they are there. Use as a context: one process at a time."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        """`settings`: what all answers follow from beside their prompts; a journal of other settings is refused."""
        self.path = path
        self.journal = journal_of(path)
        self._settings = json.loads(json.dumps(settings))
        self._resume = resume
        self._places: dict[str, int] = {}
        """First byte of each key's line."""
        self._file: BinaryIO | None = None

    def __enter__(self) -> AnswerFile:
        if self.journal.exists() and not self._resume:
            raise ValueError(
                f"{self.journal} holds the answers of a run that was not finished; --resume goes on from it, or delete "
                "it to begin again"
            )
        if self.path.exists() and not self.journal.exists():
            raise ValueError(f"{self.path} exists; give another --out, or delete it")
        file = self.journal.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(file)
        except OSError as error:
            file.close()
            raise ValueError(f"{self.journal} is being written by another process; wait for it, or end it") from error
        except ValueError:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def add(self, key: str, answers: Sequence[Answer]) -> None:
        """Keep all answers to one prompt."""
        assert self._file is not None
        assert key not in self._places, f"{key} has answers already"
        self._file.seek(0, os.SEEK_END)
        place = self._file.tell()
        self._append({"key": key, "answers": list(answers)})
        self._places[key] = place

    def finish(self, keys: Sequence[str]) -> None:
        """Put the whole file in place, the answers of `keys` in their order, and delete the journal."""
        assert self._file is not None
        whole = self.path.with_name(f"{self.path.name}.whole")
        with whole.open("wb") as out:
            for answers in map(self._answers, keys):
                out.writelines(_line(answer) for answer in answers)
            out.flush()
            os.fsync(out.fileno())
        os.replace(whole, self.path)
        self.journal.unlink()

    def _answers(self, key: str) -> list[Answer]:
        assert self._file is not None
        self._file.seek(self._places[key])
        answers: list[Answer] = json.loads(self._file.readline())["answers"]
        return answers

    def _read(self, file: BinaryIO) -> None:
        """Take in what an earlier process has kept; cut off a line that it has torn."""
        self._file = file
        end = 0
        for place, line in _lines(file):
            row = _parsed(line)
            if row is None:
                continue
            end = place + len(line)
            if "settings" in row:
                self._check(row["settings"])
            else:
                self._places.setdefault(row["key"], place)
        file.truncate(end)
        if end == 0:
            self._append({"settings": self._settings})

    def _check(self, kept: Mapping[str, Any]) -> None:
        names = [name for name in self._settings | dict(kept) if kept.get(name) != self._settings.get(name)]
        if names:
            seen = "; ".join(f"{name} was {kept.get(name)!r}, now {self._settings.get(name)!r}" for name in names)
            raise ValueError(
                f"{self.journal} was begun with other settings: {seen}.\nGive the same settings or another --out, or "
                "delete it to begin again."
            )

    def _append(self, row: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(_line(row))
        self._file.flush()


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines with the place of their first byte."""
    file.seek(0)
    place = 0
    for line in file:
        yield place, line
        place += len(line)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The row of a line; None for one that a crash has torn."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and ("settings" in row or "answers" in row) else None


def _line(row: Mapping[str, Any]) -> bytes:
    # Half a character, which a byte-level tokenizer may leave, is written as its JSON escape.
    return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", errors="backslashreplace")
