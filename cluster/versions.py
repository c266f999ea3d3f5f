"""Which code made a run: git commit or package version, and the versions of the libraries that decide the numbers."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import tomllib
from pathlib import Path

LIBRARIES = ("torch", "transformers", "deepspeed", "ray", "mlflow", "numpy")
_SOURCE = Path(__file__).resolve().parent.parent


def code_version() -> str:
    """Git commit of the source, `+changes` where it differs; `unmask <version>` outside a repository."""
    git = shutil.which("git")
    if git is not None and (_SOURCE / ".git").exists():
        commit = _run_git(git, "rev-parse", "HEAD")
        if commit:
            return commit + ("+changes" if _run_git(git, "status", "--porcelain", "--untracked-files=no") else "")
    return f"unmask {package_version()}"


def package_version() -> str:
    """Of the installed package, or of the pyproject.toml beside a source tree that is not installed."""
    try:
        return importlib.metadata.version("unmask")
    except importlib.metadata.PackageNotFoundError:
        project = tomllib.loads((_SOURCE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return str(project["version"])


def library_versions() -> dict[str, str]:
    """Name and version of Python and of each library in `LIBRARIES`."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def _run_git(git: str, *arguments: str) -> str:
    """What git prints; nothing where it fails."""
    command = [git, "-C", str(_SOURCE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (subprocess.SubprocessError, OSError):
        return ""
