"""What `--dry-run` shows: every setting with its origin, where the actors would go, and the memory they would need.

Starts nothing, needs no network, and no checkpoint where the model is one of the published ones (`cluster.memory`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.bundles import Group, Need, amounts, counted, groups_of
from cluster.consistency import check_settings
from cluster.memory import PUBLISHED, Footprint, footprints
from cluster.preflight import actor_needs, is_hub_id, num_cpus, num_gpus, start_problems
from cluster.recipe import Loaded, Setting
from learner.worker import NEW_TINY
from models.family import ModelError
from models.source import TINY

_STYLES = {"default": "dim", "recipe": "", "command line": "bold cyan"}


@dataclass(frozen=True)
class Plan:
    """A run that is not started."""

    settings: Sequence[Setting]
    needs: Sequence[Need]
    """Empty in local mode."""
    groups: Sequence[Group]
    """What is reserved together."""
    memory: Sequence[Footprint]
    """Empty where the sizes of the model are not known here."""
    warnings: Sequence[str]
    problems: Sequence[str]
    """What would stop a start on this machine."""
    work: Sequence[str] = ()
    """What there is to do, in words."""


def plan(loaded: Loaded[Any]) -> Plan:
    """Work out a run; raises ValueError where its settings contradict each other."""
    recipe = loaded.recipe
    warnings = check_settings(loaded)
    config = model_config(recipe.model.path)
    if config is None:
        warnings.append(
            f"the sizes of {recipe.model.path} are not known here, so there is no memory estimate; give a local folder"
        )
    needs = actor_needs(recipe)
    return Plan(
        settings=loaded.settings(),
        needs=needs,
        groups=groups_of(needs, recipe.cluster.placement),
        memory=footprints(recipe, config) if config is not None else [],
        warnings=warnings,
        problems=start_problems(recipe),
    )


def model_config(path: str) -> Mapping[str, Any] | None:
    """config.json of a local folder, the built-in model or a published one; None where it is not here."""
    from models.source import read_config

    if path in PUBLISHED:
        return PUBLISHED[path]
    if path in (TINY, NEW_TINY):
        from models import TINY_CONFIG

        return TINY_CONFIG
    if is_hub_id(path):
        return None
    try:
        return read_config(path)
    except ModelError:
        return None


def show(plan: Plan, console: Console, *, source: Path) -> None:
    """Print a plan."""
    console.print(Text(f"{source}: nothing is started", style="bold"))
    console.print(_settings_table(plan.settings))
    if plan.needs:
        console.print(_placement_table(plan.needs))
        if plan.groups:
            console.print(_bundle_table(plan.groups))
    else:
        console.print(Text("placement: everything in one process"))
    if plan.memory:
        console.print(_memory_table(plan.memory))
    for line in plan.work:
        console.print(Text.assemble(("work: ", "bold"), line), soft_wrap=True)
    for warning in plan.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning), soft_wrap=True)
    for problem in plan.problems:
        console.print(Text.assemble(("a start here would stop: ", "yellow"), problem), soft_wrap=True)


def _settings_table(settings: Sequence[Setting]) -> Table:
    table = Table("setting", "value", "origin", title="settings", title_justify="left", box=None, pad_edge=False)
    for setting in settings:
        table.add_row(setting.key, Text(shown(setting.value)), setting.origin, style=_STYLES[setting.origin])
    return table


def shown(value: Any) -> str:
    """A value as a recipe writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {shown(entry)}' for key, entry in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _placement_table(needs: Sequence[Need]) -> Table:
    table = Table("actors", "count", "CPU each", "GPU each", title="placement", title_justify="left", box=None)
    for need in needs:
        table.add_row(need.role, str(need.count), f"{need.num_cpus:g}", f"{need.num_gpus:g}")
    cpus = sum(need.count * need.num_cpus for need in needs)
    gpus = sum(need.count * need.num_gpus for need in needs)
    table.add_row("together", "", f"{cpus:g}", f"{gpus:g}", style="bold")
    table.add_row("this machine", "", str(num_cpus()), str(num_gpus()), style="dim")
    return table


def _bundle_table(groups: Sequence[Group]) -> Table:
    table = Table("on one machine", "reserves", "count", "placed", title="bundles", title_justify="left", box=None)
    placed = {"PACK": "on as few machines as possible", "SPREAD": "over as many machines as there are"}
    for group in groups:
        for name, count, bundle in counted(group):
            table.add_row(name, amounts(bundle.resources), str(count), placed[group.strategy])
    return table


def _memory_table(memory: Sequence[Footprint]) -> Table:
    from models.estimate import readable_bytes

    title = "memory of one process, estimated"
    table = Table("process", "count", "on", "total", "parts", title=title, title_justify="left", box=None)
    for process in memory:
        parts = ", ".join(f"{name} {readable_bytes(size)}" for name, size in process.parts)
        table.add_row(process.who, str(process.count), process.device, readable_bytes(process.total), parts)
    return table
