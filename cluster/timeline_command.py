"""`unmask timeline`: the timeline of a run, finished or not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_ORDER = ("generate", "grade", "update", "publish", "sync", "checkpoint", "evaluate", "start", "other")


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(timeline)


def timeline(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, for instance runs/latest.")],
) -> None:
    """Write a run's trace.json for Perfetto or chrome://tracing, and show what each process did."""
    from rich.table import Table

    from cluster.terminal import console
    from cluster.timeline import busy, read_spans, write_trace

    rows = busy(read_spans(run))
    if not rows:
        raise ValueError(
            f"{run} holds no spans; give the folder of a run, with logs/attempt_1/driver.spans.jsonl in it, "
            "for instance runs/latest"
        )
    stages = [stage for stage in _ORDER if any(stage in row.seconds for row in rows)]
    table = Table("process", "spans", "busy", *stages, title="seconds by stage", title_justify="left", box=None)
    for row in rows:
        seconds = [f"{row.seconds[stage]:.2f}" if stage in row.seconds else "" for stage in stages]
        table.add_row(row.process, str(row.num_spans), f"{row.covered:.0%}", *seconds)
    console().print(table)
    console().print(f"{write_trace(run)}: open it with https://ui.perfetto.dev or chrome://tracing", soft_wrap=True)
