"""Room for the actors: whether the cluster has it, and the reservation.

Needs (`cluster.bundles`) are compared with what the cluster has before anything starts, because Ray would wait for ever
for a CPU that does not exist. Then placement groups are reserved with a deadline. Graders are part of it: a group that
took every CPU would leave them waiting, and light actors otherwise pile up on one node.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.bundles import Actor, Group, Need, PlacementError, check_room, explain, groups_of
from cluster.config import PlacementKind
from cluster.places import Place

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Reserved places by actor."""

    places: Mapping[Actor, Place] = field(default_factory=dict)

    def bundle(self, role: str, index: int) -> Place | None:
        """Place of one actor; None where nothing is reserved for it."""
        return self.places.get((role, index))


@contextmanager
def reserve(
    run_name: str, needs: Sequence[Need], *, timeout_s: float, kind: PlacementKind = "spread"
) -> Iterator[Placement]:
    """Reserves the needs for the body; raises PlacementError, and leaves nothing reserved, if that takes too long."""
    nodes = {f"{node['NodeManagerHostname']} {node['NodeID'][:6]}": node["Resources"] for node in _alive_nodes()}
    check_room(needs, nodes, kind)
    reserved: list[PlacementGroup] = []
    try:
        places: dict[Actor, Place] = {}
        for group in groups_of(needs, kind):
            places |= _reserve(run_name, group, reserved, needs, timeout_s)
        yield Placement(places)
    finally:
        for placed in reserved:
            remove_placement_group(placed)


def _reserve(
    run_name: str, group: Group, reserved: list[PlacementGroup], needs: Sequence[Need], timeout_s: float
) -> dict[Actor, Place]:
    # A second group of the same name is an error, and an attempt that was killed may still be leaving.
    name = f"{run_name}-{group.strategy.lower()}-{uuid.uuid4().hex[:8]}"
    bundles = [dict(bundle.resources) for bundle in group.bundles]
    placed = placement_group(bundles, strategy=group.strategy, name=name)
    reserved.append(placed)
    if not placed.wait(timeout_s):
        free = {"free now": ray.available_resources()}
        why = f"not enough was free within {timeout_s:g} s (cluster.placement_timeout_s); other runs hold the rest"
        raise PlacementError(explain(why, needs, free))
    return {actor: (placed, index) for index, bundle in enumerate(group.bundles) for actor in bundle.actors}


def check_store(num_bytes: int) -> None:
    """Warns of nodes whose object store cannot hold two versions of weights of this size."""
    for node in _alive_nodes():
        size = node["Resources"].get("object_store_memory", 0.0)
        if size < 2 * num_bytes:
            logger.warning(
                "The object store of %s holds %.1f GB, and two versions of the weights take %.1f GB: it will spill to "
                "disk. Start Ray with a larger --object-store-memory; in a container, also with a larger --shm-size.",
                *(node["NodeManagerHostname"], size / 1e9, 2 * num_bytes / 1e9),
            )


def _alive_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]
