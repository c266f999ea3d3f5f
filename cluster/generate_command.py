"""`unmask generate`: a few prompts answered in this process, or the prompts of a file by a pool of workers."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    from cluster.bulk import BulkRun
    from cluster.generate import PromptRow
    from rollout.config import DecodingConfig

logger = logging.getLogger(__name__)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(generate)


def generate(  # noqa: PLR0913 - an argument an option
    context: typer.Context,
    model: Model = "tiny",
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; may be repeated.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", metavar="FILE.jsonl", help="One prompt a line.")] = None,
    sampler: Annotated[str | None, typer.Option("--sampler", metavar="NAME", help="Order of denoising.")] = None,
    options: DecodingOptions = None,
    num_samples: NumSamples = 1,
    max_new_tokens: MaxNewTokens = None,
    block_length: BlockLength = None,
    steps: Steps = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0: the likeliest token.")] = 0.0,
    top_p: TopP = None,
    cache: Cache = None,
    seed: Seed = 0,
    dtype: Dtype = "float32",
    max_batch_tokens: BatchTokens = 16384,
    as_json: Annotated[bool, typer.Option("--json", help="One trajectory a line.")] = False,
    show_order: Annotated[
        bool, typer.Option("--show-order", help="Show the step that committed each token, and its probability.")
    ] = False,
    order_picture: Annotated[
        Path | None, typer.Option("--order-picture", metavar="FILE.png", help="Draw the same as a picture.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE.jsonl", help="Answer on a pool of workers, into this file."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an --out that was not finished.")] = False,
    num_workers: Annotated[int, typer.Option("--num-workers", min=1, help="Workers of the pool.")] = 1,
    cpus_per_worker: CpusPerWorker = 1.0,
    gpus_per_worker: GpusPerWorker = 0.0,
    ray_address: Annotated[
        str,
        typer.Option(
            "--ray-address",
            help="`local` starts Ray here, `auto` or an address joins a cluster, `none` works in this process.",
        ),
    ] = "local",
    timeout_s: Timeout = 3600.0,
) -> None:
    """Answer prompts, with step maps and log-probabilities.

    With --out, a file of prompts is answered by a pool of workers; the file appears when every answer is in it.
    """
    from cluster.generate import prompts_of, read_prompts
    from cluster.terminal import log_to_terminal

    log_to_terminal(logging.WARNING)
    _check(context, prompt, prompts, out)
    _check_order(show_order, order_picture, as_json=as_json, out=out)
    decoding = decoding_of(
        sampler=sampler,
        options=options,
        max_new_tokens=max_new_tokens,
        block_length=block_length,
        steps=steps,
        temperature=temperature,
        top_p=top_p,
        cache=cache,
    )
    if num_samples > 1 and temperature == 0 and decoding.sampler.name != "random":
        logger.warning("at temperature 0 all samples of a prompt are the same; give --temperature 1")
    rows = read_prompts(prompts) if prompts is not None else prompts_of(prompt or [])
    if out is None:
        budget = {"num_samples": num_samples, "seed": seed, "max_batch_tokens": max_batch_tokens}
        order = Order(show_order, order_picture)
        _answer_here(model, dtype, rows, decoding, as_json=as_json, order=order, **budget)
        return
    from cluster.bulk import BulkRun
    from cluster.config import ClusterConfig
    from models.config import ModelConfig
    from rollout.config import RolloutConfig

    pool = RolloutConfig(
        **dict(decoding),
        num_samples=num_samples,
        num_workers=num_workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        max_batch_tokens=max_batch_tokens,
        timeout_s=timeout_s,
    )
    cluster = ClusterConfig(mode="local") if ray_address == "none" else ClusterConfig(address=ray_address)
    run = BulkRun(ModelConfig(path=model, dtype=dtype), pool, seed, cluster)
    _answer_in_bulk(run, rows, out, resume=resume)


def _check(context: typer.Context, prompt: list[str] | None, prompts: Path | None, out: Path | None) -> None:
    if (prompt is None) == (prompts is None):
        raise ValueError("give --prompt TEXT (once or more) or --prompts FILE.jsonl")
    if out is None:
        refuse_pool_options(context, wanted="--out FILE.jsonl", more=("resume", "num_workers"))
    check_folder("--out", out)


def _check_order(show_order: bool, picture: Path | None, *, as_json: bool, out: Path | None) -> None:
    if show_order and as_json:
        raise ValueError("--show-order is for a person to read, and --json has the step_map; leave one out")
    if out is not None and (show_order or picture is not None):
        raise ValueError("--show-order and --order-picture show answers made in this process; leave out --out")
    check_folder("--order-picture", picture)
    if picture is not None and picture.suffix.lower() != ".png":
        raise ValueError(f"--order-picture {picture}: pictures are PNG; give a name that ends in .png")


@dataclass(frozen=True)
class Order:
    """Whether and where the order of denoising is shown."""

    on_terminal: bool
    picture: Path | None


def _answer_here(
    model: str,
    dtype: str,
    rows: Sequence[PromptRow],
    decoding: DecodingConfig,
    *,
    as_json: bool,
    order: Order,
    **settings: int,
) -> None:
    """Answer in this process and print."""
    import torch

    import models
    from cluster.generate import answer
    from cluster.generate import as_json as json_of
    from cluster.report import show_answers
    from cluster.terminal import console

    device = "cuda" if torch.cuda.is_available() else "cpu"
    denoiser = models.load(model, dtype=getattr(torch, dtype), device=device)
    answers = answer(denoiser, rows, decoding, **settings)
    if order.picture is not None:
        from cluster.order_view import order_picture, save_picture

        figure, num_left_out = order_picture(denoiser, rows, answers)
        save_picture(figure, order.picture)
        if num_left_out:
            logger.warning("%s shows the first answers; %d are left out", order.picture, num_left_out)
    if not as_json:
        show_answers(console(), denoiser, rows, answers, show_order=order.on_terminal)
        return
    for trajectory in (trajectory for trajectories in answers for trajectory in trajectories):
        sys.stdout.write(json.dumps(json_of(trajectory), ensure_ascii=False) + "\n")


def _answer_in_bulk(run: BulkRun, rows: Sequence[PromptRow], out: Path, *, resume: bool) -> None:
    """Answer by a pool, showing how far it is."""
    from cluster.bulk import generate_bulk
    from cluster.bulk_progress import bulk_progress
    from cluster.terminal import console, show_error

    try:
        with bulk_progress(len(rows)) as answered:
            summary = generate_bulk(run, rows, out, resume=resume, answered=answered)
    except KeyboardInterrupt:
        show_error("interrupted; the same command with --resume goes on from the answers that are kept")
        raise
    made = f"{summary.num_answers} answers in {summary.seconds:.1f} s" if summary.num_answers else "nothing left to do"
    rate = f", {summary.num_answers / summary.seconds:.1f} a second" if summary.num_answers else ""
    effort = f", {summary.num_forwards / summary.num_answers:.1f} forwards each" if summary.num_answers else ""
    kept = f", {summary.num_kept} prompts kept from before" if summary.num_kept else ""
    lost = f", {summary.num_restarts} workers started anew" if summary.num_restarts else ""
    console(stderr=True).print(f"{out}: {summary.num_prompts} prompts; {made}{rate}{effort}{kept}{lost}")
