"""What passes between a sandbox and its user: limits, how a program ended, errors, reports.

A job is one untrusted program in one jail. A frame is a message to or from it: four bytes of length, big endian, then
that many bytes. The sandbox carries frames and does not read them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import StrEnum

FRAME_HEADER = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may use. Checked on creation."""

    wall_s: float = 10.0
    """From the start of the job to its end; held outside the jail."""
    cpu_s: float = 10.0
    """Processor time, all threads together; rounded up to whole seconds."""
    memory_mb: int = 1024
    """Address space."""
    tmp_mb: int = 16
    """All files in the private temporary folder together."""
    file_mb: int = 1
    """One file."""
    num_files: int = 64
    """Open descriptors."""
    num_threads: int = 16
    """Threads beside the main one."""
    output_kb: int = 64
    """Captured bytes of each of stdout and stderr; what comes beyond is read and dropped, up to 64 times as much."""
    message_kb: int = 1024
    """One frame."""
    source_kb: int = 256
    """The program text."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"limit {name} is {value!r}; it must be above 0")


class JobEnd(StrEnum):
    """How a program ended. Never a verdict: the program chooses its exit status itself."""

    FINISHED = "finished"
    """Exit status 0."""
    TIMEOUT = "timeout"
    """Over the wall or processor time."""
    MEMORY = "memory"
    OUTPUT_LIMIT = "output_limit"
    """Over a limit of output, of a frame, or of the temporary folder."""
    CRASHED = "crashed"
    """An uncaught exception, another exit status than 0, or a signal."""
    INFRA_ERROR = "infra_error"
    """The jail broke. Jobs raise `SandboxError` instead; the word is for those who put both in one column."""


class JobEnded(Exception):  # noqa: N818 - not always an error: it says that no further frame will come
    """The program is over (or has been stopped), so that a frame can no longer be sent or received."""

    def __init__(self, end: JobEnd, detail: str) -> None:
        super().__init__(f"{end}: {detail}")
        self.end = end
        self.detail = detail


class SandboxError(RuntimeError):
    """The machinery failed, not the program: nothing is known about the program. Retry once elsewhere."""


class NoSandbox(SandboxError):  # noqa: N818 - says what there is not
    """No allowed backend works on this host; the text lists what was tried, why it failed, and what to change."""


class Unavailable(SandboxError):  # noqa: N818 - says of a backend what it is
    """A backend cannot work on this host; `fix` says what to change."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(f"{why}; to change that: {fix}")
        self.why = why
        self.fix = fix


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """One canary program run through a backend."""

    name: str
    passed: bool
    detail: str = ""
    """What came instead, if not passed."""


@dataclass(frozen=True, slots=True)
class BackendReport:
    """Whether a backend works on this host, shown by canary programs run through it."""

    backend: str
    works: bool
    why: str = ""
    """Why it does not work."""
    fix: str = ""
    """What to change so that it does."""
    layers: tuple[str, ...] = ()
    """What holds the program, for instance `seccomp`, `landlock (ABI 7)`."""
    canaries: tuple[CanaryResult, ...] = ()

    def metadata(self) -> dict[str, str]:
        """Flat texts for a run's metadata."""
        passed = [canary.name for canary in self.canaries if canary.passed]
        return {
            "sandbox/backend": self.backend,
            "sandbox/works": str(self.works).lower(),
            "sandbox/layers": ", ".join(self.layers),
            "sandbox/canaries": f"{len(passed)} of {len(self.canaries)} passed: {', '.join(passed)}",
        }


def pack_frame(payload: bytes) -> bytes:
    """The bytes of a frame."""
    return FRAME_HEADER.pack(len(payload)) + payload
