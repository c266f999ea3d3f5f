"""What is fast, by how much, against what; `unmask bench NAME` runs a module of this folder."""

from __future__ import annotations

from pathlib import Path


def names() -> list[str]:
    """Modules of this folder that can be run: those with a `main`; the others are their parts."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(file.stem for file in files if "\ndef main(" in file.read_text(encoding="utf-8"))
