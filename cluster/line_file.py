"""A file of JSON lines that survives a crash: each row is flushed, and a torn last line does no harm."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class LineFile:
    """Adds rows to a JSONL file; closes off the line that a crash has torn before the first of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_bytes() if path.exists() else b""
        self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        if text and not text.endswith(b"\n"):
            self._file.write("\n")
            text += b"\n"
        self._num_lines = text.count(b"\n")

    def append(self, row: Mapping[str, Any]) -> int:
        """Write a row; its line number from 0. Values that JSON has no word for (nan, inf) raise `ValueError`.

        Half a character, which a byte-level tokenizer may leave, is written as its JSON escape.
        """
        self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        self._num_lines += 1
        return self._num_lines - 1

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Rows of a JSONL file in order, none if it does not exist; None in place of a torn line."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                yield None
