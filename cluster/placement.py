"""Room for the actors: what a run needs, whether the cluster has it, and the reservation.

Needs are compared with what the cluster has before anything starts, because Ray would wait for ever for a CPU that
does not exist. Then two placement groups are reserved with a deadline: the learner's ranks close together (PACK),
rollout workers and graders apart (SPREAD), since light actors otherwise pile up on one node. Graders are part of it:
a group that took every CPU would leave them waiting.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from cluster.config import SftRecipe, TrainRecipe

logger = logging.getLogger(__name__)

Bundle = tuple[PlacementGroup, int]


class PlacementError(ValueError):
    """The cluster cannot hold the run; names wanted, existing and what to change."""


@dataclass(frozen=True)
class Need:
    """Actors of one kind that need the same."""

    role: str
    count: int
    num_cpus: float
    num_gpus: float
    strategy: Literal["PACK", "SPREAD"]
    settings: str
    """Recipe keys that change it, for the error text."""

    @property
    def resources(self) -> dict[str, float]:
        """What one actor reserves; empty if nothing."""
        wanted = {"CPU": self.num_cpus, "GPU": self.num_gpus}
        return {name: amount for name, amount in wanted.items() if amount > 0}


@dataclass(frozen=True)
class Placement:
    """Reserved bundles by role."""

    bundles: Mapping[str, Sequence[Bundle]] = field(default_factory=dict)

    def bundle(self, role: str, index: int) -> Bundle | None:
        """Place of one actor; None where nothing is reserved for it."""
        reserved = self.bundles.get(role)
        return reserved[index] if reserved else None


def learner_need(recipe: TrainRecipe | SftRecipe) -> Need:
    """Ranks of the learner."""
    engine = recipe.learner.engine
    settings = "learner.engine.num_ranks, cpus_per_rank, gpus_per_rank"
    return Need("learner", engine.num_ranks, engine.cpus_per_rank, engine.gpus_per_rank, "PACK", settings)


def train_needs(recipe: TrainRecipe) -> list[Need]:
    """Everything that `unmask train` starts."""
    rollout, reward = recipe.rollout, recipe.reward
    return [
        learner_need(recipe),
        Need(
            "rollout",
            rollout.num_workers,
            rollout.cpus_per_worker,
            rollout.gpus_per_worker,
            "SPREAD",
            "rollout.num_workers, cpus_per_worker, gpus_per_worker",
        ),
        Need("grader", reward.num_workers, reward.cpus_per_worker, 0, "SPREAD", "reward.num_workers, cpus_per_worker"),
    ]


def check_room(needs: Sequence[Need], nodes: Mapping[str, Mapping[str, float]]) -> None:
    """Raises PlacementError if the nodes could not hold the needs even when idle.

    `nodes` holds the resources of each node by its name. Needs that fit in sum and one by one pass, although an
    unlucky fragmentation may still refuse them later.
    """
    total = {name: sum(node.get(name, 0.0) for node in nodes.values()) for name in ("CPU", "GPU")}
    wanted = {name: sum(need.count * need.resources.get(name, 0.0) for need in needs) for name in ("CPU", "GPU")}
    problems = [
        f"{wanted[name]:g} {name} wanted together, {total[name]:g} exist"
        for name in ("CPU", "GPU")
        if wanted[name] > total[name] + 1e-9
    ]
    problems += [
        f"no node has {_amounts(need.resources)} for one {need.role}" for need in needs if not _fits_a_node(need, nodes)
    ]
    if problems:
        raise PlacementError(_explain("; ".join(problems), needs, nodes))


@contextmanager
def reserve(run_name: str, needs: Sequence[Need], *, timeout_s: float) -> Iterator[Placement]:
    """Reserves the needs for the body; raises PlacementError, and leaves nothing reserved, if that takes too long."""
    nodes = {f"{node['NodeManagerHostname']} {node['NodeID'][:6]}": node["Resources"] for node in _alive_nodes()}
    check_room(needs, nodes)
    groups: list[PlacementGroup] = []
    try:
        yield Placement(_reserve(run_name, needs, groups, timeout_s))
    finally:
        for group in groups:
            remove_placement_group(group)


def _reserve(
    run_name: str, needs: Sequence[Need], groups: list[PlacementGroup], timeout_s: float
) -> dict[str, list[Bundle]]:
    places: dict[str, list[Bundle]] = {}
    for strategy in ("PACK", "SPREAD"):
        members = [need for need in needs if need.strategy == strategy and need.resources]
        if not members:
            continue
        bundles = [need.resources for need in members for _ in range(need.count)]
        # A second group of the same name is an error, and an attempt that was killed may still be leaving.
        name = f"{run_name}-{strategy.lower()}-{uuid.uuid4().hex[:8]}"
        group = placement_group(bundles, strategy=strategy, name=name)
        groups.append(group)
        if not group.wait(timeout_s):
            free = {"free now": ray.available_resources()}
            why = f"not enough was free within {timeout_s:g} s (cluster.placement_timeout_s); other runs hold the rest"
            raise PlacementError(_explain(why, needs, free))
        start = 0
        for need in members:
            places[need.role] = [(group, index) for index in range(start, start + need.count)]
            start += need.count
    return places


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


def _fits_a_node(need: Need, nodes: Mapping[str, Mapping[str, float]]) -> bool:
    wanted = need.resources
    return any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes.values())


def _explain(why: str, needs: Sequence[Need], nodes: Mapping[str, Mapping[str, float]]) -> str:
    return "\n".join(
        [
            f"the cluster cannot hold this run: {why}",
            "wanted:",
            *(f"  {need.role:8} {need.count} x ({_amounts(need.resources)})" for need in needs),
            "there is:",
            *(f"  {name}: {_amounts(node)}" for name, node in nodes.items()),
            "change: add nodes, raise cluster.num_cpus (a Ray started by this run), or lower",
            *(f"  {need.settings}" for need in needs),
        ]
    )


def _amounts(resources: Mapping[str, float]) -> str:
    shown = {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
    return ", ".join(f"{amount:g} {name}" for name, amount in shown.items())
