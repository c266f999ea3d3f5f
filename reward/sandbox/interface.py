"""What every backend offers: slots and jobs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from reward.sandbox.records import BackendReport, JobEnd, Limits


class Job(ABC):
    """A program that has been started. A context manager: leaving it ends the program.

    Made by `Sandbox.start`; used by one thread at a time. Every method raises SandboxError if the machinery fails.
    """

    detail: str = ""
    """What is known of the end, in words, for instance `exit status 1`."""
    cpu_s: float = 0.0
    """Processor time used, known at the end; 0 where a backend does not tell."""

    @abstractmethod
    def send(self, frame: bytes) -> None:
        """One frame to the program; JobEnded if it is over or does not read in time."""

    @abstractmethod
    def receive(self, timeout_s: float) -> bytes:
        """One frame of the program; JobEnded at its end, after `timeout_s`, at the job's deadline or over a limit."""

    @abstractmethod
    def finish(self) -> tuple[JobEnd, bytes, bytes]:
        """End the frames, wait for the end of the program, at most until its deadline: how it ended, stdout, stderr.

        What is above `output_kb` is missing, and an end that would be `finished` is `output_limit` then.
        """

    @abstractmethod
    def close(self) -> None:
        """End the program now, if it is not over."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Sandbox(ABC):
    """One slot: one job at a time. Used by one thread at a time; any thread."""

    report: BackendReport
    """What the backend has shown to hold, for the run's metadata."""
    replays: bool = False
    """Each answer runs the whole conversation again, so conversations should be short."""

    @property
    def backend(self) -> str:
        """Name of the backend."""
        return self.report.backend

    @abstractmethod
    def start(self, child_source: str, *, limits: Limits, stdin: bytes = b"") -> Job:
        """Run a program text as `__main__`, with the descriptors CHANNEL_IN and CHANNEL_OUT as global names.

        ValueError for a text above `source_kb`; SandboxError if there is no jail and none can be started.
        """

    @abstractmethod
    def close(self) -> None:
        """End the slot and everything in it."""
