"""Options of the command line for a pool of workers, and checks that commands have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

NumSamples = Annotated[int, typer.Option("--num-samples", min=1, help="Answers per prompt.")]
CpusPerWorker = Annotated[float, typer.Option("--cpus-per-worker", min=0.0)]
GpusPerWorker = Annotated[float, typer.Option("--gpus-per-worker", min=0.0)]
Timeout = Annotated[
    float, typer.Option("--timeout", min=1.0, help="Seconds that a worker may take for one batch of prompts.")
]
POOL_OPTIONS = {
    "cpus_per_worker": "--cpus-per-worker",
    "gpus_per_worker": "--gpus-per-worker",
    "ray_address": "--ray-address",
    "timeout_s": "--timeout",
}
"""By the names of the commands' arguments."""


def refuse_pool_options(context: typer.Context, *, wanted: str, more: Sequence[str] = ()) -> None:
    """Refuse options for a pool where there is none; `wanted` is what makes one, `more` are further such arguments."""
    options = {name: f"--{name.replace('_', '-')}" for name in more} | POOL_OPTIONS
    given = [
        option for name, option in options.items() if str(context.get_parameter_source(name)).endswith("COMMANDLINE")
    ]
    if given:
        raise ValueError(f"{' and '.join(given)} is for a pool of workers; give {wanted} too, or leave it out")


def check_folder(option: str, file: Path | None) -> None:
    """Refuse a result that could not be written, before the work is done."""
    if file is not None and not file.absolute().parent.is_dir():
        raise ValueError(f"{option} {file}: there is no folder {file.absolute().parent}; make it first")
