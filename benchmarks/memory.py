"""`unmask bench memory`: the memory that `--dry-run` names for a learner rank against what a rank really takes.

Each case starts its ranks as processes of their own, which load the model, build DeepSpeed and make three supervised
updates whose micro-batches fill the token budget. Measured is the peak of the resident memory of the whole process
(VmHWM, on Linux); estimated is the total of `cluster.memory` for the same recipe. On GPUs the estimate has other parts
(CUDA context, pinned memory), which are not measured here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
from benchmarks.models import llada_config
from cluster.config import SftRecipe
from cluster.dry_run import model_config
from cluster.memory import footprints

TOLERANCE = 0.2
"""By how much the estimate may be off."""
HUNDRED_MILLION = llada_config(width=768, layers=12, heads=12, ffn=2304, vocabulary=8192)
LORA = {"rank": 16, "alpha": 32}


@dataclass(frozen=True)
class Case:
    """One setting of a learner."""

    name: str
    engine: Mapping[str, Any]
    lora: Mapping[str, Any] | None = None
    model: str = "tiny"
    """`tiny`, or `100M` for a random model of 105 million weights."""


_SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "float32, ZeRO 0": ({"zero_stage": 0}, None),
    "float32, ZeRO 1": ({"zero_stage": 1}, None),
    "bfloat16, ZeRO 1": ({"zero_stage": 1, "dtype": "bfloat16"}, None),
    "float32, ZeRO 1, layers computed again": ({"zero_stage": 1, "activation_checkpointing": True}, None),
    "float32, ZeRO 1, LoRA 16": ({"zero_stage": 1}, LORA),
    "bfloat16, ZeRO 2, 2 ranks": ({"zero_stage": 2, "dtype": "bfloat16", "num_ranks": 2}, None),
    "bfloat16, ZeRO 3, 2 ranks": ({"zero_stage": 3, "dtype": "bfloat16", "num_ranks": 2}, None),
    "bfloat16, ZeRO 3, offload, 2 ranks": (
        {"zero_stage": 3, "dtype": "bfloat16", "num_ranks": 2, "offload": "parameters"},
        None,
    ),
}
TOKENS = {"tiny": 4096, "100M": 512}
"""Token budget of a micro-batch."""


def cases(model: str) -> list[Case]:
    """Every setting for one model; what has no full head keeps the activations by choice, not by free memory."""
    return [
        Case(
            name,
            {"micro_batch_tokens": TOKENS[model], "activation_checkpointing": False, **engine},
            lora,
            model,
        )
        for name, (engine, lora) in _SETTINGS.items()
    ]


def recipe_of(case: Case, model_path: str) -> SftRecipe:
    """The recipe whose learner is measured."""
    return SftRecipe.model_validate(
        {
            "tasks": [{"name": "arithmetic"}],
            "model": {"path": model_path, "lora": case.lora},
            "learner": {"engine": dict(case.engine)},
            "cluster": {"mode": "local"},
        }
    )


def estimated(recipe: SftRecipe) -> int:
    """Bytes of one learner rank, as `--dry-run` shows them."""
    config = model_config(recipe.model.path)
    assert config is not None
    return next(process.total for process in footprints(recipe, config) if process.who == "learner rank")


def measured(recipe: SftRecipe, *, timeout_s: float = 1200) -> int:
    """Largest peak of the ranks' resident memory in bytes."""
    from learner.worker import free_port

    num_ranks, port = recipe.learner.engine.num_ranks, str(free_port())
    command = [sys.executable, "-m", "benchmarks.memory_rank", recipe.model_dump_json(), port]
    root = Path(__file__).parents[1]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)
        for rank in range(num_ranks)
    ]
    try:
        outputs = [rank.communicate(timeout=timeout_s) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (_, errors) in zip(ranks, outputs, strict=True):
        if rank.returncode:
            raise RuntimeError(f"a rank ended with status {rank.returncode}:\n{errors[-2000:]}")
    return max(int(json.loads(output.splitlines()[-1])["peak"]) for output, _ in outputs)


def main(arguments: Sequence[str] = ()) -> int:
    """Command line: a table of estimate and measurement; status 1 if one is off by more than 20 %."""
    parser = argparse.ArgumentParser(prog="unmask bench memory")
    parser.add_argument("--models", default="tiny,100M", help="tiny, 100M or both")
    given = parser.parse_args(list(arguments))
    print("| model | setting | estimated | measured | estimated / measured |\n|---|---|---|---|---|")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for case in [case for model in given.models.split(",") for case in cases(model)]:
            recipe = recipe_of(case, model_folder(case.model, Path(folder)))
            expected, found = estimated(recipe), measured(recipe)
            worst = max(worst, abs(expected / found - 1))
            sizes = f"{expected / 1e6:.0f} MB | {found / 1e6:.0f} MB | {expected / found:.2f}"
            print(f"| {case.model} | {case.name} | {sizes} |", flush=True)
    print(f"largest deviation {worst:.0%}")
    return int(worst > TOLERANCE)


def model_folder(model: str, folder: Path) -> str:
    """`tiny`, or the random model, made when it is first asked for."""
    if model == "tiny":
        return "tiny"
    path = folder / "hundred-million"
    if not path.exists():
        models.save(models.create(HUNDRED_MILLION, seed=0), path)
    return str(path)
