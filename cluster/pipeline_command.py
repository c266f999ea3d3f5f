"""`unmask pipeline`: supervised fine-tuning, then reinforcement learning, from one recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(pipeline)


def pipeline(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE", help="Both stages, for instance recipes/agdo-pipeline-tiny.yaml."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Change a setting, for instance train.steps=10; may be repeated."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in the stage that was interrupted.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show settings, placement and memory.")] = False,
) -> None:
    """Fine-tune, then train with reinforcement learning from the best checkpoint."""
    import logging

    from cluster.pipeline import load_pipeline, run_pipeline
    from cluster.report import show_sft_summary, show_train_summary
    from cluster.terminal import console, log_to_terminal

    loaded = load_pipeline(recipe, overrides=overrides or [])
    if dry_run:
        from cluster.dry_run import plan, show

        for stage in (loaded.sft, loaded.train):
            console().rule(stage.recipe.name)
            show(plan(stage), console(), source=recipe)
        return
    log_to_terminal(logging.WARNING)
    _, trained = run_pipeline(loaded, resume=resume, told=lambda summary: show_sft_summary(console(), summary))
    show_train_summary(console(), trained)
    if trained.steps_done < loaded.train.recipe.steps:
        raise RuntimeError(f"{trained.steps_done} of {loaded.train.recipe.steps} steps were done; go on with --resume")
