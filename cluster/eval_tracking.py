"""An evaluation in MLflow: one run with the table, the numbers and the pictures, and below it a run for each sampler.

The runs of the samplers have their settings as parameters and their numbers as metrics, so the page can put them side
by side. An evaluation is recorded when it is over; a store that does not take it costs a warning, never the numbers.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.eval_pictures import draw
from cluster.eval_rows import Arm
from cluster.metrics import clean_part
from cluster.mlflow_store import MlflowStore, default_uri
from cluster.versions import code_version, library_versions

logger = logging.getLogger(__name__)

EXPERIMENT = "evaluation"


def track(name: str, runs_dir: Path, record: dict[str, Any], arms: Sequence[Arm], table: str) -> str:
    """Record an evaluation under `name` in the store of `runs_dir`; the id of its run, empty if the store failed.

    `record` is what `--json` writes, `table` the printed table.
    """
    uri = default_uri(runs_dir)

    def store(run_name: str) -> MlflowStore:
        root = runs_dir / "evaluation-artifacts"
        return MlflowStore(uri, experiment=EXPERIMENT, run_name=run_name, artifact_root=root, run_id=None)

    parent = store(name)
    try:
        _record_all(parent, record, arms, table)
        for result in record["results"]:
            _record_one(store, parent, result, record, arms)
        parent.end("FINISHED")
    except parent.errors as error:
        logger.warning("the MLflow store %s did not take the evaluation: %s", uri, error)
        return ""
    return parent.run_id or ""


def numbers(result: dict[str, Any]) -> dict[str, float]:
    """Metrics of one result: finite numbers, pass@k as `pass_at_<k>`, bounds as `_low` and `_high`."""
    found: dict[str, Any] = {
        name: result[name]
        for name in (
            "forwards_per_answer",
            "tokens_per_forward",
            "answer_length",
            "capped_rate",
            "empty_rate",
            "entropy",
            "majority",
            "num_rows",
            "num_failed",
        )
    }
    for k, value in result["pass_at"].items():
        low, high = result["pass_at_interval"][k]
        found |= {f"pass_at_{k}": value, f"pass_at_{k}_low": low, f"pass_at_{k}_high": high}
    found |= {f"chain/{name}": value for name, value in result["chain"].items() if not isinstance(value, list)}
    return {name: float(value) for name, value in found.items() if value is not None and math.isfinite(value)}


def _record_all(store: MlflowStore, record: dict[str, Any], arms: Sequence[Arm], table: str) -> None:
    shared = {name: str(record[name]) for name in ("model", "dtype", "seed", "num_samples", "limit")}
    store.open(shared, {"code": code_version(), **library_versions()})
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (Path(folder) / "table.txt").write_text(table, encoding="utf-8")
        draw(arms, Path(folder))
        store.log_artifact(Path(folder), None)
    rows = [
        {
            "task": arm.task,
            "sampler": arm.label,
            "pass@1": arm.pass_at(1)[0],
            "forwards": arm.forwards_per_answer,
            "tokens per forward": arm.tokens_per_forward(),
        }
        for arm in arms
    ]
    store.log_table("samplers", rows)
    store.describe(f"Evaluation of `{record['model']}`, seed {record['seed']}.\n\n```\n{table}\n```")


def _record_one(
    make: Any, parent: MlflowStore, result: dict[str, Any], record: dict[str, Any], arms: Sequence[Arm]
) -> None:
    arm = arms[record["results"].index(result)]
    child: MlflowStore = make(f"{arm.task} {arm.label}")
    options = {f"sampler.{name}": str(value) for name, value in arm.options.items()}
    settings = {name: str(value) for name, value in arm.settings.items()}
    tags = {"mlflow.parentRunId": str(parent.run_id), "task": arm.task, "sampler": arm.label}
    child.open({"task": arm.task, "sampler": arm.sampler, **options, **settings}, tags)
    metrics = {"/".join(map(clean_part, name.split("/"))): value for name, value in numbers(result).items()}
    child.log_metrics(0, int(1000 * time.time()), metrics)
    child.end("FINISHED")
