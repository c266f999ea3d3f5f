"""The history of measured ratios: one JSON line a measurement in `history.jsonl`, oldest first.

    {"date": "2026-01-31", "version": "a1b2c3d", "machine": "...", "setting": "...", "ratios": {"...": 1.5}}

A ratio compares two measurements of one process, so it means the same on another machine, about; larger is better.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.timing import machine

HISTORY = Path(__file__).with_name("history.jsonl")


@dataclass(frozen=True)
class Measurement:
    """One line."""

    date: str
    version: str
    """What `git describe` says of the sources; the package's version where they are no repository."""
    machine: str
    setting: str
    """Everything that changes the ratios by intent: model, lengths, batch."""
    ratios: Mapping[str, float]


def measured(setting: str, ratios: Mapping[str, float]) -> Measurement:
    """A measurement made now, here."""
    return Measurement(
        date=datetime.now(UTC).date().isoformat(),
        version=source_version(),
        machine=machine(),
        setting=setting,
        ratios={name: round(ratio, 3) for name, ratio in ratios.items()},
    )


def append(measurement: Measurement, path: Path = HISTORY) -> None:
    """Add a line."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(measurement)) + "\n")


def read(path: Path = HISTORY) -> list[Measurement]:
    """All lines; none where there is no file."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(Measurement(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}; every line is one measurement") from error
    return found


def latest(setting: str, path: Path = HISTORY) -> Measurement | None:
    """The newest measurement of a setting."""
    return next((m for m in reversed(read(path)) if m.setting == setting), None)


def source_version() -> str:
    """Name of the sources that are running."""
    command = ["git", "describe", "--always", "--dirty", "--tags"]
    try:
        done = subprocess.run(command, cwd=HISTORY.parent, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        try:
            return version("unmask")
        except PackageNotFoundError:
            return "unknown"
    return done.stdout.strip()
