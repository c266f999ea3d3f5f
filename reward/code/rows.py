"""Rows of code tasks: from JSON lines, a JSON list, or the hub."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reward.files import NumberedRow, bad_row, read_jsonl

Hub = tuple[str, str | None, str]
"""Repository, configuration and split of a data set on the hub."""


def code_rows(path: str | None, *, hub: Hub, allowed: str) -> tuple[str, Sequence[NumberedRow]]:
    """Where the rows come from, for error texts, and the rows with their numbers, counted from 1."""
    if path is None:
        return ":".join(part for part in hub if part), _from_hub(hub)
    if Path(path).name.removesuffix(".gz").endswith(".json"):
        return path, _json_list(path, allowed)
    return path, read_jsonl(path, allowed=allowed)


def texts_field(path: str, line: int, fields: dict[str, Any], key: str, allowed: str) -> list[str]:
    """A field that must hold a list of texts, at least one, none of them empty."""
    value = fields.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        seen = f"{key} is {value!r:.200}" if key in fields else f"no field {key!r} among {sorted(fields)}"
        raise bad_row(path, line, f"{seen}, not a list of texts", allowed)
    return value


def _json_list(path: str, allowed: str) -> Sequence[NumberedRow]:
    try:
        packed = Path(path).read_bytes()
        rows = json.loads(gzip.decompress(packed) if path.endswith(".gz") else packed)
    except OSError as error:
        raise ValueError(f"task file {path} cannot be read ({error}); give an existing file") from error
    except (ValueError, EOFError, RecursionError) as error:
        raise ValueError(f"task file {path} is no JSON ({error}); allowed: a list of {allowed}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"task file {path} holds no list of objects; allowed: a list of {allowed}")
    return list(enumerate(rows, start=1))


def _from_hub(hub: Hub) -> Sequence[NumberedRow]:
    from datasets import load_dataset

    repository, configuration, split = hub
    try:
        loaded = load_dataset(repository, configuration, split=split)
    except OSError as error:
        raise ValueError(
            f"no file is given for the {split} rows and {repository} cannot be fetched ({error}); give the task "
            f"{split}_file: a .jsonl, .jsonl.gz or .json file in the published format"
        ) from error
    return [(number, dict(row)) for number, row in enumerate(loaded, start=1)]
