"""`unmask policy`: train unmasking policies with RLlib, the diffusion model frozen."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.config import PolicyRecipe
    from cluster.policy_run import PolicySummary
    from cluster.recipe import Loaded

logger = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(policy)


def policy(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file, for instance recipes/policy-tiny.yaml.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Change a setting of the recipe; may be repeated."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of this run.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show settings and actors; start nothing.")] = False,
) -> None:
    """Train a policy that decides which slots to unmask, for every alpha of the recipe."""
    from cluster.config import PolicyRecipe
    from cluster.dry_run import show
    from cluster.policy_checks import check_policy
    from cluster.policy_plan import plan
    from cluster.recipe import load
    from cluster.terminal import console, log_to_terminal

    loaded: Loaded[PolicyRecipe] = load(recipe, PolicyRecipe, overrides=overrides or [])
    if dry_run:
        show(plan(loaded), console(), source=loaded.source)
        return
    log_to_terminal(logging.WARNING)
    for warning in check_policy(loaded):
        logger.warning(warning)
    from cluster.policy_run import run_policy
    from cluster.terminal import show_error

    try:
        summary = run_policy(loaded.recipe, resume=resume)
    except KeyboardInterrupt:
        show_error("interrupted; the same command with --resume goes on from the newest checkpoint")
        raise
    show_summary(console(), summary)


def show_summary(console: Console, summary: PolicySummary) -> None:
    """Accuracy and forwards of each policy beside the threshold sampler, and where the policies lie."""
    from rich.table import Table

    table = Table("task", "sampler", "accuracy", "forwards/answer", box=None, pad_edge=False)
    for values in (summary.baseline, summary.last):
        for name in (name for name in values if name.endswith("/accuracy")):
            # Names of tasks have no dot, those of policies may (alpha_0.3).
            task, _, sampler = name.removeprefix("eval.").removesuffix("/accuracy").partition(".")
            forwards = values[f"eval.{task}.{sampler}/forwards_per_answer"]
            table.add_row(task, sampler, f"{values[name]:.1%}", f"{forwards:.2f}")
    console.print(table)
    places: Mapping[str, Any] = {"run": summary.run_dir, **summary.policies}
    for name, place in places.items():
        console.print(f"{name:12}{place}", soft_wrap=True)
