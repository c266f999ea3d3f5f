"""Checkpoints that are either whole or absent.

    step_000100/model/       published layout with its tokenizer: what `--model` reads (a LoRA run: the adapter)
    step_000100/optimizer/   DeepSpeed's state, in shards of the ranks that wrote it
    step_000100/state.json   counters of the run, size and SHA-256 of every file, and a checksum of its own

Everything is written under a temporary name in the same folder, synced, and renamed: a folder with its final name is
complete. All ranks must see one file system. `learner.reshard` moves state to another number of ranks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

PARTIAL_SUFFIX = ".partial"
DAMAGED_SUFFIX = ".damaged"
STATE_FILE = "state.json"
_STEP = re.compile(r"step_(\d{6,})")


class CheckpointError(ValueError):
    """A checkpoint that cannot be read; names the file and what is wrong."""


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` updates lies."""
    return folder / f"step_{step:06d}"


def partial_folder(path: Path) -> Path:
    """Temporary name under which a checkpoint is written; what an earlier, killed attempt left there is removed."""
    return path.with_name(path.name + PARTIAL_SUFFIX)


def start(path: Path) -> Path:
    """An empty folder under the temporary name."""
    partial = partial_folder(path)
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    return partial


def finish(path: Path, state: dict[str, Any]) -> None:
    """Writes `state.json`, syncs every file, and gives the folder its final name, replacing an older one."""
    partial = partial_folder(path)
    files = {str(file.relative_to(partial)): [file.stat().st_size, _digest(file)] for file in _files(partial)}
    payload = {"state": state, "files": files}
    (partial / STATE_FILE).write_text(json.dumps({**payload, "checksum": _checksum(payload)}, indent=1, sort_keys=True))
    for entry in [*_files(partial), *_folders(partial)]:
        _sync(entry)
    if path.exists():
        shutil.rmtree(path)
    partial.rename(path)
    _sync(path.parent)


def read_state(path: Path, *, verify: bool = False) -> dict[str, Any]:
    """Counters of a checkpoint, after its checksum and the files' sizes were compared; `verify`: their content too."""
    file = path / STATE_FILE
    if not file.exists():
        raise CheckpointError(f"{path} has no {STATE_FILE}: it is no checkpoint of this program")
    try:
        content = json.loads(file.read_text())
        payload = {"state": content["state"], "files": content["files"]}
        checksum = content["checksum"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged ({error}); use an older checkpoint") from error
    if checksum != _checksum(payload):
        raise CheckpointError(f"{file}: its checksum does not match its content; use an older checkpoint")
    for name, (size, digest) in payload["files"].items():
        found = (path / name).stat().st_size if (path / name).exists() else None
        if found != size:
            seen = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(f"{path / name} {seen}, expected {size} bytes; use an older checkpoint")
        if verify and _digest(path / name) != digest:
            raise CheckpointError(f"{path / name} is not what was written (SHA-256); use an older checkpoint")
    state: dict[str, Any] = payload["state"]
    return state


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step_*") if _STEP.fullmatch(path.name) and (path / STATE_FILE).exists()]
    return sorted(found, key=_step_of)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint."""
    return max(checkpoints(folder), key=_step_of, default=None)


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint, so that it counts as absent and can still be looked at."""
    aside = path.with_name(path.name + DAMAGED_SUFFIX)
    if aside.exists():
        shutil.rmtree(aside)
    path.rename(aside)
    return aside


def prune(folder: Path, *, keep: int, spare: Path | None = None) -> None:
    """Deletes all checkpoints but `spare` and the newest `keep`, and what killed attempts left."""
    for path in checkpoints(folder)[:-keep]:
        if path != spare:
            shutil.rmtree(path)
    for path in folder.glob(f"step_*{PARTIAL_SUFFIX}"):
        shutil.rmtree(path)


def link(name: Path, target: Path) -> None:
    """Points the relative link `name` at a checkpoint beside it, at once and for good."""
    temporary = name.with_name(name.name + PARTIAL_SUFFIX)
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target.name, target_is_directory=True)
    temporary.rename(name)


def _step_of(path: Path) -> int:
    match = _STEP.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _folders(folder: Path) -> list[Path]:
    return [folder, *(path for path in folder.rglob("*") if path.is_dir())]


def _checksum(payload: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
