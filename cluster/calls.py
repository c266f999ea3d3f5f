"""What passes between a caller and an actor: how to make one, a call under way, and what may go wrong with it.

A failure crosses processes as a value, because an exception whose constructor takes other arguments than its text loses
its type on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from ray.util.placement_group import PlacementGroup

from cluster.errors import RunError

FailureKind = Literal["actor_lost", "out_of_memory", "memory_growth", "object_lost", "timeout", "raised"]
Lane = Literal["work", "transfer"]
"""Calls of one lane run in turn, lanes side by side: `transfer` brings data to an actor while its work goes on."""


@dataclass(frozen=True)
class ActorSpec:
    """How to make one actor."""

    name: str
    """Name of the actor within the run, and of its log file: `rollout-0`."""
    build: Callable[..., Any]
    """The plain class; called in the actor's process, at its first call."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    num_cpus: float = 0.0
    num_gpus: float = 0.0
    bundle: tuple[PlacementGroup, int] | None = None
    """Placement group and index of the bundle whose resources the actor takes."""


@dataclass(frozen=True)
class ActorInfo:
    """Where an actor lives."""

    pid: int
    node: str

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.node}"


@dataclass(frozen=True)
class CallFailure:
    """A call that did not return."""

    kind: FailureKind
    """`raised`: the method raised, and would again. The other kinds may go well on another actor."""
    actor: str
    method: str
    why: str
    where: str = "a process that never answered"
    log_tail: str = ""

    @property
    def is_infrastructure(self) -> bool:
        """Whether the same call may be repeated elsewhere."""
        return self.kind != "raised"

    @property
    def headline(self) -> str:
        """What happened, without the log."""
        return f"{self.actor}.{self.method}: {self.kind} ({self.where}): {self.why}"

    def __str__(self) -> str:
        return f"{self.headline}\nend of its log:\n{self.log_tail}" if self.log_tail else self.headline


class ActorError(RunError):
    """Raised for a `CallFailure` by callers that cannot go on without the value."""

    def __init__(self, failure: CallFailure) -> None:
        super().__init__(str(failure))
        self.failure = failure


class Future(Protocol):
    """One call under way."""

    @property
    def remaining_s(self) -> float:
        """Time after which `is_done` is worth asking again whatever happens: the deadline of the call, or sooner."""

    def is_done(self) -> bool:
        """Whether `outcome` returns at once: the call ended, or its deadline passed."""

    def outcome(self) -> Any:
        """The value or a `CallFailure`; waits until the deadline of the call."""

    def result(self) -> Any:
        """The value; raises `ActorError` for a failure."""


class Handle(Protocol):
    """One actor."""

    @property
    def name(self) -> str:
        """Name within the run."""

    def call(
        self, method: str, *args: object, timeout_s: float, keep: bool = False, lane: Lane = "work", **kwargs: object
    ) -> Future:
        """Starts a call of the plain object's method."""

    def health(self, *, timeout_s: float) -> ActorInfo | CallFailure:
        """Asks the process for a sign of life, beside any call that it works on."""

    def kill(self) -> None:
        """Ends the process at once; calls under way fail with `actor_lost`."""

    def restart(self) -> None:
        """Kills what is left and starts a fresh actor from the same spec, without the old one's state."""


@dataclass(frozen=True)
class KeptValue:
    """What a kept value is in `local` mode: the value itself, marked as a reference."""

    value: Any
