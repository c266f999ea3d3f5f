"""Actors: one way to call a worker, whether it lives in a Ray process or in this one.

A worker is a plain class with a cheap constructor. `Launcher.launch(spec)` returns a `Handle` on one instance of it;
`handle.call("method", ..., timeout_s=...)` returns a `Future`; `wait` tells which futures have ended. What goes wrong
comes back as a value, `CallFailure`, that says of which kind it was, in which process, and quotes the end of that
process's log; `Future.result()` raises it as an `ActorError` for callers that cannot go on without the value.

    launcher = Launcher(mode="ray", log_dir=run.log_dir)
    handle = launcher.launch(ActorSpec("grader-0", GraderWorker, (tasks,), num_cpus=0.25))
    future = handle.call("grade", items, timeout_s=60)
    ended, running = wait([future], timeout_s=60)
    match ended[0].outcome():
        case CallFailure() as failure: ...
        case scores: ...

What holds:

- Actors do not restart by themselves: a restarted one has lost its state, so the pool decides (`Handle.restart`).
- Every call has a deadline. A late call is a failure of kind `timeout`, but its work goes on until the actor is killed.
- `health()` has a lane of its own and answers while a call computes. So have calls with `lane="transfer"`, which bring
  data to the actor meanwhile; the plain object must expect them beside its other methods.
- With `keep=True` the value stays in the object store and the caller gets a reference to hand to other actors, owned by
  the caller: it survives the actor that made it. A reference given as an argument arrives as the value.
- In `local` mode calls run at once in this process and deadlines cannot interrupt them.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.calls import ActorError, ActorInfo, ActorSpec, CallFailure, FailureKind, Future, Handle, KeptValue, Lane
from cluster.logs import add_log_file, tail
from cluster.spans import SpanFile

logger = logging.getLogger(__name__)

LOG_TAIL_LINES = 50
FETCH_TIMEOUT_S = 120.0
"""Deadline for bringing the value of an ended call to this machine."""
MAX_WHY_CHARS = 400


@dataclass(frozen=True)
class Launcher:
    """Starts the actors of one run, all in the same mode."""

    mode: Literal["ray", "local"]
    log_dir: Path | None = None
    """Folder of the attempt's log files; no files if None."""

    def launch(self, spec: ActorSpec) -> Handle:
        """Starts an actor; returns at once, before its process exists."""
        return RayHandle(spec, self.log_dir) if self.mode == "ray" else LocalHandle(spec)


def wait(futures: Sequence[Future], *, timeout_s: float) -> tuple[list[Future], list[Future]]:
    """Splits calls into ended (or late) and running; waits for the first to end, at most `timeout_s`.

    Ray is asked about all calls at once: to ask about each of some thousand takes fifty times as long.
    """
    until = time.monotonic() + timeout_s
    running = [future for future in futures if isinstance(future, RayFuture)]
    others = [future for future in futures if not isinstance(future, RayFuture)]
    ended = _ended(running)
    while futures and not ended and not any(other.is_done() for other in others) and time.monotonic() < until:
        # Ray may come back a little before its timeout, hence the loop and the least wait.
        until_late = min(future.remaining_s for future in futures)
        timeout = max(0.001, min(until - time.monotonic(), until_late))
        if running:
            ray.wait([future.ref for future in running], timeout=timeout, fetch_local=False)
        else:
            time.sleep(timeout)
        ended = _ended(running)
    is_ended = [future in ended if isinstance(future, RayFuture) else future.is_done() for future in futures]
    return (
        [future for future, is_done in zip(futures, is_ended, strict=True) if is_done],
        [future for future, is_done in zip(futures, is_ended, strict=True) if not is_done],
    )


def _ended(futures: Sequence[RayFuture]) -> set[RayFuture]:
    """The calls that have ended or are late."""
    if not futures:
        return set()
    refs = list(dict.fromkeys(future.ref for future in futures))
    ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
    known = set(ready)
    return {future for future in futures if future.ref in known or future.remaining_s == 0.0}


class Shell:
    """What runs in the actor's process: builds the plain object at the first call and turns exceptions into values."""

    def __init__(self, spec: ActorSpec, log_dir: Path | None) -> None:
        self._spec = spec
        self._target: Any = None
        self._building = threading.Lock()
        add_log_file(log_dir, spec.name)
        self._spans = SpanFile(log_dir, spec.name)

    def __repr__(self) -> str:
        return self._spec.name

    def run(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Value of the method, or a `CallFailure`."""
        try:
            with self._building:  # calls of two lanes may both be the first
                if self._target is None:
                    self._target = self._spec.build(*self._spec.args, **self._spec.kwargs)
            with self._spans.span(method):
                arguments = [_resolve(value) for value in args]
                return getattr(self._target, method)(*arguments, **kwargs)
        except Exception as error:  # the edge of an actor: what goes wrong becomes a value
            logger.exception("%s failed", method)
            return CallFailure(
                kind=_kind(error, inside_method=True),
                actor=self._spec.name,
                method=method,
                why=f"{type(error).__name__}: {error}",
                where=str(self.health()),
                log_tail="\n".join(traceback.format_exc().splitlines()[-LOG_TAIL_LINES:]),
            )

    def run_kept(self, method: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[CallFailure | None, Any]:
        """The same in two parts, so that the caller can learn of a failure without fetching the value."""
        value = self.run(method, args, kwargs)
        return (value, None) if isinstance(value, CallFailure) else (None, value)

    def health(self) -> ActorInfo:
        """Process and machine."""
        return ActorInfo(os.getpid(), socket.gethostname())


class RayHandle:
    """An actor in a process of its own: a threaded Ray actor with a lane for calls and a lane for health."""

    def __init__(self, spec: ActorSpec, log_dir: Path | None) -> None:
        self._spec = spec
        self._log_dir = log_dir
        self._start()

    @property
    def name(self) -> str:
        """Name within the run."""
        return self._spec.name

    def call(
        self, method: str, *args: object, timeout_s: float, keep: bool = False, lane: Lane = "work", **kwargs: object
    ) -> Future:
        """Starts a call. The arguments travel in a tuple, so references stay references until the actor needs them."""
        options = {} if lane == "work" else {"concurrency_group": lane}
        if keep:
            run_kept = self._actor.run_kept.options(num_returns=2, **options)
            status_ref, value_ref = run_kept.remote(method, args, kwargs)
            return RayFuture(self, method, status_ref, timeout_s=timeout_s, kept=value_ref)
        ref = self._actor.run.options(**options).remote(method, args, kwargs)
        return RayFuture(self, method, ref, timeout_s=timeout_s)

    def health(self, *, timeout_s: float) -> ActorInfo | CallFailure:
        """Sign of life."""
        try:
            answer: ActorInfo = ray.get(self._ping(), timeout=timeout_s)
        except ray.exceptions.RayError as error:
            return self.failure("health", error)
        return answer

    def kill(self) -> None:
        """Ends the process; a dead one stays dead."""
        ray.kill(self._actor)

    def restart(self) -> None:
        """A fresh process from the same spec."""
        self.kill()
        self._start()

    def failure(self, method: str, error: Exception) -> CallFailure:
        """Names the process that was lost and quotes its log, where this machine can read it."""
        seen, _ = ray.wait([self._first_sign], timeout=0)
        where = CallFailure.where
        if seen:
            try:
                where = str(ray.get(seen[0]))
            except ray.exceptions.RayError:
                logger.info("%s ended before its first sign of life", self.name)
        lines = tail(self._log_dir / f"{self.name}.log", LOG_TAIL_LINES) if self._log_dir else ""
        return CallFailure(_kind(error, inside_method=False), self.name, method, _summary(error), where, lines)

    def _start(self) -> None:
        self._actor = _remote_shell(self._spec).remote(replace(self._spec, bundle=None), self._log_dir)
        self._first_sign = self._ping()

    def _ping(self) -> Any:
        return self._actor.health.options(concurrency_group="health").remote()


class RayFuture:
    """A call on a Ray actor."""

    def __init__(
        self, handle: RayHandle, method: str, ref: ray.ObjectRef, *, timeout_s: float, kept: ray.ObjectRef | None = None
    ) -> None:
        self.ref = ref
        self._handle = handle
        self._method = method
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._kept = kept

    @property
    def remaining_s(self) -> float:
        """Time to the deadline."""
        return max(0.0, self._deadline - time.monotonic())

    def is_done(self) -> bool:
        """Ended or late."""
        ready, _ = ray.wait([self.ref], timeout=0, fetch_local=False)
        return bool(ready) or self.remaining_s == 0.0

    def outcome(self) -> Any:
        """The value or the failure."""
        ready, _ = ray.wait([self.ref], timeout=self.remaining_s, fetch_local=False)
        if not ready:
            return self._handle.failure(self._method, TimeoutError(f"no answer within {self._timeout_s:g} s"))
        try:
            value = ray.get(self.ref, timeout=FETCH_TIMEOUT_S)
        except ray.exceptions.RayError as error:
            return self._handle.failure(self._method, error)
        return self._kept if self._kept is not None and value is None else value

    def result(self) -> Any:
        """The value."""
        return _value_or_raise(self.outcome())


class LocalHandle:
    """The same object in this process; calls run when they are made."""

    def __init__(self, spec: ActorSpec) -> None:
        self._spec = spec
        self._shell: Shell | None = Shell(spec, None)

    @property
    def name(self) -> str:
        """Name within the run."""
        return self._spec.name

    def call(
        self, method: str, *args: object, timeout_s: float, keep: bool = False, lane: Lane = "work", **kwargs: object
    ) -> Future:
        """Runs the call; `timeout_s` cannot interrupt it, and there is one lane only."""
        if self._shell is None:
            return LocalFuture(self._lost(method))
        value = self._shell.run(method, args, kwargs)
        return LocalFuture(KeptValue(value) if keep and not isinstance(value, CallFailure) else value)

    def health(self, *, timeout_s: float) -> ActorInfo | CallFailure:
        """This process, unless the actor was killed."""
        return self._shell.health() if self._shell else self._lost("health")

    def kill(self) -> None:
        """Forgets the object."""
        self._shell = None

    def restart(self) -> None:
        """A fresh object."""
        self._shell = Shell(self._spec, None)

    def _lost(self, method: str) -> CallFailure:
        return CallFailure("actor_lost", self.name, method, "the actor was killed", f"pid {os.getpid()}")


@dataclass(frozen=True)
class LocalFuture:
    """A call that has already run."""

    value: Any
    remaining_s: float = 0.0

    def is_done(self) -> bool:
        """Always."""
        return True

    def outcome(self) -> Any:
        """The value or the failure."""
        return self.value

    def result(self) -> Any:
        """The value."""
        return _value_or_raise(self.value)


def _remote_shell(spec: ActorSpec) -> Any:
    options: dict[str, Any] = {"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus, "max_restarts": 0}
    if spec.bundle is not None:
        group, index = spec.bundle
        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    remote: Any = ray.remote
    return remote(concurrency_groups={"health": 1, "transfer": 1})(Shell).options(**options)


def _resolve(value: object) -> object:
    if isinstance(value, KeptValue):
        return value.value
    return ray.get(value) if isinstance(value, ray.ObjectRef) else value


def _kind(error: Exception, *, inside_method: bool) -> FailureKind:
    kinds: dict[type[Exception], FailureKind] = {
        TimeoutError: "timeout",
        ray.exceptions.OutOfMemoryError: "out_of_memory",
        ray.exceptions.ObjectLostError: "object_lost",
        ray.exceptions.RayTaskError: "raised",
    }
    if inside_method and not isinstance(error, ray.exceptions.RayError):
        return "raised"
    return next((kind for error_type, kind in kinds.items() if isinstance(error, error_type)), "actor_lost")


def _summary(error: Exception) -> str:
    """First and last line of an error: Ray puts what happened first, how the process ended last, ids between."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
    return text if len(text) <= MAX_WHY_CHARS else f"{text[:MAX_WHY_CHARS]}..."


def _value_or_raise(outcome: Any) -> Any:
    if isinstance(outcome, CallFailure):
        raise ActorError(outcome)
    return outcome
