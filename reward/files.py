"""Task files: rows with their line numbers, and errors that name file, line, what is wrong and what is allowed.

Files are UTF-8; a name that ends in `.gz` is unpacked while reading.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_DATA = Path(__file__).parent / "data"

NumberedRow = tuple[int, dict[str, Any]]
"""Line number, counted from 1, and the fields that stand there."""


def bundled(file_name: str) -> Path:
    """Path of a test file that comes with the package (`data/LICENSES.md` says from where)."""
    return _DATA / file_name


def bad_row(path: Path | str, line: int, why: str, allowed: str) -> ValueError:
    """The error for a row that a task cannot use."""
    return ValueError(f"{path}, line {line}: {why}; allowed: {allowed}")


def read_jsonl(path: Path | str, *, allowed: str) -> list[NumberedRow]:
    """One JSON object a line; blank lines are skipped. `allowed` describes a good row for the error text."""
    rows = []
    for line, text in enumerate(_lines(path), start=1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise bad_row(path, line, f"not JSON ({error})", allowed) from error
        if not isinstance(fields, dict):
            raise bad_row(path, line, f"a JSON {type(fields).__name__}, not an object", allowed)
        rows.append((line, fields))
    return _not_empty(path, rows, allowed)


def read_csv(path: Path | str, *, columns: Sequence[str], allowed: str) -> list[NumberedRow]:
    """Comma-separated rows under a header that has at least `columns`."""
    reader = csv.DictReader(_lines(path), strict=True)
    rows = []
    try:
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise bad_row(path, 1, f"the header {reader.fieldnames} lacks {', '.join(missing)}", allowed)
        for fields in reader:
            if None in fields:
                raise bad_row(path, reader.line_num, "more values than the header has columns", allowed)
            absent = [column for column in columns if not fields[column]]
            if absent:
                raise bad_row(path, reader.line_num, f"no value for {', '.join(absent)}", allowed)
            rows.append((reader.line_num, dict(fields)))
    except csv.Error as error:
        raise bad_row(path, reader.reader.line_num, str(error), allowed) from error
    return _not_empty(path, rows, allowed)


def text_field(path: Path | str, line: int, fields: dict[str, Any], key: str, allowed: str) -> str:
    """A field that must hold text with something in it."""
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip():
        seen = f"{key} is {value!r}" if key in fields else f"no field {key!r} among {sorted(fields)}"
        raise bad_row(path, line, f"{seen}, not a text", allowed)
    return value


def _lines(path: Path | str) -> io.StringIO:
    """The file's text, to be read line by line."""
    try:
        packed = Path(path).read_bytes()
        unpacked = gzip.decompress(packed) if Path(path).suffix == ".gz" else packed
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"task file {path} is no complete gzip file ({error})") from error
    except OSError as error:
        raise ValueError(f"task file {path} cannot be read ({error.strerror}); give an existing file") from error
    try:
        return io.StringIO(unpacked.decode("utf-8-sig"), newline="")
    except UnicodeDecodeError as error:
        line = unpacked.count(b"\n", 0, error.start) + 1
        raise bad_row(path, line, f"not UTF-8 ({error.reason})", "UTF-8 text") from error


def _not_empty(path: Path | str, rows: list[NumberedRow], allowed: str) -> list[NumberedRow]:
    if not rows:
        raise ValueError(f"task file {path} has no rows; allowed: {allowed}")
    return rows
