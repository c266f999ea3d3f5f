"""`unmask eval`: several samplers over the same prompts and seeds. `unmask compare`: results put together."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.decoding_options import (
    BatchTokens,
    BlockLength,
    Cache,
    DecodingOptions,
    Dtype,
    MaxNewTokens,
    Model,
    Seed,
    Steps,
    TopP,
    decoding_of,
)
from cluster.pool_options import (
    CpusPerWorker,
    GpusPerWorker,
    NumSamples,
    Timeout,
    check_folder,
    refuse_pool_options,
)

if TYPE_CHECKING:
    from cluster.config import ClusterConfig
    from cluster.eval_rows import Arm
    from rollout.config import RolloutConfig

Plots = Annotated[
    Path | None,
    typer.Option("--plots", metavar="DIR", help="Draw quality against forwards and pass@k against k here, as PNG."),
]
TestFiles = Annotated[
    list[str] | None,
    typer.Option("--test-file", metavar="[TASK=]FILE", help="Test rows of a task from a file; may be repeated."),
]
DEFAULT_SAMPLER = "confidence"


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("eval")(evaluate)
    app.command()(compare)


def evaluate(  # noqa: PLR0913 - an argument an option
    context: typer.Context,
    task: Annotated[str, typer.Option("--task", metavar="T[,T]", help="Tasks, separated by commas.")],
    model: Model = "tiny",
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler", metavar="NAME[,NAME]", help="Samplers; one with options of its own is threshold:tau=0.8."
        ),
    ] = None,
    options: DecodingOptions = None,
    num_samples: NumSamples = 1,
    k: Annotated[str, typer.Option("--k", metavar="1,4,16", help="Which pass@k; k up to the samples.")] = "1",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Rows per task; all if not given.")] = None,
    test_file: TestFiles = None,
    max_new_tokens: MaxNewTokens = None,
    block_length: BlockLength = None,
    steps: Steps = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", min=0.0, help="0 for one sample, 1 for several, if not given.")
    ] = None,
    top_p: TopP = None,
    cache: Cache = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    max_batch_tokens: BatchTokens = 16384,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the numbers here. Answers are kept beside it until then: the same command goes on from them.",
        ),
    ] = None,
    plots: Plots = None,
    track: Annotated[
        str | None, typer.Option("--track", metavar="NAME", help="Record as NAME in the MLflow store of --runs-dir.")
    ] = None,
    runs_dir: Annotated[Path, typer.Option("--runs-dir", help="Where the runs are.")] = Path("runs"),
    num_workers: Annotated[
        int | None, typer.Option("--num-workers", min=1, help="Workers on Ray; in this process if not given.")
    ] = None,
    cpus_per_worker: CpusPerWorker = 1.0,
    gpus_per_worker: GpusPerWorker = 0.0,
    ray_address: Annotated[
        str, typer.Option("--ray-address", help="`local` starts Ray here, `auto` or an address joins a cluster.")
    ] = "local",
    timeout_s: Timeout = 3600.0,
) -> None:
    """Measure pass@1, pass@k and the cost of answers on held-out rows, with one or several samplers."""
    from cluster.eval_run import EvalRun, labelled, task_configs
    from cluster.report import show_evaluations
    from cluster.terminal import console, log_to_terminal, printed
    from models.config import ModelConfig

    log_to_terminal(logging.WARNING)
    workers, cluster = _workers(
        context,
        num_workers,
        ray_address,
        {"cpus_per_worker": cpus_per_worker, "gpus_per_worker": gpus_per_worker, "timeout_s": timeout_s},
    )
    run = EvalRun(
        model=ModelConfig(path=model, dtype=dtype),
        tasks=task_configs(_split(task), test_file or []),
        k=_whole_numbers("--k", k),
        num_samples=num_samples,
        limit=limit,
        seed=seed,
        max_batch_tokens=max_batch_tokens,
        answers_file=None if json_file is None else json_file.with_suffix(".answers.jsonl"),
        workers=workers,
        cluster=cluster,
    )
    check_folder("--json", json_file)
    check_folder("--plots", plots)
    decodings = [
        decoding_of(
            sampler=name,
            options=[*(options or []), *own],
            max_new_tokens=max_new_tokens,
            block_length=block_length,
            steps=steps,
            temperature=float(num_samples > 1) if temperature is None else temperature,
            top_p=top_p,
            cache=cache,
        )
        for name, own in sampler_specs(sampler or DEFAULT_SAMPLER)
    ]
    results = run.results(decodings)
    show_evaluations(console(), labelled(results))
    record = run.record(results)
    if json_file is not None:
        json_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    run.remove_kept()
    if plots is not None:
        _draw(run.arms(results), plots)
    if track is not None:
        from cluster.eval_tracking import track as record_run

        table = printed(lambda plain: show_evaluations(plain, labelled(results)))
        run_id = record_run(track, runs_dir, record, run.arms(results), table)
        if run_id:
            console(stderr=True).print(f"MLflow run {run_id}; look with: unmask ui --runs-dir {runs_dir}")


def compare(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.json ...", help="Results of `unmask eval --json`.")],
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="NAME", help="Compare with this one; the first if not given.")
    ] = None,
    k: Annotated[str | None, typer.Option("--k", metavar="1,4,16", help="Which pass@k.")] = None,
    plots: Plots = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables for a page.")] = False,
) -> None:
    """Put results of several evaluations side by side: seeds are pooled, samplers compared at equal forwards."""
    from cluster.eval_report import markdown_tables, show_arms
    from cluster.eval_rows import read_arms
    from cluster.terminal import console

    check_folder("--plots", plots)
    arms = read_arms(files)
    sizes = [1] if k is None else _whole_numbers("--k", k)
    if markdown:
        sys.stdout.write(markdown_tables(arms, sizes, baseline=baseline) + "\n")
    else:
        show_arms(console(), arms, sizes, baseline=baseline)
    if plots is not None:
        _draw(arms, plots)


def sampler_specs(text: str) -> list[tuple[str, list[str]]]:
    """`threshold:tau=0.8,imh:alpha=2:candidates=4` as names and `sampler.x=y` entries; a comma in brackets separates
    parts of a value.
    """
    found = []
    for spec in re.split(r",(?![^\[]*\])", text):
        name, *own = (part.strip() for part in spec.split(":"))
        wrong = [part for part in own if "=" not in part]
        if not name or wrong:
            raise ValueError(
                f"--sampler {spec.strip()!r}: write NAME or NAME:option=value:option=value, for instance "
                "threshold:tau=0.8"
            )
        found.append((name, [f"sampler.{part}" for part in own]))
    if len({(name, *own) for name, own in found}) < len(found):
        raise ValueError(f"--sampler {text}: the same sampler stands there twice; leave one out or change its options")
    return found


def _workers(
    context: typer.Context, num_workers: int | None, ray_address: str, settings: Mapping[str, Any]
) -> tuple[RolloutConfig, ClusterConfig | None]:
    from cluster.config import ClusterConfig
    from rollout.config import RolloutConfig

    if num_workers is None:
        refuse_pool_options(context, wanted="--num-workers")
        return RolloutConfig(), None
    return RolloutConfig(num_workers=num_workers, **settings), ClusterConfig(address=ray_address)


def _draw(arms: Sequence[Arm], folder: Path) -> None:
    from cluster.eval_pictures import draw
    from cluster.terminal import console

    for file in draw(arms, folder):
        console(stderr=True).print(str(file))


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",")]


def _whole_numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"{option} {text!r}: write whole numbers separated by commas, for instance 1,4,16") from error
