"""How new weights get from the learner to the rollout workers: an interface with a version number.

    published = transport.publish(version)              learner -> one object, as integer views by parameter name
    transport.send(handle, published, timeout_s=...)    a worker copies it into its model

The default keeps the object in Ray's store. Rank 0's process writes its parameters into the store's memory, once and
without a copy before; each node fetches the object once; each worker brings it near in a lane of its own while it still
answers, then copies it between two calls and keeps no view. What an answer waits for is that last copy alone. The
object belongs to the driver, not to the rank that wrote it, so readers do not lose it with the learner. At most two
versions exist: the newest, and the one before for workers that are still copying it.
In `local` mode the same code hands over the arrays themselves.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.calls import Future, Handle

MAX_VERSIONS = 2


@dataclass(frozen=True)
class Published:
    """One version of the weights."""

    version: int
    serial: int
    """Counts what was published; a learner that went back to a checkpoint publishes a version again."""
    reference: Any
    """What `send` hands over: a reference, never the arrays."""


class WeightSource(Protocol):
    """Who has the newest weights."""

    def keep_weights(self) -> Any:
        """Gathers the trained weights and returns a reference to them."""


class WeightTransport(Protocol):
    """A way for weights to travel."""

    def publish(self, version: int) -> Published:
        """Makes the learner's present weights available as `version`."""

    def send(self, handle: Handle, published: Published, *, timeout_s: float, between_forwards: bool = False) -> Future:
        """Has one worker take them, between two calls or at once; the value is a `rollout.worker.Swap`."""

    def forget(self) -> None:
        """The learner goes back to an older version, which comes next."""


class ObjectStoreTransport:
    """One object a version, pulled by the workers."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._versions: deque[Published] = deque(maxlen=MAX_VERSIONS)
        self._serial = 0

    def publish(self, version: int) -> Published:
        """Publishes the next version; the oldest one is let go."""
        if self._versions and version <= self._versions[-1].version:
            raise ValueError(f"weights version {version} must be above {self._versions[-1].version}, the newest one")
        if len(self._versions) == MAX_VERSIONS:
            self._versions.popleft()
        reference = self._source.keep_weights()
        self._serial += 1
        self._versions.append(Published(version, self._serial, reference))
        return self._versions[-1]

    def forget(self) -> None:
        """Lets all versions go."""
        self._versions.clear()

    def send(self, handle: Handle, published: Published, *, timeout_s: float, between_forwards: bool = False) -> Future:
        """Starts `load_weights` on a worker, and the way there beside whatever it computes.

        With `between_forwards` a worker that computes takes them before its next forward. A fetch that fails is not
        looked at: the load then fails in the same way.
        """
        weights = (published.reference, published.version, published.serial)
        if between_forwards:
            handle.call("offer_weights", *weights, timeout_s=timeout_s, lane="transfer")
        else:
            handle.call("fetch_weights", published.reference, timeout_s=timeout_s, lane="transfer")
        return handle.call("load_weights", *weights, timeout_s=timeout_s)
