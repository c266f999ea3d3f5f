"""What works on this host: versions, processors, memory, GPUs, and sandboxes for untrusted programs."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from reward.sandbox.config import SandboxConfig
from reward.sandbox.records import BackendReport
from reward.sandbox.sandbox import describe, survey

PACKAGES = ("ray", "torch", "transformers", "deepspeed", "datasets", "mlflow", "pydantic", "peft", "math-verify")


def examine() -> int:
    """Print the findings; 0 if everything that a run on this host may need is there, else 1."""
    from cluster.preflight import num_gpus
    from cluster.terminal import console

    reports = survey(SandboxConfig())
    out = console()
    out.print(f"Python {platform.python_version()}, {platform.platform()}", highlight=False)
    out.print(f"{os.cpu_count()} processors, {_memory_gib():.0f} GiB, {num_gpus()} GPUs", highlight=False)
    for name in PACKAGES:
        out.print(f"  {name} {_version(name)}", highlight=False)
    out.print("sandboxes for programs (tasks humaneval, mbpp, code):", highlight=False)
    out.print(describe(reports), highlight=False, markup=False)
    if not _holds(reports):
        out.print("code tasks cannot be graded here; every other task can", highlight=False)
    return 0 if _holds(reports) and all(_version(name) != "missing" for name in PACKAGES) else 1


def _holds(reports: list[BackendReport]) -> bool:
    return any(report.works for report in reports)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
