"""Reserved places that come and go with their machines.

A place is a bundle of a placement group. When its machine is lost, Ray looks for another one and may look for long:
`Vacancy` is the wait for that, in the form of a call. `Growth` asks for places beyond those that a run began with, one
at a time, so that machines that join the cluster are used; on a cluster that scales itself the request is what makes it
add one.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping

import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from cluster.calls import CallFailure

logger = logging.getLogger(__name__)

LOOK_S = 2.0
"""Seconds between two looks at where places are."""
Place = tuple[PlacementGroup, int]
"""A group and the index of a bundle in it."""


def is_placed(place: Place) -> bool:
    """Whether the bundle lies on a machine that lives."""
    group, index = place
    node = placement_group_table(group).get("bundles_to_node_id", {}).get(index)
    return any(other["Alive"] and other["NodeID"] == node for other in ray.nodes())


class Vacancy:
    """Ends when a place is on a living machine (again): the value None; or after `timeout_s`: a failure."""

    def __init__(self, place: Place, name: str, *, timeout_s: float) -> None:
        self._place = place
        self._name = name
        self._timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s
        self._next_look = 0.0
        self._is_placed = False

    @property
    def remaining_s(self) -> float:
        """Time to the next look."""
        return max(0.0, self._next_look - time.monotonic())

    def is_done(self) -> bool:
        """Looks, if it is time to."""
        if not self._is_placed and self.remaining_s == 0.0:
            self._is_placed = is_placed(self._place)
            self._next_look = time.monotonic() + LOOK_S
        return self._is_placed or time.monotonic() > self._until

    def outcome(self) -> CallFailure | None:
        """Waits for the end."""
        while not self.is_done():
            time.sleep(self.remaining_s)
        if self._is_placed:
            return None
        why = f"its machine was lost, and no other had room for it within {self._timeout_s:g} s"
        return CallFailure("timeout", self._name, "place", why, where="nowhere")

    def result(self) -> CallFailure | None:
        """The same."""
        return self.outcome()


class Growth:
    """Further places of one kind, as far as the cluster has room."""

    def __init__(self, name: str, resources: Mapping[str, float]) -> None:
        """`name` of the run; `resources` of one place."""
        self._name = name
        self._resources = dict(resources)
        self._groups: list[PlacementGroup] = []
        self._is_asked = False
        self._next_look = 0.0

    def place(self) -> Place | None:
        """One more place, once a machine has room for it; asks for it at the first call."""
        if time.monotonic() < self._next_look:
            return None
        self._next_look = time.monotonic() + LOOK_S
        if not self._is_asked:
            name = f"{self._name}-more-{uuid.uuid4().hex[:8]}"
            self._groups.append(placement_group([self._resources], strategy="PACK", name=name))
            self._is_asked = True
        elif placement_group_table(self._groups[-1]).get("state") == "CREATED":
            self._is_asked = False
            return self._groups[-1], 0
        return None

    def close(self) -> None:
        """Gives all of them back."""
        for group in self._groups:
            remove_placement_group(group)
        self._groups = []
