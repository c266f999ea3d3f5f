"""What the actors of a run reserve, and which of them reserve it together: plain arithmetic, without Ray.

A *bundle* is what has to lie on one machine; bundles that are placed together are a group with a strategy: PACK (as few
machines as possible) or SPREAD (as many as there are). `cluster.placement` of a recipe decides:

| placement | learner | rollout workers | graders |
|---|---|---|---|
| `spread` | PACK | SPREAD over all machines | SPREAD |
| `split` | PACK, together with the rollout workers | on GPUs of their own, near the learner | SPREAD |
| `colocated` | PACK | worker i in the bundle of rank i modulo the ranks: the same GPU, in fractions | SPREAD |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.config import PlacementKind, SftRecipe, TrainRecipe

Strategy = Literal["PACK", "SPREAD"]
Actor = tuple[str, int]
"""Role and number."""
_DIGITS = 4
"""Decimals of a resource that Ray keeps."""


class PlacementError(ValueError):
    """The cluster cannot hold the run; names wanted, existing and what to change."""


@dataclass(frozen=True)
class Need:
    """Actors of one kind that need the same."""

    role: str
    count: int
    num_cpus: float
    num_gpus: float
    strategy: Strategy
    settings: str
    """Recipe keys that change it, for the error text."""

    @property
    def resources(self) -> dict[str, float]:
        """What one actor reserves; empty if nothing."""
        return _present({"CPU": self.num_cpus, "GPU": self.num_gpus})


@dataclass(frozen=True)
class Bundle:
    """Actors on one machine, and what they take together."""

    actors: tuple[Actor, ...]
    resources: Mapping[str, float]

    def __str__(self) -> str:
        return " with ".join(f"{role}-{number}" for role, number in self.actors)


@dataclass(frozen=True)
class Group:
    """Bundles that are placed together."""

    strategy: Strategy
    bundles: tuple[Bundle, ...]


def learner_need(recipe: TrainRecipe | SftRecipe) -> Need:
    """Ranks of the learner."""
    engine = recipe.learner.engine
    settings = "learner.engine.num_ranks, cpus_per_rank, gpus_per_rank"
    return Need("learner", engine.num_ranks, engine.cpus_per_rank, engine.gpus_per_rank, "PACK", settings)


def rollout_need(recipe: TrainRecipe) -> Need:
    """Rollout workers that a run begins with."""
    rollout = recipe.rollout
    strategy: Strategy = "SPREAD" if recipe.cluster.placement == "spread" else "PACK"
    settings = "rollout.num_workers, cpus_per_worker, gpus_per_worker"
    return Need("rollout", rollout.num_workers, rollout.cpus_per_worker, rollout.gpus_per_worker, strategy, settings)


def train_needs(recipe: TrainRecipe) -> list[Need]:
    """Everything that `unmask train` starts."""
    reward = recipe.reward
    return [
        learner_need(recipe),
        rollout_need(recipe),
        Need("grader", reward.num_workers, reward.cpus_per_worker, 0, "SPREAD", "reward.num_workers, cpus_per_worker"),
    ]


def groups_of(needs: Sequence[Need], kind: PlacementKind) -> list[Group]:
    """The groups to reserve; actors that need nothing are in none."""
    own = {
        need.role: [Bundle(((need.role, number),), need.resources) for number in range(need.count)]
        for need in needs
        if need.resources
    }
    if kind == "colocated" and own.keys() >= {"learner", "rollout"}:
        ranks, workers = own["learner"], own.pop("rollout")
        own["learner"] = [_together([rank, *workers[number :: len(ranks)]]) for number, rank in enumerate(ranks)]
    strategies: tuple[Strategy, ...] = ("PACK", "SPREAD")
    of_role = {need.role: need.strategy for need in needs}
    groups = [
        Group(strategy, tuple(bundle for role in own if of_role[role] == strategy for bundle in own[role]))
        for strategy in strategies
    ]
    return [group for group in groups if group.bundles]


def counted(group: Group) -> list[tuple[str, int, Bundle]]:
    """Bundles of a group by what is in them: `one learner with 2 rollout`, how many such, one of them."""
    counts = Counter(_named(bundle) for bundle in group.bundles)
    first = {_named(bundle): bundle for bundle in reversed(group.bundles)}
    return [(name, count, first[name]) for name, count in counts.items()]


def check_placement(recipe: TrainRecipe | SftRecipe, *, is_given: bool) -> list[str]:
    """Warnings of a placement without effect or at odds with other settings; raises ValueError where it cannot be."""
    kind = recipe.cluster.placement
    if kind == "colocated" and isinstance(recipe, TrainRecipe):
        _check_shares(recipe)
    if not is_given:
        return []
    if recipe.cluster.mode == "local":
        return [f"cluster.placement {kind!r} has no effect with cluster.mode 'local': everything is in one process"]
    if not isinstance(recipe, TrainRecipe):
        return [f"cluster.placement {kind!r} has no effect here: there are no rollout workers to place"]
    if kind == "colocated" and recipe.staleness > 0:
        return [
            f"cluster.placement 'colocated' with staleness {recipe.staleness}: workers answer while the learner trains "
            "and both slow each other down where they share; use staleness 0, or placement 'split'"
        ]
    return []


def _check_shares(recipe: TrainRecipe) -> None:
    """Raises ValueError where rollout workers cannot share the GPU of their learner rank."""
    engine, rollout = recipe.learner.engine, recipe.rollout
    if engine.gpus_per_rank == rollout.gpus_per_worker == 0:
        return
    shares = (
        f"learner.engine.gpus_per_rank {engine.gpus_per_rank:g}, rollout.gpus_per_worker {rollout.gpus_per_worker:g}"
    )
    if 0 in (engine.gpus_per_rank, rollout.gpus_per_worker):
        raise ValueError(
            f"cluster.placement colocated with {shares}: both must have a share of the GPU; give for instance 0.6 and "
            "0.4, or use cluster.placement split"
        )
    num_sharing = -(-rollout.num_workers // engine.num_ranks)
    share = round(engine.gpus_per_rank + num_sharing * rollout.gpus_per_worker, _DIGITS)
    if share > 1:
        raise ValueError(
            f"cluster.placement colocated with {shares}: one rank and {num_sharing} of {rollout.num_workers} rollout "
            f"workers would take {share:g} of one GPU; lower the shares so that they are 1 together, or have as many "
            f"workers as ranks ({engine.num_ranks})"
        )


def check_room(needs: Sequence[Need], nodes: Mapping[str, Mapping[str, float]], kind: PlacementKind = "spread") -> None:
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
        f"no node has {amounts(bundle.resources)} for {name}"
        for group in groups_of(needs, kind)
        for name, _, bundle in counted(group)
        if not any(_fits(bundle.resources, node) for node in nodes.values())
    ]
    if problems:
        raise PlacementError(explain("; ".join(problems), needs, nodes))


def explain(why: str, needs: Sequence[Need], nodes: Mapping[str, Mapping[str, float]]) -> str:
    """What is wanted, what there is, what to change."""
    return "\n".join(
        [
            f"the cluster cannot hold this run: {why}",
            "wanted:",
            *(f"  {need.role:8} {need.count} x ({amounts(need.resources)})" for need in needs),
            "there is:",
            *(f"  {name}: {amounts(node)}" for name, node in nodes.items()),
            "change: add nodes, raise cluster.num_cpus (a Ray started by this run), or lower",
            *(f"  {need.settings}" for need in needs),
        ]
    )


def amounts(resources: Mapping[str, float]) -> str:
    """Resources as a person reads them."""
    shown = {name: resources.get(name, 0.0) for name in ("CPU", "GPU")}
    return ", ".join(f"{amount:g} {name}" for name, amount in shown.items())


def _named(bundle: Bundle) -> str:
    """The kinds of actors of a bundle: `one learner`, `one learner with 2 rollout`."""
    first, *others = [role for role, _ in bundle.actors]
    return f"one {first}" + (f" with {len(others)} {others[0]}" if others else "")


def _together(bundles: Sequence[Bundle]) -> Bundle:
    sums = {name: sum(bundle.resources.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU")}
    return Bundle(tuple(actor for bundle in bundles for actor in bundle.actors), _present(sums))


def _present(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: round(amount, _DIGITS) for name, amount in resources.items() if amount > 0}


def _fits(wanted: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(name, 0.0) + 1e-9 >= amount for name, amount in wanted.items())
