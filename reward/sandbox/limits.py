"""The limits of a job: checks before it, and what the kernel is told."""

from __future__ import annotations

import math

from reward.sandbox.records import Limits

MB = 1 << 20


def check_source(child_source: str, limits: Limits) -> None:
    """ValueError for a program text above the limit."""
    num_bytes = len(child_source.encode("utf-8", "surrogatepass"))
    if num_bytes > limits.source_kb * 1024:
        raise ValueError(f"program text has {num_bytes} bytes; at most {limits.source_kb} kB are allowed")


def check_frame(frame: bytes, limits: Limits) -> None:
    """ValueError for a frame above the limit."""
    if len(frame) > limits.message_kb * 1024:
        raise ValueError(f"frame has {len(frame)} bytes; at most {limits.message_kb} kB are allowed")


def rlimits(limits: Limits) -> list[tuple[str, int, int]]:
    """Name, soft and hard limit of each resource of a process. Over the soft one of time, SIGXCPU comes first."""
    cpu_s = math.ceil(limits.cpu_s)
    same = {
        "RLIMIT_AS": limits.memory_mb * MB,
        "RLIMIT_FSIZE": limits.file_mb * MB,
        "RLIMIT_NOFILE": limits.num_files,
        "RLIMIT_CORE": 0,
    }
    return [("RLIMIT_CPU", cpu_s, cpu_s + 1), *((name, amount, amount) for name, amount in same.items())]
