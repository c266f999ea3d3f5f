"""The folder of a run: `runs/<name>/` with its settings, checkpoints and the logs of each attempt.

    runs/latest -> quickstart-2
    runs/quickstart-2/config.yaml
    runs/quickstart-2/checkpoints/step_000100/  latest -> step_000100
    runs/quickstart-2/logs/attempt_1/driver.log rollout-0.log ...  latest -> attempt_1

A new run never writes into the folder of an old one: the second run of a name gets `<name>-2`. A resumed run goes on in
the newest folder of its name, as a further attempt; where there is none it starts from the beginning, so that the same
command may be repeated until it succeeds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.config import PolicyRecipe, SftRecipe, TrainRecipe
from learner.checkpoint import link

METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run and one attempt."""

    path: Path
    attempt: int

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def log_dir(self) -> Path:
        """Log files of this attempt."""
        return self.path / "logs" / f"attempt_{self.attempt}"


def open_run_folder(recipe: TrainRecipe | SftRecipe | PolicyRecipe, *, resume: bool) -> RunFolder:
    """Makes the folder of a new run or of a further attempt, and points the `latest` links at it."""
    runs_dir = Path(recipe.runs_dir).resolve()
    known = _folders_of(runs_dir, recipe.name)
    path = known[-1] if known else runs_dir / recipe.name
    if known and not resume and _is_used(path):
        path = runs_dir / f"{recipe.name}-{_number(path, recipe.name) + 1}"
    attempt = 1 + len(list((path / "logs").glob("attempt_*")))
    folder = RunFolder(path, attempt)
    folder.log_dir.mkdir(parents=True)
    folder.checkpoints.mkdir(exist_ok=True)
    link(runs_dir / "latest", path)
    link(path / "logs" / "latest", folder.log_dir)
    (path / "config.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
    return folder


def _folders_of(runs_dir: Path, name: str) -> list[Path]:
    """Folders of all runs of a name, oldest first."""
    pattern = re.compile(re.escape(name) + r"(-\d+)?")
    found = [path for path in runs_dir.glob(f"{name}*") if path.is_dir() and pattern.fullmatch(path.name)]
    return sorted((path for path in found if not path.is_symlink()), key=lambda path: _number(path, name))


def _number(path: Path, name: str) -> int:
    suffix = path.name.removeprefix(name)
    return int(suffix.removeprefix("-")) if suffix else 1


def _is_used(path: Path) -> bool:
    """Whether a run got far enough to leave something behind."""
    metrics = path / METRICS_FILE
    return (metrics.is_file() and metrics.stat().st_size > 0) or any((path / "checkpoints").glob("step_*"))
