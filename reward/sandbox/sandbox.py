"""Open a slot for untrusted programs, and say what works on this host.

A backend is used only after its canary programs have run through it, as the programs later do, and shown that it
holds. If none holds, nothing is run.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Sequence

from reward.sandbox import gvisor, landlock, namespace, remote
from reward.sandbox.canaries import HOSTED, run_canaries
from reward.sandbox.config import BackendName, SandboxConfig
from reward.sandbox.interface import Job, Sandbox
from reward.sandbox.interpreter import find_interpreter
from reward.sandbox.jail import Launch, setup_message
from reward.sandbox.records import BackendReport, NoSandbox, SandboxError, Unavailable
from reward.sandbox.slot import JailSandbox

__all__ = ["Job", "Sandbox", "describe", "open_sandbox", "survey"]

log = logging.getLogger(__name__)

_Open = Callable[[SandboxConfig], Sandbox]
_Prepare = Callable[[SandboxConfig], tuple[Launch, tuple[str, ...]]]


def open_sandbox(config: SandboxConfig, *, proof: BackendReport | None = None) -> Sandbox:
    """A slot of the first allowed backend that holds on this host. NoSandbox if none does.

    `proof` is the report of another slot that this process has opened with the same settings: then that backend is
    taken, and its canaries are not run again.
    """
    if config.backend == "unsafe":
        return _unsafe(config)
    reports = []
    for name in _allowed(config):
        if proof is not None and name != proof.backend:
            continue
        sandbox, report = _try(name, config, proof)
        if sandbox is not None:
            log.info("sandbox backend %s holds: %s", name, ", ".join(report.layers))
            return sandbox
        reports.append(report)
    raise NoSandbox(_refusal(reports))


def survey(config: SandboxConfig) -> list[BackendReport]:
    """What each allowed backend shows on this host, best first."""
    reports = []
    for name in _allowed(config):
        sandbox, report = _try(name, config, None)
        if sandbox is not None:
            sandbox.close()
        reports.append(report)
    return reports


def _allowed(config: SandboxConfig) -> Sequence[BackendName]:
    assert config.backend != "unsafe"
    return config.backends if config.backend == "auto" else (config.backend,)


def _try(name: BackendName, config: SandboxConfig, proof: BackendReport | None) -> tuple[Sandbox | None, BackendReport]:
    """A slot of a backend if it holds, and its report."""
    try:
        _check_platform(name)
        sandbox = _OPEN[name](config)
    except Unavailable as error:
        return None, BackendReport(name, works=False, why=error.why, fix=error.fix)
    except SandboxError as error:
        return None, BackendReport(name, works=False, why=str(error))
    if proof is not None:
        sandbox.report = proof
        return sandbox, proof
    try:
        canaries = run_canaries(sandbox, HOSTED if sandbox.replays else None)
    except BaseException:
        sandbox.close()
        raise
    failed = [canary for canary in canaries if not canary.passed]
    report = dataclasses.replace(sandbox.report, works=not failed, canaries=canaries)
    if not failed:
        sandbox.report = report
        return sandbox, report
    sandbox.close()
    why = "; ".join(f"canary `{canary.name}`: {canary.detail}" for canary in failed)
    return None, dataclasses.replace(report, why=why, fix="choose another backend; this one does not hold here")


def _check_platform(name: str) -> None:
    if sys.platform != "linux" and name != "remote":
        raise Unavailable(f"it needs Linux, this is {sys.platform}", "grade on a Linux host, or use `remote`")


def _jail(
    name: BackendName, launch: Callable[[SandboxConfig], tuple[Launch, tuple[str, ...]]]
) -> Callable[[SandboxConfig], Sandbox]:
    """How to open a slot of a backend of this host."""

    def open_slot(config: SandboxConfig) -> Sandbox:
        start, layers = launch(config)
        return JailSandbox(BackendReport(name, works=True, layers=layers), start)

    return open_slot


def _unsafe(config: SandboxConfig) -> Sandbox:
    if not config.allow_unsafe:
        raise NoSandbox(
            "sandbox backend `unsafe` isolates nothing; set allow_unsafe: true if every program that will run is one "
            "that you trust, or choose `auto`"
        )
    _check_platform("unsafe")
    log.warning("sandbox backend `unsafe`: programs run with the rights of this process, nothing holds them")
    interpreter = find_interpreter(config.python, None)
    folder = landlock.private_folder(None)
    setup = setup_message(folder=str(folder))
    start = Launch((interpreter.path,), setup, environment=interpreter.environment, folder=folder)
    return JailSandbox(BackendReport("unsafe", works=True, layers=("rlimits",)), start)


def describe(reports: Sequence[BackendReport]) -> str:
    """The reports as text: what works and what holds it, or why it does not work and what to change."""
    lines = []
    for report in reports:
        if report.works:
            passed = sum(canary.passed for canary in report.canaries)
            lines.append(f"  {report.backend}: works ({', '.join(report.layers)}; {passed} canary programs held)")
        else:
            lines.append(f"  {report.backend}: {report.why}")
            lines += [f"    to change that: {report.fix}"] if report.fix else []
    return "\n".join(lines or ["  no backend is allowed: `backends` is empty"])


def _refusal(reports: Sequence[BackendReport]) -> str:
    return f"no sandbox for untrusted programs works on this host; tried:\n{describe(reports)}"


_OPEN: dict[BackendName, _Open] = {
    "namespace": _jail("namespace", namespace.launch),
    "landlock": _jail("landlock", landlock.launch),
    "gvisor": gvisor.open_slot,
    "remote": remote.open_slot,
}
