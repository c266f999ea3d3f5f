"""The command line `unmask`. Commands import what they need when they run, so that `--help` answers at once.

Exit status: 0 done; 1 a run broke off; 2 the input was wrong, and the error says what to change; 130 interrupted.
Errors are one screen of text without a traceback; `--debug`, anywhere in the line, shows the traceback.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster import eval_command, generate_command, pipeline_command, policy_command, serve_command, timeline_command
from cluster.decoding_options import Seed

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="unmask",
    help="RL post-training and rollouts for diffusion language models, on Ray.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

RecipeFile = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A YAML file, for instance recipes/quickstart.yaml.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a setting of the recipe; may be repeated.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of this run.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show settings, placement and memory; start nothing.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry of the console script."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    # `--resume` starts from the beginning where there is nothing to resume; some launchers want that spelled out.
    given = ["--resume" if argument == "--resume=auto" else argument for argument in given]
    try:
        app(args=given, prog_name="unmask")
    except (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        _fail(error, debug=debug, status=2)
    except RuntimeError as error:
        _fail(error, debug=debug, status=1)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """RL post-training and rollouts for diffusion language models, on Ray."""
    # `main` takes --debug out wherever it stands in the line; it is declared here for the help text.


@app.command()
def train(recipe: RecipeFile, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False) -> None:
    """Train with reinforcement learning: rollouts, graders, policy updates."""
    from cluster.config import TrainRecipe

    loaded = _load(recipe, TrainRecipe, overrides)
    if dry_run:
        _show_plan(loaded)
        return
    from cluster.consistency import check_settings
    from cluster.report import show_start, show_train_summary
    from cluster.terminal import console, log_to_terminal
    from cluster.train_run import run_train

    log_to_terminal(logging.WARNING)
    for warning in check_settings(loaded):
        logger.warning(warning)
    show_start(console(), loaded.recipe)
    with _resumable():
        summary = run_train(loaded.recipe, resume=resume)
    show_train_summary(console(), summary)
    if summary.steps_done < loaded.recipe.steps:
        raise RuntimeError(f"{summary.steps_done} of {loaded.recipe.steps} steps were done; go on with --resume")


@app.command()
def sft(recipe: RecipeFile, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False) -> None:
    """Fine-tune on solutions or conversations: random, blockwise or attention-guided masks."""
    from cluster.config import SftRecipe

    loaded = _load(recipe, SftRecipe, overrides)
    if dry_run:
        _show_plan(loaded)
        return
    from cluster.preflight import check_all
    from cluster.report import show_sft_summary
    from cluster.sft_run import run_sft
    from cluster.terminal import console, log_to_terminal

    log_to_terminal(logging.WARNING)
    for warning in check_all(loaded):
        logger.warning(warning)
    with _resumable():
        show_sft_summary(console(), run_sft(loaded.recipe, resume=resume))


pipeline_command.register(app)
generate_command.register(app)
policy_command.register(app)
timeline_command.register(app)
serve_command.register(app)
eval_command.register(app)


@app.command()
def grade(
    task: Annotated[str, typer.Option("--task", metavar="T", help="The task that grades.")],
    completions: Annotated[Path, typer.Option("--completions", metavar="FILE.jsonl", help="Texts to grade.")],
    rows: Annotated[Path | None, typer.Option("--rows", metavar="FILE", help="The task's rows from a file.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write verdicts here instead of printing them.")
    ] = None,
) -> None:
    """Grade given texts; one verdict a line."""
    from cluster.grade import grade_file
    from cluster.report import show_verdicts
    from cluster.terminal import console
    from reward.config import TaskConfig

    _check_folder(json_file)
    config = TaskConfig(name=task, test_file=None if rows is None else str(rows))
    verdicts = list(grade_file(config, completions))
    if json_file is None:
        _print_lines(verdicts)
    else:
        json_file.write_text("".join(json.dumps(verdict) + "\n" for verdict in verdicts), encoding="utf-8")
    show_verdicts(console(stderr=True), verdicts)


@app.command("init-model")
def init_model(  # noqa: PLR0913 - an argument an option
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the new model.")],
    tokenizer_from: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer-from",
            metavar="FILE.jsonl",
            help="Texts that the tokenizer is trained on; without them a token is a character, as in the model tiny.",
        ),
    ] = None,
    family: Annotated[str, typer.Option("--family", help="llada, dream or sdar.")] = "llada",
    vocabulary: Annotated[int, typer.Option("--vocabulary", help="Tokens.")] = 2048,
    width: Annotated[int, typer.Option("--width", min=8)] = 128,
    layers: Annotated[int, typer.Option("--layers", min=1)] = 4,
    heads: Annotated[int, typer.Option("--heads", min=1)] = 4,
    window: Annotated[int, typer.Option("--window", min=8, help="Longest prompt plus answer.")] = 512,
    seed: Seed = 0,
) -> None:
    """Make a small untrained model and its tokenizer."""
    from cluster.random_model import Sizes, make
    from cluster.terminal import console
    from models import save

    if (out / "config.json").exists():
        raise ValueError(f"{out} holds a model already; give another folder, or delete it")
    sizes = Sizes(vocabulary=vocabulary, width=width, layers=layers, heads=heads, window=window)
    denoiser = make(tokenizer_from, family=family, sizes=sizes, seed=seed)
    save(denoiser, out)
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    console().print(f"{out}: an untrained {family} model of {count:,} parameters, {denoiser.vocab_size} tokens")


@app.command()
def ui(
    runs_dir: Annotated[Path, typer.Option("--runs-dir", help="Where the runs are.")] = Path("runs"),
    uri: Annotated[str | None, typer.Option("--uri", help="Another MLflow store.")] = None,
    host: Annotated[str, typer.Option("--host", help="Who may connect; the default: this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000,
) -> None:
    """Open the MLflow page on the run store."""
    from cluster.mlflow_store import MLFLOW_ENVIRONMENT, default_uri, ui_command
    from cluster.terminal import console

    if uri is None and not (runs_dir / "mlflow.db").is_file():
        raise ValueError(f"{runs_dir / 'mlflow.db'} is not there: train first, or give --runs-dir or --uri")
    _check_port(host, port)
    # MLflow's front page opens on an empty view for chat applications; this address shows the training runs.
    console().print(f"MLflow page: http://{host}:{port}/#/experiments/1/runs?workflowType=machine_learning")
    console().print("Ctrl-C ends it")
    sys.stdout.flush()
    # The page takes the place of this process, so that whatever ends `unmask ui` ends it too.
    command = ui_command(uri or default_uri(runs_dir), host=host, port=port)
    os.execve(command[0], command, {**MLFLOW_ENVIRONMENT, **os.environ})


@app.command()
def doctor() -> None:
    """Show what works on this host: versions, processors, GPUs, sandboxes for programs."""
    from cluster.doctor import examine

    raise typer.Exit(examine())


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context, name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Run a benchmark of benchmarks/; further options are its own."""
    import importlib

    import benchmarks
    from cluster.errors import nearest

    known = benchmarks.names()
    if name not in known:
        raise ValueError(f"no benchmark is named {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    raise typer.Exit(importlib.import_module(f"benchmarks.{name}").main(context.args) or 0)


def _load(recipe: Path, kind: type, overrides: list[str] | None) -> Any:
    from cluster.recipe import load

    return load(recipe, kind, overrides=overrides or [])


def _show_plan(loaded: Any) -> None:
    from cluster.dry_run import plan, show
    from cluster.terminal import console

    show(plan(loaded), console(), source=loaded.source)


def _check_folder(file: Path | None) -> None:
    """Refuse a result file that could not be written, before the work is done."""
    if file is not None and not file.absolute().parent.is_dir():
        raise ValueError(f"--json {file}: there is no folder {file.absolute().parent}; make it first")


def _check_port(host: str, port: int) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ValueError(f"{host}:{port} cannot be used ({error.strerror}); give another --port") from error


def _print_lines(rows: Iterable[Mapping[str, Any]]) -> None:
    for row in rows:
        print(json.dumps(row, ensure_ascii=False))


@contextmanager
def _resumable() -> Iterator[None]:
    """Says what Ctrl-C leaves behind; the exit status is then 130."""
    from cluster.terminal import show_error

    try:
        yield
    except KeyboardInterrupt:
        show_error("interrupted; the same command with --resume goes on from the newest checkpoint")
        raise


def _fail(error: Exception, *, debug: bool, status: int) -> None:
    if debug:
        raise error
    from cluster.terminal import show_error

    show_error(str(error) or type(error).__name__)
    logger.info("traceback", exc_info=error)
    sys.exit(status)
