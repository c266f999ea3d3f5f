"""The key of a service: where it comes from, and what is kept of it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

MIN_LENGTH = 16


def read_key(variable: str | None, file: Path | None) -> str | None:
    """The key that clients must send, from the environment or a file; never from a command line, which others see."""
    if variable is not None and file is not None:
        raise ValueError("give the key either by an environment variable or by a file, not both")
    if variable is not None:
        where, key = f"the environment variable {variable}", os.environ.get(variable, "").strip()
    elif file is not None:
        where, key = str(file), file.read_text(encoding="utf-8").strip()
    else:
        return None
    if len(key) < MIN_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{where} holds {len(key)} characters; a key has at least {MIN_LENGTH} of printable ASCII without blanks, "
            'for instance the output of: python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return key


def digest_of(key: str | None) -> bytes | None:
    """SHA-256 of a key: all that a server has to know. Keys are long and random, so it gives nothing away."""
    return None if key is None else hashlib.sha256(key.encode()).digest()
