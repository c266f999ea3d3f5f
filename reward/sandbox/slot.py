"""A slot on this host: a jail with a warm fork server, replaced when it dies or misbehaves."""

from __future__ import annotations

import functools
import logging
import weakref
from typing import Any

from reward.sandbox.interface import Sandbox
from reward.sandbox.jail import Jail, Launch
from reward.sandbox.job import JailJob
from reward.sandbox.limits import check_source
from reward.sandbox.records import BackendReport, Limits, SandboxError

log = logging.getLogger(__name__)

_READY_TIMEOUT_S = 10.0


class JailSandbox(Sandbox):
    """One jail, started when it is first needed."""

    def __init__(self, report: BackendReport, launch: Launch) -> None:
        self.report = report
        self.num_replaced = 0
        """Jails that died or misbehaved and were replaced."""
        self._launch = launch
        self._jail: Jail | None = None
        self._job: JailJob | None = None
        self._num_jobs = 0
        self._closed = False
        self._leave: weakref.finalize[[], Any] | None = None

    def start(self, child_source: str, *, limits: Limits, stdin: bytes = b"") -> JailJob:
        """See `Sandbox`."""
        check_source(child_source, limits)
        jail = self._ready_jail()
        self._num_jobs += 1
        try:
            self._job = JailJob(jail, self._num_jobs, child_source, limits, stdin)
        except (BrokenPipeError, ConnectionResetError):
            # It died while idle: no program has run in it.
            self._discard()
            self._job = JailJob(self._ready_jail(), self._num_jobs, child_source, limits, stdin)
        return self._job

    def close(self) -> None:
        """End the jail and everything in it."""
        self._closed = True
        self._discard()

    def _ready_jail(self) -> Jail:
        """The jail, empty; a new one if there is none, or if the old one is dead or strange."""
        if self._closed:
            raise SandboxError("the sandbox is closed")
        if self._jail is not None and self._job is not None:
            if not self._job.is_over:
                raise RuntimeError("the slot has a job; leave it before you start the next one")
            try:
                if self._job.broken:
                    raise SandboxError("the jail broke during a job")
                self._jail.wait_ready(self._job.run, timeout_s=_READY_TIMEOUT_S)
                self._jail.control.settimeout(None)
            except SandboxError as error:
                log.warning("a jail of backend %s is replaced: %s", self.backend, error)
                self._discard()
        if self._jail is None:
            self._jail = Jail(self._launch)
            # For those who forget to close: a process that ends leaves no folder either.
            self._leave = weakref.finalize(self, functools.partial(self._jail.close, now=True))
            self._jail.control.settimeout(None)
        return self._jail

    def _discard(self) -> None:
        jail, self._jail, job, self._job = self._jail, None, self._job, None
        if job is not None:
            job.close()
        if jail is not None:
            self.num_replaced += not self._closed
            assert self._leave is not None
            self._leave.detach()
            jail.close(now=not self._closed)
